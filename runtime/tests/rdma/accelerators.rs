//! Sums of an accelerator's memory, and messages from it and to it, by NICs that write there: while it stays, and while it moves.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use windlass::accelerator::kernel::{KernelAccelerator, testbed};
use windlass::accelerator::{self, Accelerator, Movement, Options};
use windlass::{Communicator, Device, DeviceBuffer, Error, ReduceOp};

use super::on_hosts;

/// How the testbed's NICs import memory, as it was started.
pub(crate) fn importer() -> Option<String> {
    let mode = std::fs::read_to_string("/sys/module/rdma_rxe/parameters/dmabuf_mode").ok()?;
    Some(mode.trim().to_owned())
}

/// How an accelerator's memory is away, and how often a second.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Course {
    pub(crate) movement: Movement,
    pub(crate) moves: f64,
    pub(crate) revokes: f64,
}

impl Course {
    /// In its place, in the way that these NICs cope with.
    pub(crate) fn still() -> Self {
        let dynamic = importer().as_deref() == Some("dynamic");
        let movement = if dynamic { Movement::Transparent } else { Movement::Pinned };
        Self { movement, moves: 0.0, revokes: 0.0 }
    }

    pub(crate) fn is_still(self) -> bool {
        self.moves + self.revokes == 0.0
    }

    /// These NICs would not notice.
    fn is_staged(self) -> bool {
        importer().as_deref() == Some("pinned") && !self.movement.asks()
    }

    /// The accelerator of a rank, in use there.
    pub(crate) fn attach(self, comm: &Communicator) -> (Arc<KernelAccelerator>, Device) {
        let Self { movement, moves: moves_per_second, revokes: revokes_per_second } = self;
        let (rank, patience) = (u64::from(comm.rank()), Duration::from_secs(5));
        let options =
            Options { movement, moves_per_second, revokes_per_second, patience, ..Options::default() };
        let options = Options { device: options.device ^ rank, seed: rank, ..options };
        let accelerator = Arc::new(KernelAccelerator::open("testbed", options).unwrap());
        let device = comm.attach(accelerator.clone()).unwrap();
        (accelerator, device)
    }
}

/// Whether a NIC has imported a buffer's memory, which is what it needs to write there.
pub(crate) fn is_imported<T: windlass::Element>(
    accelerator: &KernelAccelerator,
    buffer: &DeviceBuffer<T>,
) -> bool {
    // Memory that is away is nobody's.
    accelerator.importers(buffer.region()).is_ok_and(|importers| importers > Some(0))
}

/// What a rank puts into a place in a round. Sums of it are exact.
fn value(rank: u32, round: u32, at: usize) -> f32 {
    ((rank + 1 + round) * (at % 1000 + 1) as u32) as f32
}

fn write(buffer: &mut DeviceBuffer<f32>, rank: u32, round: u32) {
    let values: Vec<_> = (0..buffer.len()).map(|at| value(rank, round, at)).collect();
    buffer.write(&values).unwrap();
}

fn read(buffer: &DeviceBuffer<f32>) -> Vec<f32> {
    let mut values = vec![0.0; buffer.len()];
    buffer.read(&mut values).unwrap();
    values
}

/// By the host's memory, by a NIC in part, and by it mostly.
const COUNTS: [usize; 3] = [1000, 50_001, 400_000];
/// What is not still goes on until the memory of a rank has been away so often, and for so long at least.
const TIMES: u64 = 100;
const TIME: Duration = Duration::from_secs(10);

/// A sum and a message of each length. How many of the large ones went by a NIC that reaches the memory itself.
fn round(comm: &Communicator, accelerator: &KernelAccelerator, device: &Device, round: u32) -> usize {
    let (rank, ranks) = (comm.rank(), comm.size());
    let (next, before) = ((rank + 1) % ranks, (rank + ranks - 1) % ranks);
    let mut imported = 0;
    for count in COUNTS {
        let mut memory = device.alloc::<f32>(count).unwrap();
        write(&mut memory, rank, round);
        let memory = comm.all_reduce(memory, ReduceOp::Sum).wait().unwrap();
        let mut reached = is_imported(accelerator, &memory);
        for (at, is) in read(&memory).into_iter().enumerate() {
            let sum: f32 = (0..ranks).map(|rank| value(rank, round, at)).sum();
            assert!(is == sum, "sum of {count} in round {round}: {at} is {is}, not {sum}");
        }
        let (mut from, into) = (device.alloc::<f32>(count).unwrap(), device.alloc::<f32>(count).unwrap());
        write(&mut from, rank, round);
        let (from, into) = comm.sendrecv(from, next, into, before, 0).wait().unwrap();
        reached &= is_imported(accelerator, &from) && is_imported(accelerator, &into);
        imported += usize::from(reached);
        for (at, is) in read(&into).into_iter().enumerate() {
            let sent = value(before, round, at);
            assert!(is == sent, "message of {count} in round {round}: {at} is {is}, not {sent}");
        }
    }
    imported
}

/// Rounds of both, while memory takes its course.
fn on_accelerators(job: &str, movement: Movement, moves: f64, revokes: f64) {
    if importer().is_none() {
        return println!(
            "skipped: no accelerator whose memory NICs import and that moves (deploy/testbed/run)"
        );
    }
    let course = Course { movement, moves, revokes };
    on_hosts(job, |comm| {
        let (accelerator, device) = course.attach(comm);
        let begin = Instant::now();
        let (mut rounds, mut imported) = (0, 0);
        let most = loop {
            imported += round(comm, &accelerator, &device, rounds);
            rounds += 1;
            let counters = accelerator.counters();
            let told = vec![begin.elapsed().as_millis() as u64, counters.moves + counters.revokes];
            // All do as many, however long each has been at it.
            let most = comm.all_reduce(told, ReduceOp::Max).wait().unwrap();
            let elapsed = Duration::from_millis(most[0]);
            let seldom = course.is_still() || course.is_staged();
            if elapsed >= TIME && (seldom || most[1] >= TIMES || elapsed >= 6 * TIME) {
                break most[1];
            }
        };
        let (counters, reconnects) = (accelerator.counters(), comm.reconnects());
        let replays = device.movements().replays;
        println!(
            "{course:?}, rank {}: {rounds} rounds, {imported} by NICs; {} moves, {} revokes, {} refused, {replays} replays; {reconnects:?}",
            comm.rank(),
            counters.moves,
            counters.revokes,
            counters.refused
        );
        assert_eq!(accelerator.stale_stores(), Some(0), "memory was written after it had moved");
        if course.is_still() {
            // The longest of each round, at least, are long enough on any number of ranks.
            assert!(imported >= rounds as usize, "messages went by the host");
            return;
        }
        if course.is_staged() {
            assert!(most > 0 && imported == 0, "a NIC was given memory that it would lose");
            return;
        }
        assert!(most >= TIMES, "memory was away {most} times, not {TIMES}");
        if movement == Movement::Transparent {
            assert!(imported > 0, "messages went by the host");
        } else {
            // Only what a NIC was at work on costs a connection.
            assert!(reconnects.streams > 0, "memory was away {most} times, and never taken from a NIC");
        }
    });
}

#[test]
fn nobody_moves() {
    let Course { movement, .. } = Course::still();
    on_accelerators("still", movement, 0.0, 0.0);
}

#[test]
fn it_moves_by_itself() {
    if importer().as_deref() == Some("dynamic") {
        on_accelerators("transparent", Movement::Transparent, 30.0, 0.0);
    }
}

#[test]
fn its_owner_asks() {
    on_accelerators("cooperative", Movement::Cooperative, 30.0, 0.0);
    on_accelerators("pinned", Movement::Pinned, 30.0, 0.0);
}

#[test]
fn it_is_revoked() {
    // Memory that moves under a key that dies by it.
    if importer().as_deref() == Some("revocable") {
        on_accelerators("forced", Movement::Revocable, 10.0, 0.0);
    }
    // Who pins without a callback keeps what was revoked.
    if importer().is_some_and(|mode| mode != "pinned") {
        on_accelerators("revocable", Movement::Revocable, 0.0, 10.0);
    }
}

/// Straight, it would be written where it has been: the NICs hear of nothing.
#[test]
fn it_would_be_lost_by_nics_and_goes_by_way_of_the_host() {
    if importer().as_deref() == Some("pinned") {
        on_accelerators("staged-moves", Movement::Revocable, 3.0, 0.0);
        on_accelerators("staged-revokes", Movement::Revocable, 0.0, 3.0);
        on_accelerators("staged-transparent", Movement::Transparent, 10.0, 0.0);
    }
}

/// Neither its exporter nor the NIC says so, and nothing is sent.
#[test]
fn it_is_revoked_without_a_word() {
    // Who pins without a callback reaches what was revoked as before, and a look finds nothing.
    if importer().is_none_or(|mode| mode == "pinned") {
        return println!("this needs NICs that hear of revokes");
    }
    on_hosts("unsaid", |comm| {
        let (rank, ranks) = (comm.rank(), comm.size());
        let (next, before) = ((rank + 1) % ranks, (rank + ranks - 1) % ranks);
        let owner = testbed::Device::open().unwrap();
        let memory = owner.allocate(1 << 20).unwrap();
        // It has made none of this, and hears nothing of it.
        let device = comm.attach(accelerator::open("dma-heap", Options::default()).unwrap()).unwrap();
        let count = 100_000;
        let mut from = device.adopt::<f32>(memory.as_fd(), 4096, count).unwrap();
        from.write(&vec![rank as f32; count]).unwrap();
        let into = device.alloc::<f32>(count).unwrap();
        let (from, into) = comm.sendrecv(from, next, into, before, 0).wait().unwrap();
        let mut values = vec![0.0; count];
        into.read(&mut values).unwrap();
        assert!(values.iter().all(|value| *value == before as f32));
        let counted = || owner.stat(Some(memory.as_fd())).unwrap();
        assert!(counted().maps > 0, "no NIC was given the memory");
        comm.barrier().wait().unwrap();
        if rank == 0 {
            let begin = Instant::now();
            owner.revoke(memory.as_fd()).unwrap();
            while device.movements().revokes == 0 {
                assert!(begin.elapsed() < Duration::from_secs(30), "the revoke was not found");
                std::thread::sleep(Duration::from_millis(5));
            }
            println!("found after {:?}", begin.elapsed());
            let error = from.read(&mut values).unwrap_err();
            assert!(matches!(error, Error::RegionRevoked { rank: 0, .. }), "{error}");
            println!("{error}");
        } else {
            // Nothing is missed that is still there.
            std::thread::sleep(Duration::from_secs(2));
            assert_eq!(device.movements().revokes, 0);
        }
        assert_eq!((counted().stale_bytes, counted().maps == 0), (0, rank == 0));
        // All else goes on.
        let sum = comm.all_reduce(vec![1.0_f32; 50_000], ReduceOp::Sum).wait().unwrap();
        assert!(sum.iter().all(|value| *value == ranks as f32));
    });
}
