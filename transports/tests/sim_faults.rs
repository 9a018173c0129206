//! What the simulated network can do to ranks and wires: each fault has the effect it is described with, and no other.

use windlass_transports::message::{Message, MessageId};
use windlass_transports::sim::{Endpoint, Fault, Network, Options, Wire};
use windlass_transports::{Event, LostCause, Rank, Token, Transport};

/// A network whose time can be told: 1 µs, and no chance but in sizes of packets.
fn options() -> Options {
    Options { wire: Wire { latency: 1_000..1_001, ..Wire::default() }, stutter: 0, ..Options::default() }
}

struct World {
    network: Network,
    endpoints: Vec<Endpoint>,
    memory: Vec<Vec<u8>>,
    sent: u64,
}

impl World {
    fn new(ranks: usize, options: Options) -> Self {
        let network = Network::new(ranks, 1, options);
        Self { endpoints: network.endpoints(), network, memory: Vec::new(), sent: 0 }
    }

    /// Posts a message of `bytes` bytes on both ends; the receive's token is its number, and the send's the next.
    fn post(&mut self, from: Rank, to: Rank, bytes: usize) -> (Token, Token) {
        let number = self.sent;
        self.sent += 1;
        let id = MessageId { communicator: 0, tag: 0, sequence: number, label: 0, chunk: 0 };
        let message = Message { id, fingerprint: [0; 2], bytes };
        let (received, sent) = (Token(2 * number), Token(2 * number + 1));
        self.memory.push(vec![0; bytes]);
        self.memory.push((0..bytes).map(|i| (i * 7 + number as usize) as u8).collect());
        let (into, out) = (2 * number as usize, 2 * number as usize + 1);
        // SAFETY: the vectors' heap memory stays until the world is dropped, endpoints first, and nobody touches it meanwhile.
        unsafe {
            self.endpoints[to as usize].post_recv(from, &message, self.memory[into].as_mut_ptr(), received);
            self.endpoints[from as usize].post_send(to, &message, self.memory[out].as_ptr(), sent);
        }
        (received, sent)
    }

    /// Runs until nothing moves, or `time`; what happened, to whom.
    fn run(&mut self, time: u64) -> Vec<(usize, Event)> {
        let mut all = Vec::new();
        loop {
            let mut moved = false;
            for (rank, endpoint) in self.endpoints.iter_mut().enumerate() {
                let mut events = Vec::new();
                moved |= endpoint.poll(&mut events);
                all.extend(events.into_iter().map(|event| (rank, event)));
            }
            if !moved && !self.network.step_until(time) {
                return all;
            }
        }
    }

    fn holds(&self, received: Token) -> bool {
        self.memory[received.0 as usize] == self.memory[received.0 as usize + 1]
    }
}

fn received(events: &[(usize, Event)], token: Token) -> bool {
    events.iter().any(|(_, event)| *event == Event::Received(token))
}

#[test]
fn bytes_take_their_time_and_are_counted() {
    let mut options = options();
    options.wire.bandwidth = Some(1_000_000_000);
    options.wires.insert((0, 2), Wire { bandwidth: Some(100_000_000), ..options.wire.clone() });
    for (to, ns_per_byte) in [(1, 1), (2, 10)] {
        let mut world = World::new(3, options.clone());
        let (token, _) = world.post(0, to, 200_000);
        let mut time = 0;
        while !received(&world.run(time), token) {
            time += 1_000;
        }
        let expected = 200_000 * ns_per_byte;
        assert!((expected..expected + 20_000 * ns_per_byte).contains(&time), "{to}: {time}");
        let traffic = world.network.traffic()[&(0, to)];
        assert_eq!(traffic.messages, 1);
        assert!((200_000..210_000).contains(&traffic.bytes) && traffic.packets > 1, "{traffic:?}");
        assert!(world.holds(token));
    }
}

#[test]
fn a_stopped_rank_does_nothing_until_it_is_continued() {
    let mut world = World::new(2, options());
    world.network.inject(Fault::Stop(1));
    let (token, _) = world.post(0, 1, 100);
    assert!(!received(&world.run(1_000_000_000), token));
    assert!(!world.network.is_awake(1));
    world.network.inject(Fault::Continue(1));
    assert!(received(&world.run(2_000_000_000), token) && world.holds(token));
}

#[test]
fn a_slow_rank_rests_between_polls() {
    let time = |pause| {
        let mut options = options();
        options.wire.packet = 100;
        let mut world = World::new(2, options);
        world.network.inject(Fault::Slow(1, pause));
        let (token, _) = world.post(0, 1, 3_000);
        let mut time = 0;
        while !received(&world.run(time), token) {
            time += 1_000;
        }
        time
    };
    assert!(time(0) < 100_000 && time(1_000_000) > 1_000_000, "{} {}", time(0), time(1_000_000));
}

#[test]
fn a_partition_holds_what_crosses_it_until_it_heals() {
    let mut world = World::new(3, options());
    world.network.inject(Fault::Partition(vec![0]));
    let (across, _) = world.post(0, 1, 5_000);
    let (beside, _) = world.post(2, 1, 5_000);
    let events = world.run(1_000_000_000);
    assert!(!received(&events, across) && received(&events, beside));
    world.network.inject(Fault::Heal);
    assert!(received(&world.run(2_000_000_000), across) && world.holds(across) && world.holds(beside));
}

#[test]
fn a_partition_that_lasts_breaks_the_streams_across_it() {
    let mut world = World::new(3, Options { patience: 1_000_000, ..options() });
    world.network.inject(Fault::Partition(vec![0]));
    let lost = world.run(2_000_000);
    let of = |rank, peer| {
        let cause = LostCause::System { call: "read", errno: 110 };
        lost.iter()
            .filter(|(to, event)| *to == rank && *event == Event::Broken { peer, cause: cause.clone() })
            .count()
    };
    assert_eq!([of(0, 1), of(0, 2), of(1, 0), of(2, 0)], [1; 4]);
    assert_eq!(lost.len(), 4, "{lost:?}");
    // Healing comes too late for them, but not for the others.
    world.network.inject(Fault::Heal);
    let (token, _) = world.post(1, 2, 10);
    assert!(received(&world.run(4_000_000), token));
}

#[test]
fn an_errored_write_arrives_though_its_sender_is_told_otherwise() {
    let mut options = options();
    // A write is a byte: the message is surely cut.
    options.wire.packet = 1;
    let mut world = World::new(2, options);
    let (first, _) = world.post(0, 1, 10);
    assert!(received(&world.run(1_000_000), first));
    world.network.inject(Fault::ErrorWrite(0, 1));
    let before = world.network.traffic()[&(0, 1)].bytes;
    world.post(0, 1, 10);
    let events = world.run(2_000_000);
    let error = LostCause::System { call: "write", errno: 104 };
    assert!(events.contains(&(0, Event::Broken { peer: 1, cause: error })), "{events:?}");
    let reset = LostCause::System { call: "read", errno: 104 };
    assert!(events.contains(&(1, Event::Broken { peer: 0, cause: reset })), "{events:?}");
    assert_eq!(world.network.traffic()[&(0, 1)].bytes, before + 1, "the byte left all the same");
}

#[test]
fn tiny_packets_and_queues_cut_frames_anywhere_and_lose_nothing() {
    for (packet, window) in [(1, 1), (3, 7), (41, 50), (1_000, 2)] {
        let mut world = World::new(2, options());
        let wire = Wire { packet, window, ..Wire::default() };
        world.network.inject(Fault::Rewire(0, 1, wire));
        let tokens: Vec<_> = (0..5).map(|i| world.post(0, 1, 300 * i).0).collect();
        let events = world.run(60_000_000_000);
        assert!(tokens.iter().all(|token| received(&events, *token) && world.holds(*token)));
        let traffic = world.network.traffic()[&(0, 1)];
        assert!(traffic.packets >= traffic.bytes / packet.min(window) as u64, "{traffic:?}");
    }
}

#[test]
fn faults_are_part_of_the_history() {
    let trace = |fault: Option<Fault>| {
        let mut world = World::new(3, options());
        world.post(0, 1, 1_000);
        fault.into_iter().for_each(|fault| world.network.inject(fault));
        world.run(1_000_000);
        world.network.trace()
    };
    assert_eq!(trace(None), trace(None));
    assert_eq!(trace(Some(Fault::Stop(2))), trace(Some(Fault::Stop(2))));
    assert_ne!(trace(Some(Fault::Stop(2))), trace(None));
}
