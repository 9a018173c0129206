//! The simulated network: same seed, same history.

use windlass_transports::message::{Message, MessageId};
use windlass_transports::sim::{Network, Options};
use windlass_transports::{Event, LostCause, Token, Transport};

/// All ranks send to all; the history.
fn history(seed: u64) -> (u64, u64, Vec<(usize, Event)>) {
    let ranks = 6;
    let network = Network::new(ranks, seed, Options::default());
    let mut endpoints = network.endpoints();
    let out = vec![1u8; 200_000];
    let mut into = vec![vec![0u8; 200_000]; ranks * ranks];
    for from in 0..ranks {
        for to in (0..ranks).filter(|&to| to != from) {
            let bytes = 100_000 * (from % 3);
            let id = MessageId { communicator: 1, tag: 0, sequence: from as u64, label: to as u32, chunk: 0 };
            let message = Message { id, fingerprint: [0; 2], bytes };
            let token = Token((from * ranks + to) as u64);
            // SAFETY: the buffers outlive the endpoints' use of them: all operations end below.
            unsafe {
                endpoints[to].post_recv(from as u32, &message, into[from * ranks + to].as_mut_ptr(), token);
                endpoints[from].post_send(to as u32, &message, out.as_ptr(), token);
            }
        }
    }
    let mut all = Vec::new();
    while all.len() < 2 * ranks * (ranks - 1) {
        for (rank, endpoint) in endpoints.iter_mut().enumerate() {
            let mut events = Vec::new();
            endpoint.poll(&mut events);
            all.extend(events.into_iter().map(|event| (rank, event)));
        }
        network.step();
    }
    (network.trace(), network.now(), all)
}

#[test]
fn the_seed_decides_everything() {
    let mut traces = Vec::new();
    for seed in 0..50 {
        let first = history(seed);
        assert_eq!(first, history(seed));
        traces.push(first.0);
    }
    traces.sort_unstable();
    traces.dedup();
    assert_eq!(traces.len(), 50, "other seeds have other histories");
}

#[test]
fn all_see_that_a_lost_rank_is_gone() {
    let network = Network::new(3, 1, Options::default());
    let mut endpoints = network.endpoints();
    network.lose(1);
    let mut lost = Vec::new();
    while lost.len() < 2 {
        network.step();
        for (rank, endpoint) in endpoints.iter_mut().enumerate() {
            let mut events = Vec::new();
            endpoint.poll(&mut events);
            lost.extend(events.into_iter().map(|event| (rank, event)));
        }
    }
    let event = Event::Broken { peer: 1, cause: LostCause::Closed };
    lost.sort_by_key(|(rank, _)| *rank);
    assert_eq!(lost, [(0, event.clone()), (2, event)]);
}
