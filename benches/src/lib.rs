//! What one machine allows, and what others make of it.
//!
//! - [`limits`]: hand-written all-reduces without any runtime around them. They are the physical limit that
//!   windlass is held against: the same flags, loads and stores, and nothing else.
//! - [`peers`]: Open MPI, MPICH and Gloo, installed into a private folder and driven so that blocks of their
//!   operations alternate with blocks of ours.
//! - [`uneven`]: how long blocks of different lengths are.
//! - [`clock`] and [`stats`]: timestamps that cost a few nanoseconds, and samples labelled near or far.
//!
//! Nothing here is part of the product's data path.

pub mod clock;
pub mod limits;
pub mod peers;
pub mod stats;
pub mod uneven;
