//! Reliable-connected queue pairs: from RESET to RTS, to ERR, and back.

use std::fmt;
use std::ptr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdma_sys as sys;
use rdma_sys::{ibv_qp_attr_mask as mask, ibv_qp_state as of};

use super::completion::{CompletionQueue, Queue};
use super::device::{Device, Opened};
use super::error::{VerbError, last_errno};
use super::port::{Attachment, Gid, LinkLayer, Mtu};

/// How long [`QueuePair::reset`] waits for the NIC at most.
const RESET_WITHIN: Duration = Duration::from_secs(2);

/// What a queue pair has room for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Capacities {
    /// Writes and reads that have not ended, or whose end has not been polled.
    pub sends: u32,
    /// Receives that are posted, or whose end has not been polled.
    pub receives: u32,
    /// Pieces of memory of one write or read.
    pub pieces: u32,
    /// Bytes that a write can have in itself.
    pub inline_bytes: u32,
}

/// What a queue pair may do next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum State {
    /// New, or reset: takes nothing.
    Reset,
    /// Takes receives.
    Init,
    /// Receives.
    ReadyToReceive,
    /// Receives and sends.
    ReadyToSend,
    /// Ends what it has, and sends nothing.
    SendQueueDrained,
    /// A send failed.
    SendQueueError,
    /// All that is or will be posted is flushed.
    Error,
    /// A state of this number.
    Unknown(u32),
}

impl From<u32> for State {
    fn from(code: u32) -> Self {
        match code {
            of::IBV_QPS_RESET => Self::Reset,
            of::IBV_QPS_INIT => Self::Init,
            of::IBV_QPS_RTR => Self::ReadyToReceive,
            of::IBV_QPS_RTS => Self::ReadyToSend,
            of::IBV_QPS_SQD => Self::SendQueueDrained,
            of::IBV_QPS_SQE => Self::SendQueueError,
            of::IBV_QPS_ERR => Self::Error,
            _ => Self::Unknown(code),
        }
    }
}

/// By what a peer's queue pair is found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Address {
    /// The queue pair's number, 24 bits.
    pub number: u32,
    /// The number of its first packet, 24 bits.
    pub first_packet: u32,
    /// Where it is attached.
    pub gid: Gid,
    /// As above, in an InfiniBand subnet; 0 with RoCE.
    pub lid: u16,
    /// The most that one of its port's packets carries: both ends take the smaller.
    pub mtu: Mtu,
}

/// How long a queue pair tries.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Timing {
    timeout: u8,
    retries: u8,
    not_ready_retries: u8,
}

impl Default for Timing {
    /// A peer that does not answer is found within about a second: 7 times 134 ms.
    fn default() -> Self {
        Self::new(15, 6, 6)
    }
}

impl Timing {
    /// Waits 4.096 µs × 2^`timeout` for an answer (NICs take up to four times as long), and asks `retries` times more; a peer without a posted receive is
    /// asked `not_ready_retries` times more.
    ///
    /// # Panics
    /// When either number of retries is more than 6: 7 is for ever. When `timeout` is 0, which is for ever, too, or more than 31.
    pub fn new(timeout: u8, retries: u8, not_ready_retries: u8) -> Self {
        assert!((1..=31).contains(&timeout), "a timeout of {timeout} is for ever, or none");
        assert!(retries <= 6 && not_ready_retries <= 6, "7 retries are for ever");
        Self { timeout, retries, not_ready_retries }
    }
}

/// One end of a reliable connection.
pub struct QueuePair {
    device: Arc<Opened>,
    raw: *mut sys::ibv_qp,
    attachment: Attachment,
    capacities: Capacities,
    first_packet: u32,
    _queues: [Arc<Queue>; 2],
}

// SAFETY: the verbs may be called from any thread with the same queue pair.
unsafe impl Send for QueuePair {}
// SAFETY: as above; what is not the verbs' is changed through `&mut` alone.
unsafe impl Sync for QueuePair {}

impl fmt::Debug for QueuePair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueuePair")
            .field("device", &self.device.name)
            .field("number", &self.number())
            .finish_non_exhaustive()
    }
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        // SAFETY: it came from ibv_create_qp. Its events are acknowledged as they are taken, and those that were not are thrown away with it.
        unsafe { (self.device.functions().ibv_destroy_qp)(self.raw) };
    }
}

impl QueuePair {
    /// A queue pair, in RESET. It may get more than it asks for; `inline_bytes` may be refused, and is then what the NIC has.
    ///
    /// # Errors
    /// `EINVAL` when the device has no room for so much, `ENOMEM` when it has none for another one.
    ///
    /// # Panics
    /// When the completion queues are another device's.
    pub fn create(
        device: &Device,
        attachment: Attachment,
        sends: &CompletionQueue,
        receives: &CompletionQueue,
        capacities: Capacities,
    ) -> Result<Self, VerbError> {
        let opened = Arc::clone(&device.0);
        for queue in [sends, receives] {
            // SAFETY: the queue lives.
            let context = unsafe { (*queue.0.raw).context };
            assert!(
                ptr::eq(context, opened.context),
                "a queue pair and its completion queues are of one device"
            );
        }
        // No NIC has all sizes: what is left out when it refuses is the inline size, step by step.
        let mut inline_bytes = capacities.inline_bytes;
        let (raw, granted) = loop {
            // SAFETY: the structure is numbers and pointers, for which zero is a value.
            let mut wanted: sys::ibv_qp_init_attr = unsafe { std::mem::zeroed() };
            wanted.send_cq = sends.0.raw;
            wanted.recv_cq = receives.0.raw;
            wanted.qp_type = sys::ibv_qp_type::IBV_QPT_RC;
            wanted.cap = sys::ibv_qp_cap {
                max_send_wr: capacities.sends,
                max_recv_wr: capacities.receives,
                max_send_sge: capacities.pieces,
                max_recv_sge: 1,
                max_inline_data: inline_bytes,
            };
            // SAFETY: domain and completion queues live as long as the queue pair, which keeps them.
            let raw = unsafe { (opened.functions().ibv_create_qp)(opened.domain, &raw mut wanted) };
            if !raw.is_null() {
                break (raw, wanted.cap);
            }
            let errno = last_errno();
            if errno != libc::EINVAL || inline_bytes == 0 {
                return Err(opened.failed("ibv_create_qp", errno));
            }
            inline_bytes /= 2;
        };
        let capacities = Capacities {
            sends: granted.max_send_wr,
            receives: granted.max_recv_wr,
            pieces: granted.max_send_sge,
            inline_bytes: granted.max_inline_data,
        };
        let queues = [Arc::clone(&sends.0), Arc::clone(&receives.0)];
        Ok(Self {
            device: opened,
            raw,
            attachment,
            capacities,
            first_packet: any_packet_number(),
            _queues: queues,
        })
    }

    pub(super) fn raw(&self) -> *mut sys::ibv_qp {
        self.raw
    }

    pub(super) fn device(&self) -> &Opened {
        &self.device
    }

    /// Its number, which completions and events name.
    pub fn number(&self) -> u32 {
        // SAFETY: the queue pair lives.
        unsafe { (*self.raw).qp_num }
    }

    /// What it got.
    pub fn capacities(&self) -> Capacities {
        self.capacities
    }

    /// What the peer's end connects to. It is another one after each [`reset`](Self::reset).
    pub fn address(&self) -> Address {
        let Attachment { gid, lid, mtu, .. } = self.attachment;
        Address { number: self.number(), first_packet: self.first_packet, gid, lid, mtu }
    }

    /// Takes it from RESET to RTS, connected to `peer`, whose end must be connected to this one, too; receives may be posted before the peer's is, and none is
    /// posted when this returns. Peers may write and read what they have keys of.
    ///
    /// # Errors
    /// `EINVAL` when it is not in RESET, or no way leads to the peer's address.
    pub fn connect(&self, peer: &Address, timing: Timing) -> Result<(), VerbError> {
        self.initialize()?;
        self.ready(peer, timing)
    }

    /// From RESET to INIT, in which receives may be posted: the first half of [`connect`](Self::connect), for those who want receives to be there
    /// before the peer can write.
    ///
    /// # Errors
    /// `EINVAL` when it is not in RESET.
    pub fn initialize(&self) -> Result<(), VerbError> {
        let mut attributes = blank();
        attributes.qp_state = of::IBV_QPS_INIT;
        attributes.port_num = self.attachment.port;
        attributes.qp_access_flags = (sys::ibv_access_flags::IBV_ACCESS_REMOTE_WRITE
            | sys::ibv_access_flags::IBV_ACCESS_REMOTE_READ)
            .0;
        self.modify(attributes, mask::IBV_QP_PKEY_INDEX | mask::IBV_QP_PORT | mask::IBV_QP_ACCESS_FLAGS)
    }

    /// From INIT to RTS: the second half of [`connect`](Self::connect).
    ///
    /// # Errors
    /// `EINVAL` when it is not in INIT, or no way leads to the peer's address.
    pub fn ready(&self, peer: &Address, timing: Timing) -> Result<(), VerbError> {
        let mut attributes = blank();
        attributes.qp_state = of::IBV_QPS_RTR;
        attributes.path_mtu = peer.mtu.min(self.attachment.mtu).code();
        attributes.dest_qp_num = peer.number;
        attributes.rq_psn = peer.first_packet;
        attributes.max_dest_rd_atomic = 4;
        // 0.64 ms: how long the peer waits when it finds no receive posted.
        attributes.min_rnr_timer = 12;
        attributes.ah_attr.port_num = self.attachment.port;
        attributes.ah_attr.dlid = peer.lid;
        if self.attachment.link != LinkLayer::InfiniBand || peer.lid == 0 {
            attributes.ah_attr.is_global = 1;
            attributes.ah_attr.grh.dgid = sys::ibv_gid { raw: peer.gid.0 };
            attributes.ah_attr.grh.sgid_index = self.attachment.gid_index;
            attributes.ah_attr.grh.hop_limit = 64;
        }
        self.modify(
            attributes,
            mask::IBV_QP_AV
                | mask::IBV_QP_PATH_MTU
                | mask::IBV_QP_DEST_QPN
                | mask::IBV_QP_RQ_PSN
                | mask::IBV_QP_MAX_DEST_RD_ATOMIC
                | mask::IBV_QP_MIN_RNR_TIMER,
        )?;
        let mut attributes = blank();
        attributes.qp_state = of::IBV_QPS_RTS;
        attributes.timeout = timing.timeout;
        attributes.retry_cnt = timing.retries;
        attributes.rnr_retry = timing.not_ready_retries;
        attributes.sq_psn = self.first_packet;
        attributes.max_rd_atomic = 4;
        self.modify(
            attributes,
            mask::IBV_QP_TIMEOUT
                | mask::IBV_QP_RETRY_CNT
                | mask::IBV_QP_RNR_RETRY
                | mask::IBV_QP_SQ_PSN
                | mask::IBV_QP_MAX_QP_RD_ATOMIC,
        )
    }

    /// Stops it: what is posted is flushed, which completions tell, and no packet of the peer's that comes later is taken. One that was being taken may still
    /// be written into memory of this end: what must not be written any more is safe after [`reset`](Self::reset), or when its region is
    /// [deregistered](super::MemoryRegion::deregister).
    ///
    /// # Errors
    /// When the device has been removed.
    pub fn to_error(&self) -> Result<(), VerbError> {
        let mut attributes = blank();
        attributes.qp_state = of::IBV_QPS_ERR;
        self.modify(attributes, mask(0))
    }

    /// What it may do now, as the device says it.
    ///
    /// # Errors
    /// When the device has been removed.
    pub fn state(&self) -> Result<State, VerbError> {
        let mut attributes = blank();
        // SAFETY: the structure is numbers and pointers, for which zero is a value.
        let mut initial: sys::ibv_qp_init_attr = unsafe { std::mem::zeroed() };
        let asked = mask::IBV_QP_STATE.0 as i32;
        // SAFETY: the queue pair lives, and both structures are written before the call returns.
        let code = unsafe {
            (self.device.functions().ibv_query_qp)(self.raw, &raw mut attributes, asked, &raw mut initial)
        };
        self.device.checked("ibv_query_qp", code)?;
        Ok(State::from(attributes.qp_state))
    }

    /// Takes it from any state to RESET, under a new number of its first packet: all that was posted is gone, and what had ended is told no more unless it
    /// was polled. The number of the queue pair stays.
    ///
    /// A completion with an error may come before the device has taken the queue pair to the error state, and a reset in between is undone by that. So
    /// this takes it to the error state first, and afterwards looks whether it *is* in RESET.
    ///
    /// # Errors
    /// `ETIMEDOUT` when the device has not done so within two seconds; another when it has been removed.
    pub fn reset(&mut self) -> Result<(), VerbError> {
        let deadline = Instant::now() + RESET_WITHIN;
        if self.state()? != State::Reset {
            self.to_error()?;
            self.until(State::Error, deadline)?;
        }
        loop {
            let mut attributes = blank();
            attributes.qp_state = of::IBV_QPS_RESET;
            self.modify(attributes, mask(0))?;
            if self.state()? == State::Reset {
                break;
            }
            if Instant::now() > deadline {
                return Err(self.device.failed("ibv_modify_qp", libc::ETIMEDOUT));
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        self.first_packet = any_packet_number();
        Ok(())
    }

    fn until(&self, wanted: State, deadline: Instant) -> Result<(), VerbError> {
        while self.state()? != wanted {
            if Instant::now() > deadline {
                return Err(self.device.failed("ibv_query_qp", libc::ETIMEDOUT));
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        Ok(())
    }

    fn modify(&self, mut attributes: sys::ibv_qp_attr, what: mask) -> Result<(), VerbError> {
        let what = (what | mask::IBV_QP_STATE).0 as i32;
        // SAFETY: the queue pair lives, and the structure is read before the call returns.
        let code = unsafe { (self.device.functions().ibv_modify_qp)(self.raw, &raw mut attributes, what) };
        self.device.checked("ibv_modify_qp", code)
    }
}

fn blank() -> sys::ibv_qp_attr {
    // SAFETY: the structure is plain numbers, for which zero is a value.
    unsafe { std::mem::zeroed() }
}

/// 24 bits that an earlier connection of the same queue pair did not have, so that a late packet of that one is not taken for one of this.
fn any_packet_number() -> u32 {
    let mut bytes = [0; 4];
    // Without randomness the time will do: it is no secret.
    if rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::NONBLOCK).is_err() {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        bytes = now.subsec_nanos().to_ne_bytes();
    }
    u32::from_ne_bytes(bytes) & 0xff_ffff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "for ever")]
    fn retries_end() {
        let _ = Timing::new(14, 7, 0);
    }

    #[test]
    #[should_panic(expected = "for ever")]
    fn a_peer_without_receives_is_not_asked_for_ever() {
        let _ = Timing::new(14, 3, 7);
    }

    #[test]
    fn states_are_decoded() {
        let states = [State::Reset, State::Init, State::ReadyToReceive, State::ReadyToSend];
        assert_eq!([0, 1, 2, 3].map(State::from), states);
        assert_eq!((State::from(6), State::from(42)), (State::Error, State::Unknown(42)));
        assert!(any_packet_number() <= 0xff_ffff);
    }
}
