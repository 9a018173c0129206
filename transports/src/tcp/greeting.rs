//! The first bytes on a connection: who speaks, and for which job. `docs/wire.md` is their specification.

use crate::Rank;
use crate::ledger::Generation;
use crate::link::{Limits, Position};

/// Bytes of a greeting.
pub const GREETING_BYTES: usize = 64;
const MAGIC: [u8; 8] = *b"WINDLASS";
const VERSION: u32 = 2;

/// What each end says first.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Greeting {
    /// The job both belong to.
    pub job: u128,
    /// Who speaks.
    pub rank: Rank,
    /// Its links' limits; both ends must have the same.
    pub limits: Limits,
    /// How often the two have tried to connect: the dialler counts, and the other repeats it.
    pub generation: Generation,
    /// What the speaker has received over the connections before.
    pub position: Position,
}

impl Greeting {
    /// As it goes on the wire.
    pub fn encode(&self) -> [u8; GREETING_BYTES] {
        let mut out = [0; GREETING_BYTES];
        out[0..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&self.rank.to_le_bytes());
        out[16..32].copy_from_slice(&self.job.to_le_bytes());
        let limits = [
            self.limits.eager_bytes,
            self.limits.credit_bytes,
            self.limits.credit_messages,
            self.limits.announcements,
        ];
        for (place, limit) in out[32..48].chunks_exact_mut(4).zip(limits) {
            place.copy_from_slice(&limit.to_le_bytes());
        }
        out[48..52].copy_from_slice(&self.generation.0.to_le_bytes());
        out[52..56].copy_from_slice(&self.position.frames.to_le_bytes());
        out[56..64].copy_from_slice(&self.position.bytes.to_le_bytes());
        out
    }

    /// Reads a greeting. Any bytes give an answer; none panics.
    pub fn decode(bytes: &[u8; GREETING_BYTES]) -> Option<Self> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        if bytes[0..8] != MAGIC || word(8) != VERSION {
            return None;
        }
        let job = [16, 20, 24, 28].iter().rev().fold(0u128, |job, &at| job << 32 | u128::from(word(at)));
        let limits = Limits {
            eager_bytes: word(32),
            credit_bytes: word(36),
            credit_messages: word(40),
            announcements: word(44),
        };
        let position = Position { frames: word(52), bytes: u64::from(word(56)) | u64::from(word(60)) << 32 };
        Some(Self { job, rank: word(12), limits, generation: Generation(word(48)), position })
    }
}
