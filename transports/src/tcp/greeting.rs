//! The first bytes on a connection: who speaks, and for which job. `docs/wire.md` is their specification.

use crate::Rank;
use crate::link::Limits;

/// Bytes of a greeting.
pub const GREETING_BYTES: usize = 48;
const MAGIC: [u8; 8] = *b"WINDLASS";
const VERSION: u32 = 1;

/// What each end says first.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Greeting {
    /// The job both belong to.
    pub job: u128,
    /// Who speaks.
    pub rank: Rank,
    /// Its links' limits; both ends must have the same.
    pub limits: Limits,
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
        for (place, limit) in out[32..].chunks_exact_mut(4).zip(limits) {
            place.copy_from_slice(&limit.to_le_bytes());
        }
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
        Some(Self { job, rank: word(12), limits })
    }
}
