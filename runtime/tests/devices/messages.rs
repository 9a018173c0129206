//! Messages of device memory: whatever moves when, they arrive right, and nobody touches memory that has gone.

use std::time::Duration;

use windlass::accelerator::simulated::Options;
use windlass::accelerator::{Contents, Movement};
use windlass::{Communicator, DeviceBuffer, Error, TransportChoice, threads_with};

use super::{accelerator, config, fill, value};

fn holds(buffer: &DeviceBuffer<f32>, rank: u32, round: u32) {
    let mut values = vec![0.0; buffer.len()];
    buffer.read(&mut values).unwrap();
    for (i, &is) in values.iter().enumerate() {
        assert_eq!(is, value(rank, round, i), "element {i} of round {round}");
    }
}

/// Rank 0 and rank 1 send each other buffers of these many elements, one of them from or to the host every second time.
fn ping_pong(comm: &Communicator, options: Options, counts: &[usize], rounds: u32) -> (u64, u64) {
    let accelerator = accelerator(comm.rank(), options);
    let device = comm.attach(accelerator.clone()).unwrap();
    let (me, peer) = (comm.rank(), 1 - comm.rank());
    for &count in counts {
        let mut ours = device.alloc::<f32>(count).unwrap();
        let mut theirs = device.alloc::<f32>(count).unwrap();
        for round in 0..rounds {
            fill(&mut ours, me, round);
            match round % 4 {
                // Both at once, and both ways.
                0 => (ours, theirs) = comm.sendrecv(ours, peer, theirs, peer, 0).wait().unwrap(),
                1 => {
                    let receive = comm.recv(theirs, peer, 1);
                    ours = comm.send(ours, peer, 1).wait().unwrap();
                    theirs = receive.wait().unwrap();
                }
                // Host memory here, device memory there.
                2 if me == 0 => {
                    let host: Vec<f32> = (0..count).map(|i| value(0, round, i)).collect();
                    comm.send(host, peer, 2).wait().unwrap();
                    theirs = comm.recv(theirs, peer, 2).wait().unwrap();
                }
                2 => {
                    theirs = comm.recv(theirs, peer, 2).wait().unwrap();
                    ours = comm.send(ours, peer, 2).wait().unwrap();
                }
                _ => {
                    let receive = comm.recv_any(theirs, 3);
                    ours = comm.send(ours, peer, 3).wait().unwrap();
                    let received = receive.wait().unwrap();
                    assert_eq!(received.source(), peer);
                    theirs = received.into_memory();
                }
            }
            holds(&theirs, peer, round);
            holds(&ours, me, round);
        }
    }
    assert_eq!(accelerator.audit(), []);
    let movements = device.movements();
    (movements.moves + movements.revokes, movements.replays)
}

const COUNTS: [usize; 6] = [0, 1, 1000, 65_537, 300_000, 6_000_000];

#[test]
fn messages_come_from_devices_and_go_to_them() {
    for transport in [TransportChoice::Auto, TransportChoice::Tcp] {
        let run = |comm: Communicator| ping_pong(&comm, Options::default(), &COUNTS, 4);
        threads_with(2, &config(transport), run).unwrap();
    }
}

#[test]
fn messages_are_right_whatever_moves() {
    for (movement, moves, revokes) in [
        (Movement::Cooperative, 300.0, 0.0),
        (Movement::Pinned, 300.0, 0.0),
        (Movement::Revocable, 0.0, 300.0),
    ] {
        for transport in [TransportChoice::Auto, TransportChoice::Tcp] {
            let options = Options {
                movement,
                moves_per_second: moves,
                revokes_per_second: revokes,
                patience: Duration::from_millis(200),
                ..Options::default()
            };
            let run = |comm: Communicator| ping_pong(&comm, options.clone(), &[1000, 1_200_000], 8);
            let totals = threads_with(2, &config(transport), run).unwrap();
            let moved: u64 = totals.iter().map(|(moved, _)| moved).sum();
            assert!(moved > 20, "{moved} moves, {movement:?}");
        }
    }
}

#[test]
fn a_rank_sends_to_itself_from_device_to_device() {
    threads_with(2, &config(TransportChoice::Auto), |comm| {
        let device = comm.attach(accelerator(comm.rank(), Options::default())).unwrap();
        let (me, peer) = (comm.rank(), 1 - comm.rank());
        let mut buffers = [(); 4].map(|()| device.alloc::<f32>(200_000).unwrap());
        fill(&mut buffers[0], me, 0);
        fill(&mut buffers[1], me, 1);
        let [own, away, kept, come] = buffers;
        let sends = vec![(own, me, 0), (away, peer, 0)];
        let (_, receives) = comm.exchange(sends, vec![(kept, me, 0), (come, peer, 0)]).wait().unwrap();
        holds(&receives[0], me, 0);
        holds(&receives[1], peer, 1);
    })
    .unwrap();
}

#[test]
fn a_message_of_lost_memory_fails_and_says_whose() {
    for sends in [true, false] {
        threads_with(2, &config(TransportChoice::Tcp), |comm| {
            let options = Options { movement: Movement::Revocable, ..Options::default() };
            let accelerator = accelerator(comm.rank(), options);
            let device = comm.attach(accelerator.clone()).unwrap();
            let mut buffer = device.alloc::<f32>(3_000_000).unwrap();
            fill(&mut buffer, comm.rank(), 0);
            if comm.rank() == 0 {
                accelerator.revoke_now(buffer.region(), Contents::Lost).unwrap();
            }
            let operation = if (comm.rank() == 0) == sends {
                comm.send(buffer, 1 - comm.rank(), 0)
            } else {
                comm.recv(buffer, 1 - comm.rank(), 0)
            };
            // Who only sends to the lost memory may be done before anybody knows; whatever follows fails.
            let error = match operation.wait() {
                Ok(_) if comm.rank() == 1 && !sends => comm.blocking().barrier().unwrap_err(),
                result => result.unwrap_err().error,
            };
            let named = matches!(error, Error::RegionRevoked { rank: 0, .. });
            assert!(named, "rank {}: {error}", comm.rank());
        })
        .unwrap();
    }
}
