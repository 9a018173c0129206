//! Shared memory between the ranks of one host.
//!
//! | module | one idea |
//! |---|---|
//! | [`board`] | one memfd a communicator: every local rank's flags, slots and stage |
//! | [`line`] | the cache lines by which a rank tells its peers how far it is |
//! | [`doorbell`] | sleeping until a peer has something to say |

pub mod board;
pub mod doorbell;
pub mod line;
mod sync;

pub use board::{Board, Shape, WAYS};
pub use doorbell::{Doorbell, Parked};
pub use line::{ArrivalLine, INLINE_BYTES, Lend, Watermark};
