//! Joining a job, and its communicators.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::time::Duration;

use windlass::{Communicator, Config, Identity, JoinError};

use crate::error::{Failure, guard, joined_as, required, windlass_result_t};
use crate::table::{PLACES, Table};

/// What a `windlass_comm_t` points to, as far as C knows.
#[derive(Debug)]
pub struct windlass_comm {
    _opaque: c_void,
}

/// A group of ranks, as one of them holds it; NULL for none.
///
/// All ranks must make the same collective calls on it in the same order. Any thread may use it; which of two
/// calls that threads make at once comes first is nobody's to know, so threads use communicators of their
/// own. A handle that was freed is refused, and never stands for another communicator.
pub type windlass_comm_t = *mut windlass_comm;

static COMMUNICATORS: Table<Communicator> = Table::new(1);

/// The communicator, held by a reference of its own: the call outlives a free of the handle by another
/// thread.
#[inline]
pub(crate) fn find(function: &'static str, comm: windlass_comm_t) -> Result<Communicator, Failure> {
    let handle = comm.addr() as u64;
    COMMUNICATORS.with(handle, |found| found.clone()).ok_or_else(|| stale(function, comm))
}

#[cold]
fn stale(function: &'static str, comm: windlass_comm_t) -> Failure {
    if comm.is_null() {
        return Failure::Null { function, argument: "comm" };
    }
    Failure::Handle { function, what: "communicator", handle: comm.addr() as u64 }
}

fn give_out(function: &'static str, communicator: Communicator) -> Result<windlass_comm_t, Failure> {
    let handle = COMMUNICATORS.insert(communicator).ok_or(Failure::Full { function, most: PLACES })?;
    Ok(std::ptr::without_provenance_mut(handle as usize))
}

/// Joins the job that the environment describes, as `windlass run` or torchrun set it, and gives the
/// communicator of all its ranks. Without one, the process is a job of one. Waits until all ranks have come.
///
/// A second call gives another handle of the same communicator, while one of them lives.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn windlass_init(comm: *mut windlass_comm_t) -> windlass_result_t {
    const NAME: &str = "windlass_init";
    guard(NAME, || {
        // SAFETY: null or valid, by the crate's contract.
        let comm = unsafe { required(comm, NAME, "comm") }?;
        *comm = std::ptr::null_mut();
        let communicator = windlass::init()?;
        joined_as(communicator.rank());
        *comm = give_out(NAME, communicator)?;
        Ok(())
    })
}

/// Names a job that has no launcher. Rank 0 makes it with `windlass_unique_id` and brings it to the others by
/// means of its own.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct windlass_unique_id_t {
    /// Opaque bytes.
    pub internal: [c_char; 128],
}

/// How the name of a job without a launcher begins.
const SCHEME: &str = "unix:@windlass-";

/// Makes a name that no other job has.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn windlass_unique_id(id: *mut windlass_unique_id_t) -> windlass_result_t {
    const NAME: &str = "windlass_unique_id";
    guard(NAME, || {
        // SAFETY: null or valid, by the crate's contract.
        let id = unsafe { required(id, NAME, "id") }?;
        let mut random = [0u8; 16];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).map_err(|e| {
            JoinError::System {
                call: "getrandom",
                errno: e.raw_os_error(),
                hint: "see the system call's manual page",
            }
        })?;
        let name = format!("{SCHEME}{:032x}", u128::from_ne_bytes(random));
        id.internal = [0; 128];
        for (to, from) in id.internal.iter_mut().zip(name.bytes()) {
            *to = from as c_char;
        }
        Ok(())
    })
}

fn rendezvous(id: &windlass_unique_id_t) -> Option<String> {
    let bytes = id.internal.map(|byte| byte as u8);
    let name = CStr::from_bytes_until_nul(&bytes).ok()?.to_str().ok()?;
    let digits = name.strip_prefix(SCHEME)?;
    let right = digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    right.then(|| name.to_owned())
}

/// Joins the job named by `id`, of `nranks` ranks on this host, as `rank`, and gives the communicator of all
/// of them. Waits until all ranks have come; they may come in any order, within WINDLASS_JOIN_TIMEOUT. Rank 0
/// holds the rendezvous while its communicator lives.
///
/// A process may join several jobs, and be several ranks of one, each from a thread of its own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn windlass_init_rank(
    comm: *mut windlass_comm_t,
    nranks: c_int,
    id: windlass_unique_id_t,
    rank: c_int,
) -> windlass_result_t {
    const NAME: &str = "windlass_init_rank";
    const MOST_RANKS: u32 = 1 << 20;
    guard(NAME, || {
        // SAFETY: null or valid, by the crate's contract.
        let comm = unsafe { required(comm, NAME, "comm") }?;
        *comm = std::ptr::null_mut();
        let range = |argument, value: c_int, range| Failure::Range {
            function: NAME,
            argument,
            value: value.into(),
            range,
        };
        let ranks = u32::try_from(nranks).ok().filter(|ranks| (1..=MOST_RANKS).contains(ranks));
        let ranks = ranks.ok_or_else(|| range("number of ranks", nranks, "1 to 1048576"))?;
        let below = u32::try_from(rank).ok().filter(|rank| *rank < ranks);
        let rank = below.ok_or_else(|| range("rank", rank, "0 or more, and below nranks"))?;
        let name = rendezvous(&id).ok_or(Failure::UniqueId { function: NAME })?;
        let rendezvous = (ranks > 1).then_some(name);
        let identity = Identity { rank, ranks, serves: rendezvous.is_some() && rank == 0, rendezvous };
        let communicator = Communicator::join(&identity, Config::from_environment()?)?;
        joined_as(rank);
        *comm = give_out(NAME, communicator)?;
        Ok(())
    })
}

/// This process's rank in the communicator, from 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn windlass_comm_rank(comm: windlass_comm_t, rank: *mut c_int) -> windlass_result_t {
    const NAME: &str = "windlass_comm_rank";
    guard(NAME, || {
        // SAFETY: null or valid, by the crate's contract.
        let rank = unsafe { required(rank, NAME, "rank") }?;
        // A job has at most 2^20 ranks.
        *rank = find(NAME, comm)?.rank() as c_int;
        Ok(())
    })
}

/// The number of the communicator's ranks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn windlass_comm_size(comm: windlass_comm_t, size: *mut c_int) -> windlass_result_t {
    const NAME: &str = "windlass_comm_size";
    guard(NAME, || {
        // SAFETY: null or valid, by the crate's contract.
        let size = unsafe { required(size, NAME, "size") }?;
        *size = find(NAME, comm)?.size() as c_int;
        Ok(())
    })
}

/// The colour of a rank that takes part in a split, but in no new communicator.
pub const WINDLASS_NO_COLOUR: c_int = -1;

/// Makes a communicator of all ranks that give the same colour, ranked by key, then by rank; NULL for those
/// that give `WINDLASS_NO_COLOUR`. A collective call: all ranks make it. The new communicator is freed apart
/// from the old one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn windlass_comm_split(
    comm: windlass_comm_t,
    colour: c_int,
    key: i64,
    split: *mut windlass_comm_t,
) -> windlass_result_t {
    const NAME: &str = "windlass_comm_split";
    guard(NAME, || {
        // SAFETY: null or valid, by the crate's contract.
        let split = unsafe { required(split, NAME, "split") }?;
        let communicator = find(NAME, comm)?;
        *split = std::ptr::null_mut();
        let colour = match u32::try_from(colour) {
            Ok(colour) => Some(colour),
            Err(_) if colour == WINDLASS_NO_COLOUR => None,
            Err(_) => {
                let range = "0 or more, or WINDLASS_NO_COLOUR";
                return Err(Failure::Range {
                    function: NAME,
                    argument: "colour",
                    value: colour.into(),
                    range,
                });
            }
        };
        if let Some(new) = communicator.split(colour, key)? {
            *split = give_out(NAME, new)?;
        }
        Ok(())
    })
}

/// A communicator of the same ranks, independent of this one. A collective call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn windlass_comm_duplicate(
    comm: windlass_comm_t,
    duplicate: *mut windlass_comm_t,
) -> windlass_result_t {
    const NAME: &str = "windlass_comm_duplicate";
    guard(NAME, || {
        // SAFETY: null or valid, by the crate's contract.
        let duplicate = unsafe { required(duplicate, NAME, "duplicate") }?;
        let communicator = find(NAME, comm)?;
        *duplicate = std::ptr::null_mut();
        *duplicate = give_out(NAME, communicator.duplicate()?)?;
        Ok(())
    })
}

/// Gives another handle of the same communicator, with a time limit for each call made by it, from the call to its
/// end, in the place of WINDLASS_TIMEOUT. A call that does not end in time ends with `WINDLASS_ERROR_TIMED_OUT`, and the
/// communicator is unusable on all its ranks. The handle is freed apart from the other one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn windlass_comm_with_timeout(
    comm: windlass_comm_t,
    timeout_ms: u64,
    limited: *mut windlass_comm_t,
) -> windlass_result_t {
    const NAME: &str = "windlass_comm_with_timeout";
    guard(NAME, || {
        // SAFETY: null or valid, by the crate's contract.
        let limited = unsafe { required(limited, NAME, "limited") }?;
        let communicator = find(NAME, comm)?;
        *limited = std::ptr::null_mut();
        if timeout_ms == 0 {
            let (argument, range) = ("timeout_ms", "1 or more");
            return Err(Failure::Range { function: NAME, argument, value: 0, range });
        }
        *limited = give_out(NAME, communicator.with_timeout(Duration::from_millis(timeout_ms)))?;
        Ok(())
    })
}

/// Makes the communicator unusable on all its ranks, from any thread: whatever is under way ends with
/// `WINDLASS_ERROR_ABORTED`, on this rank before this returns, so that its memory may be freed. The handle is
/// still to be freed.
#[unsafe(no_mangle)]
pub extern "C" fn windlass_comm_abort(comm: windlass_comm_t) -> windlass_result_t {
    const NAME: &str = "windlass_comm_abort";
    guard(NAME, || {
        find(NAME, comm)?.abort();
        Ok(())
    })
}

/// Waits for everything under way and then for all ranks; later calls on the communicator are refused. A
/// collective call. The handle is still to be freed.
#[unsafe(no_mangle)]
pub extern "C" fn windlass_comm_finalize(comm: windlass_comm_t) -> windlass_result_t {
    const NAME: &str = "windlass_comm_finalize";
    guard(NAME, || Ok(find(NAME, comm)?.finalize()?))
}

/// Frees the handle and sets it to NULL; freeing NULL does nothing. Operations under way go on. With its last
/// handle and operation, a rank leaves the communicator, and with its last communicator the job: peers that
/// still need it get `WINDLASS_ERROR_PEER_FAILED`, so finalize first.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn windlass_comm_free(comm: *mut windlass_comm_t) -> windlass_result_t {
    const NAME: &str = "windlass_comm_free";
    guard(NAME, || {
        // SAFETY: null or valid, by the crate's contract.
        let comm = unsafe { required(comm, NAME, "comm") }?;
        let old = std::mem::replace(comm, std::ptr::null_mut());
        if old.is_null() {
            return Ok(());
        }
        COMMUNICATORS.remove(old.addr() as u64).map(drop).ok_or_else(|| stale(NAME, old))
    })
}
