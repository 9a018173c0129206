//! Measures the limits of this machine alone: `limits [RANKS] [sweep]`.
//!
//! Prints one JSON line per limit, size and label. `sweep` also measures the ways that the limits did not
//! choose, which is how their thresholds were found.

use core::ptr::NonNull;
use std::process::ExitCode;

use windlass_benches::clock::Clock;
use windlass_benches::limits::{
    Arena, Direct, Heap, HeapWay, Limit, PUBLISH_BYTES, Shape, Tcp, Wait, Way, cpus, pin, probe_near_far,
    tcp_pair,
};
use windlass_benches::stats::{Label, Sample, by_label};

const SIZES: [usize; 12] =
    [8, 40, 1 << 10, 2 << 10, 4 << 10, 8 << 10, 32 << 10, 256 << 10, 1 << 20, 2 << 20, 4 << 20, 16 << 20];
const BUFFERS: usize = 3;
const MOST_ITERATIONS: usize = 4096;
const ROUNDS: usize = 4;

/// One thing to measure.
#[derive(Clone, Copy, Debug)]
enum Subject {
    Direct(&'static str, Option<Way>, Option<usize>),
    Heap(&'static str, Option<HeapWay>, Option<usize>),
    TcpExchange,
    TcpSum,
}

impl Subject {
    fn name(self) -> &'static str {
        match self {
            Self::Direct(name, ..) | Self::Heap(name, ..) => name,
            Self::TcpExchange => "tcp exchange",
            Self::TcpSum => "tcp exchange and sum",
        }
    }

    fn list(ranks: usize, bytes: usize, sweep: bool) -> Vec<Self> {
        let mut list = vec![Self::Direct("direct", None, None), Self::Heap("heap", None, None)];
        if ranks == 2 {
            list.extend([Self::TcpExchange, Self::TcpSum]);
        }
        if sweep && bytes <= PUBLISH_BYTES {
            list.push(Self::Direct("direct publish", Some(Way::Publish), None));
        }
        if sweep {
            list.push(Self::Direct("direct slices cached", Some(Way::Slices), Some(usize::MAX)));
        }
        if sweep && bytes >= 256 << 10 {
            list.push(Self::Direct("direct slices streamed", Some(Way::Slices), Some(0)));
        }
        if sweep && bytes > PUBLISH_BYTES {
            for (name, way, chunk) in [
                ("heap whole 16K", HeapWay::Whole, 16 << 10),
                ("heap whole 64K", HeapWay::Whole, 64 << 10),
                ("heap parts 64K", HeapWay::Parts, 64 << 10),
                ("heap whole 16KS", HeapWay::Whole, 16 << 10),
                ("heap whole 64KS", HeapWay::Whole, 64 << 10),
                ("heap parts 64KS", HeapWay::Parts, 64 << 10),
            ] {
                list.push(Self::Heap(name, Some(way), Some(chunk)));
            }
        }
        list
    }
}

/// One rank's limits and buffers.
struct Bench {
    rank: usize,
    ranks: usize,
    arena: Arena,
    wait: Wait,
    times: *mut f64,
    direct: Direct,
    heap: Heap,
    tcp: Option<Tcp>,
    buffers: Vec<Vec<f32>>,
}

fn element(index: usize, iteration: usize) -> f32 {
    ((index as u32).wrapping_mul(7).wrapping_add(iteration as u32 * 13) % 64 + 1) as f32
}

impl Bench {
    /// One block of operations of one subject; rank 0 gets the samples.
    fn block(&mut self, subject: Subject, bytes: usize, iterations: usize, warmup: usize) -> Vec<Sample> {
        let (count, clock) = (bytes / size_of::<f32>(), Clock::get());
        match subject {
            Subject::Direct(_, way, stream) => {
                self.direct.way = way;
                self.direct.stream_bytes = stream.unwrap_or(windlass_benches::limits::STREAM_BYTES);
            }
            Subject::Heap(name, way, chunk) => {
                (self.heap.way, self.heap.chunk_bytes) = (way, chunk);
                self.heap.streamed = name.ends_with('S');
            }
            Subject::TcpExchange | Subject::TcpSum => {}
        }
        let (_, before) = probe_near_far(&self.arena, self.rank, self.wait);
        for iteration in 0..warmup + iterations {
            let index = iteration % BUFFERS;
            let weight = (self.rank + 1) as f32;
            for (i, value) in self.values(subject, index, count).iter_mut().enumerate() {
                *value = element(i, iteration) * weight;
            }
            self.arena.barrier(self.rank, self.wait);
            let start = clock.now();
            self.operation(subject, index, count);
            let ns = clock.ns_between(start, clock.now());
            if iteration >= warmup {
                // SAFETY: the table has a row of `MOST_ITERATIONS` per rank, and this row is ours alone.
                unsafe { self.times.add(self.rank * MOST_ITERATIONS + iteration - warmup).write(ns) };
            }
            self.check(subject, index, count, iteration);
        }
        let (_, after) = probe_near_far(&self.arena, self.rank, self.wait);
        let label = Label::of_batch(before, after);
        let samples = (0..iterations).map(|i| {
            // SAFETY: all rows were written before the ranks met in the probe's barrier or the one below.
            let row = |rank: usize| unsafe { self.times.add(rank * MOST_ITERATIONS + i).read() };
            Sample { ns: (0..self.ranks).map(row).fold(0.0, f64::max), label }
        });
        self.arena.barrier(self.rank, self.wait);
        let samples = samples.collect();
        self.arena.barrier(self.rank, self.wait);
        samples
    }

    fn values(&mut self, subject: Subject, index: usize, count: usize) -> &mut [f32] {
        match subject {
            Subject::Direct(..) => {
                let own = self.arena.buffer(self.rank, index);
                // SAFETY: the buffer is this rank's, holds the largest size, and no operation is under way.
                unsafe { core::slice::from_raw_parts_mut(own, count) }
            }
            _ => &mut self.buffers[index][..count],
        }
    }

    #[inline]
    fn operation(&mut self, subject: Subject, index: usize, count: usize) {
        let values = &mut self.buffers[index][..count];
        let tcp = self.tcp.as_mut();
        match subject {
            Subject::Direct(..) => self.direct.run(index, count),
            Subject::Heap(..) => self.heap.run(values),
            Subject::TcpExchange => tcp.expect("two ranks").exchange(values).expect("the other rank lives"),
            Subject::TcpSum => tcp.expect("two ranks").run(values).expect("the other rank lives"),
        }
    }

    fn check(&mut self, subject: Subject, index: usize, count: usize, iteration: usize) {
        if matches!(subject, Subject::TcpExchange) {
            return;
        }
        let weight = (self.ranks * (self.ranks + 1) / 2) as f32;
        let values = self.values(subject, index, count);
        let wrong = values.iter().enumerate().filter(|&(i, sum)| *sum != element(i, iteration) * weight);
        assert_eq!(wrong.count(), 0, "{} gave wrong sums", subject.name());
    }

    fn all(&mut self, sweep: bool) {
        for bytes in SIZES {
            let subjects = Subject::list(self.ranks, bytes, sweep);
            let mut samples = vec![Vec::new(); subjects.len()];
            // A block takes some 10 ms, so that the machine seldom flips within one.
            let iterations = (6_000_000 / (bytes + 1000)).clamp(4, 1000);
            for _ in 0..ROUNDS * if bytes < 1 << 20 { 4 } else { 8 } {
                for (which, &subject) in subjects.iter().enumerate() {
                    samples[which].extend(self.block(subject, bytes, iterations, 3));
                }
            }
            for (subject, samples) in subjects.iter().zip(samples).filter(|_| self.rank == 0) {
                for (label, summary) in by_label(&samples) {
                    println!(
                        "{{\"limit\":\"{}\",\"ranks\":{},\"bytes\":{bytes},\"label\":\"{}\",\"iterations\":{},\
                         \"min_us\":{:.3},\"median_us\":{:.3},\"p99_us\":{:.3}}}",
                        subject.name(),
                        self.ranks,
                        label.as_str(),
                        summary.count,
                        summary.min_ns / 1e3,
                        summary.median_ns / 1e3,
                        summary.p99_ns / 1e3
                    );
                }
            }
        }
    }
}

fn map_shared(length: usize) -> std::io::Result<NonNull<u8>> {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a fresh mapping where the kernel likes; it overlaps nothing.
    let base = unsafe { mmap_anonymous(core::ptr::null_mut(), length, protection, MapFlags::SHARED) }?;
    NonNull::new(base.cast()).ok_or_else(|| std::io::ErrorKind::OutOfMemory.into())
}

fn measure(ranks: usize, sweep: bool) -> Result<(), Box<dyn std::error::Error>> {
    let shape = Shape { ranks, buffers: BUFFERS, bytes: SIZES[SIZES.len() - 1] };
    let base = map_shared(shape.arena_bytes())?;
    let times = map_shared(ranks * MOST_ITERATIONS * size_of::<f64>())?;
    // SAFETY: mapped shared and zeroed, and kept until the process ends.
    let arena = unsafe { Arena::new(base, shape.arena_bytes(), shape) }?;
    let mut ends = if ranks == 2 { Some(tcp_pair()?) } else { None };
    let _ = cpus();
    let parent = std::process::id();
    let mut children = Vec::new();
    let mut rank = 0;
    for child_rank in 1..ranks {
        // SAFETY: the process has one thread, so the child may go on like any program.
        let child = unsafe { libc::fork() };
        if child == 0 {
            rank = child_rank;
            children.clear();
            // SAFETY: a plain system call; a child whose parent is gone would spin for ever.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            if std::os::unix::process::parent_id() != parent {
                return Ok(());
            }
            break;
        }
        children.push(child);
    }
    pin(rank, ranks);
    let tcp =
        ends.take().map(|(left, right)| Limit::tcp(if rank == 0 { left } else { right })).transpose()?;
    let mut bench = Bench {
        rank,
        ranks,
        arena,
        wait: Wait::for_ranks(ranks),
        times: times.as_ptr().cast(),
        direct: Limit::direct(arena, rank),
        heap: Limit::heap(arena, rank),
        tcp,
        buffers: (0..BUFFERS).map(|_| vec![0.0; shape.bytes / size_of::<f32>()]).collect(),
    };
    bench.all(sweep);
    for child in children {
        // SAFETY: waits for a child of ours; no status is asked for.
        unsafe { libc::waitpid(child, core::ptr::null_mut(), 0) };
    }
    Ok(())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let ranks = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(2);
    match measure(ranks, arguments.iter().any(|argument| argument == "sweep")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("limits: {error}");
            ExitCode::FAILURE
        }
    }
}
