//! Work requests, and how several of them reach the NIC by one call.

use std::mem::MaybeUninit;
use std::ptr;

use rdma_sys as sys;
use rdma_sys::ibv_send_flags as flag;

use super::error::PostError;
use super::queue_pair::QueuePair;

/// How many requests one list has; more are posted by several.
const BATCH: usize = 16;

/// A piece of registered memory of this end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub struct Sge {
    /// Where it begins, as it was registered (a dma-buf: by its iova).
    pub address: u64,
    /// Its length.
    pub bytes: u32,
    /// The region's local key.
    pub key: u32,
}

// It is handed to the NIC as it is.
const _: () = assert!(
    size_of::<Sge>() == size_of::<sys::ibv_sge>()
        && std::mem::offset_of!(Sge, address) == std::mem::offset_of!(sys::ibv_sge, addr)
        && std::mem::offset_of!(Sge, bytes) == std::mem::offset_of!(sys::ibv_sge, length)
        && std::mem::offset_of!(Sge, key) == std::mem::offset_of!(sys::ibv_sge, lkey)
);

/// A place in a peer's registered memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Place {
    /// Where it begins, as the peer registered it.
    pub address: u64,
    /// The region's remote key.
    pub key: u32,
}

/// What a write takes its bytes from.
#[derive(Clone, Copy, Debug)]
pub enum Local<'a> {
    /// Registered memory, one piece after the other; none for a write of no bytes.
    Pieces(&'a [Sge]),
    /// Bytes that are copied when the write is posted, no more than the queue pair's inline size.
    Inline(&'a [u8]),
}

/// A write into a peer's memory.
#[derive(Clone, Copy, Debug)]
pub struct Write<'a> {
    /// Named by its completion.
    pub id: u64,
    /// From where.
    pub local: Local<'a>,
    /// To where.
    pub remote: Place,
    /// Uses up a receive of the peer's, whose completion brings it.
    pub immediate: Option<u32>,
    /// Whether success is told, too. Work that is not signalled keeps its place in the queue until later work that is has ended.
    pub signalled: bool,
}

/// A read from a peer's memory. Its success is always told.
#[derive(Clone, Copy, Debug)]
pub struct Read<'a> {
    /// Named by its completion.
    pub id: u64,
    /// To where.
    pub local: &'a [Sge],
    /// From where.
    pub remote: Place,
}

const fn request() -> sys::ibv_send_wr {
    // SAFETY: a work request is numbers and pointers, for which zero is a value.
    unsafe { std::mem::zeroed() }
}

fn pieces(sges: &[Sge]) -> (*mut sys::ibv_sge, i32) {
    // The verbs take the list as mutable and only read it.
    (sges.as_ptr().cast_mut().cast(), sges.len() as i32)
}

fn one_sided(remote: Place) -> sys::wr_t {
    sys::wr_t { rdma: sys::rdma_t { remote_addr: remote.address, rkey: remote.key } }
}

impl QueuePair {
    /// Begins writes, in their order, by as few calls as possible. The NIC may carry them out in another order.
    ///
    /// # Safety
    /// The memory of all pieces stays registered and valid, and is not written, until the write's completion has come, or that of a later signalled
    /// one; or this queue pair has been [reset](QueuePair::reset) or dropped. Inline bytes may be used again at once.
    ///
    /// # Errors
    /// When the queue is full, or the queue pair is not connected. [`PostError::posted`] of them are under way.
    ///
    /// # Panics
    /// When inline bytes are more than the queue pair's inline size, or pieces more than it has room for.
    pub unsafe fn post_writes(&self, writes: &[Write<'_>]) -> Result<(), PostError> {
        for (batch, writes) in writes.chunks(BATCH).enumerate() {
            let mut inline = [const { MaybeUninit::<sys::ibv_sge>::uninit() }; BATCH];
            let mut requests = [const { request() }; BATCH];
            for (i, write) in writes.iter().enumerate() {
                let request = &mut requests[i];
                request.wr_id = write.id;
                request.wr = one_sided(write.remote);
                request.opcode = sys::ibv_wr_opcode::IBV_WR_RDMA_WRITE;
                if let Some(immediate) = write.immediate {
                    request.opcode = sys::ibv_wr_opcode::IBV_WR_RDMA_WRITE_WITH_IMM;
                    request.imm_data_invalidated_rkey_union.imm_data = immediate.to_be();
                }
                if write.signalled {
                    request.send_flags |= flag::IBV_SEND_SIGNALED.0;
                }
                match write.local {
                    Local::Pieces(sges) => {
                        assert!(
                            sges.len() <= self.capacities().pieces as usize,
                            "more pieces than the queue pair has room for"
                        );
                        (request.sg_list, request.num_sge) = pieces(sges);
                    }
                    Local::Inline(bytes) => {
                        assert!(
                            bytes.len() <= self.capacities().inline_bytes as usize,
                            "more inline bytes than the queue pair takes"
                        );
                        let sge = sys::ibv_sge {
                            addr: bytes.as_ptr().addr() as u64,
                            length: bytes.len() as u32,
                            lkey: 0,
                        };
                        // The NIC's driver reads what the address says; the pointer's provenance must have been given away for that.
                        let _ = bytes.as_ptr().expose_provenance();
                        request.sg_list = inline[i].write(sge);
                        request.num_sge = i32::from(!bytes.is_empty());
                        request.send_flags |= flag::IBV_SEND_INLINE.0;
                    }
                }
            }
            // SAFETY: the requests are whole, and the caller answers for their memory.
            unsafe { self.post_list(&mut requests[..writes.len()], batch * BATCH)? };
        }
        Ok(())
    }

    /// Begins one write: see [`post_writes`](Self::post_writes).
    ///
    /// # Safety
    /// As there.
    ///
    /// # Errors
    /// As there.
    pub unsafe fn post_write(&self, write: &Write<'_>) -> Result<(), PostError> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.post_writes(std::slice::from_ref(write)) }
    }

    /// Begins a write of bytes that are copied before the call returns.
    ///
    /// # Errors
    /// As [`post_writes`](Self::post_writes).
    ///
    /// # Panics
    /// When they are more than the queue pair's inline size.
    pub fn post_inline(
        &self,
        id: u64,
        bytes: &[u8],
        remote: Place,
        immediate: Option<u32>,
        signalled: bool,
    ) -> Result<(), PostError> {
        let write = Write { id, local: Local::Inline(bytes), remote, immediate, signalled };
        // SAFETY: inline bytes are not read after the call.
        unsafe { self.post_write(&write) }
    }

    /// Begins a read.
    ///
    /// # Safety
    /// The memory of all pieces stays registered and valid, and is not used otherwise, until the read's completion has come, or this queue pair has been
    /// [reset](QueuePair::reset) or dropped.
    ///
    /// # Errors
    /// When the queue is full, or the queue pair is not connected.
    ///
    /// # Panics
    /// When pieces are more than the queue pair has room for.
    pub unsafe fn post_read(&self, read: &Read<'_>) -> Result<(), PostError> {
        assert!(
            read.local.len() <= self.capacities().pieces as usize,
            "more pieces than the queue pair has room for"
        );
        let mut request = request();
        request.wr_id = read.id;
        request.wr = one_sided(read.remote);
        request.opcode = sys::ibv_wr_opcode::IBV_WR_RDMA_READ;
        request.send_flags = flag::IBV_SEND_SIGNALED.0;
        (request.sg_list, request.num_sge) = pieces(read.local);
        // SAFETY: the request is whole, and the caller answers for its memory.
        unsafe { self.post_list(std::slice::from_mut(&mut request), 0) }
    }

    /// # Safety
    /// All that the requests point to is valid for the call, and the memory that their pieces name as long as the work lasts.
    unsafe fn post_list(&self, requests: &mut [sys::ibv_send_wr], before: usize) -> Result<(), PostError> {
        let first = requests.as_mut_ptr();
        for i in 1..requests.len() {
            // SAFETY: both are in the slice.
            unsafe { (*first.add(i - 1)).next = first.add(i) };
        }
        let mut bad = ptr::null_mut();
        // SAFETY: the queue pair lives, the list ends with a null `next`, and `bad` is written when the call fails.
        let code = unsafe { sys::ibv_post_send(self.raw(), first, &raw mut bad) };
        let posted = bad.addr().saturating_sub(first.addr()) / size_of::<sys::ibv_send_wr>();
        self.device()
            .checked("ibv_post_send", code)
            .map_err(|cause| PostError { posted: before + posted, cause })
    }

    /// Posts `count` receives without memory, each for one peer's write with an immediate, all of this `id`.
    ///
    /// # Errors
    /// When the queue is full, or the queue pair is reset.
    pub fn post_receives(&self, id: u64, count: usize) -> Result<(), PostError> {
        let none =
            sys::ibv_recv_wr { wr_id: id, next: ptr::null_mut(), sg_list: ptr::null_mut(), num_sge: 0 };
        let mut done = 0;
        while done < count {
            let mut requests = [none; BATCH];
            let batch = BATCH.min(count - done);
            let first = requests.as_mut_ptr();
            for i in 1..batch {
                // SAFETY: both are in the array.
                unsafe { (*first.add(i - 1)).next = first.add(i) };
            }
            let mut bad = ptr::null_mut();
            // SAFETY: the queue pair lives, the list ends with a null `next`, and `bad` is written when the call fails. There is no memory.
            let code = unsafe { sys::ibv_post_recv(self.raw(), first, &raw mut bad) };
            let posted = bad.addr().saturating_sub(first.addr()) / size_of::<sys::ibv_recv_wr>();
            self.device()
                .checked("ibv_post_recv", code)
                .map_err(|cause| PostError { posted: done + posted, cause })?;
            done += batch;
        }
        Ok(())
    }

    /// Posts one receive without memory.
    ///
    /// # Errors
    /// As [`post_receives`](Self::post_receives).
    pub fn post_receive(&self, id: u64) -> Result<(), PostError> {
        self.post_receives(id, 1)
    }
}
