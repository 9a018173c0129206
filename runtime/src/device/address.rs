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
//! A slot is one of a rank's buffers, or, in the binding of an operation, one of the two that a peer lends. The offset may be reached by any sum
//! and difference of offsets that ends within the memory.

/// No canonical address of x86-64, and beyond the user's half on aarch64, where the top byte does not count.
const BASE: usize = 0x40f << 52;
const OFFSET_BITS: u32 = 36;

/// The longest device buffer, in bytes.
pub(crate) const MOST_BYTES: u64 = 1 << OFFSET_BITS;
/// The number of device buffers that a rank can have at a time.
pub(crate) const MOST_SLOTS: u32 = 1 << 16;

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
    fn addresses_survive_arithmetic_and_host_memory_is_none() {
        let address = encode(7, 4096);
        assert_eq!(decode(address), Some((7, 4096)));
        assert_eq!(decode(address.wrapping_sub(8192).wrapping_add(8200)), Some((7, 4104)));
        assert_eq!(decode(encode(MOST_SLOTS - 1, MOST_BYTES - 1)), Some((MOST_SLOTS - 1, MOST_BYTES - 1)));
        assert_eq!(decode((&raw const address).cast()), None);
        assert_eq!(decode(std::ptr::null()), None);
    }
}
