//! One file an algorithm. Each gives `len` and `step`, both pure functions of the schedule's numbers.

pub(crate) mod binomial;
pub(crate) mod chain;
pub(crate) mod circulant;
pub(crate) mod collect;
pub(crate) mod direct;
pub(crate) mod dissemination;
pub(crate) mod double_tree;
pub(crate) mod doubling;
pub(crate) mod exchange;
pub(crate) mod hierarchical;
pub(crate) mod linear;
pub(crate) mod pair;
pub(crate) mod pairwise;
pub(crate) mod publish;
pub(crate) mod rabenseifner;
pub(crate) mod ring;
