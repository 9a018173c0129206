//! Messages between ranks: several at once, to oneself, from anybody; over every transport, and when something goes wrong.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

mod exchange;
#[path = "../chaos/watchdog.rs"]
mod watchdog;

use std::time::Duration;

use windlass::{Config, TransportChoice};

fn configs() -> [Config; 2] {
    [TransportChoice::Shm, TransportChoice::Tcp].map(|transport| {
        let mut config = Config::default();
        config.transport = transport;
        (config.timeout, config.join_timeout) = (Duration::from_secs(20), Duration::from_secs(20));
        config
    })
}

/// splitmix64.
const fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

/// The ranks in an order of this seed's.
fn shuffled(ranks: u32, seed: u64) -> Vec<u32> {
    let mut order: Vec<u32> = (0..ranks).collect();
    order.sort_by_key(|rank| mix(seed << 8 ^ u64::from(*rank)));
    order
}
