//! Errors as Python's exceptions: one class for each variant, with its fields as attributes.

use std::fmt;

use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use windlass::{Error, JoinError};

/// What is wrong with an argument as Python gives it; what is wrong with its value, the runtime says.
pub(crate) enum Wrong {
    /// An object that lends no memory.
    NoMemory { class: String },
    /// Memory that may not be written.
    ReadOnly,
    /// Elements with gaps between them, or in Fortran's order.
    NotContiguous,
    /// Elements of a type that windlass has not.
    ElementType { given: String },
    /// Input and output of different types.
    TypesDiffer { input: &'static str, output: &'static str },
    /// Arrays of different types in one list.
    TypesMixed { first: &'static str, other: &'static str },
    /// A list without an array.
    EmptyList,
    /// Input and output whose rows differ, where counts are of rows.
    RowsDiffer { input: usize, output: usize },
    /// Something that is no list of counts.
    Counts { given: String },
    /// Something that cannot be called.
    NotCallable { given: String },
    /// What an operator has made: not what it was to make.
    OtherResult { given: &'static str, length: usize, expected: &'static str, count: usize },
    /// Something that is no time.
    Timeout { given: String },
    /// Something that is no message, or no list of them.
    Message { given: String },
    /// Something that nothing can be multiplied by.
    Scalar { given: String },
    /// A factor, and an operator that has none.
    NotScaled { op: &'static str },
    /// An object that has memory, and does not lend it.
    NotLent { reason: String },
    /// An accelerator that is not there, or options that it has not.
    NotOpened { reason: String },
    /// No name, where the rank uses no accelerator yet.
    NotAttached,
    /// Memory of a device.
    Device { kind: i32 },
    /// Something that is no number a rank, a tag or a colour can be.
    Number { given: String },
    /// Something that is no operator.
    Operator { given: String },
    /// Something that names no element type.
    TypeName { given: String },
    /// Something that is no shape.
    Shape { given: String },
    /// Nothing where something is needed.
    Missing,
    /// A closed set of names, and this is none of them.
    Name { given: String, valid: String },
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMemory { class } => {
                write!(
                    f,
                    "is of class {class}, which has neither the buffer protocol nor DLPack; give an array"
                )
            }
            Self::ReadOnly => write!(f, "is read-only, but the call writes it; give a writable copy"),
            Self::NotContiguous => {
                write!(f, "is not contiguous in C order; give a contiguous copy (numpy.ascontiguousarray)")
            }
            Self::ElementType { given } => {
                write!(f, "has elements of type {given:?}, which is none of: {}", crate::dtype::names())
            }
            Self::TypesDiffer { input, output } => {
                write!(f, "has elements of type {output}, but the input of type {input}; use one type")
            }
            Self::NotLent { reason } => write!(f, "does not lend its memory: {reason}"),
            Self::TypesMixed { first, other } => {
                write!(f, "has arrays of type {first} and of type {other}; use one type")
            }
            Self::EmptyList => write!(f, "is an empty list, which has no type; give an array of no elements"),
            Self::RowsDiffer { input, output } => {
                write!(
                    f,
                    "has rows of {output} elements, but the input has rows of {input}; counts are of rows"
                )
            }
            Self::Counts { given } => write!(f, "is {given}; give one number from 0 for each rank"),
            Self::NotCallable { given } => write!(f, "is {given}, which cannot be called"),
            Self::OtherResult { given, length, expected, count } => {
                write!(f, "has {length} elements of type {given}, not {count} of type {expected}")
            }
            Self::Timeout { given } => write!(f, "is {given}; give a number of seconds above 0"),
            Self::Message { given } => {
                write!(f, "has {given}; give messages as (array, rank) or (array, rank, tag)")
            }
            Self::Scalar { given } => write!(f, "is {given}, which is no number"),
            Self::NotScaled { op } => {
                write!(f, "goes with scaled_sum, not with {op}; leave the operator out")
            }
            Self::NotOpened { reason } => write!(f, "cannot be opened: {reason}"),
            Self::NotAttached => {
                write!(f, "is missing, and this rank uses no accelerator yet; give its name")
            }
            Self::Device { kind } => {
                write!(
                    f,
                    "lies on a device (DLPack's kind {kind}), not in the processor's memory; copy it there, or adopt its dma-buf (windlass.Device.adopt)"
                )
            }
            Self::Number { given } => write!(f, "is {given}, which is no number from 0"),
            Self::Operator { given } => write!(f, "is {given}; give a windlass.ReduceOp or its name"),
            Self::TypeName { given } => {
                write!(f, "is {given}, which is none of: {}", crate::dtype::names())
            }
            Self::Shape { given } => {
                write!(
                    f,
                    "is {given}; give a number of elements or a tuple of lengths, none of them negative"
                )
            }
            Self::Missing => {
                write!(f, "is missing; this rank takes part with it, and cannot tell its length")
            }
            Self::Name { given, valid } => write!(f, "is {given:?}, which is none of: {valid}"),
        }
    }
}

/// The exception for an argument.
pub(crate) fn invalid(
    py: Python<'_>,
    operation: &'static str,
    argument: &'static str,
    wrong: &Wrong,
) -> PyErr {
    let attributes = |d: &Bound<'_, PyDict>| {
        d.set_item("code", 1)?;
        d.set_item("operation", operation)?;
        d.set_item("argument", argument)?;
        d.set_item("problem", wrong.to_string())
    };
    exception(py, "InvalidArgumentError", &format!("{operation}: {argument} {wrong}"), attributes)
}

/// The exception for a runtime's error.
pub(crate) fn raise(py: Python<'_>, error: &Error) -> PyErr {
    let attributes = |d: &Bound<'_, PyDict>| {
        d.set_item("code", error.code())?;
        fields(error, d)
    };
    exception(py, class(error), &error.to_string(), attributes)
}

const fn class(error: &Error) -> &'static str {
    match error {
        Error::InvalidArgument { .. } => "InvalidArgumentError",
        Error::Mismatch { .. } => "MismatchError",
        Error::PeerFailed { .. } => "PeerFailedError",
        Error::TimedOut { .. } => "TimedOutError",
        Error::Aborted { .. } => "AbortedError",
        Error::Forked { .. } => "ForkedError",
        Error::RegionRevoked { .. } => "RegionRevokedError",
        Error::System { .. } => "SystemError",
        // A variant that this crate does not know yet is an error all the same.
        _ => "Error",
    }
}

fn fields(error: &Error, d: &Bound<'_, PyDict>) -> PyResult<()> {
    match error {
        Error::InvalidArgument { operation, argument, problem } => {
            d.set_item("operation", operation)?;
            d.set_item("argument", argument)?;
            d.set_item("problem", problem.to_string())
        }
        Error::Mismatch { communicator, sequence, ours, theirs, rank } => {
            d.set_item("communicator", communicator)?;
            d.set_item("sequence", sequence)?;
            d.set_item("ours", ours.to_string())?;
            d.set_item("theirs", theirs.to_string())?;
            d.set_item("rank", rank)
        }
        Error::PeerFailed { rank, cause, operation, sequence, communicator } => {
            d.set_item("rank", rank)?;
            d.set_item("cause", cause.to_string())?;
            d.set_item("operation", operation)?;
            d.set_item("sequence", sequence)?;
            d.set_item("communicator", communicator)
        }
        Error::TimedOut { operation, sequence, communicator, waiting_on, after } => {
            d.set_item("operation", operation)?;
            d.set_item("sequence", sequence)?;
            d.set_item("communicator", communicator)?;
            d.set_item("waiting_on", waiting_on)?;
            d.set_item("after", after.as_secs_f64())
        }
        Error::Aborted { communicator, by, reason } => {
            d.set_item("communicator", communicator)?;
            d.set_item("by", by)?;
            d.set_item("reason", reason.to_string())
        }
        Error::Forked { rank } => d.set_item("rank", rank),
        Error::RegionRevoked { rank, segment, generation } => {
            d.set_item("rank", rank)?;
            d.set_item("segment", segment)?;
            d.set_item("generation", generation)
        }
        Error::System { call, errno, hint } => system(d, call, *errno, hint),
        _ => Ok(()),
    }
}

fn system(d: &Bound<'_, PyDict>, call: &str, errno: i32, hint: &str) -> PyResult<()> {
    d.set_item("call", call)?;
    d.set_item("errno", errno)?;
    d.set_item("hint", hint)
}

/// The exception for a job that could not be joined.
pub(crate) fn not_joined(py: Python<'_>, error: &JoinError) -> PyErr {
    let attributes = |d: &Bound<'_, PyDict>| match error {
        JoinError::Environment { variable, value, problem } => {
            d.set_item("variable", variable)?;
            d.set_item("value", value)?;
            d.set_item("problem", problem)
        }
        JoinError::Configuration { setting, value, problem } => {
            d.set_item("setting", setting)?;
            d.set_item("value", value)?;
            d.set_item("problem", problem)
        }
        JoinError::NoRendezvous { address, errno, hint } => {
            d.set_item("address", address)?;
            d.set_item("errno", errno)?;
            d.set_item("hint", hint)
        }
        JoinError::Refused { rank, refusal } => {
            d.set_item("rank", rank)?;
            d.set_item("refusal", refusal.to_string())
        }
        JoinError::Missing { missing, after } => {
            d.set_item("missing", missing)?;
            d.set_item("after", after.as_secs_f64())
        }
        JoinError::PeerFailed { rank, cause } => {
            d.set_item("rank", rank)?;
            d.set_item("cause", cause.to_string())
        }
        JoinError::System { call, errno, hint } => system(d, call, *errno, hint),
        _ => Ok(()),
    };
    exception(py, "JoinError", &error.to_string(), attributes)
}

fn exception(
    py: Python<'_>,
    class: &str,
    message: &str,
    attributes: impl FnOnce(&Bound<'_, PyDict>) -> PyResult<()>,
) -> PyErr {
    let make = || {
        let dictionary = PyDict::new(py);
        attributes(&dictionary)?;
        py.import("windlass._errors")?.getattr(class)?.call((message,), Some(&dictionary))
    };
    match make() {
        Ok(exception) => PyErr::from_value(exception),
        // The package is not whole, or memory has run out; the message is not lost.
        Err(cause) => {
            let error = PyException::new_err(message.to_owned());
            error.set_cause(py, Some(cause));
            error
        }
    }
}
