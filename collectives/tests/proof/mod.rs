//! The proof of the schedules: what every rank does, executed on symbols.
//!
//! | module | one idea |
//! |---|---|
//! | `case` | what is proved: a collective with all its parameters, as the steps of all its ranks |
//! | `value` | a symbolic element: which inputs it sums, in which order, and whether it is final |
//! | `resolve` | which memory a task touches |
//! | `graph` | all tasks of all ranks, what happens before what, and whether everything can happen |
//! | `check` | no two accesses race, nothing unwritten is read, and the results are right |
//! | `dynamic` | the real `Execution` of all ranks under random completion orders |
#![allow(dead_code, reason = "each test binary uses its part")]

pub(crate) mod case;
pub(crate) mod check;
pub(crate) mod dynamic;
pub(crate) mod graph;
pub(crate) mod resolve;
pub(crate) mod value;
