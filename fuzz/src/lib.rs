//! What each fuzz target does with its bytes. The targets are one line each; `examples/seeds.rs` writes their seeds.
//!
//! | module | what is decoded |
//! |---|---|
//! | [`stream`] | a link's frames as raw bytes |
//! | [`placed`] | the same where messages may be written to their places |
//! | [`frames`] | the same, each header well-formed: whatever a peer that lies can say |
//! | [`pair`] | the steps of two honest links |
//! | [`greeting`] | a TCP connection's first bytes |
//! | [`rendezvous`] | the rendezvous's datagrams |
//! | [`config`] | the configuration and the model |
//! | [`exported`] | the name of a range of device memory |
//! | [`board`] | a board's header |
//!
//! The encodings of steps are made by hand, four bytes a step, so that a seed stays what it was.

pub mod board;
pub mod config;
mod desk;
pub mod exported;
pub mod frames;
pub mod greeting;
pub mod pair;
pub mod placed;
pub mod rendezvous;
pub mod stream;

pub use desk::{LIMITS, SIZES, message};
