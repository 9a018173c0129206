//! One file an algorithm. Each gives `len` and `step`, both pure functions of the schedule's numbers.

pub(crate) mod binomial;
pub(crate) mod direct;
pub(crate) mod dissemination;
pub(crate) mod doubling;
pub(crate) mod pair;
pub(crate) mod publish;
pub(crate) mod rabenseifner;
pub(crate) mod ring;
