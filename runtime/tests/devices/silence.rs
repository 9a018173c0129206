//! Silence at the end: memory of a failed operation is its owner's again, and nobody else's.

use std::sync::Arc;
use std::time::{Duration, Instant};

use windlass::accelerator::simulated::Options;
use windlass::{Error, ReduceOp, threads_with};

use super::wayward::Wayward;
use super::{accelerator, rounds, shm, until_left};

const COUNT: usize = 100_000;

#[test]
fn memory_of_a_failed_operation_is_not_stored_to_any_more() {
    for moves in [false, true] {
        threads_with(2, &shm(), |comm| {
            let healthy = comm.duplicate().unwrap();
            let wayward = Arc::new(Wayward::new(accelerator(comm.rank(), Options::default())));
            let device = comm.attach(wayward.clone()).unwrap();
            if comm.rank() == 1 {
                *wayward.late.lock().unwrap() = Duration::from_millis(200);
            }
            let mut buffer = device.alloc::<f32>(COUNT).unwrap();
            buffer.write(&vec![1.0; COUNT]).unwrap();
            healthy.blocking().barrier().unwrap();
            let operation = comm.all_reduce(buffer, ReduceOp::Sum);
            if comm.rank() == 0 {
                // Rank 1 sums for 200 ms. In the next 200 it has handed its engine the stores of the sum.
                std::thread::sleep(Duration::from_millis(300));
                comm.abort();
            }
            let failed = operation.wait().unwrap_err();
            assert!(matches!(failed.error, Error::Aborted { by: 0, .. }), "{}", failed.error);
            let mut buffer = failed.memory;
            if moves {
                let _ = wayward.inner.move_now(buffer.region());
            }
            buffer.write(&vec![7.0; COUNT]).unwrap();
            std::thread::sleep(Duration::from_millis(500));
            let mut values = vec![0.0; COUNT];
            buffer.read(&mut values).unwrap();
            let disturbed = values.iter().filter(|&&is| is != 7.0).count();
            assert_eq!(disturbed, 0, "rank {}: {disturbed} elements were stored to", comm.rank());
            *wayward.late.lock().unwrap() = Duration::ZERO;
            // It is memory like any other, for other communicators.
            healthy.attach(wayward.clone()).unwrap();
            let buffer = healthy.all_reduce(buffer, ReduceOp::Sum).wait().unwrap();
            buffer.read(&mut values).unwrap();
            assert!(values.iter().all(|&is| is == 14.0));
            rounds(&healthy, &device, COUNT, 2);
            assert_eq!(wayward.inner.audit(), []);
        })
        .unwrap();
    }
}

#[test]
fn memory_that_a_peer_does_not_let_go_stays_away_and_names_the_peer() {
    let mut config = shm();
    config.timeout = Duration::from_millis(700);
    threads_with(2, &config, |comm| {
        let wayward = Arc::new(Wayward::new(accelerator(comm.rank(), Options::default())));
        let device = comm.attach(wayward.clone()).unwrap();
        if comm.rank() == 1 {
            *wayward.late.lock().unwrap() = Duration::from_secs(2);
        }
        let buffer = device.alloc::<f32>(COUNT).unwrap();
        comm.blocking().barrier().unwrap();
        let operation = comm.all_reduce(buffer, ReduceOp::Sum);
        if comm.rank() == 0 {
            std::thread::sleep(Duration::from_millis(100));
            comm.abort();
        }
        let begin = Instant::now();
        let mut buffer = operation.wait().unwrap_err().memory;
        if comm.rank() == 0 {
            assert!(begin.elapsed() < Duration::from_millis(600), "the operation itself ends at once");
            let values = vec![7.0; COUNT];
            let error = buffer.write(&values).unwrap_err();
            let named = matches!(&error, Error::TimedOut { waiting_on, .. } if waiting_on[..] == [1]);
            assert!(named, "{error}");
            std::thread::sleep(Duration::from_millis(1500));
            buffer.write(&values).unwrap();
        }
        // A rank that leaves frees the others' memory, too; nobody is to be helped by that.
        let stays = if comm.rank() == 1 { 2600 } else { 500 };
        std::thread::sleep(Duration::from_millis(stays));
    })
    .unwrap();
}

#[test]
fn memory_dropped_while_a_peer_holds_it_comes_back_when_the_peer_lets_go() {
    threads_with(2, &shm(), |comm| {
        let options = Options { capacity_bytes: 16 << 20, ..Options::default() };
        let wayward = Arc::new(Wayward::new(accelerator(comm.rank(), options)));
        let device = comm.attach(wayward.clone()).unwrap();
        if comm.rank() == 1 {
            // Longer than a rank that frees waits for an answer.
            *wayward.late.lock().unwrap() = Duration::from_millis(1500);
        }
        let buffer = device.alloc::<f32>(1 << 20).unwrap();
        comm.blocking().barrier().unwrap();
        let operation = comm.all_reduce(buffer, ReduceOp::Sum);
        if comm.rank() == 0 {
            std::thread::sleep(Duration::from_millis(100));
            comm.abort();
        }
        drop(operation.wait().unwrap_err().memory);
        // Scratch stays with the communicator.
        until_left(&wayward.inner, 1);
    })
    .unwrap();
}
