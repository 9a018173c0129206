//! The suite over RDMA, where there is a device: the testbed has some (`make test-rdma`).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use windlass_rdma::choice::NoChoice;
use windlass_rdma::pipe::Shape;
use windlass_rdma::transport::{Error, Options, Rdma};
use windlass_transports::Transport;
use windlass_transports::conformance::{CASES, run_case};
use windlass_transports::link::{Limits, Planted};
use windlass_transports::reach::{Register, Registrable, SegmentKey, Source};

const PAGE: usize = 4096;

/// Memory of operations, which live as long as the transports do: whole pages around whatever is asked for.
#[derive(Debug, Default)]
struct Everything {
    asked: AtomicUsize,
}

// SAFETY: the suite keeps the memory of all its operations until the transports are gone.
unsafe impl Register for Everything {
    fn find(&self, memory: *const u8, bytes: usize) -> Option<Registrable> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let offset = memory.addr() % PAGE;
        let base = memory.wrapping_sub(offset);
        let key = SegmentKey { segment: base.addr() as u64 ^ (bytes as u64) << 48, generation: 0 };
        let bytes = (offset + bytes).next_multiple_of(PAGE);
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
        run_case(case, &mut make, &mut || std::thread::sleep(Duration::from_micros(10)));
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
    conforms(&Options { limits, shape, ..Options::default() }, true, |_| true);
}

/// The suite can fail: planted faults are found by it over this transport, too.
#[test]
fn planted_faults_are_noticed() {
    for planted in [Planted::TrustCompletion, Planted::DeliverTwice] {
        let options = Options { planted: Some(planted), ..Options::default() };
        let run = || conforms(&options, true, |name| name == "a stream that breaks");
        match catch_unwind(AssertUnwindSafe(run)) {
            Ok(false) => return,
            Ok(true) => panic!("{planted:?} passes the suite"),
            Err(_) => println!("{planted:?} was noticed"),
        }
    }
}
