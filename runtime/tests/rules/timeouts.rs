//! Time limits of single operations.

use std::time::{Duration, Instant};

use windlass::{
    AbortReason, Collective, Communicator, DataType, Error, RawRequest, ReduceOp, TransportChoice,
};

use super::{Meeting, TRANSPORTS, config};

const SHORT: Duration = Duration::from_millis(150);

type Call = fn(&Communicator) -> Result<(), Error>;

/// A sum of four, by each door.
const CALLS: [(&str, Call); 4] = [
    ("blocking", |comm| comm.blocking().all_reduce(&mut [1.0f32; 4], ReduceOp::Sum)),
    ("owned", |comm| {
        comm.all_reduce(vec![1.0f32; 4], ReduceOp::Sum).wait().map(|_| ()).map_err(|failed| failed.error)
    }),
    ("scoped", |comm| {
        let mut memory = [1.0f32; 4];
        comm.scope(|scope| scope.all_reduce(&mut memory, ReduceOp::Sum).wait())
    }),
    ("raw", |comm| {
        let mut memory = vec![1.0f32; 4];
        let mut request = RawRequest::new(Collective::AllReduce, DataType::F32, 4);
        (request.input, request.output) = (memory.as_ptr().cast(), memory.as_mut_ptr().cast());
        // SAFETY: the operation keeps the memory, which is as long as it says.
        let operation = unsafe { comm.post(&request, memory) };
        operation.wait().map(|_| ()).map_err(|failed| failed.error)
    }),
];

/// Ended in time: not before, and well before the general limit.
#[track_caller]
fn in_time(after: Duration, limit: Duration) {
    assert!(after >= limit && after < limit + Duration::from_secs(3), "{after:?} of {limit:?}");
}

#[test]
fn a_late_rank_is_named_and_the_communicator_is_unusable() {
    for transport in TRANSPORTS {
        for (door, call) in CALLS {
            let over = Meeting::default();
            let what = format!("{transport}, {door}");
            windlass::threads_with(3, &config(transport, None), |comm| {
                comm.blocking().barrier().unwrap();
                if comm.rank() == 2 {
                    over.of(3);
                    // What the others sent before they gave up may be all that this rank needs; not so in the next call.
                    let error = call(&comm).and_then(|()| call(&comm)).unwrap_err();
                    let late = matches!(error, Error::Aborted { reason: AbortReason::TimedOut, .. });
                    assert!(late || matches!(error, Error::TimedOut { .. }), "{what}: {error}");
                    return;
                }
                let begin = Instant::now();
                let error = call(&comm.with_timeout(SHORT)).unwrap_err();
                // The other one may have been earlier, and have told.
                in_time(begin.elapsed(), SHORT / 2);
                match &error {
                    Error::TimedOut { operation: "all_reduce", sequence: 1, waiting_on, after, .. } => {
                        assert!(
                            !waiting_on.is_empty() && !waiting_on.contains(&comm.rank()),
                            "{what}: {error}"
                        );
                        // On shared memory everybody waits for whoever has not come.
                        assert!(transport == TransportChoice::Tcp || *waiting_on == [2], "{what}: {error}");
                        in_time(*after, SHORT / 2);
                    }
                    // The other one was a little earlier, and has told.
                    Error::Aborted { by, reason: AbortReason::TimedOut, .. } => {
                        assert!(*by < 2, "{what}: {error}")
                    }
                    _ => panic!("{what}: {error}"),
                }
                assert_eq!(call(&comm).unwrap_err(), error, "{what}");
                over.of(3);
            })
            .unwrap();
        }
    }
}

#[test]
fn a_message_that_does_not_come_is_given_up() {
    for transport in TRANSPORTS {
        for owned in [false, true] {
            let over = Meeting::default();
            windlass::threads_with(2, &config(transport, None), |comm| {
                comm.blocking().barrier().unwrap();
                if comm.rank() == 1 {
                    over.of(2);
                    assert!(comm.blocking().barrier().is_err());
                    return;
                }
                let (begin, limited) = (Instant::now(), comm.with_timeout(SHORT));
                let error = if owned {
                    let failed = limited.recv(vec![0u8; 10], 1, 5).wait().unwrap_err();
                    assert_eq!(failed.memory, [0; 10]);
                    failed.error
                } else {
                    limited.blocking().recv(&mut [0u8; 10], 1, 5).unwrap_err()
                };
                in_time(begin.elapsed(), SHORT);
                let Error::TimedOut { operation: "recv", sequence: 0, waiting_on, .. } = &error else {
                    panic!("{transport}: {error}")
                };
                assert_eq!(*waiting_on, [1]);
                over.of(2);
            })
            .unwrap();
        }
    }
}

/// What rank 0 does while rank 1 stays away.
fn alone(transport: TransportChoice, work: impl Fn(&Communicator) + Sync) {
    let over = Meeting::default();
    windlass::threads_with(2, &config(transport, None), |comm| {
        comm.blocking().barrier().unwrap();
        if comm.rank() == 0 {
            work(&comm);
        }
        over.of(2);
    })
    .unwrap();
}

#[test]
fn an_exchange_has_one_limit() {
    for transport in TRANSPORTS {
        let over = Meeting::default();
        windlass::threads_with(2, &config(transport, None), |comm| {
            comm.blocking().barrier().unwrap();
            if comm.rank() == 1 {
                // One of the two messages comes.
                comm.blocking().send(&[4u8; 3], 0, 1).unwrap();
                return over.of(2);
            }
            let (begin, limited) = (Instant::now(), comm.with_timeout(SHORT));
            let receives = vec![(vec![0u8; 3], 1, 1), (vec![0u8; 3], 1, 2)];
            let failed = limited.exchange(Vec::<(Vec<u8>, u32, u32)>::new(), receives).wait().unwrap_err();
            in_time(begin.elapsed(), SHORT);
            assert!(
                matches!(&failed.error, Error::TimedOut { operation: "recv", waiting_on, .. } if *waiting_on == [1]),
                "{transport}: {}",
                failed.error
            );
            over.of(2);
        })
        .unwrap();
    }
}

#[test]
fn it_may_be_longer_than_the_general_limit() {
    for transport in TRANSPORTS {
        let mut config = config(transport, None);
        config.timeout = Duration::from_millis(300);
        windlass::threads_with(2, &config, |comm| {
            let patient = comm.with_timeout(Duration::from_secs(20));
            if comm.rank() == 1 {
                std::thread::sleep(Duration::from_millis(900));
            }
            let sum = patient.all_reduce(vec![1u32; 3], ReduceOp::Sum).wait().unwrap();
            assert_eq!(sum, [2; 3]);
            if comm.rank() == 0 {
                std::thread::sleep(Duration::from_millis(900));
                patient.blocking().send(&[7u8], 1, 0).unwrap();
            } else {
                patient.blocking().recv(&mut [0u8], 0, 0).unwrap();
            }
            // For ever, too; and none of it counts for the next call, which ends in time.
            comm.with_timeout(Duration::MAX).blocking().barrier().unwrap();
            comm.blocking().barrier().unwrap();
        })
        .unwrap();
    }
}

#[test]
fn the_time_runs_while_others_are_before_it() {
    for transport in TRANSPORTS {
        alone(transport, |comm| {
            let begin = Instant::now();
            let first = comm.all_reduce(vec![0u8; 4], ReduceOp::Sum);
            let second = comm.with_timeout(SHORT).all_reduce(vec![0u16; 4], ReduceOp::Sum);
            let error = second.wait().unwrap_err().error;
            in_time(begin.elapsed(), SHORT);
            assert!(
                matches!(&error, Error::TimedOut { sequence: 2, waiting_on, .. } if *waiting_on == [1]),
                "{transport}: {error}"
            );
            assert_eq!(first.wait().unwrap_err().error, error);
        });
    }
}

#[test]
fn the_progress_thread_gives_up_in_time_too() {
    for transport in TRANSPORTS {
        alone(transport, |comm| {
            let begin = Instant::now();
            let operation = comm.with_timeout(SHORT).all_reduce(vec![0u8; 4], ReduceOp::Sum);
            // Nobody waits for it: the progress thread gives it up.
            while !operation.is_done() && begin.elapsed() < Duration::from_secs(10) {
                std::thread::sleep(Duration::from_millis(5));
            }
            in_time(begin.elapsed(), SHORT);
            assert!(matches!(operation.wait().unwrap_err().error, Error::TimedOut { .. }));
        });
    }
}
