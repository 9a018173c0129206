//! Accelerators that refuse, and notices that are lost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use windlass::accelerator::simulated::Options;
use windlass::accelerator::{
    Accelerator, AcceleratorError, BadDescriptor, Contents, Movement, Notice, Region,
};
use windlass::{AbortReason, Error, ReduceOp, threads_with};

use super::wayward::Wayward;
use super::{accelerator, check, fill, rounds, shm, until};

const COUNT: usize = 50_000;

fn refusals() -> Vec<AcceleratorError> {
    let region = Region::new(7, 7);
    vec![
        AcceleratorError::UnknownRegion(region),
        AcceleratorError::OutOfRange { region, offset: 0, bytes: 1, limit: 0 },
        AcceleratorError::OutOfMemory { wanted_bytes: 1, free_bytes: 0, reclaiming: false },
        AcceleratorError::BadDescriptor(BadDescriptor::WrongHeader),
        AcceleratorError::BadDescriptor(BadDescriptor::OtherMemory),
        AcceleratorError::Gone,
    ]
}

#[test]
fn memory_that_cannot_be_exported_or_imported_is_an_error_on_every_rank() {
    for refusal in refusals() {
        for exports in [true, false] {
            let begin = Instant::now();
            threads_with(3, &shm(), |comm| {
                let wayward = Arc::new(Wayward::new(accelerator(comm.rank(), Options::default())));
                let device = comm.attach(wayward.clone()).unwrap();
                rounds(&comm, &device, COUNT, 1);
                if comm.rank() == 1 {
                    let place = if exports { &wayward.export } else { &wayward.import };
                    *place.lock().unwrap() = Some(refusal.clone());
                }
                comm.blocking().barrier().unwrap();
                let buffer = device.alloc::<f32>(COUNT).unwrap();
                let failed = comm.all_reduce(buffer, ReduceOp::Sum).wait().unwrap_err();
                let typed = match &failed.error {
                    Error::System { .. } => true,
                    Error::Aborted { reason, .. } => matches!(reason, AbortReason::System(_)),
                    _ => false,
                };
                assert!(typed, "{refusal}: {}", failed.error);
                assert_eq!(wayward.inner.audit(), []);
            })
            .unwrap();
            assert!(begin.elapsed() < Duration::from_secs(5), "{refusal}: {:?}", begin.elapsed());
        }
    }
}

#[test]
fn what_has_gone_on_its_way_is_waited_for() {
    // Stale and away are no refusals: a notice explains them, and the next place is told of.
    threads_with(2, &shm(), |comm| {
        let wayward = Arc::new(Wayward::new(accelerator(comm.rank(), Options::default())));
        let device = comm.attach(wayward.clone()).unwrap();
        let other = comm.duplicate().unwrap();
        for exports in [true, false] {
            let place = if exports { &wayward.export } else { &wayward.import };
            let region = Region::new(0, 0);
            *place.lock().unwrap() = Some(AcceleratorError::Away { region });
            comm.blocking().barrier().unwrap();
            let mut buffer = device.alloc::<f32>(COUNT).unwrap();
            fill(&mut buffer, comm.rank(), 0);
            let region = buffer.region();
            let operation = comm.all_reduce(buffer, ReduceOp::Sum);
            std::thread::sleep(Duration::from_millis(50));
            assert!(!operation.is_done());
            *place.lock().unwrap() = None;
            other.blocking().barrier().unwrap();
            wayward.inner.revoke_now(region, Contents::Preserved).unwrap();
            check(&operation.wait().unwrap(), 2, 0);
        }
    })
    .unwrap();
}

#[test]
fn lost_notices_are_made_up_for() {
    threads_with(2, &shm(), |comm| {
        let options =
            Options { movement: Movement::Revocable, replacement_time: Duration::ZERO, ..Options::default() };
        let wayward = Arc::new(Wayward::new(accelerator(comm.rank(), options)));
        let device = comm.attach(wayward.clone()).unwrap();
        let mut buffer = device.alloc::<f32>(COUNT).unwrap();
        let notices = wayward.notices.lock().unwrap().clone().unwrap();
        for round in 0..4 {
            fill(&mut buffer, comm.rank(), round);
            let region = buffer.region();
            let before = device.movements().revokes;
            let revoke = || {
                let generation = wayward.inner.status(region).unwrap().generation;
                wayward.inner.revoke_now(region, Contents::Preserved).unwrap();
                until("it is replaced", || wayward.inner.status(region).unwrap().generation > generation);
            };
            // One revoke is still told of; then the queue is full, and another one is not.
            let clock = wayward.clock.lock().unwrap();
            std::thread::sleep(Duration::from_millis(150));
            revoke();
            let flood = Notice::Freed { region: Region::new(0, 0), generation: 0 };
            (0..5000).for_each(|_| notices.push(flood));
            revoke();
            drop(clock);
            buffer = comm.all_reduce(buffer, ReduceOp::Sum).wait().unwrap();
            check(&buffer, 2, round);
            until("both revokes are known", || device.movements().revokes >= before + 2);
        }
        assert_eq!(wayward.inner.audit(), []);
    })
    .unwrap();
}
