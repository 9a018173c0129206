//! Lists: many buffers as one vector, in a request, in the place of its input or output.

use std::ffi::{c_int, c_void};

use windlass::{Collective, Communicator, DataType, Error, Piece, RawRequest};

use crate::collectives::windlass_request_t;
use crate::error::Failure;
use crate::memory::Held;

/// One buffer of a list.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct windlass_member_t {
    /// Its first element; of an empty one, anything.
    pub data: *mut c_void,
    /// Its elements.
    pub count: usize,
}

/// Many buffers as one vector, one after the other: a hundred gradients as one operation. Peers reach each
/// where it lies, so nothing is packed. The list is read during the call only; its buffers are the operation's
/// until that ends. Buffers that are written may not overlap.
///
/// `count`, or the lists of counts, are of the whole vector, as of one buffer. Where that has a block for each
/// rank, a member may be a block: `WINDLASS_ALL_GATHER` into as many buffers as there are ranks. Or, with
/// `by_rank`, each member has a block of every rank: `WINDLASS_ALL_GATHER` of many shards, each into a whole of
/// its own.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct windlass_list_t {
    /// The buffers, all of the request's data type.
    pub members: *const windlass_member_t,
    /// How many.
    pub count: usize,
    /// Not 0: each member is cut into as many equal parts as there are ranks, and the vector is all members'
    /// parts of rank 0, then those of rank 1, and so on.
    pub by_rank: c_int,
}

/// The pieces of a request's lists: it points to them.
#[derive(Debug, Default)]
pub(crate) struct Lists {
    input: Vec<Piece>,
    output: Vec<Piece>,
}

impl Lists {
    /// What an operation of the request holds of registered memory.
    pub(crate) fn hold(&self, request: &RawRequest) -> Held {
        let ends = [request.input, request.output.cast_const()];
        if self.input.is_empty() && self.output.is_empty() {
            return Held::at(ends);
        }
        let pieces = self.input.iter().chain(&self.output).map(|piece| piece.address.cast_const());
        Held::around(pieces.chain(ends))
    }
}

impl windlass_request_t {
    pub(crate) const fn is_listed(&self) -> bool {
        !self.input_list.is_null() || !self.output_list.is_null()
    }

    /// The call for the runtime, and the lists that it points to.
    ///
    /// # Safety
    /// The crate's contract, for the lists.
    #[inline]
    pub(crate) unsafe fn with_lists(
        &self,
        function: &'static str,
        communicator: &Communicator,
        lists: &mut Lists,
    ) -> Result<RawRequest, Failure> {
        let mut request = self.checked(function, communicator)?;
        if self.is_listed() {
            // SAFETY: the caller's.
            unsafe { self.give_lists(function, communicator, lists, &mut request) }?;
        }
        Ok(request)
    }

    /// # Safety
    /// The crate's contract, for the lists.
    #[cold]
    unsafe fn give_lists(
        &self,
        function: &'static str,
        communicator: &Communicator,
        lists: &mut Lists,
        request: &mut RawRequest,
    ) -> Result<(), Failure> {
        let sides = [
            ("a member of input_list", self.input_list, &mut lists.input, &mut request.input_pieces),
            ("a member of output_list", self.output_list, &mut lists.output, &mut request.output_pieces),
        ];
        for (argument, list, pieces, to) in sides {
            if !list.is_null() {
                // SAFETY: not null, so valid, by the caller's promise.
                *pieces =
                    unsafe { (*list).pieces(function, argument, request.data_type, communicator.size()) }?;
                *to = &raw const pieces[..];
            }
        }
        if request.collective == Collective::Broadcast {
            request.input_pieces = request.output_pieces;
        }
        Ok(())
    }
}

impl windlass_list_t {
    /// # Safety
    /// The crate's contract, for the members.
    unsafe fn pieces(
        &self,
        function: &'static str,
        argument: &'static str,
        data_type: DataType,
        ranks: u32,
    ) -> Result<Vec<Piece>, Failure> {
        if self.count == 0 {
            return Ok(Vec::new());
        }
        if self.members.is_null() {
            return Err(Failure::Null { function, argument: "members" });
        }
        if self.count > isize::MAX as usize / size_of::<windlass_member_t>() {
            let (argument, range) = ("list's field `count`", "what memory can hold");
            return Err(Failure::Range { function, argument, value: self.count as i64, range });
        }
        // SAFETY: not null, so an array of `count` members, by the caller's promise.
        let members = unsafe { std::slice::from_raw_parts(self.members, self.count) };
        let pieces: Vec<_> =
            members.iter().map(|member| Piece { address: member.data.cast(), count: member.count }).collect();
        if self.by_rank == 0 {
            return Ok(pieces);
        }
        let wrong = |problem| Error::InvalidArgument { operation: function, argument, problem };
        Ok(Piece::by_rank(&pieces, data_type, ranks).map_err(wrong)?)
    }
}
