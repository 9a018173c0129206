//! Cuts segments into allocations, so that many buffers need few descriptors.

use std::fmt;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crate::{Location, MemoryError, Segment, page_bytes};

/// The least a segment reserves. Reserving is free: pages come when buffers are allocated.
const SEGMENT_BYTES: usize = 64 << 20;

/// Called with every new segment before memory of it is handed out: shares its descriptor with the peers.
pub type Share = Box<dyn Fn(&Segment) -> Result<(), MemoryError> + Send + Sync>;

/// A rank's shared memory.
pub struct Pool {
    share: Share,
    segments: RwLock<Vec<Arc<Segment>>>,
    free: Mutex<Vec<Vec<Gap>>>,
}

/// Free bytes of a segment; the gaps of one segment are sorted and never touch.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Gap {
    offset: usize,
    bytes: usize,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("segments", &self.segments.read().map_or(0, |s| s.len()))
            .finish_non_exhaustive()
    }
}

impl Pool {
    /// An empty pool that tells `share` of each segment it makes.
    pub fn new(share: Share) -> Self {
        Self { share, segments: RwLock::default(), free: Mutex::default() }
    }

    /// Page-aligned zeroed memory of at least `bytes`, whose pages are present.
    pub fn allocate(self: &Arc<Self>, bytes: usize) -> Result<Allocation, MemoryError> {
        let wanted = bytes.max(1).next_multiple_of(page_bytes());
        crate::available::check(wanted)?;
        let (index, offset) = self.take(wanted)?;
        let segment = Arc::clone(&self.segments.read().unwrap_or_else(PoisonError::into_inner)[index]);
        let allocation = Allocation { pool: Arc::clone(self), segment, index, offset, bytes: wanted };
        allocation.segment.mapping().populate(offset, wanted)?;
        // SAFETY: the range was free, so nobody else refers to it.
        unsafe { std::ptr::write_bytes(allocation.base().as_ptr(), 0, wanted) };
        Ok(allocation)
    }

    fn take(&self, wanted: usize) -> Result<(usize, usize), MemoryError> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let best = free
            .iter()
            .enumerate()
            .flat_map(|(s, gaps)| gaps.iter().enumerate().map(move |(g, gap)| (s, g, *gap)));
        let best = best.filter(|(_, _, gap)| gap.bytes >= wanted).min_by_key(|(_, _, gap)| gap.bytes);
        let (index, position) = match best {
            Some((index, position, _)) => (index, position),
            None => {
                let mut segments = self.segments.write().unwrap_or_else(PoisonError::into_inner);
                let number = u32::try_from(segments.len()).unwrap_or(u32::MAX);
                let segment = Arc::new(Segment::create(number, wanted.max(SEGMENT_BYTES))?);
                (self.share)(&segment)?;
                free.push(vec![Gap { offset: 0, bytes: segment.mapping().len() }]);
                segments.push(segment);
                (segments.len() - 1, 0)
            }
        };
        let gap = &mut free[index][position];
        let offset = gap.offset;
        gap.offset += wanted;
        gap.bytes -= wanted;
        if gap.bytes == 0 {
            free[index].remove(position);
        }
        Ok((index, offset))
    }

    fn give_back(&self, index: usize, offset: usize, bytes: usize) {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let gaps = &mut free[index];
        let at = gaps.partition_point(|g| g.offset < offset);
        gaps.insert(at, Gap { offset, bytes });
        if at + 1 < gaps.len() && gaps[at].offset + gaps[at].bytes == gaps[at + 1].offset {
            gaps[at].bytes += gaps.remove(at + 1).bytes;
        }
        if at > 0 && gaps[at - 1].offset + gaps[at - 1].bytes == gaps[at].offset {
            gaps[at - 1].bytes += gaps.remove(at).bytes;
        }
    }

    /// Whether some of `bytes` bytes at `address` lie in a segment.
    pub fn overlaps(&self, address: *const u8, bytes: usize) -> bool {
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
        segments.iter().any(|segment| {
            let mapping = segment.mapping();
            let (begin, base) = (address.addr(), mapping.base().as_ptr().addr());
            begin < base.saturating_add(mapping.len()) && base < begin.saturating_add(bytes)
        })
    }

    /// The segment and the location of `bytes` bytes at `address`, when they lie in one segment and peers reach them.
    pub fn locate(&self, address: *const u8, bytes: usize) -> Option<(Arc<Segment>, Location)> {
        let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
        segments.iter().find_map(|segment| {
            let offset = address.addr().checked_sub(segment.mapping().base().as_ptr().addr())?;
            let inside = offset.checked_add(bytes)? <= segment.mapping().len();
            if !inside || !segment.is_shared(offset, bytes) {
                return None;
            }
            let (segment_number, generation) = (segment.number(), segment.generation());
            let location = Location { segment: segment_number, generation, offset: offset as u64 };
            Some((Arc::clone(segment), location))
        })
    }
}

/// Memory of a pool; it goes back when dropped.
#[derive(Debug)]
pub struct Allocation {
    pool: Arc<Pool>,
    segment: Arc<Segment>,
    index: usize,
    offset: usize,
    bytes: usize,
}

impl Allocation {
    /// Where it begins: a page boundary.
    pub fn base(&self) -> NonNull<u8> {
        // SAFETY: offset lies inside the segment's mapping, by `take`.
        unsafe { self.segment.mapping().base().add(self.offset) }
    }

    /// Its length, whole pages.
    pub const fn len(&self) -> usize {
        self.bytes
    }

    /// Whether it is empty; it never is.
    pub const fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The segment it lies in.
    pub fn segment(&self) -> &Segment {
        &self.segment
    }

    /// Where it begins in its segment.
    pub const fn offset(&self) -> usize {
        self.offset
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // Pages taken back from the peers are private for good: lending them out again would lend nothing.
        if self.segment.is_shared(self.offset, self.bytes) {
            self.pool.give_back(self.index, self.offset, self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> Arc<Pool> {
        Arc::new(Pool::new(Box::new(|_| Ok(()))))
    }

    #[test]
    fn allocations_share_segments_and_never_overlap() {
        let pool = pool();
        let mut held: Vec<Allocation> = Vec::new();
        let mut state = 1u64;
        for step in 0..2000 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            if state >> 63 == 0 || held.is_empty() {
                let bytes = (state >> 33) as usize % 300_000;
                let new = pool.allocate(bytes).unwrap();
                assert!(new.len() >= bytes && new.base().as_ptr().addr().is_multiple_of(page_bytes()));
                for old in &held {
                    let apart = old.base().as_ptr().addr() + old.len() <= new.base().as_ptr().addr()
                        || new.base().as_ptr().addr() + new.len() <= old.base().as_ptr().addr();
                    assert!(apart, "step {step}");
                }
                held.push(new);
            } else {
                held.swap_remove((state >> 33) as usize % held.len());
            }
        }
        held.clear();
        assert_eq!(pool.segments.read().unwrap().len(), 1, "small buffers share one descriptor");
        let free = pool.free.lock().unwrap();
        assert_eq!(*free, vec![vec![Gap { offset: 0, bytes: SEGMENT_BYTES }]], "gaps merge again");
    }

    #[test]
    fn memory_is_zeroed_again_when_reused() {
        let pool = pool();
        let first = pool.allocate(4096).unwrap();
        // SAFETY: the allocation is ours.
        unsafe { first.base().as_ptr().write(5) };
        drop(first);
        let second = pool.allocate(4096).unwrap();
        // SAFETY: the allocation is ours.
        assert_eq!(unsafe { second.base().as_ptr().read() }, 0);
    }

    #[test]
    fn addresses_are_located_unless_detached() {
        let pool = pool();
        let allocation = pool.allocate(3 * page_bytes()).unwrap();
        let inside = allocation.base().as_ptr().wrapping_add(100);
        let (_, location) = pool.locate(inside, 8).unwrap();
        assert_eq!(location.offset, allocation.offset() as u64 + 100);
        assert!(pool.locate(std::ptr::from_ref(&location).cast(), 8).is_none());
        assert!(pool.locate(inside, SEGMENT_BYTES).is_none());
        allocation.segment().detach(allocation.offset(), 1).unwrap();
        assert!(pool.locate(inside, 8).is_none());
        let offset = allocation.offset();
        drop(allocation);
        assert_ne!(pool.allocate(1).unwrap().offset(), offset, "private pages are not lent out again");
    }

    #[test]
    fn too_much_is_an_error_that_says_what_to_do() {
        let error = pool().allocate(1 << 46).unwrap_err();
        assert!(error.to_string().contains("memory"), "{error}");
    }
}
