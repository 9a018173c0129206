//! What goes wrong, and what must come of it: worlds of threads that misuse, leave, fork and race. Nothing may hang.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

mod arguments;
mod communicators;
mod failures;
mod forked;
mod futures;
mod joining;
mod messages;
mod mismatch;
mod watchdog;

use std::time::Duration;

use windlass::{Algorithm, Config, TransportChoice};

/// A configuration that does not depend on the environment and gives up well before the watchdog does.
fn config(transport: TransportChoice, algorithm: Option<Algorithm>) -> Config {
    let mut config = Config::default();
    (config.transport, config.algorithm) = (transport, algorithm);
    config.timeout = Duration::from_secs(20);
    config.join_timeout = Duration::from_secs(20);
    config
}

fn shm() -> Config {
    config(TransportChoice::Shm, None)
}

const TRANSPORTS: [TransportChoice; 2] = [TransportChoice::Shm, TransportChoice::Tcp];
