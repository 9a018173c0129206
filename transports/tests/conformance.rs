//! The suite over TCP, over shared memory and over the simulated network.

mod one_process;

use std::cell::RefCell;

use one_process::lanes;
use windlass_transports::conformance::{self, CASES};
use windlass_transports::link::Limits;
use windlass_transports::sim::{self, Network};
use windlass_transports::tcp::{Options, Tcp};
use windlass_transports::{Transport, conformance::run_case};

fn tcp_ranks(ranks: usize, options: Options) -> Vec<Box<dyn Transport>> {
    let bound: Vec<_> =
        (0..ranks as u32).map(|rank| Tcp::bind_with(rank, 0xfeed, options).expect("a socket")).collect();
    let addresses: Vec<_> = bound.iter().map(|(_, address)| *address).collect();
    bound
        .into_iter()
        .map(|(mut tcp, _)| {
            tcp.connect(&addresses).expect("descriptors");
            Box::new(tcp) as Box<dyn Transport>
        })
        .collect()
}

#[test]
fn tcp() {
    conformance::run(|ranks| tcp_ranks(ranks, Options::default()), || {});
}

#[test]
fn tcp_with_small_limits_and_buffers() {
    let limits = Limits { eager_bytes: 300, credit_bytes: 1000, credit_messages: 4, announcements: 3 };
    let options =
        Options { limits, send_buffer: Some(64 << 10), receive_buffer: Some(64 << 10), ..Options::default() };
    conformance::run(|ranks| tcp_ranks(ranks, options), || {});
}

#[test]
fn shm() {
    conformance::run(|ranks| lanes(ranks, Limits::default(), false), || {});
}

#[test]
fn shm_that_lends() {
    conformance::run(|ranks| lanes(ranks, Limits::default(), true), || {});
}

#[test]
fn shm_with_small_limits() {
    let limits = Limits { eager_bytes: 300, credit_bytes: 1000, credit_messages: 4, announcements: 3 };
    for lends in [false, true] {
        conformance::run(|ranks| lanes(ranks, limits, lends), || {});
    }
}

fn simulate(seed: u64, options: &sim::Options) {
    let current: RefCell<Option<Network>> = RefCell::new(None);
    for case in CASES {
        let mut make = |ranks: usize| {
            let network = Network::new(ranks, seed, options.clone());
            let endpoints = network.endpoints();
            *current.borrow_mut() = Some(network);
            endpoints.into_iter().map(|endpoint| Box::new(endpoint) as Box<dyn Transport>).collect()
        };
        let mut drive = || {
            if let Some(network) = &*current.borrow() {
                network.step();
            }
        };
        run_case(case, &mut make, &mut drive);
    }
}

#[test]
fn sim() {
    simulate(1, &sim::Options::default());
}

#[test]
fn sim_with_tiny_limits() {
    let limits = Limits { eager_bytes: 100, credit_bytes: 250, credit_messages: 2, announcements: 1 };
    simulate(2, &sim::Options { limits, stutter: 40, ..sim::Options::default() });
}

#[test]
fn sim_with_partial_writes_and_full_queues_and_slow_wires() {
    let narrow =
        sim::Wire { packet: 40_000, window: 90_000, bandwidth: Some(1 << 30), ..sim::Wire::default() };
    let cut = sim::Wire { packet: 7_001, window: 15_000, ..sim::Wire::default() };
    let wires = [((0, 1), cut.clone()), ((1, 0), cut)].into();
    simulate(3, &sim::Options { wire: narrow, wires, ..sim::Options::default() });
}
