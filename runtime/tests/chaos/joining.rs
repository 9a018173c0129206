//! Ranks that cannot join: each says why, at once.

use std::time::{Duration, Instant};

use windlass::{Algorithm, Communicator, Identity, JoinError, Refusal, Server, TransportChoice};

use super::watchdog::watch;
use super::{config, shm};

fn identity(server: &Server, rank: u32, ranks: u32) -> Identity {
    Identity { rank, ranks, rendezvous: Some(server.address().to_owned()), serves: false }
}

fn server(ranks: u32, name: &str) -> Server {
    Server::start(ranks, &format!("chaos-{}-{name}", std::process::id())).unwrap()
}

/// Joins on a thread of its own, so that the others may follow.
fn join_later(
    identity: Identity,
    config: windlass::Config,
) -> std::thread::JoinHandle<Result<(), JoinError>> {
    std::thread::spawn(move || Communicator::join(&identity, config).map(drop))
}

#[test]
fn missing_ranks_are_named_when_the_time_is_over() {
    let _watchdog = watch(30);
    let server = server(4, "missing");
    for seconds in [0.2, 1.2] {
        let mut config = shm();
        config.join_timeout = Duration::from_secs_f64(seconds);
        let begin = Instant::now();
        let error = Communicator::join(&identity(&server, 2, 4), config).unwrap_err();
        let JoinError::Missing { missing, .. } = &error else { panic!("{error}") };
        assert_eq!(missing[..], [0, 1, 3], "{error}");
        assert!(begin.elapsed() < Duration::from_secs_f64(seconds + 1.0), "{:?}", begin.elapsed());
    }
}

#[test]
fn a_wrong_number_of_ranks_and_a_rank_taken_twice_are_refused() {
    let _watchdog = watch(30);
    let server = server(3, "refused");
    let error = Communicator::join(&identity(&server, 0, 4), shm()).unwrap_err();
    assert!(
        matches!(error, JoinError::Refused { refusal: Refusal::Ranks { server: 3, rank: 4 }, .. }),
        "{error}"
    );
    let first = join_later(identity(&server, 1, 3), shm());
    while server.joined() == 0 {
        std::thread::yield_now();
    }
    let error = Communicator::join(&identity(&server, 1, 3), shm()).unwrap_err();
    let own = std::process::id() as i32;
    assert!(
        matches!(error, JoinError::Refused { rank: 1, refusal: Refusal::Taken { pid } } if pid == own),
        "{error}"
    );
    // The refused ones have disturbed nobody.
    let others = [0, 2].map(|rank| join_later(identity(&server, rank, 3), shm()));
    first.join().unwrap().unwrap();
    others.into_iter().for_each(|o| o.join().unwrap().unwrap());
}

#[test]
fn settings_that_differ_are_named() {
    let _watchdog = watch(30);
    let ring = config(TransportChoice::Shm, Some(Algorithm::Ring));
    let tcp = config(TransportChoice::Tcp, None);
    let mut model = shm();
    model.model.chunk_bytes = 4096;
    for (number, (other, setting)) in
        [(ring, "algorithm"), (tcp, "transport"), (model, "model")].into_iter().enumerate()
    {
        let server = server(2, &format!("differ-{number}"));
        let first = join_later(identity(&server, 0, 2), shm());
        while server.joined() == 0 {
            std::thread::yield_now();
        }
        let error = Communicator::join(&identity(&server, 1, 2), other).unwrap_err();
        let JoinError::Refused { refusal: Refusal::Configuration { difference }, .. } = &error else {
            panic!("{error}")
        };
        assert!(difference.contains(setting), "{error}");
        join_later(identity(&server, 1, 2), shm()).join().unwrap().unwrap();
        first.join().unwrap().unwrap();
    }
}

#[test]
fn a_rendezvous_that_is_gone_is_an_error_that_names_it() {
    let _watchdog = watch(30);
    let mut config = shm();
    config.join_timeout = Duration::from_millis(300);
    let gone =
        Identity { rank: 1, ranks: 2, rendezvous: Some("unix:@windlass-nobody".into()), serves: false };
    let error = Communicator::join(&gone, config.clone()).unwrap_err();
    assert!(
        matches!(error, JoinError::NoRendezvous { .. }) && error.to_string().contains("windlass-nobody"),
        "{error}"
    );
    let garbage = Identity { rendezvous: Some("tcp:nowhere".into()), ..gone };
    let error = Communicator::join(&garbage, config.clone()).unwrap_err();
    assert!(error.to_string().contains("WINDLASS_RENDEZVOUS"), "{error}");
    // One that ends while a rank is joining.
    let server = server(2, "ends");
    let joining = join_later(identity(&server, 0, 2), shm());
    while server.joined() == 0 {
        std::thread::yield_now();
    }
    drop(server);
    let error = joining.join().unwrap().unwrap_err();
    assert!(matches!(error, JoinError::NoRendezvous { .. }), "{error}");
}

#[test]
fn an_algorithm_that_cannot_serve_says_so() {
    let _watchdog = watch(30);
    let config = config(TransportChoice::Tcp, Some(Algorithm::Direct));
    windlass::threads_with(2, &config, |comm| {
        let error = comm.blocking().all_reduce(&mut [1f32; 8], windlass::ReduceOp::Sum).unwrap_err();
        assert!(error.to_string().contains("WINDLASS_ALGORITHM"), "{error}");
        // Every rank is told by its own call, and what can be served still is.
        let mut ours = [comm.rank() as u8];
        comm.blocking().all_reduce(&mut ours, windlass::ReduceOp::Max).unwrap_err();
        comm.blocking().barrier().unwrap();
    })
    .unwrap();
}
