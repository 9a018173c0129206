//! Accelerators, and memory on them, which calls take as they take host memory: by addresses at which nothing lies.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use windlass::accelerator::{self, Accelerator, BadDescriptor, Options};
use windlass::{Device, DeviceBuffer, Error, Problem};

use crate::communicator::{find, windlass_comm_t};
use crate::error::{Failure, guard, required, windlass_result_t};
use crate::memory::{give_out, on_device};
use crate::table::{PLACES, Table};

/// What a `windlass_device_t` points to, as far as C knows.
#[derive(Debug)]
pub struct windlass_device {
    _opaque: c_void,
}

/// The accelerator that a rank uses; NULL for none.
pub type windlass_device_t = *mut windlass_device;

static DEVICES: Table<Device> = Table::new(3);

fn device(function: &'static str, device: windlass_device_t) -> Result<Device, Failure> {
    DEVICES.with(device.addr() as u64, |found| found.clone()).ok_or_else(|| stale(function, device))
}

fn stale(function: &'static str, device: windlass_device_t) -> Failure {
    if device.is_null() {
        return Failure::Null { function, argument: "device" };
    }
    Failure::Handle { function, what: "device", handle: device.addr() as u64 }
}

/// Takes an accelerator into use, so that the communicator's operations use its memory where it lies. A collective
/// call: all ranks make it, each with the accelerator that it has. A rank uses one, for all its communicators.
///
/// `name` is `simulated`, which every machine has, or one of the kernel's: `dma-heap`, `udmabuf`, `habanalabs`,
/// `testbed`; or NULL, for the one that this rank uses already. `options` is NULL, or as in
/// "movement=revocable,moves_per_second=20": device, capacity_bytes, movement (transparent, pinned, revocable,
/// cooperative), seed, patience, announce_ahead, move_time, replacement_time (seconds), chunk_bytes,
/// moves_per_second, revokes_per_second, lost_share. An accelerator that is not there is refused with
/// `WINDLASS_ERROR_INVALID_ARGUMENT`, and nothing was started.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn windlass_attach(
    comm: windlass_comm_t,
    name: *const c_char,
    options: *const c_char,
    device: *mut windlass_device_t,
) -> windlass_result_t {
    const NAME: &str = "windlass_attach";
    guard(NAME, || {
        // SAFETY: null or valid, by the crate's contract.
        let device = unsafe { required(device, NAME, "device") }?;
        *device = std::ptr::null_mut();
        let communicator = find(NAME, comm)?;
        // SAFETY: null or strings, by the crate's contract.
        let (name, options) = unsafe { (text("name", name)?, text("options", options)?) };
        let accelerator = match name {
            Some(name) => opened(name, options.unwrap_or_default())?,
            None => communicator.accelerator().ok_or(Failure::Null { function: NAME, argument: "name" })?,
        };
        let attached = communicator.attach(accelerator)?;
        let handle = DEVICES.insert(attached).ok_or(Failure::Full { function: NAME, most: PLACES })?;
        *device = std::ptr::without_provenance_mut(handle as usize);
        Ok(())
    })
}

fn opened(name: &str, options: &str) -> Result<Arc<dyn Accelerator>, Failure> {
    let open = || accelerator::open(name, options.parse::<Options>()?);
    open().map_err(|refused| Failure::NotOpened { function: "windlass_attach", refused })
}

/// # Safety
/// Null, or a string that lasts as long as the caller says.
unsafe fn text<'a>(argument: &'static str, text: *const c_char) -> Result<Option<&'a str>, Failure> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's.
    let text = unsafe { CStr::from_ptr(text) }.to_str();
    text.map(Some).map_err(|_| Failure::NotText { function: "windlass_attach", argument })
}

/// Frees the handle and sets it to NULL; freeing NULL does nothing. The rank goes on using the accelerator, and
/// memory on it stays until it is freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn windlass_device_free(device: *mut windlass_device_t) -> windlass_result_t {
    const NAME: &str = "windlass_device_free";
    guard(NAME, || {
        // SAFETY: null or valid, by the crate's contract.
        let device = unsafe { required(device, NAME, "device") }?;
        let old = std::mem::replace(device, std::ptr::null_mut());
        if old.is_null() {
            return Ok(());
        }
        DEVICES.remove(old.addr() as u64).map(drop).ok_or_else(|| stale(NAME, old))
    })
}

/// Allocates device memory, of unspecified contents, which may move at any time, also while operations use it.
///
/// Nothing lies at the address that it gets: whoever loads from it faults. But it can be calculated with, and every
/// collective and message takes it, alone, in part, and as a member of a list. One that is freed, that is another
/// job's, or that reaches beyond the memory is refused with `WINDLASS_ERROR_INVALID_ARGUMENT`. `windlass_mem_free`
/// frees the memory. Until then the rank is part of the job, also without a communicator.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn windlass_device_alloc(
    device: windlass_device_t,
    memory: *mut *mut c_void,
    bytes: usize,
) -> windlass_result_t {
    const NAME: &str = "windlass_device_alloc";
    // SAFETY: the crate's contract, for `memory`.
    guard(NAME, || unsafe { make(NAME, device, memory, |device| device.alloc(bytes)) })
}

/// Takes memory of another exporter into use, `bytes` bytes from `offset` on of its dma-buf: CUDA's
/// (cuMemGetHandleForAddressRange), ROCm's (hsa_amd_portable_export_dmabuf, whose offset counts), Level Zero's, or
/// anybody's. It stays where it is, or moves transparently, until `windlass_mem_free`. The descriptor remains the
/// caller's, who may close it at once; the memory lives at least as long as it is used.
///
/// The device must be one of the kernel's. A descriptor that is closed or no dma-buf, and a range beyond its end, are
/// refused with `WINDLASS_ERROR_INVALID_ARGUMENT`. Calls refuse elements that cannot lie where the memory begins.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn windlass_device_adopt(
    device: windlass_device_t,
    memory: *mut *mut c_void,
    descriptor: c_int,
    offset: u64,
    bytes: usize,
) -> windlass_result_t {
    const NAME: &str = "windlass_device_adopt";
    let adopt = |device: &Device| {
        if descriptor < 0 {
            let problem = Problem::BadDescriptor(BadDescriptor::Closed);
            return Err(Error::InvalidArgument { operation: "adopt", argument: "the descriptor", problem });
        }
        // SAFETY: not -1. One that is not open is found out by the first call that asks for its file system; as long as this call lasts
        // it is the caller's, who leaves it alone.
        let descriptor = unsafe { BorrowedFd::borrow_raw(descriptor) };
        device.adopt(descriptor, offset, bytes)
    };
    // SAFETY: the crate's contract, for `memory`.
    guard(NAME, || unsafe { make(NAME, device, memory, adopt) })
}

/// # Safety
/// `memory` is null, or valid.
unsafe fn make(
    function: &'static str,
    on: windlass_device_t,
    memory: *mut *mut c_void,
    make: impl FnOnce(&Device) -> Result<DeviceBuffer<u8>, Error>,
) -> Result<(), Failure> {
    // SAFETY: the caller's.
    let memory = unsafe { required(memory, function, "memory") }?;
    *memory = std::ptr::null_mut();
    *memory = give_out(make(&device(function, on)?)?);
    Ok(())
}

/// Refuses what cannot be host memory of so many bytes.
fn needed(
    function: &'static str,
    argument: &'static str,
    host: *const c_void,
    bytes: usize,
) -> Result<(), Failure> {
    if host.is_null() {
        return Err(Failure::Null { function, argument });
    }
    if isize::try_from(bytes).is_err() {
        let (argument, range) = ("number of bytes", "what memory can hold");
        return Err(Failure::Range { function, argument, value: bytes as i64, range });
    }
    Ok(())
}

/// Copies `bytes` bytes of host memory to device memory. Waits while that is on its way. No operation may use it
/// meanwhile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn windlass_device_write(
    to: *mut c_void,
    from: *const c_void,
    bytes: usize,
) -> windlass_result_t {
    const NAME: &str = "windlass_device_write";
    guard(NAME, || {
        if bytes == 0 {
            return Ok(());
        }
        needed(NAME, "from", from, bytes)?;
        // SAFETY: not null, so valid for `bytes` bytes, by the crate's contract.
        let from = unsafe { std::slice::from_raw_parts(from.cast::<u8>(), bytes) };
        on_device(NAME, to, |buffer, first| buffer.write_at(first, from))
    })
}

/// Copies `bytes` bytes of device memory to host memory. Waits while that is on its way.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn windlass_device_read(
    to: *mut c_void,
    from: *const c_void,
    bytes: usize,
) -> windlass_result_t {
    const NAME: &str = "windlass_device_read";
    guard(NAME, || {
        if bytes == 0 {
            return Ok(());
        }
        needed(NAME, "to", to, bytes)?;
        on_device(NAME, from, |buffer, first| {
            // SAFETY: not null, so valid for `bytes` bytes, by the crate's contract.
            buffer.read_at(first, unsafe { std::slice::from_raw_parts_mut(to.cast::<u8>(), bytes) })
        })
    })
}

/// How often a rank's device memory has moved.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct windlass_movements_t {
    /// sizeof(windlass_movements_t), set by the caller: says which fields the program knows of.
    pub bytes: usize,
    /// Moves that the accelerator asked for and made.
    pub moves: u64,
    /// Times that it took memory without asking.
    pub revokes: u64,
    /// Moves that were refused, because a peer could not be made to stop in time.
    pub refused: u64,
    /// Pieces of operations that were done again because memory they touched had gone.
    pub replays: u64,
}

/// How often this rank's device memory has moved since the accelerator was attached.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn windlass_device_movements(
    device: windlass_device_t,
    movements: *mut windlass_movements_t,
) -> windlass_result_t {
    const NAME: &str = "windlass_device_movements";
    guard(NAME, || {
        // SAFETY: null or valid, by the crate's contract.
        let movements = unsafe { required(movements, NAME, "movements") }?;
        let bytes = size_of::<windlass_movements_t>();
        if movements.bytes != bytes {
            let (argument, range) = ("field `bytes`", "sizeof(windlass_movements_t) of this library");
            return Err(Failure::Range { function: NAME, argument, value: movements.bytes as i64, range });
        }
        let now = self::device(NAME, device)?.movements();
        let (moves, revokes, refused, replays) = (now.moves, now.revokes, now.refused, now.replays);
        *movements = windlass_movements_t { bytes, moves, revokes, refused, replays };
        Ok(())
    })
}
