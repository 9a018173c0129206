//! How device memory is named where host memory is named by an address.
//!
//! A call names its memory by an address. Device memory has none, so it gets one that no process can have: a processor that
//! loads from it faults, and so does a runtime that cheats.
//!
//! ```text
//! 63            52 51        36 35                  0
//! │ 0100 0000 1111 │    slot    │  offset in bytes     │
//! ```
//!
//! A slot is one of the buffers of this process's ranks, or, in the binding of an operation, one of the two that a peer lends. The offset may be reached
//! by any sum and difference of offsets that ends within the memory. C and Python hold such addresses, so one that is wrong is found out: it names
//! the memory of one rank and of no other, slots are given in turn, so that one whose memory was freed names nothing for a long while, and the first
//! and the last are given to nobody, for addresses that ran over an end.

use std::collections::BTreeSet;
use std::sync::Mutex;

use crate::fork;
use crate::group::lock;

/// No canonical address of x86-64, and beyond the user's half on aarch64, where the top byte does not count.
const BASE: usize = 0x40f << 52;
const OFFSET_BITS: u32 = 36;

/// The longest device buffer, in bytes.
pub(crate) const MOST_BYTES: u64 = 1 << OFFSET_BITS;
const MOST_SLOTS: u32 = 1 << 16;

const FIRST: u32 = 1;
const LAST: u32 = MOST_SLOTS - 2;

static SLOTS: Mutex<Slots> = Mutex::new(Slots::new());

/// Those that are taken, and where to look for the next.
#[derive(Debug)]
struct Slots {
    taken: BTreeSet<u32>,
    next: u32,
}

impl Slots {
    const fn new() -> Self {
        Self { taken: BTreeSet::new(), next: FIRST }
    }

    fn take(&mut self) -> Option<u32> {
        while self.taken.len() < LAST as usize {
            let slot = self.next;
            self.next = if slot == LAST { FIRST } else { slot + 1 };
            if self.taken.insert(slot) {
                return Some(slot);
            }
        }
        None
    }
}

/// A slot that is taken as long as this lives.
#[derive(Debug)]
pub(crate) struct Slot(u32);

impl Slot {
    /// `None` when all are taken.
    pub(crate) fn take() -> Option<Self> {
        lock(&SLOTS).take().map(Self)
    }

    pub(crate) const fn number(&self) -> u32 {
        self.0
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // A thread that is not there any more may have held the lock.
        if !fork::is_forked() {
            lock(&SLOTS).taken.remove(&self.0);
        }
    }
}

/// The address of a byte of the memory in a slot.
pub(crate) const fn encode(slot: u32, offset: u64) -> *mut u8 {
    std::ptr::without_provenance_mut(BASE + ((slot as usize) << OFFSET_BITS) + offset as usize)
}

/// The slot and offset that an address stands for; `None` for host memory.
#[inline]
pub(crate) fn decode(address: *const u8) -> Option<(u32, u64)> {
    let bits = address.addr();
    if bits >> 52 != BASE >> 52 {
        return None;
    }
    Some(((bits >> OFFSET_BITS) as u32 & (MOST_SLOTS - 1), bits as u64 & (MOST_BYTES - 1)))
}

/// Whether an address stands for device memory.
#[inline]
pub(crate) fn is_device(address: *const u8) -> bool {
    decode(address).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_taken_once_and_not_again_soon() {
        let mut slots = Slots::new();
        assert_eq!([slots.take(), slots.take()], [Some(FIRST), Some(FIRST + 1)]);
        slots.taken.remove(&FIRST);
        let rest: Vec<_> = std::iter::from_fn(|| slots.take()).collect();
        let expected: Vec<_> = (FIRST + 2..=LAST).chain([FIRST]).collect();
        assert!(rest == expected, "the one that was free for longest comes last, and then there is none");
        slots.taken.remove(&77);
        assert_eq!([slots.take(), slots.take()], [Some(77), None]);
        drop(Slot::take());
        assert!(lock(&SLOTS).taken.len() < LAST as usize);
    }

    #[test]
    fn addresses_survive_arithmetic_and_host_memory_is_none() {
        let address = encode(7, 4096);
        assert_eq!(decode(address), Some((7, 4096)));
        assert_eq!(decode(address.wrapping_sub(8192).wrapping_add(8200)), Some((7, 4104)));
        assert_eq!(decode(encode(MOST_SLOTS - 1, MOST_BYTES - 1)), Some((MOST_SLOTS - 1, MOST_BYTES - 1)));
        assert_eq!(decode((&raw const address).cast()), None);
        assert_eq!(decode(std::ptr::null()), None);
    }
}
