//! Memory that the program brings along.

use windlass::{Error, Problem, ReduceOp, TransportChoice};

use super::{TRANSPORTS, config};

fn problem<T: std::fmt::Debug>(result: Result<T, Error>) -> (Problem, String) {
    match result {
        Err(error) => match &error {
            Error::InvalidArgument { problem, .. } => (problem.clone(), error.to_string()),
            _ => panic!("{error}"),
        },
        Ok(value) => panic!("{value:?}"),
    }
}

#[test]
fn it_is_reduced_as_heap_memory_is_and_stays_where_it_was() {
    for transport in TRANSPORTS {
        windlass::threads_with(3, &config(transport, None), |comm| {
            for count in [1, 100_000] {
                let vector: Vec<u64> = (0..count).map(|i| i * u64::from(comm.rank() + 1)).collect();
                let address = vector.as_ptr();
                let mut memory = comm.adopt(vector).unwrap();
                let region = memory.region();
                // Beside registered memory of another rank, and in and out of place.
                memory = if comm.rank() == 1 {
                    let mut buffer = comm.alloc::<u64>(count as usize).unwrap();
                    buffer.copy_from_slice(&memory);
                    let buffer = comm.all_reduce(buffer, ReduceOp::Sum).wait().unwrap();
                    memory.copy_from_slice(&buffer);
                    memory
                } else {
                    comm.all_reduce(memory, ReduceOp::Sum).wait().unwrap()
                };
                assert!(memory.iter().enumerate().all(|(i, x)| *x == 6 * i as u64));
                let (memory, output) =
                    comm.scan_into(memory, vec![0; count as usize], ReduceOp::Max).wait().unwrap();
                assert_eq!(output, *memory);
                comm.blocking().broadcast(&mut memory.to_vec(), 0).unwrap();
                assert_eq!(memory.region(), region);
                let vector = memory.into_vec();
                assert_eq!((vector.as_ptr(), vector.len()), (address, count as usize));
                // It has no name any more, so it may get another.
                assert_ne!(comm.adopt(vector).unwrap().region(), region);
            }
        })
        .unwrap();
    }
}

#[test]
fn a_dropped_operation_keeps_it_until_the_end() {
    for transport in TRANSPORTS {
        windlass::threads_with(2, &config(transport, None), |comm| {
            let vector = vec![1.0f32; 200_000];
            let (base, bytes) = (vector.as_ptr().cast_mut().cast::<u8>(), size_of_val(vector.as_slice()));
            let memory = comm.adopt(vector).unwrap();
            let region = memory.region();
            if comm.rank() == 0 {
                drop(comm.all_reduce(memory, ReduceOp::Sum));
                // The other one has not come: the memory is the operation's, and registered.
                // SAFETY: refused, so that nothing is registered.
                let refused = unsafe { comm.register(base, bytes) };
                let (problem, text) = problem(refused);
                assert!(
                    matches!(problem, Problem::NotAdopted(_)) && text.contains(&format!("region {region}")),
                    "{text}"
                );
                comm.blocking().send(&[0u8], 1, 0).unwrap();
                comm.blocking().barrier().unwrap();
                return;
            }
            comm.blocking().recv(&mut [0u8], 0, 0).unwrap();
            let memory = comm.all_reduce(memory, ReduceOp::Sum).wait().unwrap();
            assert!(memory.iter().all(|x| *x == 2.0));
            comm.blocking().barrier().unwrap();
        })
        .unwrap();
    }
}

#[test]
fn what_overlaps_or_is_nothing_to_register_is_refused() {
    windlass::threads_with(1, &config(TransportChoice::Shm, None), |comm| {
        let mut vector = vec![0u32; 100];
        let base = vector.as_mut_ptr().cast::<u8>();
        // SAFETY: the vector outlives the registrations, and no operation uses it.
        let register = |at: usize, bytes| unsafe { comm.register(base.wrapping_add(at), bytes) };
        let half = register(0, 200).unwrap();
        assert_eq!(half.bytes(), 200);
        for (at, bytes) in [(0, 200), (0, 1), (199, 10), (100, 300)] {
            assert!(matches!(problem(register(at, bytes)).0, Problem::NotAdopted(_)), "{at} {bytes}");
        }
        let other = register(200, 200).unwrap();
        assert_ne!(half.region(), other.region());
        drop(half);
        assert_ne!(register(0, 200).unwrap().region(), 0);
        let buffer = comm.alloc::<u8>(10).unwrap();
        // SAFETY: refused, so that nothing is registered.
        let refused =
            unsafe { [comm.register(buffer.as_ptr().cast_mut(), 1), comm.register(std::ptr::null_mut(), 4)] };
        let [own, null] = refused.map(|refused| problem(refused).0);
        assert_eq!(own, Problem::Shared);
        assert!(matches!(null, Problem::Misaligned { address: 0, .. }));
        assert!(matches!(problem(register(0, usize::MAX)).0, Problem::NotAdopted(_) | Problem::Shared));
        // The vector comes back with the refusal.
        let failed = comm.adopt(vector).unwrap_err();
        assert_eq!(failed.memory.len(), 100);
        drop(other);
        let adopted = comm.adopt(failed.memory).unwrap();
        assert_eq!(adopted.into_vec().len(), 100);
        assert_eq!(comm.adopt(Vec::<f64>::new()).unwrap().len(), 0);
    })
    .unwrap();
}
