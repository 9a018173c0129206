//! Registered memory: peers on the same host reach it directly, so collectives over it copy nothing.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use windlass::{Buffer, Memory};

use crate::communicator::{find, windlass_comm_t};
use crate::error::{Failure, guard, required, windlass_result_t};

/// What C has been given, by address.
static GIVEN_OUT: Mutex<BTreeMap<usize, Registered>> = Mutex::new(BTreeMap::new());

struct Registered {
    bytes: usize,
    buffer: Arc<Buffer<u8>>,
}

fn given_out() -> MutexGuard<'static, BTreeMap<usize, Registered>> {
    GIVEN_OUT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What an operation under way holds of registered memory, so that freeing it too early frees it at the
/// operation's end.
#[derive(Debug)]
pub(crate) struct Held {
    /// Of an operand and a result, which nothing is allocated for.
    _pair: [Option<Arc<Buffer<u8>>>; 2],
    _more: Vec<Arc<Buffer<u8>>>,
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

fn find_in(given_out: &BTreeMap<usize, Registered>, address: *const u8) -> Option<Arc<Buffer<u8>>> {
    let (base, registered) = given_out.range(..=address.addr()).next_back()?;
    (address.addr() - base < registered.bytes).then(|| Arc::clone(&registered.buffer))
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
        given_out().insert(address.addr(), Registered { bytes, buffer: Arc::new(buffer) });
        Ok(())
    })
}

/// Frees registered memory; freeing NULL does nothing. What an operation under way still needs is freed at
/// its end. A second free is refused.
#[unsafe(no_mangle)]
pub extern "C" fn windlass_mem_free(memory: *mut c_void) -> windlass_result_t {
    const NAME: &str = "windlass_mem_free";
    guard(NAME, || {
        let address = memory.addr();
        if address == 0 {
            return Ok(());
        }
        let registered = given_out().remove(&address);
        registered.map(drop).ok_or(Failure::Memory { function: NAME, address })
    })
}
