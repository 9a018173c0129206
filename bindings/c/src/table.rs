//! Handles that tell when they are stale.
//!
//! C holds numbers, dressed as pointers that nobody follows: a place in a table, how often that place had been given out before, and which table.
//! A handle that was freed, copied and freed again, or made up, is found to be none. What a handle stands for never moves, and is reached under its place's lock.
//!
//! ```text
//! bits   63 … 24 generation    23 … 2 place    1 … 0 table
//! ```

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

const TABLE_BITS: u32 = 2;
const PLACE_BITS: u32 = 22;
pub(crate) const PLACES: u32 = 1 << PLACE_BITS;
const LAST_GENERATION: u64 = (1 << (u64::BITS - PLACE_BITS - TABLE_BITS)) - 1;
/// Chunks double, so that a table starts small, grows without moving anything, and is read without a lock of
/// its own.
const CHUNKS: usize = (PLACES / FIRST_CHUNK).ilog2() as usize + 1;
const FIRST_CHUNK: u32 = 64;

const _: () = assert!(usize::BITS == 64, "a handle needs 64 bits");

/// Values that C has handles of.
pub(crate) struct Table<T> {
    /// What a handle must say to be of this table: 1 to 3, so that no handle is null.
    number: u64,
    chunks: [OnceLock<Box<[Place<T>]>>; CHUNKS],
    free: Mutex<Free>,
}

/// On a cache line of its own: threads use different communicators.
#[repr(align(64))]
struct Place<T>(Mutex<Held<T>>);

struct Held<T> {
    /// That of the handle that is valid, or that will be next.
    generation: u64,
    value: Option<T>,
}

struct Free {
    places: Vec<u32>,
    /// The first that was never used.
    fresh: u32,
}

/// Poisoned only by a panic in what a value does when it is polled; the table itself is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T> Table<T> {
    pub(crate) const fn new(number: u64) -> Self {
        assert!(number > 0 && number < 1 << TABLE_BITS);
        let free = Free { places: Vec::new(), fresh: 0 };
        Self { number, chunks: [const { OnceLock::new() }; CHUNKS], free: Mutex::new(free) }
    }

    /// A handle for `value`; `None` when four million are in use.
    pub(crate) fn insert(&self, value: T) -> Option<u64> {
        let place = {
            let mut free = lock(&self.free);
            match free.places.pop() {
                Some(place) => place,
                None if free.fresh == PLACES => return None,
                None => {
                    free.fresh += 1;
                    free.fresh - 1
                }
            }
        };
        let (chunk, offset) = locate(place);
        let empty = || Place(Mutex::new(Held { generation: 1, value: None }));
        let chunk = self.chunks[chunk].get_or_init(|| (0..chunk_len(chunk)).map(|_| empty()).collect());
        let mut held = lock(&chunk[offset].0);
        held.value = Some(value);
        Some(held.generation << (PLACE_BITS + TABLE_BITS) | u64::from(place) << TABLE_BITS | self.number)
    }

    /// What `handle` stands for, under its lock; `None` when it stands for nothing.
    #[inline]
    pub(crate) fn with<R>(&self, handle: u64, use_it: impl FnOnce(&mut T) -> R) -> Option<R> {
        let mut held = lock(&self.find(handle)?.0);
        if held.generation != generation(handle) {
            return None;
        }
        held.value.as_mut().map(use_it)
    }

    /// Takes what `handle` stands for; from here on it stands for nothing.
    pub(crate) fn remove(&self, handle: u64) -> Option<T> {
        let mut held = lock(&self.find(handle)?.0);
        if held.generation != generation(handle) {
            return None;
        }
        let value = held.value.take()?;
        held.generation += 1;
        // A place whose generations are used up is given out no more, so no handle ever comes a second time.
        let reusable = held.generation <= LAST_GENERATION;
        drop(held);
        if reusable {
            lock(&self.free).places.push(place(handle));
        }
        Some(value)
    }

    #[inline]
    fn find(&self, handle: u64) -> Option<&Place<T>> {
        if handle & ((1 << TABLE_BITS) - 1) != self.number {
            return None;
        }
        let (chunk, offset) = locate(place(handle));
        self.chunks[chunk].get()?.get(offset)
    }
}

#[inline]
const fn generation(handle: u64) -> u64 {
    handle >> (PLACE_BITS + TABLE_BITS)
}

#[inline]
const fn place(handle: u64) -> u32 {
    (handle >> TABLE_BITS) as u32 & (PLACES - 1)
}

const fn chunk_len(chunk: usize) -> u32 {
    if chunk == 0 { FIRST_CHUNK } else { FIRST_CHUNK << (chunk - 1) }
}

/// The chunk a place lies in, and where there: the first two have 64 places, each other one as many as all
/// before it.
#[inline]
const fn locate(place: u32) -> (usize, usize) {
    if place < FIRST_CHUNK {
        return (0, place as usize);
    }
    let chunk = (place / FIRST_CHUNK).ilog2();
    (chunk as usize + 1, (place - (FIRST_CHUNK << chunk)) as usize)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn every_place_has_one_spot() {
        let mut next = vec![0; CHUNKS];
        for place in 0..PLACES {
            let (chunk, offset) = locate(place);
            assert_eq!(offset, next[chunk]);
            next[chunk] += 1;
        }
        let lengths: Vec<_> = (0..CHUNKS).map(|chunk| chunk_len(chunk) as usize).collect();
        assert_eq!(next, lengths);
    }

    #[test]
    fn a_handle_stands_for_its_value_until_it_is_removed_and_never_again() {
        let table = Table::new(1);
        let mut seen = BTreeSet::new();
        for round in 0..1000 {
            let handles: Vec<u64> = (0..5).map(|i| table.insert(round * 10 + i).unwrap()).collect();
            for (i, &handle) in handles.iter().enumerate() {
                assert!(seen.insert(handle), "handle {handle:#x} came twice");
                assert_eq!(table.with(handle, |value| *value), Some(round * 10 + i as u32));
                assert_eq!(table.remove(handle), Some(round * 10 + i as u32));
                assert_eq!((table.remove(handle), table.with(handle, |_| ())), (None, None));
            }
        }
        assert!(seen.iter().all(|&handle| table.with(handle, |_| ()).is_none()));
    }

    #[test]
    fn what_is_made_up_or_of_another_table_is_no_handle() {
        let (one, other) = (Table::new(1), Table::new(2));
        let handle = one.insert(()).unwrap();
        let _same_place = other.insert(()).unwrap();
        assert!(other.with(handle, |()| ()).is_none());
        for bits in [0, 1, 2, 3, u64::MAX, handle ^ 1 << 63, handle + (1 << TABLE_BITS), handle | 3 << 40] {
            assert!(one.with(bits, |()| ()).is_none() && one.remove(bits).is_none(), "{bits:#x}");
        }
    }

    #[test]
    fn a_place_without_generations_left_is_given_out_no_more() {
        let table = Table::new(1);
        let handle = table.insert(()).unwrap();
        let place = place(handle);
        lock(&table.find(handle).unwrap().0).generation = LAST_GENERATION;
        let last = LAST_GENERATION << (PLACE_BITS + TABLE_BITS) | handle & ((1 << 24) - 1);
        assert!(table.remove(last).is_some());
        assert_ne!(super::place(table.insert(()).unwrap()), place);
        assert!(table.with(last, |()| ()).is_none());
    }

    #[test]
    fn of_many_threads_one_removes() {
        let table = Arc::new(Table::new(3));
        let removed = Arc::new(AtomicU32::new(0));
        for _ in 0..200 {
            let handle = table.insert(()).unwrap();
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        let _ = table.with(handle, |()| ());
                        removed.fetch_add(u32::from(table.remove(handle).is_some()), Ordering::Relaxed);
                    });
                }
            });
        }
        assert_eq!(removed.load(Ordering::Relaxed), 200);
    }
}
