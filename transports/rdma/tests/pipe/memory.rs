//! The operations' memory: the host's, or such as the processor does not touch. Whoever touches memory whose operation has ended panics, and so does a
//! device that touches what it was not given, or not any more.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use windlass_transports::link::place::{Keys, Rails};
use windlass_transports::reach::{Register, Registrable};

/// Addresses of foreign memory begin here: a processor that loads from one faults.
const FOREIGN: usize = 0x40f << 52;
/// How many keys some memory has: one for each rail.
const RAILS: u32 = 4;
/// How a token and an offset share the address of foreign memory, and a key and an offset that of a device.
const OFFSET_BITS: u32 = 32;

#[derive(Debug, Default)]
struct Region {
    bytes: Vec<u8>,
    foreign: bool,
    /// By which the devices know it, each by one of as many keys as there are rails.
    key: Option<u32>,
    /// It is on its way to another place.
    away: bool,
    /// What came for it meanwhile, and where it belongs.
    kept: Vec<(usize, Vec<u8>)>,
}

impl Region {
    fn settle(&mut self) {
        self.away = false;
        for (at, bytes) in self.kept.drain(..) {
            self.bytes[at..at + bytes.len()].copy_from_slice(&bytes);
        }
    }
}

#[derive(Debug, Default)]
struct Table {
    /// By the token of their operation.
    regions: HashMap<u64, Region>,
    keys: u32,
    /// How often foreign memory was asked for while it was away.
    missed: u64,
    /// Bytes of foreign memory that the processor was given, and that it gave.
    loaded: u64,
    stored: u64,
}

/// All memory of both ends.
#[derive(Debug, Default)]
pub(super) struct Memories(Mutex<Table>);

fn split(address: u64) -> (u64, usize) {
    (address >> OFFSET_BITS, (address & ((1 << OFFSET_BITS) - 1)) as usize)
}

/// Which foreign memory it is, and where in it.
fn decode(memory: *const u8) -> Option<(u64, usize)> {
    (memory.addr() >> 52 == FOREIGN >> 52).then(|| split((memory.addr() - FOREIGN) as u64))
}

impl Memories {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, token: u64, act: impl FnOnce(&mut Region) -> T) -> T {
        act(self.table().regions.get_mut(&token).expect("memory is touched after its operation has ended"))
    }

    /// Memory for an operation, and how it is named.
    pub(super) fn add(&self, token: u64, mut bytes: Vec<u8>, foreign: bool) -> *mut u8 {
        let at = FOREIGN + ((token as usize) << OFFSET_BITS);
        let address = if foreign { std::ptr::without_provenance_mut(at) } else { bytes.as_mut_ptr() };
        self.table().regions.insert(token, Region { bytes, foreign, ..Region::default() });
        address
    }

    /// The operation has ended: its memory, with what was kept for it.
    pub(super) fn remove(&self, token: u64) -> Vec<u8> {
        let mut region = self.table().regions.remove(&token).expect("an operation ends once");
        region.settle();
        region.bytes
    }

    pub(super) fn is_registered(&self, token: u64) -> bool {
        self.with(token, |region| region.key.is_some())
    }

    pub(super) fn is_foreign(&self, token: u64) -> bool {
        self.with(token, |region| region.foreign)
    }

    pub(super) fn is_away(&self, token: u64) -> bool {
        self.with(token, |region| region.away)
    }

    /// The device is given it, by a key that never was. Not while it is away.
    pub(super) fn register(&self, token: u64) {
        let mut table = self.table();
        table.keys += 1;
        let key = table.keys;
        let region = table.regions.get_mut(&token).expect("a live operation");
        region.key = (!region.away).then_some(key);
    }

    /// The device does not have it any more.
    pub(super) fn forget(&self, token: u64) {
        self.with(token, |region| region.key = None);
    }

    /// It leaves for another place; no device has it.
    pub(super) fn leave(&self, token: u64) {
        self.with(token, |region| {
            assert!(region.key.is_none(), "it is released first");
            region.away = region.foreign;
        });
    }

    /// It is in its place again.
    pub(super) fn come_back(&self, token: u64) {
        self.with(token, Region::settle);
    }

    /// Whether an address is of this operation's memory.
    pub(super) fn holds(&self, token: u64, memory: *const u8) -> bool {
        self.with(token, |region| match decode(memory) {
            Some((of, at)) => of == token && at < region.bytes.len(),
            None => !region.foreign && region.bytes.as_ptr_range().contains(&memory),
        })
    }

    /// By which address and keys the devices of these rails know memory. Not every one has all memory.
    pub(super) fn reach(&self, memory: *const u8, rails: Rails) -> Option<(u64, Keys)> {
        let known = rails.iter().filter_map(|rail| self.known(memory, rail).map(|(at, key)| (at, rail, key)));
        let known: Vec<_> = known.collect();
        Some((known.first()?.0, known.iter().map(|(_, rail, key)| (*rail, *key)).collect()))
    }

    /// By which address and key the device of a rail knows memory.
    pub(super) fn known(&self, memory: *const u8, rail: usize) -> Option<(u64, u32)> {
        let table = self.table();
        let (region, at) = match decode(memory) {
            Some((token, at)) => (table.regions.get(&token)?, at),
            None => {
                let holds = |region: &&Region| region.bytes.as_ptr_range().contains(&memory);
                let region = table.regions.values().filter(|region| !region.foreign).find(holds)?;
                (region, memory.addr() - region.bytes.as_ptr().addr())
            }
        };
        let key = region.key.filter(|key| key % 5 != rail as u32)?;
        Some((u64::from(key) << OFFSET_BITS | at as u64, key * RAILS + rail as u32))
    }

    /// A device's own access, which is checked.
    pub(super) fn at<T>(
        &self,
        rail: usize,
        (address, key): (u64, u32),
        bytes: usize,
        act: impl FnOnce(&mut [u8]) -> T,
    ) -> T {
        let (of, at) = split(address);
        assert_eq!(rail as u32, key % RAILS, "the key of another device");
        let key = key / RAILS;
        assert_eq!(of, u64::from(key), "an address of the key's");
        let mut table = self.table();
        let region = table.regions.values_mut().find(|region| region.key == Some(key));
        let region = region.expect("a device touches memory that it was not given, or that was taken back");
        act(&mut region.bytes[at..at + bytes])
    }

    /// How often foreign memory was missed, and how many bytes of it were loaded and stored.
    pub(super) fn counts(&self) -> [u64; 3] {
        let table = self.table();
        [table.missed, table.loaded, table.stored]
    }
}

// SAFETY: nothing is found.
unsafe impl Register for Memories {
    fn find(&self, _memory: *const u8, _bytes: usize) -> Option<Registrable> {
        None
    }

    fn is_foreign(&self, memory: *const u8) -> bool {
        decode(memory).is_some()
    }

    fn is_here(&self, memory: *const u8) -> bool {
        let (token, _) = decode(memory).expect("only foreign memory is asked for");
        !self.is_away(token)
    }

    fn load(&self, from: *const u8, to: &mut [u8]) -> bool {
        let (token, at) = decode(from).expect("only foreign memory is loaded");
        let here = self.with(token, |region| {
            if region.away {
                // Nothing is promised.
                to.fill(0xee);
                return false;
            }
            to.copy_from_slice(&region.bytes[at..at + to.len()]);
            true
        });
        let mut table = self.table();
        table.missed += u64::from(!here);
        table.loaded += if here { to.len() as u64 } else { 0 };
        here
    }

    fn store(&self, to: *mut u8, from: &[u8]) {
        let (token, at) = decode(to).expect("only foreign memory is stored to");
        self.with(token, |region| {
            assert!(at + from.len() <= region.bytes.len(), "beyond the memory");
            region.kept.push((at, from.to_vec()));
            if !region.away {
                region.settle();
            }
        });
        self.table().stored += from.len() as u64;
    }
}
