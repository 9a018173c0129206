//! Messages that are sought before they are received.

use super::cases::tagged;
use super::cluster::Cluster;

pub(super) fn in_order(cluster: &mut Cluster<'_>) {
    let mut sequence = 0;
    for bytes in [0, 40, cluster.eager(), cluster.eager() + 1, 1 << 20] {
        for (first, second) in [(1, 2), (2, 1)] {
            for before in [true, false] {
                let message = tagged(7, sequence, bytes);
                sequence += 1;
                if before {
                    assert_eq!(cluster.seek(0, 1, &message).or(cluster.seek(0, 2, &message)), None);
                }
                let mut operations = vec![cluster.send(first, 0, message)];
                cluster.settle();
                operations.push(cluster.send(second, 0, message));
                cluster.settle();
                for peer in [1, 2] {
                    assert_eq!(cluster.take_arrival(0, peer, &message), before, "who sought it is told");
                }
                let place = |cluster: &mut Cluster<'_>, peer| {
                    let place = cluster.seek(0, peer, &message);
                    place.unwrap_or_else(|| panic!("a message of {bytes} bytes from {peer} is here"))
                };
                assert!(place(cluster, first) < place(cluster, second), "in the order of their arrival");
                operations.extend([2, 1].map(|peer| cluster.recv(0, peer, message)));
                cluster.finish(&operations);
                assert_eq!(cluster.seek(0, 1, &message), None, "it has been received");
                // Received otherwise, what was sought is of no interest.
                let other = tagged(7, 1 << 20 | sequence, bytes);
                assert_eq!(cluster.seek(0, 1, &other), None);
                let both = [cluster.recv(0, 1, other), cluster.send(1, 0, other)];
                cluster.finish(&both);
                assert!(!cluster.take_arrival(0, 1, &other));
            }
        }
    }
}

/// The sender has more messages than it may even announce, none of which anybody wants.
pub(super) fn behind_a_stall(cluster: &mut Cluster<'_>) {
    let small = cluster.eager().min(2000);
    let mut sequence = 0;
    for bytes in [40, cluster.eager() + 1] {
        for when in 0..4 {
            let unwanted: Vec<_> = (0..1500).map(|at| tagged(5, sequence * 1500 + at, small)).collect();
            let wanted = tagged(6, sequence, bytes);
            sequence += 1;
            // Sought before the stall; before it is sent, but after the stall; and when it waits.
            if when == 0 {
                assert_eq!(cluster.seek(1, 0, &wanted), None);
            }
            let mut operations: Vec<_> =
                unwanted.iter().map(|&message| cluster.send(0, 1, message)).collect();
            cluster.settle();
            if when == 1 {
                assert_eq!(cluster.seek(1, 0, &wanted), None);
                cluster.settle();
            }
            operations.push(cluster.send(0, 1, wanted));
            if when == 2 {
                cluster.settle();
            }
            if when < 3 {
                let here = cluster.seek(1, 0, &wanted).is_some();
                cluster.settle();
                assert!(
                    cluster.take_arrival(1, 0, &wanted) || here,
                    "a stalled sender announces what is sought"
                );
            }
            operations.push(cluster.recv(1, 0, wanted));
            let last = operations.len() - 2;
            cluster.finish(&operations[last..]);
            operations.extend(unwanted.iter().map(|&message| cluster.recv(1, 0, message)));
            cluster.finish(&operations);
        }
    }
}
