//! What a call reads or writes: one array, or a list of them, which is their elements one after another, where they lie.

use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};
use windlass::{DataType, Piece};

use crate::array::{Array, Purpose};
use crate::error::{Wrong, invalid};
use crate::keep::Held;

/// One side of a call.
pub(crate) enum Side {
    One(Array),
    /// Of one type, and at least one.
    List(Vec<Array>),
}

impl Side {
    pub(crate) fn of(object: &Bound<'_, PyAny>, purpose: Purpose) -> PyResult<Self> {
        if object.is_instance_of::<PyList>() || object.is_instance_of::<PyTuple>() {
            return Self::of_list(object, purpose);
        }
        Array::of(object, purpose).map(Self::One)
    }

    fn of_list(list: &Bound<'_, PyAny>, purpose: Purpose) -> PyResult<Self> {
        let wrong = |wrong| invalid(list.py(), purpose.operation, purpose.argument, &wrong);
        let members = list.try_iter()?.map(|member| Array::of(&member?, purpose));
        let members = members.collect::<PyResult<Vec<_>>>()?;
        let Some(first) = members.first() else { return Err(wrong(Wrong::EmptyList)) };
        if let Some(other) = members.iter().find(|member| member.data_type != first.data_type) {
            let (first, other) = (first.data_type.name(), other.data_type.name());
            return Err(wrong(Wrong::TypesMixed { first, other }));
        }
        Ok(Self::List(members))
    }

    fn arrays(&self) -> &[Array] {
        match self {
            Self::One(array) => std::slice::from_ref(array),
            Self::List(members) => members,
        }
    }

    pub(crate) fn data_type(&self) -> DataType {
        // A list has at least one.
        self.arrays()[0].data_type
    }

    /// All elements.
    pub(crate) fn count(&self) -> usize {
        total(self.arrays().iter().map(|array| array.count))
    }

    /// The lengths of its dimensions; of a list, when its arrays are joined along the first, or those of a row when they do not fit.
    pub(crate) fn shape(&self) -> Vec<usize> {
        let members = match self {
            Self::One(array) => return array.shape(),
            Self::List(members) => members,
        };
        let shapes: Vec<_> = members.iter().map(Array::shape).collect();
        match shapes[0].split_first() {
            Some((_, rest)) if shapes.iter().all(|shape| shape.get(1..) == Some(rest)) => {
                let first = total(shapes.iter().map(|shape| shape[0]));
                std::iter::once(first).chain(rest.iter().copied()).collect()
            }
            _ => vec![self.count()],
        }
    }

    /// Where its elements lie; null for a list.
    pub(crate) const fn address(&self) -> *mut u8 {
        match self {
            Self::One(array) => array.address,
            Self::List(_) => std::ptr::null_mut(),
        }
    }

    /// Where a list's elements lie.
    pub(crate) fn pieces(&self) -> Option<Vec<Piece>> {
        let Self::List(members) = self else { return None };
        Some(members.iter().map(|member| Piece { address: member.address, count: member.count }).collect())
    }

    /// The elements of each of a list's arrays.
    pub(crate) fn lengths(&self) -> Option<Vec<usize>> {
        let Self::List(members) = self else { return None };
        Some(members.iter().map(|member| member.count).collect())
    }

    /// Hands the memory's lenders over to whoever keeps it during the operation.
    pub(crate) fn hand_to(self, held: &mut Held) {
        match self {
            Self::One(array) => array.hand_to(held),
            Self::List(members) => members.into_iter().for_each(|array| array.hand_to(held)),
        }
    }
}

fn total(lengths: impl Iterator<Item = usize>) -> usize {
    lengths.fold(0, usize::saturating_add)
}
