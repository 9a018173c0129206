//! Memory that was there before windlass: named by regions, so that what has to be done to it once, as registering it with a network card, is done
//! once and found again by the address.
//!
//! A region's life: *adopted* (in the table, found by [`Adopted::locate`]) → *retired* (its [`Adoption`] was dropped: not found any more) → *gone*
//! (the last lease was dropped). Whoever uses the memory holds a lease; what was done to it is undone when the region goes. A number is never
//! given out again, and the memory does not move, so its generation stays 0. Regions never overlap. Peers cannot map them.
//!
//! Nothing here is on the path of an operation over other memory: the table is looked at for addresses that are in no [`Segment`](crate::Segment) only,
//! and by those transports only that have a use for regions.

use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::sync::{Arc, PoisonError, RwLock};

use crate::Location;

/// A run of adopted bytes. Held as long as they are used.
#[derive(Debug, Eq, PartialEq)]
pub struct Region {
    number: u32,
    begin: usize,
    bytes: usize,
}

impl Region {
    /// Its number, which no other region of the table has had.
    pub const fn number(&self) -> u32 {
        self.number
    }

    /// Its length.
    pub const fn bytes(&self) -> usize {
        self.bytes
    }
}

/// What is in the table of adopted memory already.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NotAdopted {
    /// The range overlaps that of a region, or is the same.
    #[error("it overlaps region {0}, which is registered")]
    Overlaps(u32),
    /// It ends beyond the last address.
    #[error("it ends beyond the last address")]
    TooLong,
    /// All numbers have been given out.
    #[error("all 2^32 regions have been used")]
    Exhausted,
}

/// The regions of a rank, by the addresses at which they begin.
#[derive(Debug, Default)]
pub struct Adopted {
    regions: RwLock<Regions>,
}

#[derive(Debug, Default)]
struct Regions {
    by_begin: BTreeMap<usize, Arc<Region>>,
    next: u32,
}

impl Adopted {
    /// Names `bytes` bytes at `base`, until the adoption is dropped.
    ///
    /// # Errors
    /// When some of them have a name already.
    pub fn adopt(self: &Arc<Self>, base: NonNull<u8>, bytes: usize) -> Result<Adoption, NotAdopted> {
        let begin = base.as_ptr().addr();
        let end = begin.checked_add(bytes).ok_or(NotAdopted::TooLong)?;
        let mut regions = self.regions.write().unwrap_or_else(PoisonError::into_inner);
        // Regions do not overlap, so only the last one that begins before the end can reach into the range.
        let before = regions.by_begin.range(..end).next_back().map(|(_, region)| region);
        if let Some(region) = before.filter(|region| region.begin + region.bytes > begin) {
            return Err(NotAdopted::Overlaps(region.number));
        }
        let number = regions.next;
        regions.next = number.checked_add(1).ok_or(NotAdopted::Exhausted)?;
        let region = Arc::new(Region { number, begin, bytes });
        // Nothing has no place that could be found.
        if bytes > 0 {
            regions.by_begin.insert(begin, Arc::clone(&region));
        }
        Ok(Adoption { table: Arc::clone(self), region })
    }

    /// The region in which `bytes` bytes at `address` lie, and where. It is leased as long as the answer is held.
    pub fn locate(&self, address: *const u8, bytes: usize) -> Option<(Arc<Region>, Location)> {
        let begin = address.addr();
        let regions = self.regions.read().unwrap_or_else(PoisonError::into_inner);
        let (_, region) = regions.by_begin.range(..=begin).next_back()?;
        let offset = begin - region.begin;
        let inside = offset < region.bytes && bytes <= region.bytes - offset;
        let location = Location { segment: region.number, generation: 0, offset: offset as u64 };
        inside.then(|| (Arc::clone(region), location))
    }
}

/// Keeps memory adopted.
#[derive(Debug)]
pub struct Adoption {
    table: Arc<Adopted>,
    region: Arc<Region>,
}

impl Adoption {
    /// The region.
    pub const fn region(&self) -> &Arc<Region> {
        &self.region
    }
}

impl Drop for Adoption {
    fn drop(&mut self) {
        let mut regions = self.table.regions.write().unwrap_or_else(PoisonError::into_inner);
        if self.region.bytes > 0 {
            regions.by_begin.remove(&self.region.begin);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(address: usize) -> NonNull<u8> {
        NonNull::new(std::ptr::without_provenance_mut(address)).unwrap()
    }

    fn place(table: &Adopted, address: usize, bytes: usize) -> Option<(u32, u64)> {
        let (region, location) = table.locate(std::ptr::without_provenance(address), bytes)?;
        assert_eq!((location.segment, location.generation), (region.number(), 0));
        Some((location.segment, location.offset))
    }

    #[test]
    fn regions_are_found_by_every_range_inside_and_by_no_other() {
        let table = Arc::new(Adopted::default());
        let _low = table.adopt(at(1000), 100).unwrap();
        let _next = table.adopt(at(1100), 50).unwrap();
        let _far = table.adopt(at(5000), 1).unwrap();
        let regions = [(1000, 1100), (1100, 1150), (5000, 5001)];
        for begin in (990..1160).chain(4990..5010) {
            for bytes in [0, 1, 49, 50, 51, 100, 101, usize::MAX] {
                let inside = |r: &(usize, usize)| {
                    r.0 <= begin && begin < r.1 && begin.checked_add(bytes).is_some_and(|end| end <= r.1)
                };
                let expected = regions.iter().position(inside);
                let expected = expected.map(|n| (n as u32, (begin - regions[n].0) as u64));
                assert_eq!(place(&table, begin, bytes), expected, "{begin} {bytes}");
            }
        }
    }

    #[test]
    fn overlapping_ranges_are_refused_and_neighbours_are_not() {
        let table = Arc::new(Adopted::default());
        let first = table.adopt(at(1000), 100).unwrap();
        for (begin, bytes) in [(1000, 100), (999, 2), (1099, 1), (900, 1000), (1050, 10), (1, usize::MAX - 1)]
        {
            assert_eq!(
                table.adopt(at(begin), bytes).unwrap_err(),
                NotAdopted::Overlaps(0),
                "{begin} {bytes}"
            );
        }
        let _neighbours =
            [(900, 100), (1100, 1)].map(|(begin, bytes)| table.adopt(at(begin), bytes).unwrap());
        assert_eq!(table.adopt(at(usize::MAX), 2).unwrap_err(), NotAdopted::TooLong);
        drop(first);
        assert_eq!(place(&table, 1000, 1), None);
        // A number is not given out again, and nothing has no place.
        let again = table.adopt(at(1000), 100).unwrap();
        assert_eq!(again.region().number(), 3);
        let nothing = table.adopt(at(1050), 0).map(|adoption| adoption.region().bytes());
        assert!(matches!(nothing, Err(NotAdopted::Overlaps(3)) | Ok(0)));
    }

    #[test]
    fn a_lease_outlives_the_adoption_and_is_not_found() {
        let table = Arc::new(Adopted::default());
        let adoption = table.adopt(at(64), 64).unwrap();
        let (lease, _) = table.locate(std::ptr::without_provenance(70), 8).unwrap();
        assert_eq!(Arc::strong_count(adoption.region()), 3);
        drop(adoption);
        assert_eq!((lease.number(), lease.bytes(), Arc::strong_count(&lease)), (0, 64, 1));
        assert_eq!(place(&table, 70, 8), None);
    }
}
