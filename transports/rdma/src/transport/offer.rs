//! What two ranks tell each other over the control stream, so that their queue pairs are joined. `docs/wire.md` is its specification.

use windlass_transports::ledger::Generation;
use windlass_transports::link::Position;

use crate::lanes::{PAIRS, RAILS, Rails};
use crate::pipe::Shape;
use crate::verbs::{Address, Gid, Mtu};

/// Bytes of whatever is said.
pub const SAID_BYTES: usize = HEAD_BYTES + RAILS * RAIL_BYTES;
const HEAD_BYTES: usize = 48;
const RAIL_BYTES: usize = 28 + 8 * PAIRS;
const MAGIC: [u8; 4] = *b"WLRD";
/// Of what is said, and of the places that clearances tell.
const VERSION: u8 = 2;
const OFFER: u8 = 1;
const READY: u8 = 2;
/// The rail of an entry that is none.
const NONE: u8 = 0xff;

/// The queue pairs of one rail, at one end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Offered {
    /// Which of the speaker's NICs.
    pub rail: u8,
    /// By pair: the queue pairs, which share all of their address but the numbers.
    pub pairs: [Option<Address>; PAIRS],
    /// By which key it knows the ring.
    pub ring_key: u32,
}

/// One end of a connection that is to be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Offer {
    /// How often the two have tried.
    pub generation: Generation,
    /// The rails, none twice.
    pub rails: [Option<Offered>; RAILS],
    /// Where the ring begins that the peer is to write into, as all of the speaker's NICs know it.
    pub ring: u64,
    /// Its shape; both ends must have the same.
    pub shape: Shape,
    /// What the speaker has received over the connections before, of which none is left.
    pub position: Position,
}

impl Offer {
    /// The rails by which the speaker can be reached.
    pub fn rails(&self) -> Rails {
        self.rails.iter().flatten().map(|offered| usize::from(offered.rail)).collect()
    }

    /// A queue pair, and the key to the ring on its rail.
    pub fn lane(&self, rail: usize, pair: usize) -> Option<(Address, u32)> {
        let offered = self.rails.iter().flatten().find(|offered| usize::from(offered.rail) == rail)?;
        Some((*offered.pairs.get(pair)?.as_ref()?, offered.ring_key))
    }
}

/// What is said.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(
    clippy::large_enum_variant,
    reason = "it is said a few times in a connection's life, and most often the large one"
)]
pub enum Said {
    /// The speaker has queue pairs, and nothing of any connection before can reach its memory.
    Offer(Offer),
    /// The speaker's queue pairs are joined to the reader's, and their receives are posted: the reader may write.
    Ready(Generation),
}

/// Why bytes say nothing.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);

fn put(out: &mut [u8], words: &[u32]) {
    for (place, word) in out.chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn wide(bytes: &[u8], at: usize) -> u64 {
    u64::from(word(bytes, at)) | u64::from(word(bytes, at + 4)) << 32
}

impl Offered {
    /// As it goes on the wire.
    fn encode(&self, out: &mut [u8]) {
        for (at, address) in self.pairs.iter().enumerate() {
            let Some(address) = address else { continue };
            out[0..16].copy_from_slice(&address.gid.0);
            put(&mut out[16..], &[u32::from(address.lid), address.mtu.bytes(), self.ring_key]);
            put(&mut out[28 + 8 * at..], &[address.number, address.first_packet]);
        }
    }

    fn decode(rail: u8, bytes: &[u8]) -> Result<Self, Malformed> {
        let mut gid = [0; 16];
        gid.copy_from_slice(&bytes[0..16]);
        let lid =
            u16::try_from(word(bytes, 16)).map_err(|_| Malformed("an offer with a LID beyond 16 bits"))?;
        let mtu =
            Mtu::from_bytes(word(bytes, 20)).ok_or(Malformed("an offer with an MTU that no port has"))?;
        let mut pairs = [None; PAIRS];
        for (at, pair) in pairs.iter_mut().enumerate() {
            let [number, first_packet] = [word(bytes, 28 + 8 * at), word(bytes, 32 + 8 * at)];
            if (number | first_packet) >> 24 != 0 {
                return Err(Malformed("an offer with a number beyond 24 bits"));
            }
            let address = Address { number, first_packet, gid: Gid(gid), lid, mtu };
            // Number 0 is every port's own, for its management.
            *pair = (number != 0).then_some(address);
        }
        if pairs == [None; PAIRS] {
            return Err(Malformed("an offer of a NIC without a queue pair"));
        }
        Ok(Self { rail, pairs, ring_key: word(bytes, 24) })
    }
}

impl Said {
    /// As it goes on the wire.
    pub fn encode(&self) -> [u8; SAID_BYTES] {
        let mut out = [0; SAID_BYTES];
        out[0..4].copy_from_slice(&MAGIC);
        out[4] = VERSION;
        match self {
            Self::Ready(generation) => {
                out[5] = READY;
                put(&mut out[8..], &[generation.0]);
            }
            Self::Offer(offer) => {
                let Offer { generation, rails, ring, shape, position } = offer;
                out[5] = OFFER;
                put(&mut out[8..], &[generation.0, *ring as u32, (*ring >> 32) as u32]);
                put(&mut out[20..], &[shape.slots, shape.slot_bytes, shape.placed_bytes]);
                put(&mut out[32..], &[position.frames, position.bytes as u32, (position.bytes >> 32) as u32]);
                let (head, entries) = out.split_at_mut(HEAD_BYTES);
                for (at, (entry, offered)) in entries.chunks_exact_mut(RAIL_BYTES).zip(rails).enumerate() {
                    head[44 + at] = offered.as_ref().map_or(NONE, |offered| offered.rail);
                    offered.iter().for_each(|offered| offered.encode(entry));
                }
            }
        }
        out
    }

    /// Reads what was said. Any bytes give an answer; none panics.
    ///
    /// # Errors
    /// They say nothing.
    pub fn decode(bytes: &[u8; SAID_BYTES]) -> Result<Self, Malformed> {
        if bytes[0..4] != MAGIC || bytes[4] != VERSION {
            return Err(Malformed("what is no offer of queue pairs"));
        }
        let generation = Generation(word(bytes, 8));
        // The next generation must be a number, too.
        if generation.0 == 0 || generation.0 == u32::MAX {
            return Err(Malformed("an offer of no generation"));
        }
        match bytes[5] {
            READY => Ok(Self::Ready(generation)),
            OFFER => {
                let (head, entries) = bytes.split_at(HEAD_BYTES);
                let mut rails = [None; RAILS];
                for (at, entry) in entries.chunks_exact(RAIL_BYTES).enumerate() {
                    let rail = head[44 + at];
                    if rail == NONE {
                        continue;
                    }
                    if usize::from(rail) >= Rails::END || head[44..44 + at].contains(&rail) {
                        return Err(Malformed("an offer by a NIC that there cannot be, or twice by one"));
                    }
                    rails[at] = Some(Offered::decode(rail, entry)?);
                }
                Ok(Self::Offer(Offer {
                    generation,
                    rails,
                    ring: wide(head, 12),
                    shape: Shape {
                        slots: word(head, 20),
                        slot_bytes: word(head, 24),
                        placed_bytes: word(head, 28),
                    },
                    position: Position { frames: word(head, 32), bytes: wide(head, 36) },
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
        let address = |number| Address {
            number,
            first_packet: 0xab_cdef,
            gid: Gid(*b"0123456789abcdef"),
            lid: 0xfeed,
            mtu: Mtu::from_bytes(1024).expect("a size"),
        };
        let two = [Some(address(0x12_3456)), Some(address(0xff_ffff)), None, None];
        let one = [Some(address(1)), None, None, None];
        let offered = |rail, pairs| Some(Offered { rail, pairs, ring_key: 0x1122_3344 });
        Offer {
            generation: Generation(7),
            rails: [offered(3, two), offered(31, one), None, None],
            ring: 0x0102_0304_0506_0708,
            shape: Shape::default(),
            position: Position { frames: 9, bytes: 1 << 40 | 5 },
        }
    }

    #[test]
    fn what_is_said_is_understood() {
        for said in [Said::Offer(offer()), Said::Ready(Generation(7))] {
            assert_eq!(Said::decode(&said.encode()), Ok(said));
        }
        assert_eq!(offer().rails(), [3, 31].into_iter().collect());
        let numbers = [(3, 0), (3, 1), (31, 0), (31, 1), (0, 0), (3, 4)]
            .map(|(rail, pair)| offer().lane(rail, pair).map(|(address, _)| address.number));
        assert_eq!(numbers, [Some(0x12_3456), Some(0xff_ffff), Some(1), None, None, None]);
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        let bytes = Said::Offer(offer()).encode();
        let second = HEAD_BYTES + RAIL_BYTES;
        for (at, value, word) in [
            (0, b'x', "no offer"),
            (4, 1, "no offer"),
            (5, 7, "kind"),
            (second + 28 + 3, 1, "24 bits"),
            (HEAD_BYTES + 19, 1, "LID"),
            (44, 31, "twice"),
            (45, 32, "cannot be"),
        ] {
            let mut wrong = bytes;
            wrong[at] = value;
            let said = Said::decode(&wrong).expect_err("nonsense").to_string();
            assert!(said.contains(word), "{said}");
        }
        for (range, word) in [(8..12, "generation"), (second + 20..second + 24, "MTU")] {
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
