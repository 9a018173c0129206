//! Memory that the kernel exports, its own accelerators' and others': each where its device node is, which inside the testbed all are.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use windlass::accelerator::simulated::Options;
use windlass::accelerator::{Accelerator, BadDescriptor, DeviceRange, Movement, OpenError, open};
use windlass::{Device, Error, Problem, ReduceOp, threads_with};

use super::{accelerator, check, fill, rounds, shm};

const COUNT: usize = 30_000;

fn opened(name: &str, options: Options) -> Option<Arc<dyn Accelerator>> {
    match open(name, options) {
        Ok(device) => Some(device),
        Err(OpenError::NoDevice { node, .. }) => {
            println!("skipped: {name}: no {node}");
            None
        }
        Err(other) => panic!("{other}"),
    }
}

/// Whether every rank would have one.
fn is_there(name: &str) -> bool {
    opened(name, Options::default()).is_some()
}

#[test]
fn sums_on_memory_that_never_moves_are_right() {
    for name in ["dma-heap", "udmabuf"] {
        if is_there(name) {
            threads_with(3, &shm(), |comm| {
                let device = comm.attach(opened(name, Options::default()).unwrap()).unwrap();
                rounds(&comm, &device, COUNT, 3);
            })
            .unwrap();
        }
    }
}

#[test]
fn sums_on_the_testbed_s_memory_are_right_however_it_moves() {
    if !is_there("testbed") {
        return;
    }
    for movement in [Movement::Transparent, Movement::Pinned, Movement::Cooperative, Movement::Revocable] {
        let moved: u64 = threads_with(2, &shm(), |comm| {
            let seed = u64::from(comm.rank());
            let rates = Options { moves_per_second: 10.0, revokes_per_second: 2.0, ..Options::default() };
            let accelerator = opened("testbed", Options { movement, seed, ..rates }).unwrap();
            let device = comm.attach(Arc::clone(&accelerator)).unwrap();
            rounds(&comm, &device, COUNT, 30);
            assert_eq!(accelerator.stale_stores(), Some(0));
            let movements = device.movements();
            movements.moves + movements.revokes
        })
        .unwrap()
        .into_iter()
        .sum();
        println!("{movement:?}: {moved} moves and revokes");
        assert!(moved > 0, "{movement:?}: nothing disturbed it");
    }
}

/// A rank's memory is one kind's, another's another's: what travels is a descriptor.
#[test]
fn ranks_with_different_accelerators_sum_together() {
    let names = ["dma-heap", "udmabuf", "testbed", "simulated"];
    if names.iter().all(|name| is_there(name)) {
        threads_with(4, &shm(), |comm| {
            let name = names[comm.rank() as usize];
            let device = comm.attach(opened(name, Options::default()).unwrap()).unwrap();
            rounds(&comm, &device, COUNT, 3);
        })
        .unwrap();
    }
}

/// A dma-buf of somebody else's, and how long it is.
fn somebodys(bytes: u64) -> Option<OwnedFd> {
    let exporter = opened("udmabuf", Options::default())?;
    let region = exporter.allocate(bytes).unwrap();
    Some(exporter.export(DeviceRange { region, generation: 0, offset: 0, bytes }).unwrap().descriptor)
}

fn refused(device: &Device, descriptor: BorrowedFd<'_>, offset: u64, count: usize) -> Problem {
    match device.adopt::<f32>(descriptor, offset, count) {
        Err(Error::InvalidArgument { operation: "adopt", problem, .. }) => problem,
        other => panic!("adopted: {other:?}"),
    }
}

#[test]
fn what_is_no_dma_buf_is_not_adopted() {
    threads_with(2, &shm(), |comm| {
        let device = comm.attach(accelerator(comm.rank(), Options::default())).unwrap();
        let (pipe, _end) = rustix::pipe::pipe().unwrap();
        let problem = refused(&device, pipe.as_fd(), 0, 1);
        assert_eq!(problem, Problem::BadDescriptor(BadDescriptor::NotDmaBuf));
        assert!(problem.to_string().contains("cuMemGetHandleForAddressRange"), "{problem}");
        // SAFETY: nothing is done through it: that it is not open is what is to be found.
        let closed = unsafe { BorrowedFd::borrow_raw(1 << 20) };
        assert_eq!(refused(&device, closed, 0, 1), Problem::BadDescriptor(BadDescriptor::Closed));
        let odd = Problem::Misaligned { address: 6, alignment: 4 };
        assert_eq!(refused(&device, pipe.as_fd(), 6, 1), odd);
        let large = refused(&device, pipe.as_fd(), 0, usize::MAX);
        assert_eq!(large, Problem::TooLarge { count: u64::MAX });
    })
    .unwrap();
}

#[test]
fn another_exporter_s_memory_is_summed_where_it_lies() {
    if !is_there("dma-heap") || !is_there("udmabuf") {
        return;
    }
    threads_with(2, &shm(), |comm| {
        let device = comm.attach(opened("dma-heap", Options::default()).unwrap()).unwrap();
        let theirs = somebodys(4 * COUNT as u64 + 100).unwrap();
        let short = refused(&device, theirs.as_fd(), 1 << 20, COUNT);
        let Problem::BadDescriptor(BadDescriptor::TooShort { needed_bytes, .. }) = short else {
            panic!("{short}")
        };
        assert_eq!(needed_bytes, (1 << 20) + 4 * COUNT as u64);
        let mut buffer = device.adopt::<f32>(theirs.as_fd(), 4096 + 20, COUNT).unwrap();
        drop(theirs);
        for round in 0..3 {
            fill(&mut buffer, comm.rank(), round);
            buffer = comm.all_reduce(buffer, ReduceOp::Sum).wait().unwrap();
            check(&buffer, comm.size(), round);
        }
    })
    .unwrap();
}

/// The processor does not reach a Gaudi's memory: whoever wants it to is told so, and what to do.
#[test]
fn memory_that_nobody_here_can_look_at_says_so() {
    let Some(accelerator) = opened("habanalabs", Options::default()) else { return };
    threads_with(1, &shm(), |comm| {
        let device = comm.attach(Arc::clone(&accelerator)).unwrap();
        let mut buffer = device.alloc::<f32>(COUNT).unwrap();
        let error = buffer.write(&vec![0.0; COUNT]).unwrap_err();
        assert!(matches!(error, Error::System { errno: libc::EOPNOTSUPP, .. }), "{error}");
        assert!(error.to_string().contains("RDMA"), "{error}");
    })
    .unwrap();
}
