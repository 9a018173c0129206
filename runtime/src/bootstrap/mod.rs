//! How processes become a job.
//!
//! A rendezvous ([`Server`], in the launcher or in rank 0) collects the ranks over a Unix socket with an abstract name, which leaves
//! no file behind, passes descriptors of shared memory between them, and tells them of each other's ends. It is the
//! control plane: no operation's data crosses it. What ranks say to each other of device memory goes past it, over lines whose ends it gives out.
//!
//! | module | one idea |
//! |---|---|
//! | [`protocol`] | the messages |
//! | [`socket`] | one message, perhaps with one descriptor |
//! | [`server`] | the rendezvous |
//! | [`control`] | a rank's end of it |
//! | [`environment`] | who this process is, whoever started it |

pub(crate) mod control;
pub mod environment;
pub(crate) mod protocol;
pub mod server;
pub(crate) mod socket;

pub use environment::Identity;
#[cfg(fuzzing)]
#[doc(hidden)]
pub use protocol::RECODE;
pub use server::Server;
