//! Hashing of message identities: a few multiplications, since peers are not adversaries who choose collisions.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

use crate::message::MessageId;

/// A map by identity.
pub(super) type ById<V> = HashMap<MessageId, V, BuildHasherDefault<IdHasher>>;
/// A set of identities.
pub(super) type Ids = HashSet<MessageId, BuildHasherDefault<IdHasher>>;
/// A map by communicator and kind of traffic.
pub(super) type ByClass<V> = HashMap<super::credit::ClassKey, V, BuildHasherDefault<IdHasher>>;

/// Multiplies and folds; good for the small integers that identities consist of.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct IdHasher(u64);

impl IdHasher {
    fn mix(&mut self, word: u64) {
        let product =
            u128::from(self.0.rotate_left(23) ^ word ^ 0x9e37_79b9_7f4a_7c15) * 0xd6e8_feb8_6659_fd93;
        self.0 = (product as u64) ^ (product >> 64) as u64;
    }
}

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.mix(u64::from(byte));
        }
    }
    fn write_u8(&mut self, value: u8) {
        self.mix(u64::from(value));
    }
    fn write_u32(&mut self, value: u32) {
        self.mix(u64::from(value));
    }
    fn write_u64(&mut self, value: u64) {
        self.mix(value);
    }
}
