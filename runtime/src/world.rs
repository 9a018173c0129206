//! A world of threads inside one process: for tests and examples.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::bootstrap::{Identity, Server};
use crate::communicator::Communicator;
use crate::config::Config;
use crate::error::{AbortReason, JoinError};

/// Runs `f` on `ranks` threads, each a rank of one job, and returns their results in rank order.
///
/// The ranks meet and share memory exactly as processes do.
///
/// # Errors
/// When a rank cannot join.
///
/// # Panics
/// When a rank panics: the others' operations end with [`Error::Aborted`](crate::Error::Aborted), then the first panic goes on here.
///
/// ```
/// let sums = windlass::threads(3, |comm| {
///     let mut value = [f32::from(comm.rank() as u8 + 1)];
///     comm.blocking().all_reduce(&mut value, windlass::ReduceOp::Sum).unwrap();
///     value[0]
/// });
/// assert_eq!(sums.unwrap(), [6.0, 6.0, 6.0]);
/// ```
pub fn threads<R: Send>(ranks: u32, f: impl Fn(Communicator) -> R + Sync) -> Result<Vec<R>, JoinError> {
    threads_with(ranks, &Config::from_environment()?, f)
}

/// As [`threads`], with a configuration.
///
/// # Errors
/// When a rank cannot join.
///
/// # Panics
/// When a rank panics.
pub fn threads_with<R: Send>(
    ranks: u32,
    config: &Config,
    f: impl Fn(Communicator) -> R + Sync,
) -> Result<Vec<R>, JoinError> {
    static WORLDS: AtomicU64 = AtomicU64::new(0);
    let number = WORLDS.fetch_add(1, Ordering::Relaxed);
    let mut random = [0u8; 8];
    let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
    let name = format!("threads-{}-{number}-{:016x}", std::process::id(), u64::from_ne_bytes(random));
    let server = Server::start(ranks, &name)?;
    let results: Vec<_> = std::thread::scope(|scope| {
        let rank_of = |rank| {
            let (f, address) = (&f, server.address().to_owned());
            move || {
                let identity = Identity { rank, ranks, rendezvous: Some(address), serves: false };
                let communicator = Communicator::join(&identity, config.clone())?;
                let last = communicator.clone();
                let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| f(communicator)));
                if result.is_err() {
                    last.abort_because(AbortReason::Panicked);
                }
                Ok::<_, JoinError>(result)
            }
        };
        let threads: Vec<_> = (0..ranks).map(|rank| scope.spawn(rank_of(rank))).collect();
        threads
            .into_iter()
            .map(|t| t.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    let mut values = Vec::new();
    for result in results {
        values.push(result?.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
    }
    Ok(values)
}
