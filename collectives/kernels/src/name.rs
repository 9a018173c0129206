//! What a name that means nothing turns into: an error that lists the names that do.

use std::fmt;

/// A text is the name of no data type, or of no reduction operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownName {
    /// What was asked for: `"data type"` or `"reduction operator"`.
    pub kind: &'static str,
    /// The text that was given.
    pub given: String,
    /// Every name that would have been accepted.
    pub valid: Vec<&'static str>,
}

impl fmt::Display for UnknownName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown {} {:?}; use one of: {}", self.kind, self.given, self.valid.join(", "))
    }
}

impl std::error::Error for UnknownName {}
