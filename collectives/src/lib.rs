//! Collective algorithms as data.
//!
//! A [`Schedule`] is what one rank does for one collective: a short list of [`Step`]s with
//! dependencies, computed step by step and never materialised. [`Execution`] walks it: it hands out
//! the work that is ready and takes completions back. Neither does I/O, reads a clock or touches
//! memory, so the same code runs over shared memory, over TCP, in the simulator, and symbolically in
//! the proof.
//!
//! | module | one idea |
//! |---|---|
//! | [`call`] | which collective, on what: the fingerprint all ranks must share |
//! | [`step`] | the three kinds of step, spans and dependencies |
//! | [`layout`] | blocks and chunks to byte ranges |
//! | [`schedule`] | an algorithm's steps for one rank |
//! | [`execution`] | which step is ready now |
//! | [`nodes`] | which ranks share a NUMA node, and which relays what |
//! | [`model`] | what an algorithm will cost, and which one is chosen |
#![forbid(unsafe_code)]

mod algorithms;
pub mod call;
pub mod execution;
pub mod layout;
pub mod model;
pub mod nodes;
pub mod schedule;
pub mod step;

pub use call::{Call, Collective, Extent, Fingerprint, History, hash_of_lengths};
pub use execution::{Execution, Task, WINDOW};
pub use layout::{Geometry, Layout, Piece};
pub use model::{Choice, Model, Policy, Topology};
pub use nodes::Nodes;
pub use schedule::{Algorithm, Association, Schedule, Unsupported};
pub use step::{Action, Blocks, Dependency, Holder, Operands, Peers, Phase, Role, Rule, Span, Step, Take};

/// A rank's number inside its communicator.
pub type Rank = u32;
