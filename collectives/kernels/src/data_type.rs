//! The element types that travel, and the Rust types that represent them.

use std::fmt;
use std::str::FromStr;

use half::{bf16, f16};

use crate::UnknownName;

/// The type of the elements of a collective.
///
/// The discriminant is the type's code on the wire and in fingerprints; it never changes meaning.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
#[repr(u8)]
#[non_exhaustive]
pub enum DataType {
    /// Unsigned 8-bit integers; also plain bytes.
    U8 = 0,
    /// Signed 32-bit integers.
    I32 = 1,
    /// Signed 64-bit integers.
    I64 = 2,
    /// IEEE 754 binary16.
    F16 = 3,
    /// The upper half of a binary32 ("brain float").
    BF16 = 4,
    /// IEEE 754 binary32.
    F32 = 5,
    /// IEEE 754 binary64.
    F64 = 6,
}

impl DataType {
    /// Every data type, in the order of the codes.
    pub const ALL: &'static [Self] =
        &[Self::U8, Self::I32, Self::I64, Self::F16, Self::BF16, Self::F32, Self::F64];

    /// The size of one element.
    pub const fn size_bytes(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::F16 | Self::BF16 => 2,
            Self::I32 | Self::F32 => 4,
            Self::I64 | Self::F64 => 8,
        }
    }

    /// The name that [`Display`](fmt::Display) prints and [`FromStr`] reads.
    pub const fn name(self) -> &'static str {
        match self {
            Self::U8 => "u8",
            Self::I32 => "i32",
            Self::I64 => "i64",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::F32 => "f32",
            Self::F64 => "f64",
        }
    }

    /// The code on the wire.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The data type of a code from the wire; `None` when the code is nobody's.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }
}

impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for DataType {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        Self::ALL.iter().copied().find(|data_type| data_type.name() == text).ok_or_else(|| UnknownName {
            kind: "data type",
            given: text.to_owned(),
            valid: Self::ALL.iter().map(|data_type| data_type.name()).collect(),
        })
    }
}

/// A Rust type that represents a [`DataType`].
///
/// # Safety
/// `Self` is plain old data of exactly `DATA_TYPE`'s size and representation, and every bit pattern is a valid value:
/// the kernels and the transports write its bytes.
pub unsafe trait Element: Copy + Send + Sync + 'static {
    /// The data type that `Self` represents.
    const DATA_TYPE: DataType;
}

macro_rules! elements {
    ($($element:ty => $data_type:ident,)*) => { $(
        // SAFETY: a primitive number, or `half`'s transparent wrapper of a u16; the size is checked just below.
        unsafe impl Element for $element {
            const DATA_TYPE: DataType = DataType::$data_type;
        }
        const _: () = assert!(size_of::<$element>() == DataType::$data_type.size_bytes());
    )* };
}

elements! {
    u8 => U8,
    i32 => I32,
    i64 => I64,
    f16 => F16,
    bf16 => BF16,
    f32 => F32,
    f64 => F64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_codes_are_bijections() {
        for &data_type in DataType::ALL {
            assert_eq!(DataType::from_code(data_type.code()), Some(data_type));
            assert_eq!(data_type.to_string().parse(), Ok(data_type));
        }
        assert_eq!(DataType::from_code(7), None);
        assert_eq!(DataType::from_code(255), None);
    }

    #[test]
    fn an_unknown_name_lists_the_names() {
        let error = "float".parse::<DataType>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "unknown data type \"float\"; use one of: u8, i32, i64, f16, bf16, f32, f64"
        );
    }
}
