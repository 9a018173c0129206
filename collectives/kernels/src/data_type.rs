//! The element types that travel.

use std::fmt;
use std::str::FromStr;

use crate::UnknownName;

macro_rules! data_types {
    ($($(#[$doc:meta])* $variant:ident = $code:literal, $name:literal, size: $size:literal, alignment: $alignment:literal;)*) => {
        /// The type of the elements of a collective.
        ///
        /// The discriminant is the type's code on the wire and in fingerprints; it never changes meaning.
        #[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
        #[repr(u8)]
        #[non_exhaustive]
        pub enum DataType { $($(#[$doc])* $variant = $code,)* }

        impl DataType {
            /// Every data type, in the order of the codes.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The size of one element: a power of two.
            pub const fn size_bytes(self) -> usize {
                match self { $(Self::$variant => $size,)* }
            }

            /// What the address of an element is a multiple of in Rust and C.
            pub const fn alignment(self) -> usize {
                match self { $(Self::$variant => $alignment,)* }
            }

            /// The name that [`Display`](fmt::Display) prints and [`FromStr`] reads.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

data_types! {
    /// Unsigned 8-bit integers; also plain bytes.
    U8 = 0, "u8", size: 1, alignment: 1;
    /// Signed 32-bit integers.
    I32 = 1, "i32", size: 4, alignment: 4;
    /// Signed 64-bit integers.
    I64 = 2, "i64", size: 8, alignment: 8;
    /// IEEE 754 binary16.
    F16 = 3, "f16", size: 2, alignment: 2;
    /// The upper half of a binary32 ("brain float").
    BF16 = 4, "bf16", size: 2, alignment: 2;
    /// IEEE 754 binary32.
    F32 = 5, "f32", size: 4, alignment: 4;
    /// IEEE 754 binary64.
    F64 = 6, "f64", size: 8, alignment: 8;
    /// Signed 8-bit integers.
    I8 = 7, "i8", size: 1, alignment: 1;
    /// Signed 16-bit integers.
    I16 = 8, "i16", size: 2, alignment: 2;
    /// Unsigned 16-bit integers.
    U16 = 9, "u16", size: 2, alignment: 2;
    /// Unsigned 32-bit integers.
    U32 = 10, "u32", size: 4, alignment: 4;
    /// Unsigned 64-bit integers.
    U64 = 11, "u64", size: 8, alignment: 8;
    /// OCP 8-bit floats with 4 bits of exponent and 3 of mantissa: up to 448, one NaN of each sign, no infinity ("e4m3fn").
    E4M3 = 12, "e4m3", size: 1, alignment: 1;
    /// OCP 8-bit floats with 5 bits of exponent and 2 of mantissa: the upper half of a binary16.
    E5M2 = 13, "e5m2", size: 1, alignment: 1;
    /// Truth values: any byte but 0 reads true, results are 0 and 1.
    Bool = 14, "bool", size: 1, alignment: 1;
    /// Two `f32`: the real and the imaginary part.
    Complex64 = 15, "complex64", size: 8, alignment: 4;
    /// Two `f64`: the real and the imaginary part.
    Complex128 = 16, "complex128", size: 16, alignment: 8;
    /// An `f32` and its place, an `i32`: MPI's `MPI_FLOAT_INT`.
    F32I32 = 17, "f32i32", size: 8, alignment: 4;
    /// An `f64` and its place, an `i32`, and 4 bytes that mean nothing: MPI's `MPI_DOUBLE_INT`.
    F64I32 = 18, "f64i32", size: 16, alignment: 8;
    /// An `i32` and its place, an `i32`: MPI's `MPI_2INT`.
    I32I32 = 19, "i32i32", size: 8, alignment: 4;
    /// An `f64` and its place, an `i64`.
    F64I64 = 20, "f64i64", size: 16, alignment: 8;
    /// An `i64` and its place, an `i64`.
    I64I64 = 21, "i64i64", size: 16, alignment: 8;
}

impl DataType {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_codes_are_bijections() {
        for (code, &data_type) in DataType::ALL.iter().enumerate() {
            assert_eq!(usize::from(data_type.code()), code, "codes have no gaps");
            assert_eq!(DataType::from_code(data_type.code()), Some(data_type));
            assert_eq!(data_type.to_string().parse(), Ok(data_type));
            assert!(data_type.size_bytes().is_power_of_two());
        }
        assert_eq!(DataType::from_code(22), None);
        assert_eq!(DataType::from_code(255), None);
    }

    #[test]
    fn codes_that_have_travelled_keep_their_meaning() {
        use DataType::*;
        let known = [U8, I32, I64, F16, BF16, F32, F64, I8, I16, U16, U32, U64, E4M3, E5M2, Bool, Complex64];
        for (code, &data_type) in (0..).zip(&known) {
            assert_eq!(DataType::from_code(code), Some(data_type));
        }
    }

    #[test]
    fn an_unknown_name_lists_the_names() {
        let error = "float".parse::<DataType>().unwrap_err().to_string();
        assert!(
            error.starts_with("unknown data type \"float\"; use one of: u8, i32, i64, f16, bf16"),
            "{error}"
        );
    }
}
