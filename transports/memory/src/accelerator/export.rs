//! Names of device memory, here and between processes.

use std::fmt;
use std::os::fd::OwnedFd;

use crate::page_bytes;

/// Memory that an accelerator has allocated, wherever it lies at present. Never reused after it is freed.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Region {
    device: u64,
    number: u64,
}

impl Region {
    /// For accelerators and decoders: region `number` of device `device`.
    pub const fn new(device: u64, number: u64) -> Self {
        Self { device, number }
    }

    /// The accelerator's own number, unique in a job.
    pub const fn device(self) -> u64 {
        self.device
    }

    /// The accelerator's number for the region.
    pub const fn number(self) -> u64 {
        self.number
    }
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "region {} of device {:x}", self.number, self.device)
    }
}

/// A descriptor that an accelerator has imported.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Import(u64);

impl Import {
    /// For accelerators: the import of this number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Its number.
    pub const fn number(self) -> u64 {
        self.0
    }
}

/// Bytes of a region at one of its generations.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct DeviceRange {
    /// Whose memory.
    pub region: Region,
    /// At which generation.
    pub generation: u32,
    /// The first byte, from the region's begin.
    pub offset: u64,
    /// How many.
    pub bytes: u64,
}

/// What must be known of an exported range besides its descriptor. It travels with it.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Exported {
    /// Whose memory.
    pub region: Region,
    /// The descriptor is of this generation alone.
    pub generation: u32,
    /// Where the range begins in the descriptor, in bytes. It is neither zero nor aligned.
    pub offset: u64,
    /// The range's length.
    pub bytes: u64,
}

impl Exported {
    /// The size of its wire form.
    pub const WIRE_BYTES: usize = 36;

    /// The range in whole pages, as a NIC registers it: offset in the descriptor and length, aligned outward.
    pub fn pages(&self) -> (u64, u64) {
        let page = page_bytes() as u64;
        let first = self.offset - self.offset % page;
        (first, (self.offset + self.bytes).next_multiple_of(page) - first)
    }

    /// Device, region, generation, offset, bytes; little-endian.
    pub fn to_wire(&self) -> [u8; Self::WIRE_BYTES] {
        let mut wire = [0; Self::WIRE_BYTES];
        wire[..8].copy_from_slice(&self.region.device.to_le_bytes());
        wire[8..16].copy_from_slice(&self.region.number.to_le_bytes());
        wire[16..20].copy_from_slice(&self.generation.to_le_bytes());
        wire[20..28].copy_from_slice(&self.offset.to_le_bytes());
        wire[28..].copy_from_slice(&self.bytes.to_le_bytes());
        wire
    }

    /// Reads [`Exported::to_wire`]; `None` for a range that ends beyond what a descriptor can hold, which no arithmetic
    /// here would survive. Importing it is what checks the rest.
    pub fn from_wire(wire: &[u8; Self::WIRE_BYTES]) -> Option<Self> {
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| wire[at + i]));
        let exported = Self {
            region: Region::new(word(0), word(8)),
            generation: u32::from_le_bytes(std::array::from_fn(|i| wire[16 + i])),
            offset: word(20),
            bytes: word(28),
        };
        let end = exported.offset.checked_add(exported.bytes)?;
        (end <= i64::MAX.unsigned_abs()).then_some(exported)
    }
}

/// An exported range: what a peer's accelerator imports, or a NIC registers.
#[derive(Debug)]
pub struct Export {
    /// The memory; close-on-exec. Send it by `SCM_RIGHTS`.
    pub descriptor: OwnedFd,
    /// Which part of it.
    pub exported: Exported,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wire_form_keeps_everything() {
        let exported =
            Exported { region: Region::new(u64::MAX - 1, 7), generation: 3, offset: 4160, bytes: 1 << 40 };
        assert_eq!(Exported::from_wire(&exported.to_wire()), Some(exported));
    }

    #[test]
    fn a_range_beyond_every_descriptor_is_none() {
        let of = |offset, bytes| {
            let exported = Exported { region: Region::new(0, 0), generation: 0, offset, bytes };
            Exported::from_wire(&exported.to_wire()).map(|exported| exported.pages())
        };
        let most = i64::MAX.unsigned_abs();
        assert_eq!(of(0, most), Some((0, most + 1)));
        assert_eq!(of(1, most), None);
        assert_eq!(of(u64::MAX, 2), None);
    }

    #[test]
    fn pages_are_aligned_outward() {
        let page = page_bytes() as u64;
        let of = |offset, bytes| Exported { region: Region::new(0, 0), generation: 0, offset, bytes }.pages();
        assert_eq!(of(page + 64, 1), (page, page));
        assert_eq!(of(page + 64, page), (page, 2 * page));
        assert_eq!(of(page, page), (page, page));
        assert_eq!(of(page, 0), (page, 0));
    }
}
