//! The suite over TCP, over shared memory and over the simulated network.

use std::cell::RefCell;
use std::sync::Arc;

use windlass_memory::Location;
use windlass_transports::conformance::{self, CASES};
use windlass_transports::link::Limits;
use windlass_transports::shm::{Board, Found, Lanes, Reach, Shape};
use windlass_transports::sim::{self, Network};
use windlass_transports::tcp::{Options, Tcp};
use windlass_transports::{Rank, Transport, conformance::run_case};

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

/// Ranks that are one process: every one of them reaches everything.
#[derive(Debug)]
struct OneProcess;

// SAFETY: the memory of an operation of the suite lives as long as the transports do.
unsafe impl Reach for OneProcess {
    fn lend(&self, memory: &[u8]) -> Option<Location> {
        Some(Location { segment: 7, generation: 3, offset: memory.as_ptr().expose_provenance() as u64 })
    }

    fn find(&self, _: Rank, location: Location, _: usize) -> Found {
        assert_eq!((location.segment, location.generation), (7, 3));
        Found::At(std::ptr::with_exposed_provenance(location.offset as usize))
    }
}

fn lanes(ranks: usize, limits: Limits, reach: Option<Arc<dyn Reach>>) -> Vec<Box<dyn Transport>> {
    let shape = Shape { ranks: ranks as u64, slot_bytes: 64, stage_bytes: 64, lanes: 1, note_bytes: 0 };
    let segment = Board::create(shape).expect("memory");
    let board = || Arc::new(Board::open(segment.descriptor()).expect("memory"));
    (0..ranks as u32)
        .map(|rank| Box::new(Lanes::with_limits(rank, board(), reach.clone(), limits)) as Box<dyn Transport>)
        .collect()
}

#[test]
fn shm() {
    conformance::run(|ranks| lanes(ranks, Limits::default(), None), || {});
}

#[test]
fn shm_that_lends() {
    conformance::run(|ranks| lanes(ranks, Limits::default(), Some(Arc::new(OneProcess))), || {});
}

#[test]
fn shm_with_small_limits() {
    let limits = Limits { eager_bytes: 300, credit_bytes: 1000, credit_messages: 4, announcements: 3 };
    for reach in [None, Some(Arc::new(OneProcess) as Arc<dyn Reach>)] {
        conformance::run(|ranks| lanes(ranks, limits, reach.clone()), || {});
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
