//! What a collective is tried with: types, and operators on them.

use windlass::{Collective, Communicator, DataType, ReduceOp};

use crate::reference;

/// An operator of this program's own for every type: one that tells in which order, and from which side, operands are folded.
pub(crate) fn own_operators(comm: &Communicator) -> Vec<(DataType, ReduceOp)> {
    let register = |&data_type: &DataType| {
        let fold = move |acc: *mut u8, x: *const u8, count: usize| {
            let bytes = count * data_type.size_bytes();
            // SAFETY: the runtime gives two runs of so many elements, which nobody else touches meanwhile.
            let (acc, x) =
                unsafe { (std::slice::from_raw_parts_mut(acc, bytes), std::slice::from_raw_parts(x, bytes)) };
            acc.iter_mut().zip(x).for_each(|(acc, x)| *acc = reference::own(data_type, *acc, *x));
        };
        // SAFETY: it touches no more than it is given.
        let op = unsafe { comm.register_raw_op(&format!("own of {data_type}"), data_type, fold) };
        (data_type, op.unwrap())
    };
    DataType::ALL.iter().map(register).collect()
}

/// What a collective is tried with: every type, and every operator that is defined on it.
pub(crate) fn kinds_of_elements(
    collective: Collective,
    own: &[(DataType, ReduceOp)],
) -> Vec<(DataType, ReduceOp)> {
    let types = DataType::ALL.iter().copied();
    if !collective.reduces() {
        return types.map(|data_type| (data_type, ReduceOp::Sum)).collect();
    }
    let scan = matches!(collective, Collective::Scan | Collective::ExScan);
    let pairs = types.flat_map(|data_type| ReduceOp::ALL.iter().map(move |op| (data_type, *op)));
    pairs
        // A scaled sum is a sum of what was scaled before; an average is none of a scan's.
        .filter(|(data_type, op)| op.supports(*data_type) && *op != ReduceOp::ScaledSum)
        .filter(|(_, op)| !(scan && *op == ReduceOp::Avg))
        .chain(own.iter().copied())
        .collect()
}
