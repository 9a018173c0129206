//! Four bytes a step: what, message, variant, amount. Two links say what links say, through pipes that keep order and cut anywhere.

use std::collections::{BTreeMap, VecDeque};

use windlass_transports::message::{COLLECTIVE_TAG, Message, MessageId};

use crate::desk::{Desk, End, SIZES};

const MESSAGES: u8 = 64;

/// What is known of one message.
#[derive(Debug, Default)]
struct Course {
    /// By who posts: the receiver, the sender.
    posted: [bool; 2],
    ended: [Option<End>; 2],
    /// The receive does not fit.
    odd: bool,
    /// One side was withdrawn: what becomes of the other is open.
    withdrawn: bool,
}

struct Pair {
    desks: [Desk; 2],
    /// From each desk to the other.
    pipes: [VecDeque<u8>; 2],
    courses: BTreeMap<u8, Course>,
}

fn message(name: u8) -> Message {
    let tag = if name & 4 == 0 { 9 } else { COLLECTIVE_TAG };
    let id = MessageId {
        communicator: u32::from(name >> 1 & 1),
        tag,
        sequence: u64::from(name >> 3),
        label: u32::from(name & 1),
        chunk: 0,
    };
    Message {
        id,
        fingerprint: [u64::from(name), 1],
        bytes: SIZES[usize::from(name.wrapping_mul(37) >> 3) % 8],
    }
}

impl Pair {
    /// Message `name` goes from desk `name & 1` to the other, and is posted once at each.
    fn post(&mut self, name: u8, is_send: bool, odd: bool) {
        let course = self.courses.entry(name).or_default();
        if std::mem::replace(&mut course.posted[usize::from(is_send)], true) {
            return;
        }
        let mut message = message(name);
        if odd && !is_send {
            message.bytes = message.bytes * 2 + 1;
            course.odd = true;
        }
        let from = usize::from(name & 1);
        let at = if is_send { from } else { 1 - from };
        self.desks[at].post(is_send, name, &message, if is_send { name | 128 } else { 0 });
        self.note(at);
    }

    /// Who is to receive the message asks for it before.
    fn seek(&mut self, name: u8) {
        let course = self.courses.entry(name).or_default();
        if !course.posted[0] {
            self.desks[1 - usize::from(name & 1)].seek(&message(name));
        }
    }

    fn note(&mut self, at: usize) {
        for (live, end) in self.desks[at].ended() {
            let course = self.courses.get_mut(&live.name).expect("what ends was posted");
            if !live.is_send && end == End::Done {
                assert!(!course.odd, "a message that does not fit was delivered");
                assert!(live.memory.iter().all(|&byte| byte == live.name | 128), "wrong bytes");
            }
            assert!(end == End::Done || course.odd || course.withdrawn, "{live:?} does not fit: {course:?}");
            course.ended[usize::from(live.is_send)] = Some(end);
        }
    }

    fn out(&mut self, at: usize, amount: usize) {
        let said = self.desks[at].say(amount);
        self.pipes[at].extend(said);
        self.note(at);
    }

    fn over(&mut self, from: usize, amount: usize) {
        let amount = amount.min(self.pipes[from].len());
        let bytes: Vec<u8> = self.pipes[from].drain(..amount).collect();
        assert!(self.desks[1 - from].hear(&bytes), "an honest link is not garbled");
        self.note(1 - from);
    }

    /// All that was said is heard; what both sides posted has ended, rightly.
    fn finish(&mut self) {
        let busy = |pair: &Self| {
            pair.desks.iter().any(|desk| desk.link.has_output())
                || pair.pipes.iter().any(|pipe| !pipe.is_empty())
        };
        for turn in 0.. {
            if !busy(self) {
                break;
            }
            assert!(turn < 10_000, "the links talk for ever");
            for at in 0..2 {
                self.out(at, 1 << 12);
                self.over(at, usize::MAX);
            }
        }
        for (name, course) in &self.courses {
            if course.withdrawn || course.posted != [true; 2] {
                continue;
            }
            let ended = match course.odd {
                true => course.ended[0] == Some(End::Mismatch) && course.ended[1].is_some(),
                false => course.ended == [Some(End::Done); 2],
            };
            assert!(ended, "message {name}: {course:?}");
        }
    }
}

/// Runs the steps, then lets the links finish.
pub fn run(bytes: &[u8]) {
    let mut pair =
        Pair { desks: [Desk::new(1), Desk::new(0)], pipes: Default::default(), courses: BTreeMap::new() };
    for &[what, name, variant, amount] in bytes.as_chunks().0 {
        let (name, amount) = (name % MESSAGES, usize::from(amount));
        match what % 11 {
            0 | 1 => pair.post(name, true, false),
            2 | 3 => pair.post(name, false, variant > 240),
            4 => {
                let at = usize::from(variant & 1);
                if let Some(live) = pair.desks[at].withdraw(name) {
                    pair.courses.entry(live.name).or_default().withdrawn = true;
                }
            }
            5 | 6 => pair.out(usize::from(variant & 1), amount),
            10 => pair.seek(name),
            _ => pair.over(usize::from(variant & 1), amount),
        }
    }
    pair.finish();
}
