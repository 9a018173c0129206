//! What the NIC says of work that has ended, and how to wait for it without spinning.

use std::fmt;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::ptr;
use std::sync::Arc;

use rdma_sys as sys;
use rdma_sys::ibv_wc_status as of;

use super::device::{Device, Opened, set_non_blocking};
use super::error::{VerbError, last_errno};

/// How many completions one call takes at most.
const BATCH: usize = 32;

macro_rules! statuses {
    ($($(#[$doc:meta])* $name:ident = $code:ident, $text:literal;)*) => {
        /// Why work ended without success, as the NIC says it. It says what happened, never who is to blame: a peer that died and one whose
        /// memory moved look alike.
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        #[non_exhaustive]
        pub enum Status {
            $($(#[$doc])* $name,)*
            /// A status of this number, which this version does not know.
            Unknown(u32),
        }

        impl Status {
            fn from_code(code: u32) -> Self {
                match code {
                    $(of::$code => Self::$name,)*
                    _ => Self::Unknown(code),
                }
            }
        }

        impl fmt::Display for Status {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$name => f.write_str(concat!($text, " (", stringify!($code), ")")),)*
                    Self::Unknown(code) => write!(f, "an error of number {code}, which this version does not know"),
                }
            }
        }
    };
}

statuses! {
    /// The work is longer than the queue pair or the peer's receive takes.
    LocalLength = IBV_WC_LOC_LEN_ERR, "the request is longer than this end or the receive permits";
    /// The queue pair found its own work wrong.
    LocalQueuePair = IBV_WC_LOC_QP_OP_ERR, "this end's queue pair found an inconsistency in its own work";
    /// As above, for end-to-end contexts.
    LocalEndToEndContext = IBV_WC_LOC_EEC_OP_ERR, "this end's end-to-end context found an inconsistency";
    /// A local key does not hold.
    LocalProtection = IBV_WC_LOC_PROT_ERR, "a local key does not hold for the memory it was used with";
    /// The queue pair was in error before the work began, or while it waited.
    Flushed = IBV_WC_WR_FLUSH_ERR, "it was thrown away because the queue pair is in error; the first error says why";
    /// A memory window was not bound.
    WindowBind = IBV_WC_MW_BIND_ERR, "a memory window was not bound";
    /// The peer answered what it cannot.
    BadResponse = IBV_WC_BAD_RESP_ERR, "the peer's answer was not one that this work can have";
    /// Data came for memory that may not be written.
    LocalAccess = IBV_WC_LOC_ACCESS_ERR, "this end's memory may not be reached in this way";
    /// The peer cannot take the work.
    RemoteInvalidRequest = IBV_WC_REM_INV_REQ_ERR, "the peer's queue pair does not take such work: its size, its kind, or no room";
    /// A remote key does not hold: wrong, deregistered, or its memory revoked or moved.
    RemoteAccess = IBV_WC_REM_ACCESS_ERR, "the remote key does not hold, or no longer";
    /// The peer could not do it.
    RemoteOperation = IBV_WC_REM_OP_ERR, "the peer could not complete it for a reason of its own";
    /// The peer does not answer.
    RetryExceeded = IBV_WC_RETRY_EXC_ERR, "the peer's NIC did not answer in time: it is gone, its queue pair is reset, or the way is broken";
    /// The peer has posted no receive.
    ReceiverNotReady = IBV_WC_RNR_RETRY_EXC_ERR, "the peer had no receive posted for it";
    /// A violation of reliable datagrams.
    ReliableDatagramDomain = IBV_WC_LOC_RDD_VIOL_ERR, "reliable datagram domains differ";
    /// As above.
    RemoteInvalidReadRequest = IBV_WC_REM_INV_RD_REQ_ERR, "the peer found a reliable datagram wrong";
    /// The peer aborted it.
    RemoteAborted = IBV_WC_REM_ABORT_ERR, "the peer aborted it";
    /// An end-to-end context is unknown.
    InvalidEndToEndContext = IBV_WC_INV_EECN_ERR, "the end-to-end context is not known";
    /// An end-to-end context is in the wrong state.
    EndToEndContextState = IBV_WC_INV_EEC_STATE_ERR, "the end-to-end context is in the wrong state";
    /// The device is broken.
    Fatal = IBV_WC_FATAL_ERR, "the NIC is broken, or has been removed";
    /// No answer came.
    ResponseTimeout = IBV_WC_RESP_TIMEOUT_ERR, "no answer came in time";
    /// Of the driver's own making.
    General = IBV_WC_GENERAL_ERR, "the NIC reports an error of its own";
    /// Tag matching failed.
    TagMatching = IBV_WC_TM_ERR, "tag matching failed";
    /// Tag matching met a message that does not fit.
    TagMatchingIncomplete = IBV_WC_TM_RNDV_INCOMPLETE, "a tagged rendezvous was not completed";
}

/// Work that failed. Of such a completion nothing else is defined: neither what kind of work it was nor how many bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{status}{}", if *vendor == 0 { String::new() } else { format!(" [vendor's code {vendor:#x}]") })]
pub struct Failure {
    /// Why.
    pub status: Status,
    /// The NIC's own code, for its vendor.
    pub vendor: u32,
}

/// Work that was done.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Kind {
    /// A write of this end's: its memory may be used again, and the peer's NIC has it.
    Write,
    /// A read of this end's: its memory holds the bytes.
    Read,
    /// A receive was used up by a peer's write.
    Receive {
        /// What the peer sent along.
        immediate: Option<u32>,
        /// How many bytes it wrote.
        bytes: u32,
    },
    /// A kind of work that is not posted here, by its number in `ibv_wc_opcode`.
    Foreign(u32),
}

/// A piece of work has ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Completion {
    /// As it was posted.
    pub id: u64,
    /// The number of the queue pair it was posted to.
    pub queue_pair: u32,
    /// How it ended.
    pub outcome: Result<Kind, Failure>,
}

impl Completion {
    fn decode(wc: &sys::ibv_wc) -> Self {
        use sys::ibv_wc_opcode as op;
        let outcome = if wc.status == of::IBV_WC_SUCCESS {
            Ok(match wc.opcode {
                op::IBV_WC_RDMA_WRITE => Kind::Write,
                op::IBV_WC_RDMA_READ => Kind::Read,
                op::IBV_WC_RECV | op::IBV_WC_RECV_RDMA_WITH_IMM => {
                    let has = wc.wc_flags & sys::ibv_wc_flags::IBV_WC_WITH_IMM.0 != 0;
                    // SAFETY: both fields of the union are the same four bytes; the flag says that they are the immediate, in network order.
                    let immediate =
                        has.then(|| u32::from_be(unsafe { wc.imm_data_invalidated_rkey_union.imm_data }));
                    Kind::Receive { immediate, bytes: wc.byte_len }
                }
                other => Kind::Foreign(other),
            })
        } else {
            Err(Failure { status: Status::from_code(wc.status), vendor: wc.vendor_err })
        };
        Self { id: wc.wr_id, queue_pair: wc.qp_num, outcome }
    }
}

pub(super) struct Channel {
    device: Arc<Opened>,
    raw: *mut sys::ibv_comp_channel,
}

// SAFETY: the verbs may be called from any thread with the same channel.
unsafe impl Send for Channel {}
// SAFETY: as above.
unsafe impl Sync for Channel {}

impl Drop for Channel {
    fn drop(&mut self) {
        // SAFETY: it came from ibv_create_comp_channel; its completion queues held an Arc of it and are gone.
        unsafe { (self.device.functions().ibv_destroy_comp_channel)(self.raw) };
    }
}

/// Tells that armed completion queues have something. A clone is the same one.
#[derive(Clone)]
pub struct CompletionChannel(Arc<Channel>);

impl fmt::Debug for CompletionChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompletionChannel").field("device", &self.0.device.name).finish_non_exhaustive()
    }
}

impl CompletionChannel {
    /// A channel for completion queues of this device. Its descriptor does not block.
    ///
    /// # Errors
    /// When descriptors have run out.
    pub fn create(device: &Device) -> Result<Self, VerbError> {
        let opened = Arc::clone(&device.0);
        // SAFETY: the context is open.
        let raw = unsafe { (opened.functions().ibv_create_comp_channel)(opened.context) };
        if raw.is_null() {
            return Err(opened.failed("ibv_create_comp_channel", last_errno()));
        }
        let channel = Self(Arc::new(Channel { device: opened, raw }));
        set_non_blocking(channel.descriptor()).map_err(|errno| channel.0.device.failed("fcntl", errno))?;
        Ok(channel)
    }

    /// Readable when an armed completion queue has something.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel lives as long as `self`, and with it its descriptor.
        unsafe { BorrowedFd::borrow_raw((*self.0.raw).fd) }
    }

    /// Takes and acknowledges what has been told; how many notices. Whoever was told polls, and arms its queue anew. Never blocks.
    ///
    /// # Errors
    /// When the device has been removed.
    pub fn take(&self) -> Result<u32, VerbError> {
        let functions = self.0.device.functions();
        let mut taken = 0;
        loop {
            let (mut queue, mut context) = (ptr::null_mut(), ptr::null_mut());
            // SAFETY: the channel lives; both are written when the call returns 0. The descriptor does not block.
            if unsafe { (functions.ibv_get_cq_event)(self.0.raw, &raw mut queue, &raw mut context) } != 0 {
                return match last_errno() {
                    libc::EAGAIN | libc::EINTR => Ok(taken),
                    errno => Err(self.0.device.failed("ibv_get_cq_event", errno)),
                };
            }
            // SAFETY: the queue is not destroyed before its event is acknowledged, which is here, once.
            unsafe { (functions.ibv_ack_cq_events)(queue, 1) };
            taken += 1;
        }
    }
}

pub(super) struct Queue {
    device: Arc<Opened>,
    pub(super) raw: *mut sys::ibv_cq,
    _channel: Option<Arc<Channel>>,
}

// SAFETY: the verbs may be called from any thread with the same completion queue.
unsafe impl Send for Queue {}
// SAFETY: as above.
unsafe impl Sync for Queue {}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: it came from ibv_create_cq; its queue pairs held an Arc of it and are gone. Its events are acknowledged as they are taken.
        unsafe { (self.device.functions().ibv_destroy_cq)(self.raw) };
    }
}

/// Where ended work is told. A clone is the same one.
#[derive(Clone)]
pub struct CompletionQueue(pub(super) Arc<Queue>);

impl fmt::Debug for CompletionQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompletionQueue").field("device", &self.0.device.name).finish_non_exhaustive()
    }
}

impl CompletionQueue {
    /// A queue with room for at least `entries` completions, told of through `channel` when it is armed. Whoever posts makes sure that no more than that
    /// can wait: a queue that overflows is broken, and its queue pairs with it.
    ///
    /// # Errors
    /// `EINVAL` when the device has none so large.
    pub fn create(
        device: &Device,
        entries: u32,
        channel: Option<&CompletionChannel>,
    ) -> Result<Self, VerbError> {
        let opened = Arc::clone(&device.0);
        let failed = |errno| opened.failed("ibv_create_cq", errno);
        let entries = i32::try_from(entries).map_err(|_| failed(libc::EINVAL))?;
        assert!(
            channel.is_none_or(|c| ptr::eq(c.0.device.context, opened.context)),
            "a completion queue and its channel are of one device"
        );
        let raw_channel = channel.map_or(ptr::null_mut(), |c| c.0.raw);
        // SAFETY: context and channel live as long as the queue, which keeps them.
        let raw = unsafe {
            (opened.functions().ibv_create_cq)(opened.context, entries, ptr::null_mut(), raw_channel, 0)
        };
        if raw.is_null() {
            return Err(failed(last_errno()));
        }
        Ok(Self(Arc::new(Queue {
            device: Arc::clone(&opened),
            raw,
            _channel: channel.map(|c| Arc::clone(&c.0)),
        })))
    }

    /// Appends completions that are there to `completions`, up to 32 of them; how many. Never blocks.
    ///
    /// # Errors
    /// When the queue has overflowed, or the device was removed.
    pub fn poll(&self, completions: &mut Vec<Completion>) -> Result<usize, VerbError> {
        let mut batch = [const { MaybeUninit::<sys::ibv_wc>::uninit() }; BATCH];
        // SAFETY: the queue lives, and the array has room for as many completions as are asked for.
        let count = unsafe { sys::ibv_poll_cq(self.0.raw, BATCH as i32, batch.as_mut_ptr().cast()) };
        let count =
            usize::try_from(count).map_err(|_| self.0.device.failed("ibv_poll_cq", libc::EOVERFLOW))?;
        for wc in &batch[..count] {
            // SAFETY: so many were written.
            completions.push(Completion::decode(unsafe { wc.assume_init_ref() }));
        }
        Ok(count)
    }

    /// Asks the channel to tell of the next completion, once. What came before is not told: poll again after arming and before sleeping.
    ///
    /// # Errors
    /// When the device has been removed.
    pub fn arm(&self) -> Result<(), VerbError> {
        // SAFETY: the queue lives.
        let code = unsafe { sys::ibv_req_notify_cq(self.0.raw, 0) };
        self.0.device.checked("ibv_req_notify_cq", code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wc() -> sys::ibv_wc {
        // SAFETY: a completion is plain numbers, for which zero is a value.
        unsafe { std::mem::zeroed() }
    }

    #[test]
    fn statuses_are_decoded_and_explained() {
        let mut seen = Vec::new();
        for code in 1..=23 {
            let status = Status::from_code(code);
            assert_ne!(status, Status::Unknown(code), "{code}");
            let text = status.to_string();
            assert!(text.contains("IBV_WC_"), "{text}");
            assert!(!seen.contains(&text), "{text} is told twice");
            seen.push(text);
        }
        assert_eq!(Status::from_code(10), Status::RemoteAccess);
        assert_eq!(Status::from_code(5), Status::Flushed);
        assert_eq!(Status::from_code(12), Status::RetryExceeded);
        assert_eq!(Status::from_code(99), Status::Unknown(99));
    }

    #[test]
    fn of_a_failure_nothing_but_the_status_is_read() {
        // What a NIC leaves in the other fields is anything.
        let failed = sys::ibv_wc {
            wr_id: 7,
            status: 10,
            opcode: 129,
            byte_len: 99,
            vendor_err: 0x81,
            qp_num: 3,
            ..wc()
        };
        let failure = Failure { status: Status::RemoteAccess, vendor: 0x81 };
        assert_eq!(Completion::decode(&failed), Completion { id: 7, queue_pair: 3, outcome: Err(failure) });
        assert!(failure.to_string().contains("0x81"));
    }

    #[test]
    fn immediates_are_in_network_order() {
        let imm_data_invalidated_rkey_union =
            sys::imm_data_invalidated_rkey_union_t { imm_data: 0x0102_0304_u32.to_be() };
        let received =
            sys::ibv_wc { opcode: 129, byte_len: 64, wc_flags: 2, imm_data_invalidated_rkey_union, ..wc() };
        let kind = |wc: &sys::ibv_wc| Completion::decode(wc).outcome.unwrap();
        assert_eq!(kind(&received), Kind::Receive { immediate: Some(0x0102_0304), bytes: 64 });
        assert_eq!(
            kind(&sys::ibv_wc { wc_flags: 0, ..received }),
            Kind::Receive { immediate: None, bytes: 64 }
        );
        assert_eq!(kind(&sys::ibv_wc { opcode: 1, ..wc() }), Kind::Write);
        assert_eq!(kind(&sys::ibv_wc { opcode: 2, ..wc() }), Kind::Read);
        assert_eq!(kind(&sys::ibv_wc { opcode: 3, ..wc() }), Kind::Foreign(3));
    }
}
