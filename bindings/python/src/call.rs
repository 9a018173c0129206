//! What a call's arguments make of its memory: the request.
//!
//! Which arguments are needed, what is read and written, and how long it is, the runtime's table of collectives says.

use pyo3::prelude::*;
use windlass::{Collective, DataType, Error, Extent, Piece, Problem, RawRequest, ReduceOp};

use crate::array::{Array, Purpose};
use crate::buffer::Buffer;
use crate::communicator::{Communicator, number};
use crate::device::DeviceBuffer;
use crate::error::{Wrong, invalid, raise};
use crate::faces::Arguments;
use crate::keep::Held;
use crate::list::Side;
use crate::operator::Operator;

/// A call's plain arguments.
pub(crate) struct Call<'c, 'py> {
    py: Python<'py>,
    communicator: &'c Communicator,
    collective: Collective,
    op: ReduceOp,
    scalar: f64,
    /// Or the peer.
    root: u32,
    tag: u32,
    /// In units of the count: what this rank reads, and what it writes.
    reads: usize,
    writes: usize,
}

/// A call's memory.
pub(crate) struct Resolved {
    pub(crate) request: RawRequest,
    /// The elements of the operand's blocks and of the result's, where they differ and this rank has all of them.
    pub(crate) lengths: [Vec<usize>; 2],
    /// The lists that the request points to.
    pub(crate) pieces: Vec<Vec<Piece>>,
}

impl From<RawRequest> for Resolved {
    fn from(request: RawRequest) -> Self {
        Self { request, lengths: Default::default(), pieces: Vec::new() }
    }
}

impl<'c, 'py> Call<'c, 'py> {
    pub(crate) fn new(
        py: Python<'py>,
        communicator: &'c Communicator,
        collective: Collective,
        arguments: &Arguments,
    ) -> PyResult<Self> {
        let runtime = communicator.runtime();
        let (name, ranks) = (collective.name(), runtime.size());
        let whole = |object: &Option<Py<PyAny>>, argument, limit| match object {
            None => Ok(0),
            Some(object) => number(object.bind(py), name, argument, limit),
        };
        let peer = arguments.to.as_ref().or(arguments.from_.as_ref());
        let root = match peer {
            Some(peer) => number(peer.bind(py), name, "the peer", u64::from(ranks))?,
            None => whole(&arguments.root, "the root", u64::from(ranks))?,
        };
        let tag = whole(&arguments.tag, "the tag", u64::from(u32::MAX))?;
        let (op, scalar) = fold(py, arguments, name)?;
        let me = root == runtime.rank();
        let units = |extent: Option<usize>| extent.unwrap_or(0);
        let (reads, writes) = match collective {
            Collective::Send => (1, 0),
            Collective::Recv => (0, 1),
            // The root has what the others get.
            Collective::Broadcast => (usize::from(me), usize::from(!me)),
            _ => (
                units(collective.input().elements(1, ranks as usize, me)),
                units(collective.output().elements(1, ranks as usize, me)),
            ),
        };
        Ok(Self { py, communicator, collective, op, scalar, root, tag, reads, writes })
    }

    /// What does not depend on the memory.
    pub(crate) const fn complete(&self, request: &mut RawRequest) {
        (request.op, request.scalar) = (self.op, self.scalar);
        (request.root, request.tag) = (self.root, self.tag);
    }

    const fn purpose(&self, argument: &'static str, write: bool) -> Purpose {
        Purpose { operation: self.collective.name(), argument, write }
    }

    /// One memory for operand and result.
    pub(crate) fn in_place(&self, arguments: &Arguments, held: &mut Held) -> PyResult<Resolved> {
        let x = given(self.py, &arguments.x);
        let Some(x) = x else { return Err(self.missing("the buffer")) };
        let side = Side::of(x, self.purpose("the buffer", self.writes > 0))?;
        let mut request = RawRequest::new(self.collective, side.data_type(), side.count());
        (request.input, request.output) = (side.address(), side.address());
        let mut resolved = Resolved::from(request);
        if let Some(pieces) = self.pieces(&side)? {
            resolved.request.input_pieces = &raw const pieces[..];
            resolved.request.output_pieces = resolved.request.input_pieces;
            resolved.pieces.push(pieces);
        }
        side.hand_to(held);
        held.value = Some(x.clone().unbind());
        Ok(resolved)
    }

    /// An operand, and a result elsewhere.
    pub(crate) fn between(&self, arguments: &Arguments, held: &mut Held) -> PyResult<Resolved> {
        let side = |object: &Option<Py<PyAny>>, needed: bool, purpose: Purpose| {
            let object = if needed { given(self.py, object) } else { None };
            object.map(|object| Side::of(object, purpose)).transpose()
        };
        let input = side(&arguments.x, self.reads > 0, self.purpose("the input", false))?;
        let output = side(&arguments.out, self.writes > 0, self.purpose("the output", true))?;
        if self.reads > 0 && input.is_none() {
            return Err(self.missing("the input"));
        }
        let sides = [&input, &output].map(Option::as_ref);
        let (count, elements, lengths) = if self.collective.is_uneven() {
            self.uneven(arguments, sides)?
        } else {
            let count = self.even(sides)?;
            (count, count.saturating_mul(self.writes), Default::default())
        };
        held.value = arguments.out.as_ref().map(|out| out.clone_ref(self.py));
        let output = match (output, &input) {
            (None, Some(input)) if self.writes > 0 => {
                let (object, array) = self.result(input, elements)?;
                held.value = Some(object);
                Some(Side::One(array))
            }
            (output, _) => output,
        };
        let data_type = self.data_type(input.as_ref(), output.as_ref())?;
        let mut request = RawRequest::new(self.collective, data_type, count);
        request.input = input.as_ref().map_or(std::ptr::null(), |side| side.address().cast_const());
        request.output = output.as_ref().map_or(std::ptr::null_mut(), Side::address);
        let mut pieces = Vec::new();
        for (side, to) in [(&input, &mut request.input_pieces), (&output, &mut request.output_pieces)] {
            if let Some(side) = side
                && let Some(list) = self.pieces(side)?
            {
                *to = &raw const list[..];
                pieces.push(list);
            }
        }
        input.into_iter().chain(output).for_each(|side| side.hand_to(held));
        Ok(Resolved { request, lengths, pieces })
    }

    /// New memory for the result: on the accelerator where the operand is there.
    fn result(&self, input: &Side, elements: usize) -> PyResult<(Py<PyAny>, Array)> {
        let (py, runtime) = (self.py, self.communicator.runtime());
        let (data_type, shape) = (input.data_type(), result_shape(input, elements));
        if let Side::One(array) = input
            && let Some(buffer) = array.device()
        {
            let buffer = Bound::new(py, DeviceBuffer::allocate(py, buffer.device(), data_type, shape)?)?;
            let array = Array::of_device(&buffer);
            return Ok((buffer.into_any().unbind(), array));
        }
        let buffer = Bound::new(py, Buffer::allocate(py, |bytes| runtime.alloc(bytes), data_type, &shape)?)?;
        let array = Array::of_buffer(&buffer);
        Ok((buffer.into_any().unbind(), array))
    }

    fn pieces(&self, side: &Side) -> PyResult<Option<Vec<Piece>>> {
        let pieces = side.pieces(self.communicator.runtime().size()).transpose();
        pieces.map_err(|problem| self.wrong("an array of the list", problem))
    }

    fn data_type(&self, input: Option<&Side>, output: Option<&Side>) -> PyResult<DataType> {
        if let (Some(input), Some(output)) = (input, output)
            && input.data_type() != output.data_type()
        {
            let (input, output) = (input.data_type().name(), output.data_type().name());
            let wrong = Wrong::TypesDiffer { input, output };
            return Err(invalid(self.py, self.collective.name(), "the output", &wrong));
        }
        Ok(input.or(output).map_or(DataType::U8, Side::data_type))
    }

    /// The count that the lengths stand for, if they agree.
    fn even(&self, [input, output]: [Option<&Side>; 2]) -> PyResult<usize> {
        let sides = [("the input", input, self.reads), ("the output", output, self.writes)];
        let sides = sides.map(|(argument, side, units)| side.map(|side| (argument, side, units)));
        // Of a side of one block the length is the count; from a side of several it follows.
        let exact = sides.iter().flatten().find(|(_, _, units)| *units == 1);
        let Some(&(argument, side, units)) = exact.or_else(|| sides.iter().flatten().next()) else {
            return Err(self.missing("the output"));
        };
        let length = side.count();
        if !length.is_multiple_of(units) {
            let problem = Problem::NotDivisible { length: length as u64, by: units as u64 };
            return Err(self.wrong(argument, problem));
        }
        let count = length / units;
        let extents = [self.collective.input(), self.collective.output()];
        for ((argument, side, units), extent) in
            sides.into_iter().zip(extents).filter_map(|(side, extent)| side.map(|side| (side, extent)))
        {
            // A product that overflows is the length of no buffer.
            self.expect(argument, side.count(), count.saturating_mul(units))?;
            if let (Some(lengths), Some(list)) = (side.lengths(), list_of(extent, argument)) {
                self.expect(list, lengths.len(), units)?;
                for length in lengths {
                    self.expect("an array of the list", length, count)?;
                }
            }
        }
        Ok(count)
    }

    /// The count, the result's elements, and the elements of each block on either side, if they agree.
    fn uneven(
        &self,
        arguments: &Arguments,
        [input, output]: [Option<&Side>; 2],
    ) -> PyResult<(usize, usize, [Vec<usize>; 2])> {
        let row = self.row(input, output)?;
        let counts = |own: &'_ Option<Py<PyAny>>, side, extent, argument| {
            self.blocks(own.as_ref().or(arguments.counts.as_ref()), side, extent, argument, row)
        };
        let extents = [self.collective.input(), self.collective.output()];
        let lengths = [
            counts(&arguments.input_counts, input, extents[0], "the input")?,
            counts(&arguments.output_counts, output, extents[1], "the output")?,
        ];
        let rank = self.communicator.runtime().rank() as usize;
        let listed = lengths.iter().find(|list| !list.is_empty()).map(|list| list[rank]);
        let mut elements = [0; 2];
        let mut count = 0;
        for (i, side) in [input, output].into_iter().enumerate() {
            elements[i] = match extents[i] {
                Extent::Block => {
                    let Some(own) = listed.or(side.map(|side| side.count())) else {
                        return Err(self.missing("the output"));
                    };
                    count = own;
                    own
                }
                // What overflows is the length of no buffer.
                _ => lengths[i].iter().fold(0, |sum, length| sum.saturating_add(*length)),
            };
            if let Some(side) = side {
                self.expect(["the input", "the output"][i], side.count(), elements[i])?;
            }
        }
        Ok((count, elements[1], lengths))
    }

    /// The elements of each rank's block of a side that has them all, from the list of counts or of arrays; nothing for another one.
    fn blocks(
        &self,
        counts: Option<&Py<PyAny>>,
        side: Option<&Side>,
        extent: Extent,
        argument: &'static str,
        row: usize,
    ) -> PyResult<Vec<usize>> {
        let runtime = self.communicator.runtime();
        let Some(list) = list_of(extent, argument) else { return Ok(Vec::new()) };
        if extent == Extent::BlocksAtRoot && self.root != runtime.rank() {
            return Ok(Vec::new());
        }
        let ranks = runtime.size() as usize;
        let arrays = side.and_then(Side::lengths);
        if let Some(lengths) = &arrays {
            self.expect(list, lengths.len(), ranks)?;
        }
        let counts = counts.map(|counts| counts.bind(self.py)).filter(|counts| !counts.is_none());
        let counted = match counts {
            None => None,
            Some(counts) => Some(self.counts(counts, ranks, row)?),
        };
        match (arrays, counted) {
            (Some(arrays), Some(counted)) => {
                for (length, expected) in arrays.iter().zip(&counted) {
                    self.expect("an array of the list", *length, *expected)?;
                }
                Ok(counted)
            }
            (arrays, counted) => arrays.or(counted).ok_or_else(|| self.missing("the list of counts")),
        }
    }

    /// A list of counts, each of so many elements.
    fn counts(&self, object: &Bound<'py, PyAny>, ranks: usize, row: usize) -> PyResult<Vec<usize>> {
        // One more than there may be says that there are too many.
        let numbers = object.try_iter().and_then(|numbers| {
            numbers.take(ranks + 1).map(|number| number?.extract::<usize>()).collect::<PyResult<Vec<_>>>()
        });
        let Ok(numbers) = numbers else {
            let given = object.repr()?.to_string();
            return Err(invalid(
                self.py,
                self.collective.name(),
                "the list of counts",
                &Wrong::Counts { given },
            ));
        };
        self.expect("the list of counts", numbers.len(), ranks)?;
        Ok(numbers.into_iter().map(|number| number.saturating_mul(row)).collect())
    }

    /// The elements of a row: of what lies at one place of the first dimension.
    fn row(&self, input: Option<&Side>, output: Option<&Side>) -> PyResult<usize> {
        let of = |side: &Side| side.shape().iter().skip(1).product::<usize>();
        match (input.map(of), output.map(of)) {
            (Some(input), Some(output)) if input != output => {
                let wrong = Wrong::RowsDiffer { input, output };
                Err(invalid(self.py, self.collective.name(), "the output", &wrong))
            }
            (input, output) => Ok(input.or(output).unwrap_or(1)),
        }
    }

    fn expect(&self, argument: &'static str, actual: usize, expected: usize) -> PyResult<()> {
        if actual == expected {
            return Ok(());
        }
        let (expected, actual) = (expected as u64, actual as u64);
        Err(self.wrong(argument, Problem::WrongLength { expected, actual }))
    }

    fn missing(&self, argument: &'static str) -> PyErr {
        invalid(self.py, self.collective.name(), argument, &Wrong::Missing)
    }

    fn wrong(&self, argument: &'static str, problem: Problem) -> PyErr {
        raise(self.py, &Error::InvalidArgument { operation: self.collective.name(), argument, problem })
    }
}

fn given<'a, 'py>(py: Python<'py>, object: &'a Option<Py<PyAny>>) -> Option<&'a Bound<'py, PyAny>> {
    object.as_ref().map(|object| object.bind(py)).filter(|object| !object.is_none())
}

/// What a list of a side's arrays is called, if each of them is a rank's block.
fn list_of(extent: Extent, argument: &'static str) -> Option<&'static str> {
    let list = if argument == "the input" { "the list of inputs" } else { "the list of outputs" };
    matches!(extent, Extent::Blocks | Extent::BlocksAtRoot).then_some(list)
}

/// The operand's shape, with so many rows that it has the result's elements.
fn result_shape(input: &Side, elements: usize) -> Vec<usize> {
    let mut shape = input.shape();
    let row: usize = shape.iter().skip(1).product();
    match shape.first_mut() {
        Some(first) if row > 0 && elements.is_multiple_of(row) => {
            *first = elements / row;
            shape
        }
        _ => vec![elements],
    }
}

/// The operator, and what it multiplies this rank's operand by.
fn fold(py: Python<'_>, arguments: &Arguments, operation: &'static str) -> PyResult<(ReduceOp, f64)> {
    let op = given(py, &arguments.op).map(|op| operator(op, operation)).transpose()?;
    let Some(scalar) = given(py, &arguments.scalar) else { return Ok((op.unwrap_or(ReduceOp::Sum), 1.0)) };
    let Ok(value) = scalar.extract::<f64>() else {
        let given = scalar.repr()?.to_string();
        return Err(invalid(py, operation, "the scalar", &Wrong::Scalar { given }));
    };
    match op.unwrap_or(ReduceOp::ScaledSum) {
        ReduceOp::ScaledSum => Ok((ReduceOp::ScaledSum, value)),
        other => Err(invalid(py, operation, "the scalar", &Wrong::NotScaled { op: other.name() })),
    }
}

fn operator(object: &Bound<'_, PyAny>, operation: &'static str) -> PyResult<ReduceOp> {
    let py = object.py();
    if let Ok(own) = object.cast_exact::<Operator>() {
        return Ok(own.get().op);
    }
    let Ok(name) = object.extract::<&str>() else {
        let given = object.repr()?.to_string();
        return Err(invalid(py, operation, "the operator", &Wrong::Operator { given }));
    };
    name.parse().map_err(|_| {
        let valid = ReduceOp::ALL.iter().map(|op| op.name()).collect::<Vec<_>>().join(", ");
        invalid(py, operation, "the operator", &Wrong::Name { given: name.to_owned(), valid })
    })
}
