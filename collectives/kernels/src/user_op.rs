//! Operators that a program brings along, by their names.

use std::fmt;
use std::sync::{Mutex, PoisonError};

/// A program's own operator: a number of 31 bits that its name gives, the same on every rank.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub struct UserOp(u32);

/// The names met in this process, for messages. Those beyond the limit are shown as numbers.
static NAMES: Mutex<Vec<(UserOp, &'static str)>> = Mutex::new(Vec::new());
const MOST_NAMES: usize = 1024;

/// The bits of the number that travel beside the code.
const REST_BITS: u32 = 24;

impl UserOp {
    /// The operator of this name.
    pub fn named(name: &str) -> Self {
        let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325, mix);
        let op = Self((hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) as u32);
        let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
        if names.len() < MOST_NAMES && !names.iter().any(|(known, _)| *known == op) {
            names.push((op, name.to_owned().leak()));
        }
        op
    }

    /// Its name, if one of this number has been met in this process.
    pub fn name(self) -> Option<&'static str> {
        let names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
        names.iter().find(|(known, _)| *known == self).map(|(_, name)| *name)
    }

    /// The number.
    pub const fn number(self) -> u32 {
        self.0
    }

    /// The operator of a number; `None` when it has more than 31 bits.
    pub const fn from_number(number: u32) -> Option<Self> {
        if number >> 31 == 0 { Some(Self(number)) } else { None }
    }

    /// What travels of the number: a code of [`ReduceOp::USER_CODES`](crate::ReduceOp::USER_CODES), and 24 bits beside it.
    pub const fn to_wire(self) -> (u8, u32) {
        (self.code(), self.0 & ((1 << REST_BITS) - 1))
    }

    /// The operator of these two; `None` when the code is none of a program's own operators.
    pub const fn from_wire(code: u8, rest: u32) -> Option<Self> {
        if code < 128 || rest >> REST_BITS != 0 {
            return None;
        }
        Some(Self(((code & 0x7f) as u32) << REST_BITS | rest))
    }

    pub(crate) const fn code(self) -> u8 {
        0x80 | (self.0 >> REST_BITS) as u8
    }
}

impl fmt::Display for UserOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "user operator `{name}`"),
            None => write!(f, "user operator #{:x}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ReduceOp;

    #[test]
    fn a_number_survives_the_wire_and_a_name_is_remembered() {
        for name in ["clip", "clip2", "", "größte Summe"] {
            let op = UserOp::named(name);
            let (code, rest) = op.to_wire();
            assert!(ReduceOp::USER_CODES.contains(&code));
            assert_eq!(UserOp::from_wire(code, rest), Some(op));
            assert_eq!(UserOp::from_number(op.number()), Some(op));
            assert_eq!((op.name(), ReduceOp::User(op).code()), (Some(name), code));
            assert!(op.to_string().contains(name));
        }
        assert_ne!(UserOp::named("clip"), UserOp::named("clip2"));
        assert_eq!(UserOp::from_wire(3, 0), None);
        assert_eq!(UserOp::from_wire(200, 1 << 24), None);
        assert_eq!(UserOp::from_number(1 << 31), None);
        assert_eq!(UserOp(12).to_string(), "user operator #c");
    }
}
