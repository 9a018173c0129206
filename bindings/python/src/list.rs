//! What a call reads or writes: one array, or a list of them, which is their elements one after another.
//!
//! An operation works on one piece of memory. So a list's arrays are copied into registered memory before it starts, and out of that at its end, by
//! whoever ends it: without the interpreter, because their exporters keep them.

use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};

use crate::array::{Array, Purpose};
use crate::buffer::Buffer;
use crate::error::{Wrong, invalid};
use crate::keep::Held;

/// One side of a call.
pub(crate) struct Side {
    /// The array, or the memory in which a list's arrays lie.
    pub(crate) whole: Array,
    members: Option<Vec<Array>>,
}

impl Side {
    pub(crate) fn of(
        object: &Bound<'_, PyAny>,
        purpose: Purpose,
        communicator: &windlass::Communicator,
    ) -> PyResult<Self> {
        if object.is_instance_of::<PyList>() || object.is_instance_of::<PyTuple>() {
            return Self::of_list(object, purpose, communicator);
        }
        Array::of(object, purpose).map(Self::from)
    }

    fn of_list(
        list: &Bound<'_, PyAny>,
        purpose: Purpose,
        communicator: &windlass::Communicator,
    ) -> PyResult<Self> {
        let py = list.py();
        let wrong = |wrong| invalid(py, purpose.operation, purpose.argument, &wrong);
        let members = list.try_iter()?.map(|member| Array::of(&member?, purpose));
        let members = members.collect::<PyResult<Vec<_>>>()?;
        let Some(first) = members.first() else { return Err(wrong(Wrong::EmptyList)) };
        let data_type = first.data_type;
        if let Some(other) = members.iter().find(|member| member.data_type != data_type) {
            let (first, other) = (data_type.name(), other.data_type.name());
            return Err(wrong(Wrong::TypesMixed { first, other }));
        }
        let buffer = Buffer::allocate(py, communicator, data_type, &joined_shape(&members))?;
        let whole = Array::of_buffer(&Bound::new(py, buffer)?);
        Ok(Self { whole, members: Some(members) })
    }

    /// The elements of each of a list's arrays.
    pub(crate) fn lengths(&self) -> Option<Vec<usize>> {
        let members = self.members.as_ref()?;
        Some(members.iter().map(|member| member.count).collect())
    }

    /// What is to be copied from a list's arrays before the operation.
    pub(crate) fn gathered(&self) -> impl Iterator<Item = Piece> {
        self.pieces().map(|(member, place, bytes)| Piece { from: member, to: place, bytes })
    }

    /// What is to be copied to a list's arrays after it.
    pub(crate) fn scattered(&self) -> impl Iterator<Item = Piece> {
        self.pieces().map(|(member, place, bytes)| Piece { from: place, to: member, bytes })
    }

    /// Each of a list's arrays, its place in the whole, and its bytes.
    fn pieces(&self) -> impl Iterator<Item = (*mut u8, *mut u8, usize)> {
        let mut place = self.whole.address;
        self.members.iter().flatten().map(move |member| {
            let (at, bytes) = (place, member.count * member.data_type.size_bytes());
            place = place.wrapping_add(bytes);
            (member.address, at, bytes)
        })
    }

    /// Hands the memory's lenders over to whoever keeps it during the operation.
    pub(crate) fn hand_to(self, held: &mut Held) {
        self.members.into_iter().flatten().chain([self.whole]).for_each(|array| array.hand_to(held));
    }
}

impl From<Array> for Side {
    fn from(whole: Array) -> Self {
        Self { whole, members: None }
    }
}

/// The arrays' shape when they are joined along their first dimension; a row of elements when they do not fit.
fn joined_shape(members: &[Array]) -> Vec<usize> {
    let shapes: Vec<_> = members.iter().map(Array::shape).collect();
    let total = |lengths: &mut dyn Iterator<Item = usize>| lengths.fold(0, usize::saturating_add);
    match shapes[0].split_first() {
        Some((_, rest)) if shapes.iter().all(|shape| shape.get(1..) == Some(rest)) => {
            let first = total(&mut shapes.iter().map(|shape| shape[0]));
            std::iter::once(first).chain(rest.iter().copied()).collect()
        }
        _ => vec![total(&mut members.iter().map(|member| member.count))],
    }
}

/// Bytes to be copied.
pub(crate) struct Piece {
    from: *const u8,
    to: *mut u8,
    bytes: usize,
}

// SAFETY: both ends are memory that the operation keeps, whichever thread copies.
unsafe impl Send for Piece {}

/// Copies and forgets the pieces.
///
/// # Safety
/// What they name is kept: they are from a `Side` whose memory has not been released.
pub(crate) unsafe fn copy(pieces: &mut Vec<Piece>) {
    for Piece { from, to, bytes } in pieces.drain(..) {
        // SAFETY: the caller's; one end is registered memory that nobody else has, so the two do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(from, to, bytes) };
    }
}
