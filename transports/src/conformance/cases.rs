//! Matching, credits, order and mismatch.

use super::cluster::{Cluster, Outcome};
use crate::message::{COLLECTIVE_TAG, Message, MessageId};

/// A collective's message.
pub(super) fn message(communicator: u32, sequence: u64, bytes: usize) -> Message {
    let id = MessageId { communicator, tag: COLLECTIVE_TAG, sequence, label: 3, chunk: 0 };
    Message { id, fingerprint: [0x1111, 0x2222], bytes }
}

pub(super) fn tagged(tag: u32, sequence: u64, bytes: usize) -> Message {
    let mut message = message(1, sequence, bytes);
    message.id.tag = tag;
    message
}

/// 0 to `count`, each once, in an order that looks random.
pub(super) fn shuffled(count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    order.sort_by_key(|&at| (at as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17));
    order
}

pub(super) fn sizes(cluster: &mut Cluster<'_>) {
    let eager = cluster.eager();
    let sizes = [
        0,
        1,
        7,
        8,
        63,
        64,
        65,
        4095,
        4096,
        65_537,
        eager - 1,
        eager,
        eager + 1,
        2 * eager + 3,
        1 << 20,
        5 << 20,
    ];
    for (at, &bytes) in sizes.iter().enumerate() {
        for first in 0..3 {
            let message = message(1, (3 * at + first) as u64, bytes);
            let mut operations = Vec::new();
            for (from, to) in [(0, 1), (1, 0)] {
                match first {
                    0 => {
                        operations.push(cluster.recv(to, from, message));
                        cluster.settle();
                        operations.push(cluster.send(from, to, message));
                    }
                    1 => {
                        operations.push(cluster.send(from, to, message));
                        cluster.settle();
                        operations.push(cluster.recv(to, from, message));
                    }
                    _ => {
                        operations.push(cluster.send(from, to, message));
                        operations.push(cluster.recv(to, from, message));
                    }
                }
            }
            cluster.finish(&operations);
        }
    }
}

pub(super) fn identities(cluster: &mut Cluster<'_>) {
    let base = message(1, 1, 100).id;
    let ids = [
        base,
        MessageId { communicator: 2, ..base },
        MessageId { tag: 5, ..base },
        MessageId { sequence: 2, ..base },
        MessageId { sequence: 1 << 40 | 1, ..base },
        MessageId { label: 4, ..base },
        MessageId { chunk: 1, ..base },
    ];
    for bytes in [100, cluster.eager() + 100] {
        for early in [false, true] {
            let messages = ids.map(|id| Message { id, fingerprint: [9, 9], bytes });
            let mut operations: Vec<usize> = Vec::new();
            if early {
                operations.extend(messages.iter().rev().map(|&message| cluster.recv(1, 0, message)));
            }
            operations.extend(messages.iter().map(|&message| cluster.send(0, 1, message)));
            cluster.settle();
            if !early {
                operations.extend(messages.iter().rev().map(|&message| cluster.recv(1, 0, message)));
            }
            cluster.finish(&operations);
        }
    }
}

pub(super) fn out_of_order(cluster: &mut Cluster<'_>) {
    let eager = cluster.eager();
    let messages: Vec<Message> = (0..400)
        .map(|at| {
            tagged(at % 40, u64::from(at / 40), [10, 1000, eager, eager + 1][at as usize % 4].min(100_000))
        })
        .collect();
    let mut operations = Vec::new();
    for half in [&messages[..200], &messages[200..]] {
        operations.extend(half.iter().map(|&message| cluster.send(0, 1, message)));
        cluster.turn();
    }
    cluster.settle();
    for at in shuffled(messages.len()) {
        operations.push(cluster.recv(1, 0, messages[at]));
        cluster.turn();
    }
    cluster.finish(&operations);
}

/// Sends `many` messages that nobody receives, then `lively` ones that must pass; then receives the first after all, last first.
fn stuck(cluster: &mut Cluster<'_>, many: &[Message], lively: impl Fn(u64) -> Message) {
    let sends: Vec<usize> = many.iter().map(|&message| cluster.send(0, 1, message)).collect();
    cluster.settle();
    let sent = sends.iter().filter(|&&send| cluster.is_done(send)).count();
    let bytes: usize = many[..sent].iter().map(|message| message.bytes).sum();
    assert!(
        sent < many.len() / 2 && bytes <= 8 << 20,
        "{sent} messages were taken from a sender that nobody receives from"
    );
    for sequence in 0..300 {
        let message = lively(sequence);
        let there = cluster.send(0, 1, message);
        let here = cluster.recv(1, 0, message);
        let back = [cluster.send(1, 0, message), cluster.recv(0, 1, message)];
        cluster.finish(&[there, here, back[0], back[1]]);
    }
    let receives: Vec<usize> = many.iter().rev().map(|&message| cluster.recv(1, 0, message)).collect();
    cluster.finish(&receives);
    cluster.finish(&sends);
}

pub(super) fn stuck_communicator(cluster: &mut Cluster<'_>) {
    let eager = cluster.eager();
    for (communicator, bytes) in [(1, 4096.min(eager)), (3, 0), (4, eager)] {
        let count = if bytes == eager { 200 } else { 3000 };
        let many: Vec<Message> = (0..count).map(|sequence| message(communicator, sequence, bytes)).collect();
        stuck(cluster, &many, |sequence| {
            message(communicator + 10, sequence, [8, eager, eager + 1][sequence as usize % 3])
        });
    }
}

pub(super) fn stuck_users(cluster: &mut Cluster<'_>) {
    let eager = cluster.eager();
    let many: Vec<Message> = (0..3000).map(|sequence| tagged(7, sequence, 2000.min(eager))).collect();
    stuck(cluster, &many, |sequence| message(1, sequence, [8, eager, eager + 1][sequence as usize % 3]));
}

pub(super) fn many_large(cluster: &mut Cluster<'_>) {
    let bytes = cluster.eager() + 1;
    let count = (128 << 20) / bytes;
    let messages: Vec<Message> =
        (0..count.min(1000) as u64).map(|sequence| message(1, sequence, bytes)).collect();
    let mut operations: Vec<usize> = messages.iter().map(|&message| cluster.send(0, 1, message)).collect();
    cluster.settle();
    assert!(
        operations.iter().all(|&send| !cluster.is_done(send)),
        "a large message left without its receive"
    );
    for at in shuffled(messages.len()) {
        operations.push(cluster.recv(1, 0, messages[at]));
    }
    cluster.finish(&operations);
}

pub(super) fn flood(cluster: &mut Cluster<'_>) {
    let eager = cluster.eager();
    let bytes = |at: u64| match at % 50 {
        0 => eager + 1,
        1..5 => 20_000.min(eager),
        other => (other * 7) as usize,
    };
    let messages: Vec<Message> = (0..4000).map(|sequence| message(1, sequence, bytes(sequence))).collect();
    let mut operations = Vec::new();
    for (at, &message) in messages.iter().enumerate() {
        operations.push(cluster.send(0, 1, message));
        operations.push(cluster.send(1, 0, message));
        if at % 7 == 0 {
            cluster.turn();
        }
    }
    for &message in &messages {
        operations.push(cluster.recv(0, 1, message));
        operations.push(cluster.recv(1, 0, message));
    }
    cluster.finish(&operations);
}

pub(super) fn all_pairs(cluster: &mut Cluster<'_>) {
    let eager = cluster.eager();
    let mut operations = Vec::new();
    for sequence in 0..40 {
        for from in 0..cluster.ranks() {
            for to in (0..cluster.ranks()).filter(|&to| to != from) {
                let mut message = message(1, sequence, [8, 3000, eager, eager + 9][sequence as usize % 4]);
                message.id.label = from * 16 + to;
                if sequence % 3 == 0 {
                    operations.push(cluster.recv(to, from, message));
                    operations.push(cluster.send(from, to, message));
                } else {
                    operations.push(cluster.send(from, to, message));
                    operations.push(cluster.recv(to, from, message));
                }
            }
        }
        cluster.turn();
    }
    cluster.finish(&operations);
}

pub(super) fn mismatch(cluster: &mut Cluster<'_>) {
    let eager = cluster.eager();
    let mut sequence = 0;
    let pairs = [
        (100, 100),
        (100, 101),
        (0, 1),
        (1, 0),
        (eager, eager),
        (eager + 1, eager + 1),
        (100, eager + 1),
        (eager + 1, 100),
    ];
    for (theirs, ours) in pairs {
        for order in 0..3 {
            sequence += 1;
            let sent = message(1, sequence, theirs);
            let mut expected = message(1, sequence, ours);
            if theirs == ours {
                expected.fingerprint[1] ^= 1 << 63;
            }
            let refusals = cluster.refused(0).len();
            let (send, recv);
            if order == 0 {
                recv = cluster.recv(1, 0, expected);
                cluster.settle();
                send = cluster.send(0, 1, sent);
            } else {
                send = cluster.send(0, 1, sent);
                if order == 1 {
                    cluster.settle();
                }
                recv = cluster.recv(1, 0, expected);
            }
            cluster.settle();
            assert_eq!(
                cluster.outcome(recv),
                Some(&Outcome::Mismatch(sent)),
                "the receiver learns of a mismatch"
            );
            match cluster.outcome(send) {
                Some(Outcome::Mismatch(message)) => assert_eq!(*message, expected, "the sender learns of it"),
                Some(Outcome::Done) => {
                    let told = &cluster.refused(0)[refusals..];
                    assert_eq!(told, [(1, expected)], "the sender learns of it after the end");
                }
                other => panic!("the sender of a mismatching message ends with {other:?}"),
            }
            let next = message(1, sequence + 1000, eager + 1);
            let operations = [cluster.send(0, 1, next), cluster.recv(1, 0, next)];
            cluster.finish(&operations);
        }
    }
}

pub(super) fn duplicate_receive(cluster: &mut Cluster<'_>) {
    for bytes in [10, cluster.eager() + 1] {
        let message = message(1, bytes as u64, bytes);
        let first = cluster.recv(1, 0, message);
        let second = cluster.recv(1, 0, message);
        cluster.settle();
        assert_eq!(
            cluster.outcome(second),
            Some(&Outcome::Mismatch(message)),
            "the second receive is refused"
        );
        let send = cluster.send(0, 1, message);
        cluster.finish(&[first, send]);
    }
}
