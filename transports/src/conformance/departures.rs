//! Withdrawn operations and lost peers.

use super::cases::message;
use super::cluster::Cluster;

/// Sizes that travel differently: small, at the limit, large, large enough to be met on its way in its only piece and between pieces.
fn kinds(cluster: &Cluster<'_>) -> [usize; 5] {
    [40, cluster.eager(), cluster.eager() + 1, 900_000, 24 << 20]
}

pub(super) fn withdrawn_receive(cluster: &mut Cluster<'_>) {
    let mut sequence = 0;
    for bytes in kinds(cluster) {
        for turns in [0, 1, 2, 3, 5, 8, 13, 40] {
            sequence += 1;
            let doomed = message(1, sequence, bytes);
            let recv = cluster.recv(1, 0, doomed);
            let send = (turns != 1).then(|| cluster.send(0, 1, doomed));
            for _ in 0..turns {
                cluster.turn();
            }
            cluster.withdraw(recv);
            cluster.settle();
            cluster.check_untouched();
            if let Some(send) = send
                && cluster.outcome(send).is_none()
            {
                cluster.withdraw(send);
            }
            works(cluster, sequence);
        }
    }
}

pub(super) fn withdrawn_send(cluster: &mut Cluster<'_>) {
    // Beyond what may be announced: the withdrawn ones must not keep the places of the others.
    let sends: Vec<usize> =
        (0..1500).map(|at| cluster.send(0, 1, message(2, at, cluster.eager().min(2000)))).collect();
    cluster.settle();
    for &send in &sends[..1499] {
        cluster.withdraw(send);
    }
    let recv = cluster.recv(1, 0, message(2, 1499, cluster.eager().min(2000)));
    cluster.finish(&[recv, sends[1499]]);
    let mut sequence = 0;
    for bytes in kinds(cluster) {
        for turns in [0, 1, 2, 3, 5, 8] {
            for posted in [false, true] {
                sequence += 1;
                let doomed = message(1, sequence, bytes);
                let recv = posted.then(|| cluster.recv(1, 0, doomed));
                let send = cluster.send(0, 1, doomed);
                for _ in 0..turns {
                    cluster.turn();
                }
                cluster.withdraw(send);
                cluster.settle();
                assert!(cluster.lost(0).is_empty(), "a withdrawal disturbs nobody else");
                if let Some(recv) = recv.filter(|&recv| cluster.outcome(recv).is_none()) {
                    cluster.withdraw(recv);
                }
                works(cluster, sequence);
            }
        }
    }
}

pub(super) fn reposted_receive(cluster: &mut Cluster<'_>) {
    let mut sequence = 0;
    for bytes in [40, cluster.eager() + 1] {
        for turns in [0, 1, 2, 20] {
            for late in [false, true] {
                // A large message that comes for a withdrawn receive may be thrown away: the new receive must be there first.
                if late && bytes > cluster.eager() {
                    continue;
                }
                sequence += 1;
                let wanted = message(1, sequence, bytes);
                let first = cluster.recv(1, 0, wanted);
                for _ in 0..turns {
                    cluster.turn();
                }
                cluster.withdraw(first);
                let mut operations = Vec::new();
                if late {
                    operations.push(cluster.send(0, 1, wanted));
                    cluster.turn();
                }
                operations.push(cluster.recv(1, 0, wanted));
                if !late {
                    cluster.turn();
                    operations.push(cluster.send(0, 1, wanted));
                }
                cluster.finish(&operations);
            }
        }
    }
}

/// Messages still pass both ways.
fn works(cluster: &mut Cluster<'_>, sequence: u64) {
    for (bytes, label) in [(8, 1), (cluster.eager() + 1, 2)] {
        let mut message = message(1, sequence, bytes);
        message.id.label = 100 + label;
        let mut operations = Vec::new();
        for (from, to) in [(0, 1), (1, 0)] {
            operations.push(cluster.send(from, to, message));
            operations.push(cluster.recv(to, from, message));
        }
        cluster.finish(&operations);
    }
}

/// What breaks is carried on: nothing is lost, and nothing comes twice.
pub(super) fn broken_stream(cluster: &mut Cluster<'_>) {
    if !cluster.streams_break() {
        return;
    }
    works(cluster, 1);
    let sizes = [0, 40, cluster.eager(), cluster.eager() + 1, (1 << 20) + 4000];
    let mut sequence = 1;
    for turns in [0, 1, 2, 5, 13, 40] {
        for severed in [0, 1] {
            let mut operations = Vec::new();
            for bytes in sizes {
                sequence += 1;
                for (from, to) in [(0, 1), (1, 0)] {
                    operations.push(cluster.recv(to, from, message(1, sequence, bytes)));
                    operations.push(cluster.send(from, to, message(1, sequence, bytes)));
                }
            }
            // Again while what the first break lost is on its way.
            for _ in 0..2 {
                for _ in 0..turns {
                    cluster.turn();
                }
                cluster.sever(severed, 1 - severed);
            }
            cluster.finish(&operations);
            works(cluster, 1000 + sequence);
        }
    }
    cluster.until("a break is seen by both", |c| !c.reopened(0).is_empty() && !c.reopened(1).is_empty());
    withdrawn_from_broken_stream(cluster);
    assert!(cluster.lost(0).is_empty() && cluster.lost(1).is_empty(), "nobody was lost");
}

/// A half-sent message is withdrawn while its stream is broken: its memory is not touched again, and all others arrive.
fn withdrawn_from_broken_stream(cluster: &mut Cluster<'_>) {
    for turns in [1, 5, 13] {
        for sender in [0, 1] {
            let (large, other) = (message(3, turns, 5 << 19), message(4, turns, 3 << 19));
            let recv = cluster.recv(1 - sender, sender, large);
            let send = cluster.send(sender, 1 - sender, large);
            let rest = [cluster.recv(1 - sender, sender, other), cluster.send(sender, 1 - sender, other)];
            for _ in 0..turns {
                cluster.turn();
            }
            cluster.sever(sender, 1 - sender);
            cluster.withdraw(send);
            cluster.finish(&rest);
            cluster.settle();
            cluster.withdraw(recv);
            works(cluster, 5000 + turns * 2 + u64::from(sender));
        }
    }
}

pub(super) fn lost_peer(cluster: &mut Cluster<'_>) {
    let eager = cluster.eager();
    works(cluster, 1);
    let hello = message(5, 0, 8);
    for (from, to) in [(0, 2), (2, 0), (1, 2), (2, 1)] {
        let operations = [cluster.send(from, to, hello), cluster.recv(to, from, hello)];
        cluster.finish(&operations);
    }
    let mut pending = Vec::new();
    for rank in [0, 1] {
        for (sequence, bytes) in [8, eager, eager + 1, 8 << 20].into_iter().enumerate() {
            pending.push(cluster.recv(rank, 2, message(6, sequence as u64, bytes)));
        }
        let large = message(7, 0, 24 << 20);
        pending.push(cluster.send(rank, 2, large));
        cluster.recv(2, rank, large);
    }
    for _ in 0..10 {
        cluster.turn();
    }
    cluster.kill(2);
    cluster.until("the loss is seen by all", |cluster| cluster.lost(0) == [2] && cluster.lost(1) == [2]);
    let after = [cluster.recv(0, 2, message(8, 0, 8)), cluster.send(0, 2, message(8, 0, 8))];
    cluster.settle();
    assert!(
        after.iter().all(|&operation| cluster.outcome(operation).is_none()),
        "nothing completes with a lost peer"
    );
    // What did not end is over: its memory is the poster's again, which a withdrawal marks.
    for operation in pending {
        cluster.withdraw(operation);
    }
    cluster.settle();
    works(cluster, 2);
}
