//! Memory that windlass knows: registered, its own, which peers on the same host reach directly, so that collectives over it copy nothing, and the
//! program's; and an accelerator's.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use windlass::{Buffer, DeviceBuffer, Error, Memory, Registration};

use crate::communicator::{find, windlass_comm_t};
use crate::error::{Failure, guard, required, windlass_result_t};

/// What C has been given, by address.
static GIVEN_OUT: Mutex<BTreeMap<usize, Registered>> = Mutex::new(BTreeMap::new());

struct Registered {
    bytes: usize,
    memory: Arc<Kind>,
}

/// Whose memory it is.
#[derive(Debug)]
enum Kind {
    /// windlass's.
    Given { _buffer: Buffer<u8> },
    /// The program's.
    Adopted { _registration: Registration },
    /// An accelerator's. Locked while it is copied to or from the host: whoever would do both at once would wait for the same memory.
    Device(Mutex<DeviceBuffer<u8>>),
}

fn given_out() -> MutexGuard<'static, BTreeMap<usize, Registered>> {
    GIVEN_OUT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What an operation under way holds of registered memory, so that freeing it too early frees it at the
/// operation's end.
#[derive(Debug)]
pub(crate) struct Held {
    /// Of an operand and a result, which nothing is allocated for.
    _pair: [Option<Arc<Kind>>; 2],
    _more: Vec<Arc<Kind>>,
}

impl Held {
    pub(crate) fn at(addresses: [*const u8; 2]) -> Self {
        let given_out = given_out();
        Self { _pair: addresses.map(|address| find_in(&given_out, address)), _more: Vec::new() }
    }

    pub(crate) fn around(addresses: impl Iterator<Item = *const u8>) -> Self {
        let given_out = given_out();
        let _more = addresses.filter_map(|address| find_in(&given_out, address)).collect();
        Self { _pair: [None, None], _more }
    }
}

fn find_in(given_out: &BTreeMap<usize, Registered>, address: *const u8) -> Option<Arc<Kind>> {
    let (base, registered) = given_out.range(..=address.addr()).next_back()?;
    (address.addr() - base < registered.bytes).then(|| Arc::clone(&registered.memory))
}

/// Gives C the address that stands for device memory: no other memory of the process has it.
pub(crate) fn give_out(mut buffer: DeviceBuffer<u8>) -> *mut c_void {
    let (address, bytes) = (buffer.address(), buffer.len());
    let memory = Arc::new(Kind::Device(Mutex::new(buffer)));
    given_out().insert(address.addr(), Registered { bytes, memory });
    address.cast()
}

/// Does something with the device memory that an address stands for, from which byte on.
pub(crate) fn on_device(
    function: &'static str,
    address: *const c_void,
    access: impl FnOnce(&mut DeviceBuffer<u8>, usize) -> Result<(), Error>,
) -> Result<(), Failure> {
    let found = find_in(&given_out(), address.cast());
    let Some(Kind::Device(buffer)) = found.as_deref() else {
        return Err(Failure::NotOnDevice { function, address: address.addr() });
    };
    let mut buffer = buffer.lock().unwrap_or_else(PoisonError::into_inner);
    let first = address.addr() - buffer.address().addr();
    Ok(access(&mut buffer, first)?)
}

/// Allocates registered memory, zeroed and aligned to a page: peers on this host reach it directly, which is
/// several times faster than through memory from malloc. It serves every communicator of the job, and
/// outlives them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn windlass_mem_alloc(
    comm: windlass_comm_t,
    memory: *mut *mut c_void,
    bytes: usize,
) -> windlass_result_t {
    const NAME: &str = "windlass_mem_alloc";
    guard(NAME, || {
        // SAFETY: null or valid, by the crate's contract.
        let memory = unsafe { required(memory, NAME, "memory") }?;
        *memory = std::ptr::null_mut();
        let mut buffer = find(NAME, comm)?.alloc::<u8>(bytes)?;
        let address = buffer.span().address();
        *memory = address.cast();
        let memory = Arc::new(Kind::Given { _buffer: buffer });
        given_out().insert(address.addr(), Registered { bytes, memory });
        Ok(())
    })
}

/// Frees what `windlass_mem_alloc`, `windlass_device_alloc` or `windlass_device_adopt` gave; freeing NULL does
/// nothing. What an operation under way still needs is freed at its end. A second free is refused.
#[unsafe(no_mangle)]
pub extern "C" fn windlass_mem_free(memory: *mut c_void) -> windlass_result_t {
    const NAME: &str = "windlass_mem_free";
    guard(NAME, || {
        let address = memory.addr();
        if address == 0 {
            return Ok(());
        }
        take(NAME, address, |kind| matches!(kind, Kind::Given { .. } | Kind::Device(_))).map(drop)
    })
}

/// Registers memory of the program's own where it lies, for all communicators of the job. Peers on this host do not
/// reach it, so there `windlass_mem_alloc` is faster; it is for network cards. It stays valid until it is deregistered
/// and no operation uses it. Ranges may not overlap.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn windlass_mem_register(
    comm: windlass_comm_t,
    memory: *mut c_void,
    bytes: usize,
) -> windlass_result_t {
    const NAME: &str = "windlass_mem_register";
    guard(NAME, || {
        let communicator = find(NAME, comm)?;
        // SAFETY: the memory stays as it is until it is deregistered, by the crate's contract; operations hold the registration.
        let registration = unsafe { communicator.register(memory.cast(), bytes) }?;
        let registered = Arc::new(Kind::Adopted { _registration: registration });
        given_out().insert(memory.addr(), Registered { bytes, memory: registered });
        Ok(())
    })
}

/// Ends a registration; of NULL, does nothing. What an operation under way needs stays registered until its end. A
/// second time is refused.
#[unsafe(no_mangle)]
pub extern "C" fn windlass_mem_deregister(memory: *mut c_void) -> windlass_result_t {
    const NAME: &str = "windlass_mem_deregister";
    guard(NAME, || {
        let address = memory.addr();
        if address == 0 {
            return Ok(());
        }
        take(NAME, address, |kind| matches!(kind, Kind::Adopted { .. })).map(drop)
    })
}

/// Takes what begins at an address, if it is of the right kind.
fn take(
    function: &'static str,
    address: usize,
    is_right: impl Fn(&Kind) -> bool,
) -> Result<Registered, Failure> {
    let mut given_out = given_out();
    match given_out.get(&address) {
        Some(registered) if is_right(&registered.memory) => given_out.remove(&address),
        _ => None,
    }
    .ok_or(Failure::Memory { function, address })
}
