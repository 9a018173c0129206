//! The reduction operators.

use std::fmt;
use std::str::FromStr;

use crate::UnknownName;

/// How the elements of several ranks become one.
///
/// The discriminant is the operator's code on the wire and in fingerprints; it never changes meaning.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
#[repr(u8)]
#[non_exhaustive]
pub enum ReduceOp {
    /// The sum, in input order.
    Sum = 0,
    /// The product, in input order.
    Prod = 1,
    /// The smallest; NaN if any input is NaN.
    Min = 2,
    /// The largest; NaN if any input is NaN.
    Max = 3,
    /// The sum, divided by the number of contributions.
    Avg = 4,
}

impl ReduceOp {
    /// Every operator, in the order of the codes.
    pub const ALL: &'static [Self] = &[Self::Sum, Self::Prod, Self::Min, Self::Max, Self::Avg];

    /// The name that [`Display`](fmt::Display) prints and [`FromStr`] reads.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sum => "sum",
            Self::Prod => "prod",
            Self::Min => "min",
            Self::Max => "max",
            Self::Avg => "avg",
        }
    }

    /// The code on the wire.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The operator of a code from the wire; `None` when the code is nobody's.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }
}

impl fmt::Display for ReduceOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_codes_are_bijections() {
        for &op in ReduceOp::ALL {
            assert_eq!(ReduceOp::from_code(op.code()), Some(op));
            assert_eq!(op.to_string().parse(), Ok(op));
        }
        assert_eq!(ReduceOp::from_code(5), None);
    }

    #[test]
    fn an_unknown_name_lists_the_names() {
        let error = "mean".parse::<ReduceOp>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "unknown reduction operator \"mean\"; use one of: sum, prod, min, max, avg"
        );
    }
}
