//! What windlass is compared with: the limits.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::atomic::Ordering;

use windlass_benches::limits::{Direct, Heap, Limit, Tcp};

use super::block::Subject;
use super::pattern::{Patterns, Values};
use super::shared::Shared;
use super::{LimitKind, RankError};

/// The limits that a bench compares with, made once: they count their operations.
#[derive(Debug)]
pub(super) struct Limits {
    shared: Shared,
    direct: Direct,
    heap: Heap,
    tcp: Option<Tcp>,
}

/// One limit at one size.
#[derive(Debug)]
pub(super) struct LimitOf<'l> {
    limits: &'l mut Limits,
    kind: LimitKind,
    counts: Vec<usize>,
    patterns: Rc<Patterns>,
    private: Vec<Vec<f32>>,
    /// Whether each run does two operations, on this buffer and the next: as windlass does with two communicators.
    paired: bool,
}

impl Limits {
    pub(super) fn new(shared: Shared, kinds: &[LimitKind]) -> Result<Self, RankError> {
        let tcp = kinds.contains(&LimitKind::Tcp) && shared.ranks == 2;
        let tcp = if tcp { Some(Limit::tcp(connect(&shared)?)?) } else { None };
        let (direct, heap) =
            (Limit::direct(shared.arena, shared.rank), Limit::heap(shared.arena, shared.rank));
        Ok(Self { shared, direct, heap, tcp })
    }

    pub(super) fn of(
        &mut self,
        kind: LimitKind,
        counts: &[usize],
        patterns: &Rc<Patterns>,
        paired: bool,
    ) -> LimitOf<'_> {
        let private = match kind {
            LimitKind::Direct => Vec::new(),
            _ => counts.iter().map(|&count| vec![0.0; count]).collect(),
        };
        LimitOf {
            limits: self,
            kind,
            counts: counts.to_vec(),
            patterns: Rc::clone(patterns),
            private,
            paired,
        }
    }
}

/// A connection between ranks 0 and 1.
fn connect(shared: &Shared) -> Result<TcpStream, RankError> {
    let await_port = |of: usize| loop {
        if let Ok(port @ 1..) = u16::try_from(shared.port(of).load(Ordering::Acquire)) {
            return port;
        }
        std::thread::yield_now();
    };
    if shared.rank == 0 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        shared.port(0).store(listener.local_addr()?.port().into(), Ordering::Release);
        let expected = await_port(1);
        loop {
            // Somebody else on this machine may connect to the port first.
            let (stream, from) = listener.accept()?;
            if from.port() == expected {
                return Ok(stream);
            }
        }
    }
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, await_port(0)))?;
    shared.port(1).store(stream.local_addr()?.port().into(), Ordering::Release);
    Ok(stream)
}

impl LimitOf<'_> {
    /// The buffers of one run.
    fn indices(&self, index: usize) -> impl Iterator<Item = usize> + use<> {
        let next = (index + 1) % self.counts.len();
        [index, next].into_iter().take(1 + usize::from(self.paired))
    }

    fn bytes(&self, index: usize) -> &[u8] {
        let length = self.counts[index] * size_of::<f32>();
        let address: *const u8 = match self.private.get(index) {
            Some(values) => values.as_ptr().cast(),
            None => self.limits.shared.arena.buffer(self.limits.shared.rank, index).cast(),
        };
        // SAFETY: the buffer is this rank's and so long; the operation on it has ended on all ranks that write it.
        unsafe { std::slice::from_raw_parts(address, length) }
    }

    fn bytes_mut(&mut self, index: usize) -> &mut [u8] {
        let length = self.counts[index] * size_of::<f32>();
        let address: *mut u8 = match self.private.get_mut(index) {
            Some(values) => values.as_mut_ptr().cast(),
            None => self.limits.shared.arena.buffer(self.limits.shared.rank, index).cast(),
        };
        // SAFETY: as above; no operation is under way, and every pattern of bits is a float.
        unsafe { std::slice::from_raw_parts_mut(address, length) }
    }
}

impl Subject for LimitOf<'_> {
    fn fill(&mut self, iteration: usize, index: usize) -> Result<(), RankError> {
        let (own, patterns) = (Values::Of(self.limits.shared.rank), Rc::clone(&self.patterns));
        for index in self.indices(index) {
            patterns.fill(self.bytes_mut(index), own, iteration, 0);
        }
        Ok(())
    }

    #[inline]
    fn run(&mut self, index: usize) -> Result<(), RankError> {
        for index in self.indices(index) {
            match (self.kind, &mut self.limits.tcp) {
                (LimitKind::Direct, _) => self.limits.direct.run(index, self.counts[index]),
                (LimitKind::Heap, _) => self.limits.heap.run(&mut self.private[index]),
                (LimitKind::Tcp, Some(tcp)) => tcp.exchange(&self.private[index])?,
                (LimitKind::Tcp, None) => {}
            }
        }
        Ok(())
    }

    fn wrong(&mut self, iteration: usize, index: usize) -> Result<u64, RankError> {
        // The exchange only moves bytes, and keeps what arrived to itself.
        if self.kind == LimitKind::Tcp {
            return Ok(0);
        }
        let wrong = |index| self.patterns.wrong(self.bytes(index), Values::Reduced, iteration, 0);
        Ok(self.indices(index).map(wrong).sum())
    }

    fn operations(&self) -> f64 {
        if self.paired { 2.0 } else { 1.0 }
    }
}
