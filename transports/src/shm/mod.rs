//! Shared memory between the ranks of one host.
//!
//! | module | one idea |
//! |---|---|
//! | [`board`] | one memfd a communicator: every local rank's flags, slots and stage |
//! | [`mod@line`] | the cache lines by which a rank tells its peers how far it is |
//! | [`lane`], [`lanes`] | a ring of cells between two ranks, and messages over it |
//! | [`bounce`] | what is too large for cells and not lent is copied through |
//! | [`doorbell`] | sleeping until a peer has something to say |

// A board is mapped memory, and loom's atomics do not lie in mapped memory.
#[cfg(not(loom))]
pub mod board;
#[cfg(not(loom))]
pub mod bounce;
#[cfg(not(loom))]
mod copy;
pub mod doorbell;
pub mod lane;
#[cfg(not(loom))]
pub mod lanes;
pub mod line;
mod sync;

#[cfg(not(loom))]
pub use board::{Board, Shape, WAYS};
pub use doorbell::{Doorbell, Parked};
#[cfg(not(loom))]
pub use lanes::Lanes;
pub use line::{ArrivalLine, INLINE_BYTES, Lend, Watermark};
