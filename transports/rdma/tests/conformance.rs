//! The suite over RDMA, where there is a device: the testbed has two, which share each connection (`make test-rdma`).

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use windlass_rdma::choice::NoChoice;
use windlass_rdma::pipe::Shape;
use windlass_rdma::transport::{Error, Options, Planted, Rdma};
use windlass_transports::conformance::{CASES, run_case_at_leisure};
use windlass_transports::link::{self, Limits};
use windlass_transports::reach::{Register, Registrable, SegmentKey, Source};
use windlass_transports::{Event, LostCause, Message, MessageId, Token, Transport};

const PAGE: usize = 4096;
/// The testbed's NICs are emulated, on a machine that may have other work.
const QUIET: Duration = Duration::from_millis(250);

/// Memory of operations, which live as long as the transports do: whole pages around whatever is asked for.
#[derive(Debug, Default)]
struct Everything {
    asked: AtomicUsize,
    /// Whether what it gives for a dma-buf is one.
    lies: bool,
}

// SAFETY: the suite keeps the memory of all its operations until the transports are gone.
unsafe impl Register for Everything {
    fn find(&self, memory: *const u8, bytes: usize) -> Option<Registrable> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let offset = memory.addr() % PAGE;
        let base = memory.wrapping_sub(offset);
        let key = SegmentKey { segment: base.addr() as u64 ^ (bytes as u64) << 48, generation: 0 };
        let bytes = (offset + bytes).next_multiple_of(PAGE);
        if self.lies {
            let descriptor = Arc::new(File::open("/dev/null").expect("it is everywhere").into());
            return Some(Registrable {
                key,
                offset,
                source: Source::DmaBuf { descriptor, bytes, asks: true },
            });
        }
        Some(Registrable { key, offset, source: Source::Host { base, bytes } })
    }
}

/// Connected ranks of this process; none where there is no RDMA.
fn ranks(ranks: usize, options: &Options, register: Option<&Arc<Everything>>) -> Option<Vec<Rdma>> {
    let bound: Result<Vec<_>, Error> = (0..ranks as u32)
        .map(|rank| {
            let register = register.map(|register| Arc::clone(register) as Arc<dyn Register>);
            Rdma::bind(rank, 0xfeed, options.clone(), register)
        })
        .collect();
    let bound = match bound {
        Ok(bound) => bound,
        Err(why @ (Error::Absent(_) | Error::NoChoice(NoChoice::NoDevice) | Error::Verb(_))) => {
            println!("skipped: no RDMA device ({why})");
            return None;
        }
        Err(other) => panic!("{other}"),
    };
    let addresses: Vec<_> = bound.iter().map(|(_, address)| *address).collect();
    let connected = bound.into_iter().map(|(mut rdma, _)| {
        rdma.connect(&addresses).expect("room for the connections");
        rdma
    });
    Some(connected.collect())
}

/// Runs the cases over new transports each. False where there is no RDMA.
fn conforms(options: &Options, registers: bool, cases: impl Fn(&str) -> bool) -> bool {
    if ranks(1, options, None).is_none() {
        return false;
    }
    for case in CASES.iter().filter(|case| cases(case.name)) {
        let begin = Instant::now();
        let register = registers.then(Arc::<Everything>::default);
        let mut make = |count: usize| {
            let ranks = ranks(count, options, register.as_ref()).expect("a device, which there was");
            ranks.into_iter().map(|rank| Box::new(rank) as Box<dyn Transport>).collect()
        };
        // The NIC works while nobody polls, and an emulated one takes its time.
        let mut drive = || std::thread::sleep(Duration::from_micros(10));
        run_case_at_leisure(case, &mut make, &mut drive, QUIET);
        let asked = register.map_or(0, |register| register.asked.load(Ordering::Relaxed));
        println!("{}: {:?}, {asked} ranges asked for", case.name, begin.elapsed());
    }
    true
}

#[test]
fn large_messages_into_their_places() {
    conforms(&Options::default(), true, |_| true);
}

#[test]
fn everything_by_the_rings() {
    conforms(&Options::default(), false, |_| true);
}

#[test]
fn small_limits_and_small_rings() {
    let limits = Limits { eager_bytes: 300, credit_bytes: 1000, credit_messages: 4, announcements: 3 };
    let shape = Shape { slots: 4, slot_bytes: 1000, placed_bytes: 100_000 };
    conforms(&Options { limits, shape, pairs: 2, ..Options::default() }, true, |_| true);
}

/// The suite can fail: planted faults are found by it over this transport, too.
#[test]
fn planted_faults_are_noticed() {
    for planted in [link::Planted::TrustCompletion, link::Planted::DeliverTwice] {
        let options = Options { planted: Some(Planted::Link(planted)), ..Options::default() };
        let run = || conforms(&options, true, |name| name == "a stream that breaks");
        match catch_unwind(AssertUnwindSafe(run)) {
            Ok(false) => return,
            Ok(true) => panic!("{planted:?} passes the suite"),
            Err(_) => println!("{planted:?} was noticed"),
        }
    }
}

/// Sends a large message from rank 0 to rank 1; says what has happened besides at rank 0.
fn send_large(ranks: &mut [Rdma]) -> Vec<Event> {
    let id = MessageId { communicator: 1, tag: 2, sequence: 3, label: 4, chunk: 5 };
    let bytes = 3_000_000;
    let message = Message { id, fingerprint: [6, 7], bytes };
    let from: Vec<u8> = (0..bytes).map(|at| (at ^ at >> 8 ^ at >> 16) as u8).collect();
    let mut into = vec![0; bytes];
    let (mut told, mut ended) = (Vec::new(), [false; 2]);
    let begin = Instant::now();
    // The connection stands when the receive is posted, so that it has a place.
    let mut posted = false;
    while ended != [true; 2] {
        assert!(begin.elapsed() < Duration::from_secs(60), "it hangs: {told:?}");
        if !posted && ranks.iter().all(|rank| !rank.is_disturbed()) {
            // SAFETY: both outlive the transports' use of them: this waits until both have ended.
            unsafe {
                ranks[1].post_recv(0, &message, into.as_mut_ptr(), Token(1));
                ranks[0].post_send(1, &message, from.as_ptr(), Token(2));
            }
            posted = true;
        }
        for (at, rank) in ranks.iter_mut().enumerate() {
            let mut events = Vec::new();
            rank.poll(&mut events);
            for event in events {
                match event {
                    Event::Sent(_) | Event::Received(_) => ended[at] = true,
                    Event::Broken { peer, .. } => rank.reopen(peer),
                    _ => {}
                }
                told.extend((at == 0).then_some(event));
            }
        }
        std::thread::sleep(Duration::from_micros(10));
    }
    assert!(from == into, "wrong bytes");
    told
}

#[test]
fn a_wrong_key_is_named_and_costs_one_connection() {
    let register = Arc::<Everything>::default();
    let options = Options { planted: Some(Planted::WrongKeys), ..Options::default() };
    let Some(mut ranks) = ranks(2, &options, Some(&register)) else { return };
    let told = send_large(&mut ranks);
    println!("{told:?}");
    let named = |event: &Event| matches!(event, Event::Broken { cause: LostCause::Device { what, .. }, .. } if what.contains("key"));
    assert!(told.iter().any(named), "{told:?}");
    assert_eq!(told.iter().filter(|event| matches!(event, Event::Reopened { .. })).count(), 1, "{told:?}");
}

/// Who takes memory back breaks a connection off at both ends: that is as it should be, and neither is told anything else.
#[test]
fn memory_that_is_taken_back_is_nobodys_fault() {
    let register = Arc::<Everything>::default();
    let Some(mut ranks) = ranks(2, &Options::default(), Some(&register)) else { return };
    let (bytes, mut into) = (3_000_000, vec![0; 3_000_000]);
    let (mut broken, mut polls) = ([Vec::new(), Vec::new()], 0);
    let begin = Instant::now();
    while broken.iter().any(Vec::is_empty) {
        assert!(begin.elapsed() < Duration::from_secs(60), "it was never under way: {broken:?}");
        if polls == 0 && ranks.iter().all(|rank| !rank.is_disturbed()) {
            let id = MessageId { communicator: 1, tag: 2, sequence: 3, label: 4, chunk: 5 };
            let message = Message { id, fingerprint: [6, 7], bytes };
            // SAFETY: both outlive the transports, or are withdrawn.
            unsafe {
                ranks[1].post_recv(0, &message, into.as_mut_ptr(), Token(1));
                ranks[0].post_send(1, &message, SENT.as_ptr(), Token(2));
            }
            polls = 1;
        }
        for (rank, broken) in ranks.iter_mut().zip(&mut broken) {
            let mut events = Vec::new();
            rank.poll(&mut events);
            for event in events {
                if let Event::Broken { peer, cause } = event {
                    rank.reopen(peer);
                    broken.push(cause);
                }
            }
        }
        polls += u32::from(polls > 0);
        // Its place is told by then, and little of it has come.
        if polls == 3 {
            ranks[1].withdraw(Token(1));
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    drop(ranks);
    assert!(broken.iter().flatten().all(|cause| *cause == LostCause::Renewed), "{broken:?}");
}

/// What is sent while its receive is withdrawn.
static SENT: [u8; 3_000_000] = [1; 3_000_000];

#[test]
fn memory_that_a_nic_refuses_goes_by_the_rings() {
    let register = Arc::new(Everything { lies: true, ..Everything::default() });
    let Some(mut ranks) = ranks(2, &Options::default(), Some(&register)) else { return };
    assert_eq!(send_large(&mut ranks), [Event::Sent(Token(2))]);
    // The sender has nothing to register where the receiver has no place.
    let refusals: Vec<_> = ranks[1].refusals().map(ToString::to_string).collect();
    println!("{refusals:?}");
    assert!(refusals.iter().all(|why| why.contains("rxe")) && !refusals.is_empty(), "{refusals:?}");
}
