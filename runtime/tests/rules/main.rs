//! What a program may rely on beyond the collectives themselves: the order of a reproducible sum, operators of its own, time limits of single
//! operations, memory that it brings along.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

mod adopted;
mod operators;
mod reproducible;
mod timeouts;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use windlass::{Algorithm, Config, TransportChoice};

/// A configuration that does not depend on the environment.
fn config(transport: TransportChoice, algorithm: Option<Algorithm>) -> Config {
    let mut config = Config::default();
    (config.transport, config.algorithm) = (transport, algorithm);
    (config.timeout, config.join_timeout) = (Duration::from_secs(30), Duration::from_secs(20));
    config
}

const TRANSPORTS: [TransportChoice; 2] = [TransportChoice::Shm, TransportChoice::Tcp];

/// Where the threads of a test meet without windlass. Who waits in vain, because another one has failed, goes on after a while.
#[derive(Default)]
struct Meeting(AtomicU32);

impl Meeting {
    fn of(&self, many: u32) {
        self.0.fetch_add(1, Ordering::SeqCst);
        let begin = Instant::now();
        while self.0.load(Ordering::SeqCst) < many && begin.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
