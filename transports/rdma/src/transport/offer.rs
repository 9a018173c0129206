//! What two ranks tell each other over the control stream, so that their queue pairs are joined. `docs/wire.md` is its specification.

use windlass_transports::ledger::Generation;
use windlass_transports::link::Position;

use crate::pipe::Shape;
use crate::verbs::{Address, Gid, Mtu, Place};

/// Bytes of whatever is said.
pub const SAID_BYTES: usize = 80;
const MAGIC: [u8; 4] = *b"WLRD";
const VERSION: u8 = 1;
const OFFER: u8 = 1;
const READY: u8 = 2;

/// One end of a connection that is to be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Offer {
    /// How often the two have tried.
    pub generation: Generation,
    /// The queue pair.
    pub address: Address,
    /// Which of the speaker's NICs it belongs to: both ends take those of the same number.
    pub rail: u8,
    /// The ring that the peer is to write into.
    pub ring: Place,
    /// Its shape; both ends must have the same.
    pub shape: Shape,
    /// What the speaker has received over the connections before, of which none is left.
    pub position: Position,
}

/// What is said.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Said {
    /// The speaker has a queue pair, and nothing of any connection before can reach its memory.
    Offer(Offer),
    /// The speaker's queue pair is joined to the reader's, and its receives are posted: the reader may write.
    Ready(Generation),
}

/// Why bytes say nothing.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

impl Said {
    /// As it goes on the wire.
    pub fn encode(&self) -> [u8; SAID_BYTES] {
        let mut out = [0; SAID_BYTES];
        out[0..4].copy_from_slice(&MAGIC);
        out[4] = VERSION;
        let mut words = |at: usize, words: &[u32]| {
            for (place, word) in out[at..].chunks_exact_mut(4).zip(words) {
                place.copy_from_slice(&word.to_le_bytes());
            }
        };
        match self {
            Self::Ready(generation) => {
                words(8, &[generation.0]);
                out[5] = READY;
            }
            Self::Offer(offer) => {
                let Offer { generation, address, rail, ring, shape, position } = offer;
                words(8, &[generation.0, address.number, address.first_packet]);
                words(36, &[u32::from(address.lid), address.mtu.bytes()]);
                words(44, &[ring.address as u32, (ring.address >> 32) as u32, ring.key]);
                words(56, &[shape.slots, shape.slot_bytes, shape.placed_bytes, position.frames]);
                words(72, &[position.bytes as u32, (position.bytes >> 32) as u32]);
                out[20..36].copy_from_slice(&address.gid.0);
                (out[5], out[6]) = (OFFER, *rail);
            }
        }
        out
    }

    /// Reads what was said. Any bytes give an answer; none panics.
    ///
    /// # Errors
    /// They say nothing.
    pub fn decode(bytes: &[u8; SAID_BYTES]) -> Result<Self, Malformed> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let wide = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        if bytes[0..4] != MAGIC || bytes[4] != VERSION {
            return Err(Malformed("what is no offer of a queue pair"));
        }
        let generation = Generation(word(8));
        // The next generation must be a number, too.
        if generation.0 == 0 || generation.0 == u32::MAX {
            return Err(Malformed("an offer of no generation"));
        }
        match bytes[5] {
            READY => Ok(Self::Ready(generation)),
            OFFER => {
                let mut gid = [0; 16];
                gid.copy_from_slice(&bytes[20..36]);
                let mtu =
                    Mtu::from_bytes(word(40)).ok_or(Malformed("an offer with an MTU that no port has"))?;
                let [number, first_packet] = [word(12), word(16)];
                let lid =
                    u16::try_from(word(36)).map_err(|_| Malformed("an offer with a LID beyond 16 bits"))?;
                if (number | first_packet) >> 24 != 0 {
                    return Err(Malformed("an offer with a number beyond 24 bits"));
                }
                Ok(Self::Offer(Offer {
                    generation,
                    address: Address { number, first_packet, gid: Gid(gid), lid, mtu },
                    rail: bytes[6],
                    ring: Place { address: wide(44), key: word(52) },
                    shape: Shape { slots: word(56), slot_bytes: word(60), placed_bytes: word(64) },
                    position: Position { frames: word(68), bytes: wide(72) },
                }))
            }
            _ => Err(Malformed("something of an unknown kind about queue pairs")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer() -> Offer {
        Offer {
            generation: Generation(7),
            address: Address {
                number: 0x12_3456,
                first_packet: 0xab_cdef,
                gid: Gid(*b"0123456789abcdef"),
                lid: 0xfeed,
                mtu: Mtu::from_bytes(1024).expect("a size"),
            },
            rail: 3,
            ring: Place { address: 0x0102_0304_0506_0708, key: 0x1122_3344 },
            shape: Shape::default(),
            position: Position { frames: 9, bytes: 1 << 40 | 5 },
        }
    }

    #[test]
    fn what_is_said_is_understood() {
        for said in [Said::Offer(offer()), Said::Ready(Generation(7))] {
            assert_eq!(Said::decode(&said.encode()), Ok(said));
        }
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let bytes = Said::Offer(offer()).encode();
        for (at, value, word) in
            [(0, b'x', "no offer"), (4, 9, "no offer"), (5, 7, "kind"), (15, 1, "24 bits"), (39, 1, "LID")]
        {
            let mut wrong = bytes;
            wrong[at] = value;
            let said = Said::decode(&wrong).expect_err("nonsense").to_string();
            assert!(said.contains(word), "{said}");
        }
        for (range, word) in [(8..12, "generation"), (40..44, "MTU")] {
            let mut wrong = bytes;
            wrong[range].fill(0);
            let said = Said::decode(&wrong).expect_err("nonsense").to_string();
            assert!(said.contains(word), "{said}");
        }
    }

    #[test]
    fn any_bytes_give_an_answer_and_what_is_read_is_what_was_written() {
        let (valid, mut chance, mut read) = (Said::Offer(offer()).encode(), 1u64, 0);
        for _ in 0..200_000 {
            let mut bytes = valid;
            for _ in 0..3 {
                chance =
                    chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                bytes[(chance >> 33) as usize % SAID_BYTES] = (chance >> 50) as u8;
            }
            if let Ok(said) = Said::decode(&bytes) {
                read += 1;
                assert_eq!(Said::decode(&said.encode()), Ok(said));
            }
        }
        assert!((1000..199_000).contains(&read), "{read}");
    }
}
