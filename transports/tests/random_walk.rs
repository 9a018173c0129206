//! Random posts, withdrawals and polls between two ranks: the protocol never breaks, and what nobody withdrew arrives.

use std::collections::HashMap;

use windlass_transports::link::{Limits, Planted};
use windlass_transports::message::{Message, MessageId};
use windlass_transports::sim::{Endpoint, Fault, Network, Options, Wire};
use windlass_transports::{Event, Token, Transport};

const BYTES: [usize; 6] = [0, 8, 64, 65, 300, 2500];

struct Walk {
    chance: u64,
    network: Network,
    ranks: Vec<Endpoint>,
    /// By token: the rank, the identity, whether it sends, and its memory.
    live: HashMap<u64, (usize, u64, bool, Vec<u8>)>,
    ended: HashMap<(usize, u64, bool), u32>,
    spoilt: Vec<u64>,
    tokens: u64,
    reopened: u32,
}

impl Walk {
    fn chance(&mut self, of: u64) -> u64 {
        self.chance =
            self.chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.chance >> 33) % of
    }

    fn message(identity: u64) -> Message {
        let id =
            MessageId { communicator: identity as u32 % 2, tag: 0, sequence: identity, label: 0, chunk: 0 };
        Message { id, fingerprint: [identity, 0], bytes: BYTES[identity as usize % BYTES.len()] }
    }

    /// Posts one side of message `identity`, which goes from rank `identity / 7 % 2` to the other.
    fn post(&mut self, identity: u64, is_send: bool) {
        let from = (identity / 7 % 2) as usize;
        let rank = if is_send { from } else { 1 - from };
        if self.ended.contains_key(&(rank, identity, is_send))
            || self.live.values().any(|(at, of, send, _)| (*at, *of, *send) == (rank, identity, is_send))
        {
            return;
        }
        let message = Self::message(identity);
        let mut memory = vec![if is_send { identity as u8 | 1 } else { 0 }; message.bytes];
        self.tokens += 1;
        let token = Token(self.tokens);
        // SAFETY: the memory lives in `live` until the operation has ended or is withdrawn.
        unsafe {
            match is_send {
                true => self.ranks[rank].post_send(1 - rank as u32, &message, memory.as_ptr(), token),
                false => self.ranks[rank].post_recv(1 - rank as u32, &message, memory.as_mut_ptr(), token),
            }
        }
        self.live.insert(self.tokens, (rank, identity, is_send, memory));
    }

    fn poll(&mut self, rank: usize) {
        let mut events = Vec::new();
        self.ranks[rank].poll(&mut events);
        for event in events {
            let token = match event {
                Event::Sent(token) | Event::Received(token) => token.0,
                Event::Broken { peer, .. } => {
                    self.ranks[rank].reopen(peer);
                    continue;
                }
                Event::Reopened { .. } => {
                    self.reopened += 1;
                    continue;
                }
                // The message of a withdrawn receive was being thrown away when a new receive was posted.
                Event::Mismatch { token, theirs, .. } if self.spoilt.contains(&theirs.id.sequence) => {
                    self.live.remove(&token.0);
                    continue;
                }
                other => panic!("{other:?}"),
            };
            let (at, identity, is_send, memory) =
                self.live.remove(&token).expect("events name live operations");
            assert_eq!((at, is_send), (rank, matches!(event, Event::Sent(_))));
            assert!(memory.iter().all(|&byte| byte == identity as u8 | 1), "wrong bytes");
            *self.ended.entry((rank, identity, is_send)).or_default() += 1;
        }
    }

    fn withdraw(&mut self) {
        let mut tokens: Vec<u64> = self.live.keys().copied().collect();
        tokens.sort_unstable();
        if tokens.is_empty() {
            return;
        }
        let token = tokens[self.chance(tokens.len() as u64) as usize];
        if let Some((rank, identity, is_send, _)) = self.live.remove(&token) {
            self.ranks[rank].withdraw(Token(token));
            if is_send {
                // It may have reached the peer, so its identity is used up.
                self.ended.insert((rank, identity, true), 1);
            }
            self.spoilt.push(identity);
        }
    }

    /// Takes random steps, then finishes.
    fn run(&mut self, withdrawals: bool, breaks: bool) {
        for _ in 0..400 {
            match self.chance(10) {
                0..4 => {
                    let (identity, is_send) = (self.chance(60), self.chance(2) == 0);
                    self.post(identity, is_send);
                }
                4 if withdrawals => self.withdraw(),
                5..8 => {
                    let rank = self.chance(2) as usize;
                    self.poll(rank);
                }
                8 if breaks && self.chance(4) == 0 => {
                    let rank = self.chance(2) as u32;
                    self.network.inject(Fault::Break(rank, 1 - rank));
                }
                _ => {
                    self.network.step();
                }
            }
        }
        for identity in 0..60 {
            self.post(identity, true);
            self.post(identity, false);
        }
        for _ in 0..20_000 {
            self.poll(0);
            self.poll(1);
            self.network.step();
        }
        let stuck = self.live.values().filter(|(_, identity, ..)| !self.spoilt.contains(identity)).count();
        assert_eq!(stuck, 0, "operations that nobody disturbed hang");
    }
}

/// Says how often a stream was opened anew.
fn walk(seed: u64, withdrawals: bool, breaks: bool, planted: Option<Planted>) -> u32 {
    let limits = Limits { eager_bytes: 64, credit_bytes: 200, credit_messages: 3, announcements: 2 };
    let options = Options {
        limits,
        planted,
        wire: Wire { window: 700, packet: 300, ..Wire::default() },
        ..Options::default()
    };
    let network = Network::new(2, seed, options);
    let ranks = network.endpoints();
    let mut walk = Walk {
        chance: seed ^ 0x5555,
        network,
        ranks,
        live: HashMap::new(),
        ended: HashMap::new(),
        spoilt: Vec::new(),
        tokens: 0,
        reopened: 0,
    };
    walk.run(withdrawals, breaks);
    walk.reopened
}

#[test]
fn undisturbed_messages_all_arrive() {
    assert!((0..100).all(|seed| walk(seed, false, false, None) == 0));
}

#[test]
fn withdrawals_disturb_nobody_else() {
    assert!((0..300).all(|seed| walk(seed, true, false, None) == 0), "and no stream breaks");
}

#[test]
fn breaks_lose_nothing_and_repeat_nothing() {
    let reopened: u32 = (0..300).map(|seed| walk(seed, seed % 2 == 0, true, None)).sum();
    assert!(reopened > 600, "{reopened}");
}

/// Walks until one shows the fault; none may need a thousand.
fn caught(planted: Planted) {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let found =
        (0..1000).find(|&seed| std::panic::catch_unwind(|| walk(seed, false, true, Some(planted))).is_err());
    std::panic::set_hook(hook);
    println!("{planted:?}: {found:?}");
    assert!(found.is_some(), "{planted:?} was not noticed");
}

#[test]
fn planted_faults_of_replay_are_noticed() {
    caught(Planted::TrustCompletion);
    caught(Planted::DeliverTwice);
    caught(Planted::ReuseGeneration);
}
