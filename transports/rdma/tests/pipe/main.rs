//! Random posts, withdrawals and breaks between two ranks over a simulated device that keeps no order: its writes are applied piece by piece, in any
//! order among each other and within themselves, and complete in any order, whichever lane they go by. The device checks what no program could: that it
//! never touches memory whose operation has ended or that was taken back, or by the key of another rail, and that every write finds a receive on its lane.
//! With each new connection the lanes are others.
//!
//! Some memory is such as the processor does not touch: it is named by addresses that fault. It is taken back from the device, is on its way to another
//! place, comes back and is registered anew, at any time.

mod device;
mod disturb;
mod memory;

use std::collections::HashMap;
use std::sync::Arc;

use windlass_rdma::lanes::Rails;
use windlass_rdma::pipe::{Landed, Planted, Source, Target, Write};
use windlass_transports::ledger::Generation;
use windlass_transports::link::place::Destined;
use windlass_transports::link::{COPIED_BYTES, Wants};
use windlass_transports::{Event, Message, MessageId, Token};

use device::{Completion, End, SHAPE, new_lanes};
use memory::Memories;

const BYTES: [usize; 8] = [0, 8, 64, 65, 2500, 70_000, 100_000, (1 << 20) + 66_000];
const IDENTITIES: u64 = 30;

/// What is wrong on purpose.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Fault {
    None,
    Pipe(Planted),
    /// A withdrawal does not wait until the device is silent.
    NoFence,
    /// Memory is taken back although the device may be at it.
    NoRelease,
    /// The peer is told of memory that was taken back.
    NoUnregister,
    /// Foreign memory is never copied to the host.
    NoLoad,
    /// Half a piece waits for the rest of it.
    NoTear,
    /// Both ends take a new connection for the old one.
    SameGeneration,
    /// What has left is taken for delivered.
    TrustCompletion,
    /// Memory is named by a key of another rail's device.
    OtherRail,
    /// Lanes have receives for their share of the writes alone.
    SharedReceives,
    /// A place is taken for valid by whatever rails.
    AnyRails,
}

struct Operation {
    rank: usize,
    identity: u64,
    is_send: bool,
}

/// What happens besides messages.
#[derive(Clone, Copy, Debug, Default)]
struct Disturbances {
    withdrawals: bool,
    breaks: bool,
    /// Memory is taken back, leaves and comes back.
    releases: bool,
}

/// What a walk has seen.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// Connections made anew.
    mended: u64,
    /// Bytes that were placed.
    placed: u64,
    /// Bytes that the device has moved by rails other than the first of their connection.
    striped: u64,
    /// Releases that had to break the connection.
    fenced: u64,
    /// Connections broken off because half a piece had left and the rest was away.
    torn: u64,
    /// Messages that all others have passed.
    held: u64,
    /// Messages withdrawn while their memory was away.
    lost: u64,
    /// Of foreign memory: see [`Memories::counts`].
    missed: u64,
    loaded: u64,
    stored: u64,
}

struct Walk {
    chance: u64,
    fault: Fault,
    ends: [End; 2],
    generation: u32,
    live: HashMap<u64, Operation>,
    memories: Arc<Memories>,
    ended: HashMap<(usize, u64, bool), u32>,
    spoilt: Vec<u64>,
    tokens: u64,
    /// The operation whose memory stays away.
    held: Option<u64>,
    seen: Seen,
    slow: bool,
    /// No receive is withdrawn before all is over: then nothing is left of any message.
    only_sends: bool,
    /// Memory moves seldom, so that much is placed.
    calm: bool,
}

fn message(identity: u64) -> Message {
    let id = MessageId { communicator: identity as u32 % 2, tag: 0, sequence: identity, label: 0, chunk: 0 };
    Message { id, fingerprint: [identity, 0], bytes: BYTES[identity as usize % BYTES.len()] }
}

fn fill(identity: u64, at: usize) -> u8 {
    (identity as usize ^ at ^ (at >> 8) ^ (at >> 16)) as u8
}

impl Walk {
    fn new(seed: u64, fault: Fault) -> Self {
        let memories = Arc::default();
        Self {
            chance: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            fault,
            ends: [End::new(1, fault, &memories), End::new(0, fault, &memories)],
            generation: 1,
            live: HashMap::new(),
            memories,
            ended: HashMap::new(),
            spoilt: Vec::new(),
            tokens: 0,
            held: None,
            seen: Seen::default(),
            slow: seed.is_multiple_of(3),
            only_sends: seed % 4 < 2,
            calm: seed % 3 == 1,
        }
    }

    fn chance(&mut self, of: u64) -> u64 {
        self.chance =
            self.chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.chance >> 33) % of
    }

    /// Posts one side of message `identity`, which goes from rank `identity / 7 % 2` to the other.
    fn post(&mut self, identity: u64, is_send: bool) {
        let from = (identity / 7 % 2) as usize;
        let rank = if is_send { from } else { 1 - from };
        let is_live = |of: &Operation| (of.rank, of.identity, of.is_send) == (rank, identity, is_send);
        if self.ended.contains_key(&(rank, identity, is_send)) || self.live.values().any(is_live) {
            return;
        }
        let message = message(identity);
        let memory = (0..message.bytes).map(|at| if is_send { fill(identity, at) } else { 0 }).collect();
        self.tokens += 1;
        let token = Token(self.tokens);
        let foreign = message.bytes > COPIED_BYTES && self.chance(3) > 0;
        let address = self.memories.add(token.0, memory, foreign);
        if self.chance(4) > 0 {
            self.memories.register(token.0);
        }
        let mut events = Vec::new();
        let rails = self.ends[rank].lanes.rails();
        let reach = if message.bytes > 64 { self.memories.reach(address, rails) } else { None };
        let link = &mut self.ends[rank].link;
        // SAFETY: the memory lives among `memories`, or is foreign, until the operation has ended or is withdrawn.
        unsafe {
            match is_send {
                true => link.post_send(&message, address, token, &mut events),
                false => link.post_recv_at(&message, address, reach, token, &mut events),
            }
        }
        self.live.insert(self.tokens, Operation { rank, identity, is_send });
        self.note(rank, events);
    }

    fn note(&mut self, rank: usize, events: Vec<Event>) {
        for event in events {
            let token = match event {
                Event::Sent(token) | Event::Received(token) => token.0,
                // The message of a withdrawn receive was being thrown away when a new receive was posted.
                Event::Mismatch { token, theirs, .. } if self.spoilt.contains(&theirs.id.sequence) => {
                    self.live.remove(&token.0);
                    self.memories.remove(token.0);
                    continue;
                }
                other => panic!("{other:?}"),
            };
            let operation = self.live.remove(&token).expect("events name live operations");
            let Operation { identity, is_send, .. } = operation;
            let memory = self.memories.remove(token);
            assert_eq!((operation.rank, is_send), (rank, matches!(event, Event::Sent(_))));
            let right = memory.iter().enumerate().all(|(at, &byte)| byte == fill(identity, at));
            assert!(right, "wrong bytes of {identity}");
            *self.ended.entry((rank, identity, is_send)).or_default() += 1;
        }
    }

    /// A rank takes what has come, says what it has to say, and gives credit.
    fn poll(&mut self, rank: usize) {
        let mut events = Vec::new();
        // Some ranks are slow to take what has come.
        let most = self.chance(if self.slow { 3 } else { 6 }) as usize;
        let end = &mut self.ends[rank];
        if end.open {
            for _ in 0..std::mem::take(&mut end.credits) {
                end.pipe.credit_completed();
            }
            for Completion { lane, immediate, bytes } in
                end.completions.drain(..most.min(end.completions.len()))
            {
                end.lanes.get_mut(lane).expect("a lane of the connection's").pair.receives += 1;
                let immediate = windlass_rdma::pipe::Immediate::decode(immediate).expect("a kind");
                end.pipe.arrived(immediate, bytes).expect("a write that can have been sent");
            }
            while let Some(landed) = end.pipe.poll() {
                match landed {
                    Landed::Ring { slot, bytes } => {
                        let begin = SHAPE.offset(slot);
                        end.link.feed(&end.ring[begin..begin + bytes], &mut events).expect("frames");
                    }
                    Landed::Placed { bytes } => {
                        assert!(matches!(end.link.wants(), Wants::Payload(..)));
                        end.link.landed(bytes, &mut events).expect("it was lent");
                        self.seen.placed += bytes as u64;
                    }
                }
            }
            if let Some(immediate) = end.pipe.credit() {
                let lane = end.lanes.choose_for_credit().expect("a lane").number;
                let (source, target) = (Source::Slot(0), Target::Slot(0));
                end.post(Write { lane, immediate, source, target, bytes: 0 });
            }
            let mut full = false;
            loop {
                if self.fault != Fault::NoLoad {
                    end.link.load();
                }
                let way = |placed: Option<(&Destined, usize)>| {
                    let Some((destined, _)) = placed else { return end.lanes.way_by_ring() };
                    let known = |rail| self.memories.known(destined.memory, rail).filter(|_| destined.lasts);
                    let way = end.lanes.way_to_place(&destined.place.keys, known);
                    full = way.is_none();
                    let mut way = way?;
                    if self.fault == Fault::OtherRail {
                        way.remote_key ^= 1;
                    }
                    Some(way)
                };
                let departed = end.pipe.depart(&mut end.link, &mut end.staging, way, &mut events);
                let Some(write) = departed else { break };
                end.post(write);
            }
            if !full && end.pipe.has_room() && end.link.destined().is_some() && self.fault != Fault::NoTear {
                self.seen.torn += 1;
                self.note(rank, events);
                return self.break_at(rank);
            }
        }
        self.note(rank, events);
    }

    /// The device is silent, and `rank`'s end of the connection is over.
    fn break_at(&mut self, rank: usize) {
        let mut events = Vec::new();
        self.ends.iter_mut().for_each(|end| end.flights.clear());
        let end = &mut self.ends[rank];
        end.completions.clear();
        (end.open, end.credits) = (false, 0);
        end.link.broke(&mut events);
        assert!(!end.link.exposes_any(&|_| true), "a device that is silent touches nothing");
        self.note(rank, events);
    }

    /// Both ends agree on a new connection.
    fn mend(&mut self) {
        if self.ends.iter().all(|end| end.open) {
            return;
        }
        for rank in 0..2 {
            if self.ends[rank].open {
                self.break_at(rank);
            }
            self.ends[rank].flights.clear();
        }
        self.generation += u32::from(self.fault != Fault::SameGeneration);
        let positions = [0, 1].map(|rank: usize| self.ends[rank].link.position());
        let rails: Rails = (0..3).filter(|_| self.chance(2) == 0).collect();
        let rails = if rails.is_empty() { Rails::default().with(self.chance(3) as usize) } else { rails };
        let pairs = 1 + self.chance(2) as usize;
        for rank in 0..2 {
            let mut events = Vec::new();
            let end = &mut self.ends[rank];
            let known = if self.fault == Fault::AnyRails { Rails::first(3) } else { rails };
            end.link.enter(Generation(self.generation), known);
            let resumed = end.link.resume(positions[1 - rank], &mut events);
            resumed.expect("a position that can be");
            (end.pipe, end.open) = (End::pipe(self.fault), true);
            end.lanes = new_lanes(rails, pairs, self.fault);
            self.note(rank, events);
        }
        self.seen.mended += 1;
    }

    /// Any live operation; often a send that the device is at, as few are at any time.
    fn any(&mut self) -> Option<u64> {
        let mut tokens: Vec<u64> = self.live.keys().copied().collect();
        tokens.sort_unstable();
        if self.chance(3) == 0 {
            let of = |token: &u64| &self.live[token];
            let is_read = |token: &u64| self.ends[of(token).rank].link.exposes(Token(*token));
            tokens.retain(|token| of(token).is_send && is_read(token));
        }
        let at = self.chance(tokens.len().max(1) as u64) as usize;
        tokens.get(at).copied()
    }

    /// Takes random steps, then finishes.
    fn run(&mut self, disturbances: Disturbances) {
        let Disturbances { withdrawals, breaks, releases } = disturbances;
        for _ in 0..1500 {
            match self.chance(20) {
                0..3 => {
                    let (identity, is_send) = (self.chance(IDENTITIES), self.chance(2) == 0);
                    self.post(identity, is_send);
                }
                3 if withdrawals && self.chance(2) == 0 => {
                    if let Some(token) = self.any() {
                        self.cancel(token);
                    }
                }
                4..8 => {
                    let rank = self.chance(2) as usize;
                    self.poll(rank);
                }
                8 if breaks && self.chance(10) == 0 => {
                    let rank = self.chance(2) as usize;
                    if self.ends[rank].open {
                        self.break_at(rank);
                    }
                }
                9 => self.mend(),
                10 if releases && self.chance(if self.calm { 16 } else { 2 }) == 0 => {
                    self.shift(withdrawals);
                }
                _ => {
                    let rank = self.chance(2) as usize;
                    (0..3).for_each(|_| self.carry(rank));
                }
            }
        }
        for identity in 0..IDENTITIES {
            self.post(identity, true);
            self.post(identity, false);
        }
        self.slow = false;
        for step in 0..6000 {
            self.mend();
            if releases && step == 20 {
                self.hold();
            }
            if releases && step < 300 {
                if step % if self.calm { 40 } else { 8 } == 0 {
                    self.shift(false);
                }
            } else {
                let others = self.live.keys().filter(|token| self.held != Some(**token));
                others.for_each(|&token| self.memories.come_back(token));
            }
            for rank in 0..2 {
                self.poll(rank);
                (0..8).for_each(|_| self.carry(rank));
            }
            let held = self.held.and_then(|token| self.live.get(&token)).map(|held| held.identity);
            let waits = |of: &&Operation| !self.spoilt.contains(&of.identity) && Some(of.identity) != held;
            if self.live.values().find(waits).is_none() {
                // Nobody waits for it but its own receiver.
                if self.held.take().is_none() {
                    break;
                }
            }
        }
        let stuck = self.live.values().filter(|operation| !self.spoilt.contains(&operation.identity)).count();
        assert_eq!(stuck, 0, "operations that nobody disturbed hang");
        self.leave();
    }
}

fn walk(seed: u64, disturbances: Disturbances, fault: Fault) -> Seen {
    let mut walk = Walk::new(seed, fault);
    walk.run(disturbances);
    let [missed, loaded, stored] = walk.memories.counts();
    Seen { missed, loaded, stored, ..walk.seen }
}

fn sum(seeds: std::ops::Range<u64>, disturbances: impl Fn(u64) -> Disturbances) -> Seen {
    let sum =
        seeds.map(|seed| walk(seed, disturbances(seed), Fault::None)).fold(Seen::default(), |a, b| Seen {
            mended: a.mended + b.mended,
            placed: a.placed + b.placed,
            striped: a.striped + b.striped,
            fenced: a.fenced + b.fenced,
            torn: a.torn + b.torn,
            lost: a.lost + b.lost,
            held: a.held + b.held,
            missed: a.missed + b.missed,
            loaded: a.loaded + b.loaded,
            stored: a.stored + b.stored,
        });
    println!("{sum:?}");
    sum
}

#[test]
fn undisturbed_messages_all_arrive() {
    let seen = sum(0..60, |_| Disturbances::default());
    assert!(seen.mended == 0 && seen.placed > 60 << 20 && seen.striped > 30 << 20, "{seen:?}");
    assert!(seen.loaded > 10 << 20 && seen.stored > 10 << 20, "{seen:?}");
}

#[test]
fn withdrawals_are_fenced_and_disturb_nobody_else() {
    let seen = sum(100..200, |_| Disturbances { withdrawals: true, ..Disturbances::default() });
    assert!(seen.mended > 100 && seen.placed > 10 << 20, "{seen:?}");
}

#[test]
fn breaks_lose_nothing_and_repeat_nothing() {
    let seen =
        sum(200..350, |seed| Disturbances { withdrawals: seed % 2 == 0, breaks: true, releases: false });
    assert!(seen.mended > 500 && seen.placed > 10 << 20, "{seen:?}");
}

#[test]
fn memory_that_is_taken_back_is_not_touched_and_its_messages_arrive() {
    let seen = sum(400..600, |seed| Disturbances {
        withdrawals: seed % 2 == 0,
        breaks: seed % 3 == 0,
        releases: true,
    });
    assert!(
        seen.fenced > 200 && seen.torn < 20 && seen.lost > 30 && seen.held > 50 && seen.missed > 500,
        "{seen:?}"
    );
    assert!(seen.placed > 10 << 20 && seen.loaded > 10 << 20 && seen.stored > 10 << 20, "{seen:?}");
}

/// Walks until one shows the fault; none may need so many.
fn caught(fault: Fault) {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let releases = matches!(fault, Fault::NoRelease | Fault::NoUnregister | Fault::NoTear);
    let all = Disturbances { withdrawals: true, breaks: true, releases };
    let found = (0..300).find(|&seed| std::panic::catch_unwind(|| walk(seed, all, fault)).is_err());
    std::panic::set_hook(hook);
    println!("{fault:?}: {found:?}");
    assert!(found.is_some(), "{fault:?} was not noticed");
}

#[test]
fn planted_faults_are_noticed() {
    caught(Fault::Pipe(Planted::OrderOfArrival));
    caught(Fault::Pipe(Planted::EarlyCredit));
    caught(Fault::Pipe(Planted::ManyCredits));
    caught(Fault::Pipe(Planted::Overdraft));
    caught(Fault::NoFence);
    caught(Fault::NoRelease);
    caught(Fault::NoUnregister);
    caught(Fault::NoLoad);
    caught(Fault::NoTear);
    caught(Fault::SameGeneration);
    caught(Fault::TrustCompletion);
    caught(Fault::OtherRail);
    caught(Fault::SharedReceives);
    caught(Fault::AnyRails);
}
