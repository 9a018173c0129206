//! What a call reads or writes: one array, or a list of them, which is their elements one after another, where they lie.

use pyo3::prelude::*;
use pyo3::types::{PyList, PyTuple};
use windlass::{DataType, Piece, Problem};

use crate::array::{Array, Purpose};
use crate::error::{Wrong, invalid};
use crate::keep::Held;

/// A list whose arrays each have a block of every rank: a collective with a block for each rank treats each array for itself.
#[pyclass(frozen, module = "windlass")]
pub(crate) struct ByRank {
    arrays: Py<PyTuple>,
}

#[pymethods]
impl ByRank {
    #[new]
    #[pyo3(signature = (*arrays))]
    const fn new(arrays: Py<PyTuple>) -> Self {
        Self { arrays }
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        Ok(format!("windlass.ByRank{}", self.arrays.bind(py).repr()?))
    }
}

/// One side of a call.
pub(crate) enum Side {
    One(Array),
    /// Of one type, and at least one.
    List(Vec<Array>),
    /// Each to be cut into as many parts as there are ranks.
    ByRank(Vec<Array>),
}

impl Side {
    pub(crate) fn of(object: &Bound<'_, PyAny>, purpose: Purpose) -> PyResult<Self> {
        if object.is_instance_of::<PyList>() || object.is_instance_of::<PyTuple>() {
            return arrays(object, purpose).map(Self::List);
        }
        if let Ok(list) = object.cast_exact::<ByRank>() {
            return arrays(list.get().arrays.bind(object.py()).as_any(), purpose).map(Self::ByRank);
        }
        Array::of(object, purpose).map(Self::One)
    }

    fn arrays(&self) -> &[Array] {
        match self {
            Self::One(array) => std::slice::from_ref(array),
            Self::List(members) | Self::ByRank(members) => members,
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
            Self::List(members) | Self::ByRank(members) => members,
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
            Self::List(_) | Self::ByRank(_) => std::ptr::null_mut(),
        }
    }

    /// Where a list's elements lie.
    pub(crate) fn pieces(&self, ranks: u32) -> Option<Result<Vec<Piece>, Problem>> {
        let ranks = match self {
            Self::One(_) => return None,
            Self::List(_) => 1,
            Self::ByRank(_) => ranks,
        };
        let piece = |array: &Array| Piece { address: array.address, count: array.count };
        let pieces: Vec<_> = self.arrays().iter().map(piece).collect();
        Some(Piece::by_rank(&pieces, self.data_type(), ranks))
    }

    /// The elements of each of a list's arrays, where each may be a rank's block.
    pub(crate) fn lengths(&self) -> Option<Vec<usize>> {
        let Self::List(members) = self else { return None };
        Some(members.iter().map(|member| member.count).collect())
    }

    /// Hands the memory's lenders over to whoever keeps it during the operation.
    pub(crate) fn hand_to(self, held: &mut Held) {
        match self {
            Self::One(array) => array.hand_to(held),
            Self::List(members) | Self::ByRank(members) => {
                members.into_iter().for_each(|array| array.hand_to(held))
            }
        }
    }
}

fn total(lengths: impl Iterator<Item = usize>) -> usize {
    lengths.fold(0, usize::saturating_add)
}

fn arrays(list: &Bound<'_, PyAny>, purpose: Purpose) -> PyResult<Vec<Array>> {
    let wrong = |wrong| invalid(list.py(), purpose.operation, purpose.argument, &wrong);
    let members = list.try_iter()?.map(|member| Array::of(&member?, purpose));
    let members = members.collect::<PyResult<Vec<_>>>()?;
    let Some(first) = members.first() else { return Err(wrong(Wrong::EmptyList)) };
    if let Some(other) = members.iter().find(|member| member.data_type != first.data_type) {
        let (first, other) = (first.data_type.name(), other.data_type.name());
        return Err(wrong(Wrong::TypesMixed { first, other }));
    }
    Ok(members)
}
