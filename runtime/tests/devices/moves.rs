//! Moves and revokes at the worst moments, and buffers that go while theirs are under way.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use windlass::accelerator::simulated::Options;
use windlass::accelerator::{Contents, Movement};
use windlass::{Error, ReduceOp, threads_with};

use super::wayward::{Prank, Wayward};
use super::{accelerator, check, fill, rounds, shm, until, until_left};

const COUNT: usize = 150_000;

#[test]
fn regions_that_are_moving_already_are_moved_and_revoked_again_on_all_ranks_at_once() {
    for announce_ahead in [false, true] {
        threads_with(3, &shm(), |comm| {
            let move_time = Duration::from_millis(5);
            let options = Options { announce_ahead, move_time, ..Options::default() };
            let accelerator = accelerator(comm.rank(), options);
            let device = comm.attach(accelerator.clone()).unwrap();
            let mut buffer = device.alloc::<f32>(COUNT).unwrap();
            for round in 0..6 {
                fill(&mut buffer, comm.rank(), round);
                let region = buffer.region();
                comm.blocking().barrier().unwrap();
                let operation = comm.all_reduce(buffer, ReduceOp::Sum);
                for step in 0..10 {
                    // On its way it cannot be moved, and says so.
                    let _ = accelerator.move_now(region);
                    if (step + round) % 4 == 3 {
                        let _ = accelerator.revoke_now(region, Contents::Preserved);
                    }
                    std::thread::sleep(Duration::from_micros(u64::from(step) * 200));
                }
                buffer = operation.wait().unwrap();
                check(&buffer, comm.size(), round);
            }
            assert_eq!(accelerator.audit(), []);
            let moved = device.movements();
            assert!(moved.moves + moved.revokes >= 6, "{moved:?}");
        })
        .unwrap();
    }
}

#[test]
fn a_move_or_a_revoke_inside_an_acknowledgement_changes_nothing() {
    for prank in [Prank::AskInAcknowledgement, Prank::RevokeInAcknowledgement] {
        for movement in [Movement::Cooperative, Movement::Pinned] {
            threads_with(2, &shm(), |comm| {
                let options = Options { movement, ..Options::default() };
                let inner = accelerator(comm.rank(), options);
                let wayward = Wayward { prank: Some(prank), ..Wayward::new(inner.clone()) };
                let device = comm.attach(Arc::new(wayward)).unwrap();
                let mut buffer = device.alloc::<f32>(COUNT).unwrap();
                for round in 0..4 {
                    fill(&mut buffer, comm.rank(), round);
                    let region = buffer.region();
                    let operation = comm.all_reduce(buffer, ReduceOp::Sum);
                    inner.move_now(region).unwrap();
                    buffer = operation.wait().unwrap();
                    check(&buffer, 2, round);
                    until("it moves", || {
                        let moved = device.movements();
                        moved.moves + moved.revokes > u64::from(round)
                    });
                }
                assert_eq!(inner.audit(), []);
            })
            .unwrap();
        }
    }
}

#[test]
fn memory_revoked_while_it_is_registered_is_used_at_its_next_place() {
    threads_with(2, &shm(), |comm| {
        let inner = accelerator(comm.rank(), Options::default());
        let prank = Some(Prank::RevokeAtAllocation(Contents::Preserved));
        let device = comm.attach(Arc::new(Wayward { prank, ..Wayward::new(inner.clone()) })).unwrap();
        for _ in 0..5 {
            rounds(&comm, &device, COUNT, 1);
        }
        assert_eq!(inner.audit(), []);
    })
    .unwrap();
    threads_with(2, &shm(), |comm| {
        let inner = accelerator(comm.rank(), Options::default());
        // Rank 0's memory is lost at once.
        let prank = (comm.rank() == 0).then_some(Prank::RevokeAtAllocation(Contents::Lost));
        let device = comm.attach(Arc::new(Wayward { prank, ..Wayward::new(inner) })).unwrap();
        let mut buffer = device.alloc::<f32>(COUNT).unwrap();
        let written = buffer.write(&vec![1.0; COUNT]);
        let expected = |error: &Error| matches!(error, Error::RegionRevoked { rank: 0, .. });
        assert!(comm.rank() == 1 || written.is_err_and(|error| expected(&error)));
        let failed = comm.all_reduce(buffer, ReduceOp::Sum).wait().unwrap_err();
        assert!(expected(&failed.error), "{}", failed.error);
    })
    .unwrap();
}

#[test]
fn a_revoke_in_any_phase_of_an_operation_changes_nothing() {
    threads_with(2, &shm(), |comm| {
        let fence_delay = Duration::from_millis(2)..=Duration::from_millis(3);
        let options = Options { fence_delay, movement: Movement::Revocable, ..Options::default() };
        let accelerator = accelerator(comm.rank(), options);
        let device = comm.attach(accelerator.clone()).unwrap();
        let mut buffer = device.alloc::<f32>(COUNT).unwrap();
        // Sums end after about 2.5 ms, commits after twice that.
        for round in 0..18 {
            fill(&mut buffer, comm.rank(), round);
            let region = buffer.region();
            comm.blocking().barrier().unwrap();
            let operation = comm.all_reduce(buffer, ReduceOp::Sum);
            if comm.rank() == round % 2 {
                std::thread::sleep(Duration::from_micros(u64::from(round) * 500));
                accelerator.revoke_now(region, Contents::Preserved).unwrap();
            }
            buffer = operation.wait().unwrap();
            check(&buffer, 2, round);
        }
        assert_eq!(accelerator.audit(), []);
        until("each is noticed", || device.movements().revokes == 9);
    })
    .unwrap();
}

#[test]
fn buffers_dropped_in_any_state_are_freed() {
    for movement in [Movement::Cooperative, Movement::Pinned, Movement::Revocable] {
        threads_with(2, &shm(), |comm| {
            let options = Options {
                movement,
                move_time: Duration::from_millis(2),
                capacity_bytes: 16 << 20,
                ..Options::default()
            };
            let accelerator = accelerator(comm.rank(), options);
            let device = comm.attach(accelerator.clone()).unwrap();
            for round in 0..24u32 {
                let mut buffer = device.alloc::<f32>(COUNT).unwrap();
                fill(&mut buffer, comm.rank(), round);
                let region = buffer.region();
                match round % 6 {
                    1 => accelerator.move_now(region).unwrap(),
                    2 => accelerator.revoke_now(region, Contents::Preserved).unwrap(),
                    3 => {
                        let _ = accelerator.move_now(region);
                        let _ = accelerator.revoke_now(region, Contents::Preserved);
                    }
                    4 => accelerator.revoke_now(region, Contents::Lost).unwrap(),
                    5 => {
                        accelerator.move_now(region).unwrap();
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    _ => {}
                }
                drop(buffer);
                // A notice for it may still be under way.
                let _ = accelerator.move_now(region);
            }
            // All of it comes back: nothing is left of what was dropped.
            until_left(&accelerator, 0);
            rounds(&comm, &device, COUNT, 1);
            assert_eq!(accelerator.audit(), []);
        })
        .unwrap();
    }
}

#[test]
fn a_dropped_operation_goes_on_while_its_buffer_moves_and_frees_it() {
    threads_with(2, &shm(), |comm| {
        let accelerator =
            accelerator(comm.rank(), Options { capacity_bytes: 16 << 20, ..Options::default() });
        let device = comm.attach(accelerator.clone()).unwrap();
        for round in 0..8 {
            let mut buffer = device.alloc::<f32>(COUNT).unwrap();
            fill(&mut buffer, comm.rank(), round);
            let region = buffer.region();
            let operation = comm.all_reduce(buffer, ReduceOp::Sum);
            if comm.rank() == 0 {
                drop(operation);
                let _ = accelerator.move_now(region);
            } else {
                check(&operation.wait().unwrap(), 2, round);
            }
        }
        comm.blocking().barrier().unwrap();
        // Its scratch stays.
        until_left(&accelerator, 1);
        assert_eq!(accelerator.audit(), []);
    })
    .unwrap();
}

#[test]
fn a_communicator_takes_its_scratch_along() {
    threads_with(2, &shm(), |comm| {
        let accelerator = accelerator(comm.rank(), Options { capacity_bytes: 8 << 20, ..Options::default() });
        let device = comm.attach(accelerator.clone()).unwrap();
        for _ in 0..12 {
            rounds(&comm.duplicate().unwrap(), &device, COUNT, 1);
        }
        until_left(&accelerator, 0);
    })
    .unwrap();
}

#[test]
fn ranks_without_an_accelerator_hold_up_nobody() {
    threads_with(3, &shm(), |comm| {
        let pair = comm.split((comm.rank() < 2).then_some(0), 0).unwrap();
        if let Some(pair) = pair {
            let accelerator =
                accelerator(comm.rank(), Options { capacity_bytes: 16 << 20, ..Options::default() });
            let device = pair.attach(accelerator.clone()).unwrap();
            let buffer = device.alloc::<f32>(COUNT).unwrap();
            for moves in 1..4 {
                accelerator.move_now(buffer.region()).unwrap();
                until("it moves", || device.movements().moves == moves);
            }
            drop(buffer);
            until_left(&accelerator, 0);
            assert_eq!(device.movements().refused, 0);
        }
        comm.blocking().barrier().unwrap();
    })
    .unwrap();
}

/// What waits in an engine's queue holds its memory in place: it is given what it works on and what comes next, and each further stream's first.
#[test]
fn an_engine_is_given_no_more_than_a_move_can_wait_for() {
    threads_with(2, &shm(), |comm| {
        let second = comm.duplicate().unwrap();
        let wayward = Arc::new(Wayward::new(accelerator(comm.rank(), Options::default())));
        let device = comm.attach(wayward.clone()).unwrap();
        second.attach(wayward.clone()).unwrap();
        *wayward.late.lock().unwrap() = Duration::from_millis(2);
        // Eight tasks of each rank's.
        let count = (4 << 20) / size_of::<f32>();
        rounds(&comm, &device, count, 1);
        assert_eq!(wayward.most_queued.load(Ordering::SeqCst), 2);
        let mut buffers = [(); 2].map(|()| device.alloc::<f32>(count).unwrap());
        buffers.iter_mut().for_each(|buffer| fill(buffer, comm.rank(), 1));
        let [one, other] = buffers;
        let both = [comm.all_reduce(one, ReduceOp::Sum), second.all_reduce(other, ReduceOp::Sum)];
        both.into_iter().for_each(|operation| check(&operation.wait().unwrap(), 2, 1));
        assert!((2..=3).contains(&wayward.most_queued.load(Ordering::SeqCst)));
    })
    .unwrap();
}
