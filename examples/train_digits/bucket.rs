//! Gradients on their way: gathered in buckets, summed over all ranks while the earlier layers' are calculated.
//!
//! # How time is split
//!
//! ```text
//! this rank   │ calculates │post│ calculates       │ waits │ calculates │
//! bucket 1                      ├──── hidden ──────┼ ─ ─ ─ ┤ ended
//!                          exposed                  exposed
//! ```
//!
//! *Exposed* is what a rank spends in communication calls: posting, and waiting. *Hidden* is what of an all-reduce happens while the rank does
//! something else: from its post, or from the end of the one before, which is first in turn, until it ends or is waited for. The end is when the runtime
//! wakes a waker, which notes the time. Both contain waiting for ranks that are not as far. *Compute* is the rest.

use std::ops::{AddAssign, Range};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use windlass::{
    Buffer, Communicator, Device, DeviceBuffer, Element, Error, Failed, MemoryMut, Operation, ReduceOp,
};

use crate::model::{LAYERS, parameters};

/// A bucket is sent when it has at least so many elements.
const ENOUGH: usize = 16 << 10;
/// Places after the gradients of the last layers: the loss and the part of the images that was recognised.
const EXTRA: usize = 2;

/// What gradients are summed as.
pub(crate) trait Number: Element + Default + AddAssign {
    /// `None` when the number cannot be told.
    fn from_f32(value: f32) -> Option<Self>;
    fn to_f32(self) -> f32;
}

/// As they are. The sum depends on the order, and so on the number of ranks.
impl Number for f32 {
    fn from_f32(value: f32) -> Option<Self> {
        Some(value)
    }

    fn to_f32(self) -> f32 {
        self
    }
}

/// A fixed point has 48 binary places after it: a float of at least 2^-24 loses nothing, and a smaller one less than 2^-48.
const ONE: f64 = (1u64 << 48) as f64;
/// Eight parts of a batch that are no greater have a sum that can be told.
const MOST: f32 = 4096.0;

/// In fixed point. Whole numbers have the same sum in any order.
impl Number for i64 {
    fn from_f32(value: f32) -> Option<Self> {
        (value.abs() < MOST).then(|| (f64::from(value) * ONE) as Self)
    }

    fn to_f32(self) -> f32 {
        (self as f64 / ONE) as f32
    }
}

/// Where this rank's time has gone.
#[derive(Debug, Default)]
pub(crate) struct Spent {
    pub(crate) exposed: Duration,
    pub(crate) hidden: Duration,
    /// To device memory and from it.
    pub(crate) copies: Duration,
    /// When the all-reduce before ended.
    ended: Option<Instant>,
    /// When the step's buckets were being posted, which is exposed though another all-reduce is under way.
    posts: Vec<(Instant, Instant)>,
}

/// Runs and takes the time.
pub(crate) fn timed<R>(spent: &mut Duration, f: impl FnOnce() -> R) -> R {
    let begin = Instant::now();
    let result = f();
    *spent += begin.elapsed();
    result
}

#[derive(Debug)]
enum Memory<E: Element> {
    Host(Buffer<E>),
    /// And where the processor gathers what goes there.
    Device(DeviceBuffer<E>, Vec<E>),
}

/// The gradients of some layers, next to each other.
#[derive(Debug)]
pub(crate) struct Bucket<E: Element> {
    pub(crate) layers: Range<usize>,
    memory: Memory<E>,
}

/// A bucket that is being summed.
#[derive(Debug)]
pub(crate) struct Flight<E: Element> {
    layers: Range<usize>,
    sum: Sum<E>,
    posted: Instant,
    bell: Arc<Bell>,
}

#[derive(Debug)]
enum Sum<E: Element> {
    Host(Watched<Buffer<E>>),
    Device(Watched<DeviceBuffer<E>>, Vec<E>),
}

/// The buckets of a model, in the order in which they are sent: the last layers' first.
pub(crate) fn buckets<E: Number>(
    comm: &Communicator,
    device: Option<&Device>,
) -> Result<Vec<Bucket<E>>, Error> {
    let mut buckets = Vec::new();
    let mut end = LAYERS;
    for begin in (0..LAYERS).rev() {
        let layers = begin..end;
        let count = length(&layers);
        if count < ENOUGH && begin > 0 {
            continue;
        }
        let memory = match device {
            Some(device) => Memory::Device(device.alloc(count)?, vec![E::default(); count]),
            None => Memory::Host(comm.alloc(count)?),
        };
        buckets.push(Bucket { layers, memory });
        end = begin;
    }
    Ok(buckets)
}

fn length(layers: &Range<usize>) -> usize {
    layers.clone().map(parameters).sum::<usize>() + if layers.end == LAYERS { EXTRA } else { 0 }
}

impl<E: Number> Bucket<E> {
    /// Where the processor writes what is to be summed, and reads the sums.
    pub(crate) fn values(&mut self) -> &mut [E] {
        match &mut self.memory {
            Memory::Host(buffer) => buffer,
            Memory::Device(_, host) => host,
        }
    }

    /// Adds a part's numbers, from `at`. Whether they can be told.
    #[must_use]
    pub(crate) fn add(&mut self, at: usize, values: &[f32]) -> bool {
        let mut right = true;
        for (sum, value) in self.values()[at..].iter_mut().zip(values) {
            match E::from_f32(*value) {
                Some(value) => *sum += value,
                None => right = false,
            }
        }
        right
    }

    /// Where the gradients of a layer begin.
    pub(crate) fn place(&self, layer: usize) -> usize {
        (self.layers.start..layer).map(parameters).sum()
    }

    /// Where the loss and the part that was recognised stand, in the first bucket that is sent.
    pub(crate) fn extra(&self) -> Option<usize> {
        (self.layers.end == LAYERS).then(|| self.place(LAYERS))
    }

    /// Begins to sum over all ranks.
    pub(crate) fn post(self, comm: &Communicator, spent: &mut Spent) -> Result<Flight<E>, Error> {
        let Self { layers, memory } = self;
        let bell = Arc::new(Bell::default());
        let waker = Waker::from(Arc::clone(&bell));
        if layers.end == LAYERS {
            spent.posts.clear();
        }
        let (begin, sum) = match memory {
            Memory::Host(buffer) => {
                (Instant::now(), Sum::Host(Watched::new(comm.all_reduce(buffer, ReduceOp::Sum), &waker)))
            }
            Memory::Device(mut buffer, host) => {
                timed(&mut spent.copies, || buffer.write(&host))?;
                let begin = Instant::now();
                (begin, Sum::Device(Watched::new(comm.all_reduce(buffer, ReduceOp::Sum), &waker), host))
            }
        };
        let posted = Instant::now();
        spent.exposed += posted - begin;
        spent.posts.push((begin, posted));
        Ok(Flight { layers, sum, posted, bell })
    }
}

impl<E: Number> Flight<E> {
    /// Waits for the sums.
    pub(crate) fn land(self, spent: &mut Spent) -> Result<Bucket<E>, Error> {
        let Self { layers, sum, posted, bell } = self;
        let waited = Instant::now();
        let memory = match sum {
            Sum::Host(sum) => Memory::Host(timed(&mut spent.exposed, || sum.wait().map_err(Error::from))?),
            Sum::Device(sum, mut host) => {
                let buffer = timed(&mut spent.exposed, || sum.wait().map_err(Error::from))?;
                timed(&mut spent.copies, || buffer.read(&mut host))?;
                Memory::Device(buffer, host)
            }
        };
        let ended = *bell.0.get_or_init(Instant::now);
        let begun = spent.ended.map_or(posted, |before| before.max(posted));
        let until = ended.min(waited);
        let while_posting =
            |&(begin, end): &(Instant, Instant)| end.min(until).saturating_duration_since(begin.max(begun));
        spent.hidden +=
            until.saturating_duration_since(begun) - spent.posts.iter().map(while_posting).sum::<Duration>();
        spent.ended = Some(ended);
        Ok(Bucket { layers, memory })
    }
}

/// Notes when an operation ends, which is when it is woken.
#[derive(Debug, Default)]
struct Bell(OnceLock<Instant>);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        let _ = self.0.set(Instant::now());
    }
}

/// An operation with a waker, or its result where it had ended at once.
#[derive(Debug)]
enum Watched<M: MemoryMut> {
    Running(Operation<M>),
    Ended(Result<M, Failed<M>>),
}

impl<M: MemoryMut> Watched<M> {
    fn new(mut operation: Operation<M>, waker: &Waker) -> Self {
        match Pin::new(&mut operation).poll(&mut Context::from_waker(waker)) {
            Poll::Ready(result) => {
                waker.wake_by_ref();
                Self::Ended(result)
            }
            Poll::Pending => Self::Running(operation),
        }
    }

    fn wait(self) -> Result<M, Failed<M>> {
        match self {
            Self::Running(operation) => operation.wait(),
            Self::Ended(result) => result,
        }
    }
}
