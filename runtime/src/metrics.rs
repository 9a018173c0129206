//! What a rank counts, and how a scrape reads it.
//!
//! Each communicator of a rank counts into a block of the job's board, which the launcher has mapped: a scrape reads memory and
//! disturbs nobody. A block has one writer, under its communicator's lock, so counting is a plain load and store; the few
//! communicators beyond the blocks share the last one with atomic additions.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus::proto::MetricFamily;
use prometheus::{Encoder, TextEncoder};
use windlass_collectives::Collective;
use windlass_transports::shm::Board;

/// Blocks a rank has.
const BLOCKS: usize = 4;
/// Classes of size: up to 64 B, 512 B, 4 KiB, 32 KiB, 256 KiB, 2 MiB, 16 MiB, 128 MiB, more.
const CLASSES: usize = 9;
const COLLECTIVES: usize = 24;
/// Latency buckets: below 250 ns, then each twice the one before; the last is open.
const BUCKETS: usize = 28;
const FIRST_BUCKET_NS: u64 = 250;

/// Collectives up to this size have their time taken once in [`SAMPLE`] times, and counted for all of them.
const SAMPLED_BYTES: u64 = 4096;
const SAMPLE: u64 = 16;

/// One collective in one class of size.
#[repr(C)]
struct Cell {
    operations: AtomicU64,
    bytes: AtomicU64,
    errors: AtomicU64,
    nanoseconds: AtomicU64,
    buckets: [AtomicU64; BUCKETS],
}

#[repr(C)]
struct Block {
    cells: [[Cell; CLASSES]; COLLECTIVES],
}

/// Streams opened anew, frames sent once more, and their bytes.
type Streams = [AtomicU64; 3];

/// The bytes of a rank's notes on the job's board: its communicators' blocks, then what it counts of its streams.
pub(crate) const NOTE_BYTES: u64 = (BLOCKS * size_of::<Block>() + size_of::<Streams>()) as u64;

fn streams(board: &Board, rank: usize) -> &Streams {
    // SAFETY: the notes hold so much behind the blocks (NOTE_BYTES), zeroed, of atomics, and the board keeps them mapped.
    unsafe { board.notes(rank).cast::<Block>().add(BLOCKS).cast::<Streams>().as_ref() }
}

/// A stream of `rank` was opened anew.
pub(crate) fn count_reconnect(board: &Board, rank: usize, counted: [u64; 3]) {
    for (counter, by) in streams(board, rank).iter().zip(counted) {
        counter.fetch_add(by, Ordering::Relaxed);
    }
}

fn class_of(bytes: u64) -> usize {
    if bytes <= 64 {
        0
    } else {
        (bytes.next_power_of_two().trailing_zeros().div_ceil(3) as usize - 2).min(CLASSES - 1)
    }
}

/// The size class's label: the most bytes an operation in it has.
fn class_label(class: usize) -> &'static str {
    ["64", "512", "4096", "32768", "262144", "2097152", "16777216", "134217728", "+Inf"][class]
}

fn bucket_of(nanoseconds: u64) -> usize {
    let doublings = (nanoseconds / FIRST_BUCKET_NS).checked_ilog2().map_or(0, |d| d as usize + 1);
    doublings.min(BUCKETS - 1)
}

/// Counts one communicator's operations.
#[derive(Debug)]
pub(crate) struct Recorder {
    block: Option<std::ptr::NonNull<Block>>,
    alone: bool,
    tick: Tick,
}

// SAFETY: the block is made of atomics in a mapping that the communicator's job keeps.
unsafe impl Send for Recorder {}

impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Block")
    }
}

/// What a kind of operation is counted as.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Series {
    collective: usize,
    class: usize,
    bytes: u64,
    /// One in so many has its time taken: two looks at the clock would be a tenth of a small operation's time.
    sample: u64,
}

impl Series {
    /// Of a collective that moves so many bytes.
    pub(crate) fn of(collective: Collective, bytes: u64) -> Self {
        let collective = collective as usize % COLLECTIVES;
        let sample = if bytes > SAMPLED_BYTES { 1 } else { SAMPLE };
        Self { collective, class: class_of(bytes), bytes, sample }
    }

    /// Whether operation `sequence` is one whose time is taken. Samples are powers of two.
    #[inline]
    const fn samples(&self, sequence: u64) -> bool {
        sequence & (self.sample - 1) == 0
    }

    /// The operation's size.
    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// A time stamp for [`Recorder::record`], where the recorder is not at hand.
#[inline]
pub(crate) fn begin(sequence: u64, series: &Series) -> Option<u64> {
    series.samples(sequence).then(|| Tick::get().now())
}

impl Recorder {
    /// Counts into the `index`-th block of `rank` on the job's board, which outlives the recorder.
    pub(crate) fn new(board: Option<&Board>, rank: usize, index: usize) -> Self {
        let block = board.map(|board| {
            let at = index.min(BLOCKS - 1);
            // SAFETY: the notes hold BLOCKS blocks (NOTE_BYTES), page-aligned, zeroed, of atomics.
            unsafe { board.notes(rank).cast::<Block>().add(at) }
        });
        Self { block, alone: index < BLOCKS - 1, tick: Tick::get() }
    }

    /// A time stamp for [`record`](Self::record), when operation `sequence` is one whose time is taken.
    #[inline]
    pub(crate) fn begin(&self, sequence: u64, series: &Series) -> Option<u64> {
        series.samples(sequence).then(|| self.tick.now())
    }

    /// An operation that began at `started` has ended.
    #[inline]
    pub(crate) fn record(&self, series: &Series, started: Option<u64>) {
        let Some(cell) = self.cell(series) else { return };
        self.add(&cell.operations, 1);
        self.add(&cell.bytes, series.bytes);
        if let Some(started) = started {
            let elapsed = self.tick.nanoseconds(self.tick.now().wrapping_sub(started));
            self.add(&cell.nanoseconds, series.sample * elapsed);
            self.add(&cell.buckets[bucket_of(elapsed)], series.sample);
        }
    }

    pub(crate) fn record_error(&self, series: &Series) {
        if let Some(cell) = self.cell(series) {
            self.add(&cell.errors, 1);
        }
    }

    #[inline]
    fn cell(&self, series: &Series) -> Option<&Cell> {
        // SAFETY: see `new`.
        self.block.map(|block| unsafe { &(*block.as_ptr()).cells[series.collective][series.class] })
    }

    #[inline]
    fn add(&self, counter: &AtomicU64, by: u64) {
        if self.alone {
            counter.store(counter.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
        } else {
            counter.fetch_add(by, Ordering::Relaxed);
        }
    }
}

/// A cheap clock: the time-stamp counter where it is constant, the monotonic clock elsewhere.
#[derive(Clone, Copy, Debug)]
struct Tick {
    /// Nanoseconds per tick, in 32.32 fixed point; 0 where ticks are nanoseconds.
    scale: u64,
}

impl Tick {
    fn get() -> Self {
        static TICK: std::sync::OnceLock<Tick> = std::sync::OnceLock::new();
        *TICK.get_or_init(Self::calibrate)
    }

    #[cfg(target_arch = "x86_64")]
    fn calibrate() -> Self {
        let constant = std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|t| t.contains("nonstop_tsc"));
        if !constant {
            return Self { scale: 0 };
        }
        // Two milliseconds against the clock give the rate to a part in a thousand: enough for a histogram of doublings.
        let (begin, first) = (std::time::Instant::now(), rdtsc());
        while begin.elapsed() < Duration::from_millis(2) {
            std::hint::spin_loop();
        }
        let (ns, ticks) = (begin.elapsed().as_nanos() as u64, rdtsc() - first);
        Self { scale: ((u128::from(ns) << 32) / u128::from(ticks.max(1))) as u64 }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn calibrate() -> Self {
        Self { scale: 0 }
    }

    #[inline]
    fn now(self) -> u64 {
        #[cfg(target_arch = "x86_64")]
        if self.scale != 0 {
            return rdtsc();
        }
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
    }

    #[inline]
    fn nanoseconds(self, ticks: u64) -> u64 {
        if self.scale == 0 { ticks } else { ((u128::from(ticks) * u128::from(self.scale)) >> 32) as u64 }
    }
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn rdtsc() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and user space may read the counter.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// The counters of all ranks, per rank and summed, in Prometheus's text format.
pub(crate) fn render(board: &Board) -> String {
    let ranks = board.shape().ranks as usize;
    let (mut per_rank, mut job) = (Families::default(), Families::default());
    for collective in Collective::ALL {
        for class in 0..CLASSES {
            let mut sum = Totals::default();
            for rank in 0..ranks {
                let totals = Totals::read(board, rank, *collective, class);
                per_rank.add(&totals, *collective, class, Some(&rank.to_string()));
                sum.merge(&totals);
            }
            job.add(&sum, *collective, class, None);
        }
    }
    for rank in 0..ranks {
        let counts = streams(board, rank).each_ref().map(|counter| counter.load(Ordering::Relaxed));
        per_rank.add_streams(counts, Some(&rank.to_string()));
        job.streams.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
    }
    job.add_streams(job.streams, None);
    job.render("windlass_", "of the whole job") + &per_rank.render("windlass_rank_", "of one rank")
}

#[derive(Default)]
struct Totals {
    operations: u64,
    bytes: u64,
    errors: u64,
    nanoseconds: u64,
    buckets: [u64; BUCKETS],
}

impl Totals {
    fn read(board: &Board, rank: usize, collective: Collective, class: usize) -> Self {
        let mut totals = Self::default();
        for block in 0..BLOCKS {
            // SAFETY: as in `Recorder::new`.
            let cell = unsafe {
                &(*board.notes(rank).cast::<Block>().as_ptr().add(block)).cells[collective as usize][class]
            };
            totals.operations += cell.operations.load(Ordering::Relaxed);
            totals.bytes += cell.bytes.load(Ordering::Relaxed);
            totals.errors += cell.errors.load(Ordering::Relaxed);
            totals.nanoseconds += cell.nanoseconds.load(Ordering::Relaxed);
            for (sum, bucket) in totals.buckets.iter_mut().zip(&cell.buckets) {
                *sum += bucket.load(Ordering::Relaxed);
            }
        }
        totals
    }

    fn merge(&mut self, other: &Self) {
        self.operations += other.operations;
        self.bytes += other.bytes;
        self.errors += other.errors;
        self.nanoseconds += other.nanoseconds;
        self.buckets.iter_mut().zip(&other.buckets).for_each(|(a, b)| *a += b);
    }

    /// Those whose time was taken, and those they stand for.
    fn timed(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// The exposition's metric families.
#[derive(Default)]
struct Families {
    operations: Vec<prometheus::proto::Metric>,
    bytes: Vec<prometheus::proto::Metric>,
    errors: Vec<prometheus::proto::Metric>,
    latency: Vec<prometheus::proto::Metric>,
    reconnects: [Vec<prometheus::proto::Metric>; 3],
    /// Of all ranks.
    streams: [u64; 3],
}

impl Families {
    fn add(&mut self, totals: &Totals, collective: Collective, class: usize, rank: Option<&str>) {
        if totals.operations == 0 && totals.errors == 0 {
            return;
        }
        let labels = || {
            let pair = |(name, value): (&str, &str)| {
                let mut pair = prometheus::proto::LabelPair::default();
                pair.set_name(name.to_owned());
                pair.set_value(value.to_owned());
                pair
            };
            let fixed = [("collective", collective.name()), ("size_class", class_label(class))];
            fixed.into_iter().chain(rank.map(|r| ("rank", r))).map(pair).collect::<Vec<_>>()
        };
        let counter = |value: u64| {
            let mut counter = prometheus::proto::Counter::default();
            counter.set_value(value as f64);
            let mut metric = prometheus::proto::Metric::default();
            metric.set_counter(counter);
            metric.set_label(labels());
            metric
        };
        self.operations.push(counter(totals.operations));
        self.bytes.push(counter(totals.bytes));
        self.errors.push(counter(totals.errors));
        let mut metric = prometheus::proto::Metric::default();
        metric.set_label(labels());
        let mut histogram = prometheus::proto::Histogram::default();
        histogram.set_sample_count(totals.timed());
        histogram.set_sample_sum(totals.nanoseconds as f64 * 1e-9);
        let mut below = 0;
        let mut buckets = Vec::new();
        for (i, count) in totals.buckets[..BUCKETS - 1].iter().enumerate() {
            below += count;
            let mut bucket = prometheus::proto::Bucket::default();
            bucket.set_cumulative_count(below);
            bucket.set_upper_bound((FIRST_BUCKET_NS << i) as f64 * 1e-9);
            buckets.push(bucket);
        }
        histogram.set_bucket(buckets);
        metric.set_histogram(histogram);
        self.latency.push(metric);
    }

    fn add_streams(&mut self, counts: [u64; 3], rank: Option<&str>) {
        for (metrics, count) in self.reconnects.iter_mut().zip(counts) {
            let mut counter = prometheus::proto::Counter::default();
            counter.set_value(count as f64);
            let mut metric = prometheus::proto::Metric::default();
            metric.set_counter(counter);
            let label = rank.map(|rank| {
                let mut pair = prometheus::proto::LabelPair::default();
                pair.set_name("rank".to_owned());
                pair.set_value(rank.to_owned());
                pair
            });
            metric.set_label(label.into_iter().collect());
            metrics.push(metric);
        }
    }

    fn render(self, prefix: &str, whose: &str) -> String {
        use prometheus::proto::MetricType as T;
        let [reconnects, chunks, replayed] = self.reconnects;
        let families = [
            ("reconnects_total", "Broken streams that were opened anew", T::COUNTER, reconnects),
            ("replayed_chunks_total", "Frames that left once more after a break", T::COUNTER, chunks),
            ("replayed_bytes_total", "Bytes that left once more after a break", T::COUNTER, replayed),
            ("operations_total", "Collective operations that have ended", T::COUNTER, self.operations),
            ("bytes_total", "Bytes of the vectors of operations that have ended", T::COUNTER, self.bytes),
            ("errors_total", "Operations that failed", T::COUNTER, self.errors),
            ("operation_seconds", "Time from an operation's begin to its end", T::HISTOGRAM, self.latency),
        ];
        let families: Vec<MetricFamily> = families
            .into_iter()
            .filter(|(.., metrics)| !metrics.is_empty())
            .map(|(name, help, kind, metrics)| {
                let mut family = MetricFamily::default();
                family.set_name(format!("{prefix}{name}"));
                family.set_help(format!("{help}, {whose}."));
                family.set_field_type(kind);
                family.set_metric(metrics);
                family
            })
            .collect();
        let mut text = Vec::new();
        // Encoding into memory fails only for a family without metrics, and those were left out.
        let _ = TextEncoder::new().encode(&families, &mut text);
        String::from_utf8(text).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use windlass_transports::shm::Shape;

    use super::*;

    #[test]
    fn classes_and_buckets_are_where_their_labels_say() {
        for (bytes, label) in
            [(0, "64"), (64, "64"), (65, "512"), (512, "512"), (513, "4096"), (4096, "4096")]
        {
            assert_eq!(class_label(class_of(bytes)), label, "{bytes}");
        }
        assert_eq!(class_label(class_of(134_217_728)), "134217728");
        assert_eq!(class_label(class_of(134_217_729)), "+Inf");
        assert_eq!(class_label(class_of(u64::MAX >> 2)), "+Inf");
        assert_eq!([0, 249, 250, 499, 500, 999, 1000].map(bucket_of), [0, 0, 1, 1, 2, 2, 3]);
        assert_eq!(bucket_of(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn what_is_recorded_is_rendered_per_rank_and_summed() {
        let segment = Board::create(Shape {
            ranks: 2,
            slot_bytes: 1,
            stage_bytes: 1,
            lanes: 0,
            note_bytes: NOTE_BYTES,
        })
        .unwrap();
        let board = Board::open(segment.descriptor()).unwrap();
        let series = Series::of(Collective::AllReduce, 1024);
        for (rank, index, times) in [(0, 0, 3), (0, 9, 1), (1, 1, 2)] {
            let recorder = Recorder::new(Some(&board), rank, index);
            (0..times).for_each(|i| recorder.record(&series, recorder.begin(i, &series)));
        }
        Recorder::new(Some(&board), 1, 0).record_error(&series);
        (0..2).for_each(|rank| count_reconnect(&board, rank, [1, 5, 700]));
        let text = render(&board);
        for line in [
            "windlass_rank_operations_total{collective=\"all_reduce\",size_class=\"4096\",rank=\"0\"} 4",
            "windlass_operations_total{collective=\"all_reduce\",size_class=\"4096\"} 6",
            "windlass_rank_bytes_total{collective=\"all_reduce\",size_class=\"4096\",rank=\"1\"} 2048",
            "windlass_rank_errors_total{collective=\"all_reduce\",size_class=\"4096\",rank=\"1\"} 1",
            "# TYPE windlass_operation_seconds histogram",
            "windlass_rank_reconnects_total{rank=\"1\"} 1",
            "windlass_replayed_chunks_total 10",
            "windlass_replayed_bytes_total 1400",
            // The first of each communicator's is timed, and stands for sixteen.
            "windlass_operation_seconds_count{collective=\"all_reduce\",size_class=\"4096\"} 48",
        ] {
            assert!(text.contains(line), "{line} not in\n{text}");
        }
    }
}
