//! The reduction operators, and the one table of what they are defined on.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use crate::recipe::recipe;
use crate::{DataType, UnknownName, UserOp};

macro_rules! operators {
    ($($(#[$doc:meta])* $variant:ident = $code:literal, $name:literal;)*) => {
        /// How the elements of several ranks become one.
        ///
        /// Each has a code on the wire and in fingerprints, which never changes meaning.
        #[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
        #[non_exhaustive]
        pub enum ReduceOp {
            $($(#[$doc])* $variant,)*
            /// One that the program has brought along. There is no kernel for it.
            User(UserOp),
        }

        impl ReduceOp {
            /// Every operator that there is a kernel for, in the order of the codes.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name that [`Display`](fmt::Display) prints and [`FromStr`] reads; a program's own operator has
            /// [one](UserOp::name) besides.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* Self::User(_) => "user" }
            }

            /// The code on the wire. Of a program's own operator, it is a part of its number.
            pub const fn code(self) -> u8 {
                match self { $(Self::$variant => $code,)* Self::User(op) => op.code() }
            }
        }
    };
}

operators! {
    /// The sum, in input order.
    Sum = 0, "sum";
    /// The product, in input order.
    Prod = 1, "prod";
    /// The smallest; NaN if any input is NaN.
    Min = 2, "min";
    /// The largest; NaN if any input is NaN.
    Max = 3, "max";
    /// The sum, divided by the number of contributions.
    Avg = 4, "avg";
    /// The sum of what each rank has multiplied by a number of its own ([`Combine::scale`](crate::Combine::scale)): NCCL's
    /// `PreMulSum`. The numbers may differ, so they are no part of what ranks compare.
    ScaledSum = 5, "scaled_sum";
    /// Bit by bit, whether all inputs have it.
    BitAnd = 6, "band";
    /// Bit by bit, whether any input has it.
    BitOr = 7, "bor";
    /// Bit by bit, whether an odd number of inputs has it.
    BitXor = 8, "bxor";
    /// 1 if all inputs are other than 0, else 0.
    LogicalAnd = 9, "land";
    /// 1 if any input is other than 0, else 0.
    LogicalOr = 10, "lor";
    /// 1 if an odd number of inputs is other than 0, else 0.
    LogicalXor = 11, "lxor";
    /// Of pairs, that with the smallest value; of equal values, that with the lowest place.
    MinLoc = 12, "minloc";
    /// Of pairs, that with the largest value; of equal values, that with the lowest place.
    MaxLoc = 13, "maxloc";
}

impl ReduceOp {
    /// The codes that no operator here will ever have: those of operators that a program brings along.
    pub const USER_CODES: RangeInclusive<u8> = 128..=255;

    /// The operator of a code from the wire; `None` when the code is nobody's here.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }

    /// Whether the operator is defined on the type.
    pub const fn supports(self, data_type: DataType) -> bool {
        recipe(data_type, self).is_some()
    }

    /// The operator, if it is defined on the type.
    pub const fn on(self, data_type: DataType) -> Result<Self, Unsupported> {
        if self.supports(data_type) { Ok(self) } else { Err(Unsupported { data_type, op: self }) }
    }
}

impl fmt::Display for ReduceOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(op) => op.fmt(f),
            op => f.pad(op.name()),
        }
    }
}

impl FromStr for ReduceOp {
    type Err = UnknownName;

    fn from_str(text: &str) -> Result<Self, UnknownName> {
        Self::ALL.iter().copied().find(|op| op.name() == text).ok_or_else(|| UnknownName {
            kind: "reduction operator",
            given: text.to_owned(),
            valid: Self::ALL.iter().map(|op| op.name()).collect(),
        })
    }
}

/// The operator is not defined on the type.
#[derive(Copy, Clone, Debug, PartialEq, Eq, Hash)]
pub struct Unsupported {
    /// The type of the elements.
    pub data_type: DataType,
    /// The operator.
    pub op: ReduceOp,
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { data_type, op } = self;
        write!(f, "{op} is not defined on {data_type}; ")?;
        let mut names = ReduceOp::ALL.iter().filter(|op| op.supports(*data_type));
        match names.next() {
            Some(first) => write!(f, "use one of: {first}")?,
            None => write!(f, "it can only be moved")?,
        }
        names.try_for_each(|name| write!(f, ", {name}"))
    }
}

impl std::error::Error for Unsupported {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_codes_are_bijections() {
        for (code, &op) in ReduceOp::ALL.iter().enumerate() {
            assert_eq!(usize::from(op.code()), code, "codes have no gaps");
            assert_eq!(ReduceOp::from_code(op.code()), Some(op));
            assert_eq!(op.to_string().parse(), Ok(op));
            assert!(!ReduceOp::USER_CODES.contains(&op.code()));
        }
        assert_eq!(ReduceOp::from_code(14), None);
        assert!(ReduceOp::USER_CODES.clone().all(|code| ReduceOp::from_code(code).is_none()));
    }

    #[test]
    fn an_unknown_name_lists_the_names() {
        let error = "mean".parse::<ReduceOp>().unwrap_err().to_string();
        assert!(
            error.starts_with("unknown reduction operator \"mean\"; use one of: sum, prod, min, max, avg"),
            "{error}"
        );
    }

    #[test]
    fn a_refusal_says_what_there_is() {
        let error = ReduceOp::Max.on(DataType::Complex64).unwrap_err();
        assert_eq!(
            error.to_string(),
            "max is not defined on complex64; use one of: sum, prod, avg, scaled_sum"
        );
        assert_eq!(ReduceOp::Max.on(DataType::F32), Ok(ReduceOp::Max));
    }
}
