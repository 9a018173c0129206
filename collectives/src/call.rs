//! Which collective, on what: the arguments every rank must share.

use std::fmt;
use std::str::FromStr;

use windlass_kernels::{DataType, ReduceOp, UserOp};

use crate::Rank;

macro_rules! collectives {
    ($($(#[$doc:meta])* $variant:ident = $code:literal, $name:literal, reduces: $reduces:literal, rooted: $rooted:literal,
        $input:ident -> $output:ident;)*) => {
        /// The collectives, and the two point-to-point operations, which are schedules of one step.
        ///
        /// This is the one table: a row gives the name, whether an operator and a root are among the
        /// arguments, what a rank's operand and its result are of the vector, and the code the fingerprint carries.
        #[derive(Clone, Copy, Debug, Eq, PartialEq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        #[non_exhaustive]
        pub enum Collective { $($(#[$doc])* $variant = $code,)* }

        impl Collective {
            /// Every row.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name on the command line, in metrics and in errors.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Whether a reduction operator is an argument.
            pub const fn reduces(self) -> bool {
                match self { $(Self::$variant => $reduces,)* }
            }

            /// Whether a root (or a peer, for send and recv) is an argument.
            pub const fn rooted(self) -> bool {
                match self { $(Self::$variant => $rooted,)* }
            }

            /// What of the vector a rank's operand is.
            pub const fn input(self) -> Extent {
                match self { $(Self::$variant => Extent::$input,)* }
            }

            /// What of the vector a rank's result is.
            pub const fn output(self) -> Extent {
                match self { $(Self::$variant => Extent::$output,)* }
            }

            /// The row with this code.
            pub const fn from_code(code: u8) -> Option<Self> {
                match code { $($code => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

collectives! {
    /// Every rank ends with the reduction of all inputs.
    AllReduce = 1, "all_reduce", reduces: true, rooted: false, Whole -> Whole;
    /// Rank `r` ends with block `r` of the reduction.
    ReduceScatter = 2, "reduce_scatter", reduces: true, rooted: false, Blocks -> Block;
    /// Every rank ends with all inputs, in rank order.
    AllGather = 3, "all_gather", reduces: false, rooted: false, Block -> Blocks;
    /// Every rank ends with the root's buffer.
    Broadcast = 4, "broadcast", reduces: false, rooted: true, Whole -> Whole;
    /// No rank leaves before all have entered.
    Barrier = 5, "barrier", reduces: false, rooted: false, Nothing -> Nothing;
    /// A message to one peer.
    Send = 6, "send", reduces: false, rooted: true, Whole -> Whole;
    /// A message from one peer.
    Recv = 7, "recv", reduces: false, rooted: true, Whole -> Whole;
    /// The root ends with the reduction of all inputs.
    Reduce = 8, "reduce", reduces: true, rooted: true, Whole -> WholeAtRoot;
    /// The root ends with all inputs, in rank order.
    Gather = 9, "gather", reduces: false, rooted: true, Block -> BlocksAtRoot;
    /// Rank `r` ends with block `r` of the root's buffer.
    Scatter = 10, "scatter", reduces: false, rooted: true, BlocksAtRoot -> Block;
    /// Rank `r` ends with block `r` of every rank's input, in rank order.
    AllToAll = 11, "all_to_all", reduces: false, rooted: false, Blocks -> Blocks;
    /// Rank `r` ends with the reduction of the inputs of ranks `0..=r`.
    Scan = 12, "scan", reduces: true, rooted: false, Whole -> Whole;
    /// Rank `r` ends with the reduction of the inputs of ranks `0..r`; rank 0's result is left alone.
    ExScan = 13, "exscan", reduces: true, rooted: false, Whole -> Whole;
    /// As all_gather, of blocks of different lengths.
    AllGatherV = 14, "all_gather_v", reduces: false, rooted: false, Block -> Blocks;
    /// As reduce_scatter, of blocks of different lengths.
    ReduceScatterV = 15, "reduce_scatter_v", reduces: true, rooted: false, Blocks -> Block;
    /// As all_to_all, each pair of ranks with a length of its own.
    AllToAllV = 16, "all_to_all_v", reduces: false, rooted: false, Blocks -> Blocks;
    /// As gather, of blocks of different lengths, which the root knows and each rank its own.
    GatherV = 17, "gather_v", reduces: false, rooted: true, Block -> BlocksAtRoot;
    /// As scatter, of blocks of different lengths, which the root knows and each rank its own.
    ScatterV = 18, "scatter_v", reduces: false, rooted: true, BlocksAtRoot -> Block;
}

/// What of a collective's vector a rank's operand or result is. A vector is either one of `count` elements, or of a block of
/// `count` elements for each rank.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Extent {
    /// None of it.
    Nothing,
    /// All of a vector of `count` elements.
    Whole,
    /// The same on the root, nothing elsewhere.
    WholeAtRoot,
    /// The rank's own block.
    Block,
    /// Every rank's block, in rank order.
    Blocks,
    /// The same on the root, nothing elsewhere.
    BlocksAtRoot,
}

impl Extent {
    /// Its elements; `None` when they cannot be counted.
    pub const fn elements(self, count: usize, ranks: usize, root: bool) -> Option<usize> {
        match self {
            Self::Nothing => Some(0),
            Self::WholeAtRoot | Self::BlocksAtRoot if !root => Some(0),
            Self::Whole | Self::WholeAtRoot | Self::Block => Some(count),
            Self::Blocks | Self::BlocksAtRoot => count.checked_mul(ranks),
        }
    }

    /// Whether the vector has a block for each rank.
    pub const fn is_of_blocks(self) -> bool {
        matches!(self, Self::Block | Self::Blocks | Self::BlocksAtRoot)
    }
}

impl Collective {
    /// Whether the operation involves one peer only and is numbered apart from the collectives.
    pub const fn is_point_to_point(self) -> bool {
        matches!(self, Self::Send | Self::Recv)
    }

    /// Whether the vector has a block for each rank. Then `count` is that of a block, unless the blocks differ.
    pub const fn has_blocks(self) -> bool {
        self.input().is_of_blocks() || self.output().is_of_blocks()
    }

    /// The same with blocks of one length, where they have different ones; its algorithms serve both.
    pub const fn even(self) -> Self {
        match self {
            Self::AllGatherV => Self::AllGather,
            Self::ReduceScatterV => Self::ReduceScatter,
            Self::AllToAllV => Self::AllToAll,
            Self::GatherV => Self::Gather,
            Self::ScatterV => Self::Scatter,
            other => other,
        }
    }

    /// Whether its blocks have different lengths.
    pub const fn is_uneven(self) -> bool {
        self.even() as u8 != self as u8
    }

    /// Whether all ranks know all the blocks' lengths. Elsewhere a rank knows those it sends and receives.
    pub const fn shares_lengths(self) -> bool {
        matches!(self, Self::AllGatherV | Self::ReduceScatterV)
    }

    /// Whether a rank knows the lengths of its own blocks alone. Where a block lies in a peer's memory is then the peer's to tell.
    pub const fn has_private_lengths(self) -> bool {
        self.is_uneven() && !self.shares_lengths()
    }

    /// Whether operand and result may be the same memory.
    pub const fn may_be_in_place(self) -> bool {
        // Every block would have to be exchanged with another one.
        !matches!(self.even(), Self::AllToAll)
    }
}

impl fmt::Display for Collective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The name is none of the collectives.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct UnknownCollective(pub String);

impl fmt::Display for UnknownCollective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is no collective; there are", self.0)?;
        for (i, c) in Collective::ALL.iter().enumerate() {
            write!(f, "{} {c}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl std::error::Error for UnknownCollective {}

impl FromStr for Collective {
    type Err = UnknownCollective;
    fn from_str(name: &str) -> Result<Self, UnknownCollective> {
        let found = Self::ALL.iter().copied().find(|c| c.name() == name);
        found.ok_or_else(|| UnknownCollective(name.to_owned()))
    }
}

/// The arguments of one call that all ranks share.
///
/// `count` is in elements: of one rank's block where the vector has a block for each rank ([`Collective::has_blocks`]), else of the
/// vector or message. Where the blocks differ it is that of all together if all ranks know it, else 0.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Hash)]
pub struct Call {
    /// Which row of the table.
    pub collective: Collective,
    /// The elements' type.
    pub data_type: DataType,
    /// The operator; [`ReduceOp::Sum`] where the collective does not reduce.
    pub op: ReduceOp,
    /// Elements, see above.
    pub count: u64,
    /// The root where there is one, the peer of a send or recv, 0 elsewhere; where blocks differ and all ranks know their lengths, a hash
    /// of these.
    pub root: Rank,
}

/// Lengths of blocks in the twenty bits that a fingerprint has for a root.
pub fn hash_of_lengths(lengths: &[usize]) -> Rank {
    let mix = |hash: u64, length: &usize| {
        (hash.rotate_left(5) ^ *length as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    };
    (lengths.iter().fold(0x51_7c, mix) >> 44) as Rank
}

impl Call {
    /// Bytes of one block or of the whole vector: `count` times the element size.
    pub const fn bytes(&self) -> u64 {
        self.count * self.data_type.size_bytes() as u64
    }

    /// The bytes that travel: what the bench and the metrics call the operation's size.
    pub const fn size_bytes(&self, ranks: u32) -> u64 {
        let blocks =
            if self.collective.has_blocks() && !self.collective.is_uneven() { ranks as u64 } else { 1 };
        self.bytes() * blocks
    }

    /// What travels in the arrival line and in frame headers. The root must be below [`MAX_RANKS`], and the count of a call with a program's own
    /// operator at most [`MAX_USER_COUNT`].
    pub const fn fingerprint(&self) -> Fingerprint {
        let what = self.collective as u64 | (self.data_type as u64) << 8 | (self.op.code() as u64) << 16;
        let rest = match self.op {
            ReduceOp::User(op) => (op.to_wire().1 as u64) << OPERATOR_SHIFT,
            _ => 0,
        };
        Fingerprint { what: what | (self.root as u64 & ROOT_MASK) << ROOT_SHIFT, count: self.count | rest }
    }
}

/// More ranks than a communicator can have.
pub const MAX_RANKS: u64 = 1 << 20;

/// The most elements for a program's own operator, of whose number the fingerprint keeps a part above the count.
pub const MAX_USER_COUNT: u64 = (1 << OPERATOR_SHIFT) - 1;

const OPERATOR_SHIFT: u32 = 40;
const ROOT_SHIFT: u32 = 24;
const ROOT_MASK: u64 = MAX_RANKS - 1;
const HISTORY_SHIFT: u32 = 44;

/// The shared arguments of a call in sixteen bytes, reversible so that an error can show both sides.
///
/// Twenty of its bits sum up the calls that came before on the communicator: a difference that no rank noticed at the time, as when two
/// ranks of a broadcast both believed to be its root, shows in the next call.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Hash)]
pub struct Fingerprint {
    /// Collective, data type, operator, root, and the sum of what came before.
    pub what: u64,
    /// Elements; above them a part of the number of a program's own operator.
    pub count: u64,
}

impl Fingerprint {
    /// The same call, after the calls that `history` sums up.
    #[must_use]
    pub const fn after(self, history: History) -> Self {
        Self { what: self.what | history.0 << HISTORY_SHIFT, count: self.count }
    }

    /// The call it stands for, or `None` when the words are no call's.
    pub fn call(self) -> Option<Call> {
        let [collective, data_type, op, ..] = self.what.to_le_bytes();
        let user = UserOp::from_wire(op, (self.count >> OPERATOR_SHIFT) as u32);
        Some(Call {
            collective: Collective::from_code(collective)?,
            data_type: DataType::from_code(data_type)?,
            op: user.map(ReduceOp::User).or_else(|| ReduceOp::from_code(op))?,
            count: if user.is_some() { self.count & MAX_USER_COUNT } else { self.count },
            root: (self.what >> ROOT_SHIFT & ROOT_MASK) as Rank,
        })
    }
}

/// A sum of all calls made on a communicator, in order.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct History(u64);

impl History {
    /// One call more.
    #[must_use]
    #[inline]
    pub const fn with(self, call: Fingerprint) -> Self {
        let mixed =
            (self.0 << 44 ^ call.what ^ call.count.rotate_left(29)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self(mixed >> HISTORY_SHIFT)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(call) = self.call() else {
            return write!(f, "unknown({:#x},{})", self.what, self.count);
        };
        write!(f, "{}(", call.collective)?;
        if call.collective.has_private_lengths() && call.count == 0 {
            write!(f, "{}", call.data_type)?;
        } else if call.collective != Collective::Barrier {
            write!(f, "{} x {}", call.count, call.data_type)?;
        }
        if call.collective.reduces() {
            write!(f, ", {}", call.op)?;
        }
        if call.collective.shares_lengths() {
            write!(f, ", lengths {:05x}", call.root)?;
        }
        if call.collective.rooted() {
            let name = if call.collective.is_point_to_point() { "peer" } else { "root" };
            write!(f, ", {name} {}", call.root)?;
        }
        write!(f, ")")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_are_reversible_and_distinct() {
        let mut seen = std::collections::BTreeSet::new();
        for &collective in Collective::ALL {
            for &data_type in DataType::ALL {
                for &op in ReduceOp::ALL {
                    for (count, root) in [(0, 0), (1, 0), (u64::MAX, (1 << 20) - 1), (7, 3)] {
                        let call = Call { collective, data_type, op, count, root };
                        let print = call.fingerprint();
                        assert_eq!(print.call(), Some(call));
                        assert!(seen.insert((print.what, print.count)));
                    }
                }
            }
        }
        for name in ["clip", "norm"] {
            for count in [0, 1, MAX_USER_COUNT] {
                let op = ReduceOp::User(UserOp::named(name));
                let (collective, data_type) = (Collective::AllReduce, DataType::F32);
                let call = Call { collective, data_type, op, count, root: 0 };
                let print = call.fingerprint();
                assert_eq!(print.call(), Some(call));
                assert!(seen.insert((print.what, print.count)));
                assert!(print.to_string().contains(name), "{print}");
            }
        }
        assert_eq!(Fingerprint { what: 0, count: 1 }.call(), None);
    }

    #[test]
    fn a_difference_shows_in_later_calls_and_leaves_them_readable() {
        let call = |root| Call {
            collective: Collective::Broadcast,
            data_type: DataType::F32,
            op: ReduceOp::Sum,
            count: 8,
            root,
        };
        let same = History::default().with(call(0).fingerprint());
        let (one, other) =
            (call(0).fingerprint().after(same), call(0).fingerprint().after(same.with(one_of(call(1)))));
        assert_ne!(one, other);
        assert_eq!((one.call(), other.call()), (Some(call(0)), Some(call(0))));
        // Order counts, too.
        let (a, b) = (call(2).fingerprint(), call(3).fingerprint());
        assert_ne!(same.with(a).with(b), same.with(b).with(a));
        // No two of a thousand histories that differ in one call agree, but for the chance of one in a million each.
        let histories: std::collections::BTreeSet<u64> =
            (0..1000).map(|root| same.with(call(root).fingerprint()).with(a).0).collect();
        assert!(histories.len() >= 998);
    }

    fn one_of(call: Call) -> Fingerprint {
        call.fingerprint()
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let error = "allreduce".parse::<Collective>().unwrap_err().to_string();
        assert!(error.contains("all_reduce") && error.contains("barrier"), "{error}");
    }
}
