//! What every collective must give, worked out element by element in whole numbers that every type holds.

use windlass::{Collective, DataType, Extent, ReduceOp};

/// One operation of all ranks.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) collective: Collective,
    pub(crate) data_type: DataType,
    pub(crate) op: ReduceOp,
    pub(crate) ranks: u32,
    pub(crate) root: u32,
    pub(crate) count: usize,
    pub(crate) salt: u64,
}

/// splitmix64.
pub(crate) const fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

/// What the program's own operator makes of a byte of the fold so far and one of the next operand: nothing that could be swapped or bracketed otherwise.
pub(crate) const fn own(data_type: DataType, acc: u8, x: u8) -> u8 {
    match data_type {
        // Only these two bytes are truth values.
        DataType::Bool => acc & (x ^ 1),
        _ => acc.rotate_left(3).wrapping_add(x),
    }
}

impl Case {
    /// The elements that a rank has for another where blocks differ: up to twice the count, and at times none.
    fn length(&self, from: u32, to: u32) -> usize {
        (mix(self.salt << 20 ^ u64::from(from) << 10 ^ u64::from(to)) % (2 * self.count as u64 + 1)) as usize
    }

    /// The lengths of the blocks of a rank's operand and of its result, where the vector has blocks and the rank knows them all.
    pub(crate) fn lengths(&self, rank: u32) -> (Vec<usize>, Vec<usize>) {
        let each = |length: &dyn Fn(u32) -> usize| (0..self.ranks).map(length).collect::<Vec<_>>();
        let none = Vec::new;
        let root = rank == self.root;
        match self.collective {
            Collective::AllGather => (none(), each(&|_| self.count)),
            Collective::ReduceScatter => (each(&|_| self.count), none()),
            Collective::AllToAll => (each(&|_| self.count), each(&|_| self.count)),
            Collective::Gather if root => (none(), each(&|_| self.count)),
            Collective::Scatter if root => (each(&|_| self.count), none()),
            Collective::AllGatherV => (none(), each(&|q| self.length(q, q))),
            Collective::ReduceScatterV => (each(&|q| self.length(q, q)), none()),
            Collective::AllToAllV => {
                (each(&|to| self.length(rank, to)), each(&|from| self.length(from, rank)))
            }
            Collective::GatherV if root => (none(), each(&|from| self.length(from, self.root))),
            Collective::ScatterV if root => (each(&|to| self.length(self.root, to)), none()),
            _ => (none(), none()),
        }
    }

    /// The elements of a rank's own block.
    pub(crate) fn own(&self, rank: u32) -> usize {
        match self.collective {
            Collective::AllGatherV | Collective::ReduceScatterV => self.length(rank, rank),
            Collective::GatherV => self.length(rank, self.root),
            Collective::ScatterV => self.length(self.root, rank),
            _ => self.count,
        }
    }

    /// The elements of a rank's operand and of its result.
    pub(crate) fn sizes(&self, rank: u32) -> (usize, usize) {
        let (inputs, outputs) = self.lengths(rank);
        let of = |extent, lengths: &[usize]| match extent {
            Extent::Nothing => 0,
            Extent::Whole => self.count,
            Extent::WholeAtRoot => {
                if rank == self.root {
                    self.count
                } else {
                    0
                }
            }
            Extent::Block => self.own(rank),
            Extent::Blocks | Extent::BlocksAtRoot => lengths.iter().sum(),
        };
        (of(self.collective.input(), &inputs), of(self.collective.output(), &outputs))
    }

    /// Element `index` of a rank's operand, as a number.
    fn value(&self, rank: u32, index: usize) -> i64 {
        let chance = mix(self.salt ^ u64::from(rank) << 48 ^ index as u64);
        // Of 8-bit floats the sums of eight ones are exact.
        let one_bit = i64::from(rank < 8 && chance & 1 == 1);
        let tiny = matches!(self.data_type, DataType::E4M3 | DataType::E5M2);
        match self.op {
            // All ranks alike: the average of anything else is a matter of rounding, which the kernels' tests look after.
            ReduceOp::Avg if tiny => i64::from(self.ranks <= 8 && mix(self.salt ^ index as u64) & 1 == 1),
            ReduceOp::Avg => (mix(self.salt ^ index as u64) % 4) as i64,
            ReduceOp::Prod => 1 + one_bit * i64::from(chance & 6 == 0),
            ReduceOp::Sum if tiny => one_bit,
            _ => (chance % 4) as i64,
        }
    }

    /// Appends element `index` of a rank's operand.
    pub(crate) fn operand(&self, rank: u32, index: usize, bytes: &mut Vec<u8>) {
        self.encode(self.value(rank, index), rank, bytes);
    }

    fn encode(&self, value: i64, place: u32, bytes: &mut Vec<u8>) {
        use windlass::{F8E4M3, F8E5M2, bf16, f16};
        // The imaginary part of a product stays out of it.
        let imaginary = if self.op == ReduceOp::Prod { 0 } else { 2 * value };
        let place = place as i32;
        match self.data_type {
            DataType::U8 | DataType::I8 => bytes.push(value as u8),
            DataType::Bool => bytes.push(u8::from(value != 0)),
            DataType::I16 | DataType::U16 => bytes.extend((value as u16).to_ne_bytes()),
            DataType::I32 | DataType::U32 => bytes.extend((value as u32).to_ne_bytes()),
            DataType::I64 | DataType::U64 => bytes.extend(value.to_ne_bytes()),
            DataType::F16 => bytes.extend(f16::from_f32(value as f32).to_ne_bytes()),
            DataType::BF16 => bytes.extend(bf16::from_f32(value as f32).to_ne_bytes()),
            DataType::F32 => bytes.extend((value as f32).to_ne_bytes()),
            DataType::F64 => bytes.extend((value as f64).to_ne_bytes()),
            DataType::E4M3 => bytes.push(F8E4M3::from_f32(value as f32).to_bits()),
            DataType::E5M2 => bytes.push(F8E5M2::from_f32(value as f32).to_bits()),
            DataType::Complex64 => {
                [value, imaginary].map(|v| v as f32).iter().for_each(|v| bytes.extend(v.to_ne_bytes()))
            }
            DataType::Complex128 => {
                [value, imaginary].map(|v| v as f64).iter().for_each(|v| bytes.extend(v.to_ne_bytes()))
            }
            DataType::F32I32 => {
                bytes.extend((value as f32).to_ne_bytes());
                bytes.extend(place.to_ne_bytes());
            }
            DataType::F64I32 => {
                bytes.extend((value as f64).to_ne_bytes());
                bytes.extend(place.to_ne_bytes());
                bytes.extend([0; 4]);
            }
            DataType::I32I32 => {
                bytes.extend((value as i32).to_ne_bytes());
                bytes.extend(place.to_ne_bytes());
            }
            DataType::F64I64 => {
                bytes.extend((value as f64).to_ne_bytes());
                bytes.extend(i64::from(place).to_ne_bytes());
            }
            DataType::I64I64 => {
                bytes.extend(value.to_ne_bytes());
                bytes.extend(i64::from(place).to_ne_bytes());
            }
            other => panic!("the reference does not know {other}"),
        }
    }

    /// Appends the reduction of element `index` of the operands of these ranks.
    fn reduction(&self, ranks: std::ops::Range<u32>, index: usize, bytes: &mut Vec<u8>) {
        if let ReduceOp::User(_) = self.op {
            return self.own_reduction(ranks, index, bytes);
        }
        let values: Vec<i64> = ranks.clone().map(|rank| self.value(rank, index)).collect();
        let all = values.iter().copied();
        let is = |truth: bool| i64::from(truth);
        let truths = || values.iter().map(|value| *value != 0);
        let logical = self.data_type == DataType::Bool;
        let (value, place) = match self.op {
            ReduceOp::Sum | ReduceOp::BitOr | ReduceOp::Max if logical => (is(truths().any(|t| t)), 0),
            ReduceOp::Prod | ReduceOp::BitAnd | ReduceOp::Min if logical => (is(truths().all(|t| t)), 0),
            ReduceOp::BitXor if logical => (is(truths().filter(|t| *t).count() % 2 == 1), 0),
            ReduceOp::Sum => (all.sum(), 0),
            ReduceOp::Avg => (values[0], 0),
            ReduceOp::Prod => (all.product(), 0),
            ReduceOp::Min => (all.min().unwrap_or(0), 0),
            ReduceOp::Max => (all.max().unwrap_or(0), 0),
            ReduceOp::BitAnd => (all.fold(-1, |a, b| a & b), 0),
            ReduceOp::BitOr => (all.fold(0, |a, b| a | b), 0),
            ReduceOp::BitXor => (all.fold(0, |a, b| a ^ b), 0),
            ReduceOp::LogicalAnd => (is(truths().all(|t| t)), 0),
            ReduceOp::LogicalOr => (is(truths().any(|t| t)), 0),
            ReduceOp::LogicalXor => (is(truths().filter(|t| *t).count() % 2 == 1), 0),
            ReduceOp::MinLoc | ReduceOp::MaxLoc => {
                let best = if self.op == ReduceOp::MinLoc { all.min() } else { all.max() };
                let best = best.unwrap_or(0);
                (best, values.iter().position(|value| *value == best).unwrap_or(0) as u32 + ranks.start)
            }
            other => panic!("the reference does not know {other}"),
        };
        self.encode(value, place, bytes);
    }

    /// The same by the program's own operator: a fold from the left, in rank order.
    fn own_reduction(&self, mut ranks: std::ops::Range<u32>, index: usize, bytes: &mut Vec<u8>) {
        let begin = bytes.len();
        if let Some(first) = ranks.next() {
            self.operand(first, index, bytes);
        }
        let mut next = Vec::new();
        for rank in ranks {
            next.clear();
            self.operand(rank, index, &mut next);
            bytes[begin..].iter_mut().zip(&next).for_each(|(acc, x)| *acc = own(self.data_type, *acc, *x));
        }
    }

    /// A rank's result; `None` where what was there stays.
    pub(crate) fn result(&self, rank: u32) -> Option<Vec<u8>> {
        use Collective as C;
        let mut bytes = Vec::new();
        let whole = 0..self.count;
        // Where block `to` begins in the operand of `of`.
        let offset = |of: u32, to: u32| self.lengths(of).0[..to as usize].iter().sum::<usize>();
        let root = rank == self.root;
        match self.collective.even() {
            C::AllReduce => whole.for_each(|i| self.reduction(0..self.ranks, i, &mut bytes)),
            C::Reduce if root => whole.for_each(|i| self.reduction(0..self.ranks, i, &mut bytes)),
            C::Scan => whole.for_each(|i| self.reduction(0..rank + 1, i, &mut bytes)),
            C::ExScan if rank > 0 => whole.for_each(|i| self.reduction(0..rank, i, &mut bytes)),
            C::ReduceScatter => {
                let first = offset(rank, rank);
                (first..first + self.own(rank)).for_each(|i| self.reduction(0..self.ranks, i, &mut bytes));
            }
            C::AllGather => (0..self.ranks).for_each(|q| self.block(q, 0, self.own(q), &mut bytes)),
            C::Gather if root => (0..self.ranks).for_each(|q| self.block(q, 0, self.own(q), &mut bytes)),
            C::Scatter => self.block(self.root, offset(self.root, rank), self.own(rank), &mut bytes),
            C::AllToAll => {
                (0..self.ranks).for_each(|q| {
                    let length = self.lengths(q).0[rank as usize];
                    self.block(q, offset(q, rank), length, &mut bytes);
                });
            }
            C::Broadcast => self.block(self.root, 0, self.count, &mut bytes),
            _ => return None,
        }
        Some(bytes)
    }

    fn block(&self, owner: u32, first: usize, length: usize, bytes: &mut Vec<u8>) {
        (first..first + length).for_each(|index| self.operand(owner, index, bytes));
    }
}
