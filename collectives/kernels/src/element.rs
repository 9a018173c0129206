//! The Rust types that represent the data types.

use half::{bf16, f16};
use num_complex::Complex;

use crate::DataType;
use crate::fp8::{e4m3_from_f32, e4m3_to_f32, e5m2_from_f32, e5m2_to_f32};

/// A Rust type that represents a [`DataType`].
///
/// # Safety
/// `Self` is plain old data of exactly `DATA_TYPE`'s size, without padding, aligned to `DATA_TYPE`'s alignment or less, and every
/// bit pattern is a valid value: the kernels, the transports and other processes write its bytes. (So Rust's `bool` is none.)
pub unsafe trait Element: Copy + Send + Sync + 'static {
    /// The data type that `Self` represents.
    const DATA_TYPE: DataType;
}

macro_rules! elements {
    ($($element:ty => $data_type:ident,)*) => { $(
        // SAFETY: a primitive number, or a `repr(C)` or transparent struct of such, in which every bit pattern is a
        // value; size (hence no padding, where the fields' sizes add up) and alignment are checked just below.
        unsafe impl Element for $element {
            const DATA_TYPE: DataType = DataType::$data_type;
        }
        const _: () = assert!(size_of::<$element>() == DataType::$data_type.size_bytes());
        const _: () = assert!(align_of::<$element>() <= DataType::$data_type.alignment());
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
    i8 => I8,
    i16 => I16,
    u16 => U16,
    u32 => U32,
    u64 => U64,
    F8E4M3 => E4M3,
    F8E5M2 => E5M2,
    Bool => Bool,
    Complex<f32> => Complex64,
    Complex<f64> => Complex128,
    F32I32 => F32I32,
    F64I32 => F64I32,
    I32I32 => I32I32,
    F64I64 => F64I64,
    I64I64 => I64I64,
}

macro_rules! small_floats {
    ($($(#[$doc:meta])* $name:ident: $from:ident, $to:ident;)*) => { $(
        $(#[$doc])*
        ///
        /// It compares by its bits: use [`to_f32`](Self::to_f32) to compare numbers.
        #[derive(Copy, Clone, Debug, Default, PartialEq, Eq, Hash)]
        #[repr(transparent)]
        pub struct $name(u8);

        impl $name {
            /// The number that these bits are.
            pub const fn from_bits(bits: u8) -> Self {
                Self(bits)
            }

            /// The bits.
            pub const fn to_bits(self) -> u8 {
                self.0
            }

            /// The nearest number, ties to even; what is too large becomes what the type's documentation says.
            pub fn from_f32(value: f32) -> Self {
                Self($from(value))
            }

            /// The same number: exact.
            pub fn to_f32(self) -> f32 {
                $to(self.0)
            }
        }
    )* };
}

small_floats! {
    /// An OCP E4M3 ("e4m3fn"): what rounds beyond ±448, infinities too, becomes NaN.
    F8E4M3: e4m3_from_f32, e4m3_to_f32;
    /// An OCP E5M2: what rounds beyond ±57344 becomes infinite.
    F8E5M2: e5m2_from_f32, e5m2_to_f32;
}

/// A truth value in a byte that others may write: any byte but 0 is true.
///
/// Rust's `bool` cannot lie in a buffer of a collective, because a byte other than 0 and 1 in it is undefined behaviour.
#[derive(Copy, Clone, Debug, Default)]
#[repr(transparent)]
pub struct Bool(u8);

impl Bool {
    /// Whether it is true.
    pub const fn get(self) -> bool {
        self.0 != 0
    }
}

impl From<bool> for Bool {
    fn from(value: bool) -> Self {
        Self(value.into())
    }
}

impl From<Bool> for bool {
    fn from(value: Bool) -> Self {
        value.get()
    }
}

impl PartialEq for Bool {
    fn eq(&self, other: &Self) -> bool {
        self.get() == other.get()
    }
}

impl Eq for Bool {}

macro_rules! pairs {
    ($($(#[$doc:meta])* $name:ident { $value:ty, $index:ty $(, $padding:ident: $pad:ty)? })*) => { $(
        $(#[$doc])*
        #[derive(Copy, Clone, Debug, Default, PartialEq)]
        #[repr(C)]
        pub struct $name {
            /// What is compared.
            pub value: $value,
            /// Where it was.
            pub index: $index,
            $($padding: $pad,)?
        }

        impl $name {
            /// A value and its place.
            pub const fn new(value: $value, index: $index) -> Self {
                Self { value, index $(, $padding: 0 as $pad)? }
            }
        }
    )* };
}

pairs! {
    /// A value and its place, as C's `struct { float value; int32_t index; }`.
    F32I32 { f32, i32 }
    /// A value and its place, as C's `struct { double value; int32_t index; }`: its padding has a name here, so that it is
    /// always initialised. Operators leave 0 there.
    F64I32 { f64, i32, padding: i32 }
    /// A value and its place, as C's `struct { int32_t value; int32_t index; }`.
    I32I32 { i32, i32 }
    /// A value and its place, as C's `struct { double value; int64_t index; }`.
    F64I64 { f64, i64 }
    /// A value and its place, as C's `struct { int64_t value; int64_t index; }`.
    I64I64 { i64, i64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_byte_but_zero_is_true() {
        assert!(!Bool(0).get() && Bool(1).get() && Bool(0x80).get());
        assert_eq!(Bool(2), Bool::from(true));
        assert_ne!(Bool(2), Bool::from(false));
    }
}
