//! RDMA: the verbs, resolved at run time, and the choice of the NICs that a host uses.
//!
//! | module | one idea |
//! |---|---|
//! | [`verbs`] | libibverbs, typed: devices, queue pairs, completions, regions; it decides nothing |
//! | [`choice`] | which device, port and GID this host should use, and why not the others |
//! | [`pipe`] | the stream between two ranks, cut into RDMA writes, without I/O |
//! | [`lanes`] | by which NICs a connection goes, and by which of its queue pairs each write, without I/O |
//! | [`transport`] | links over queue pairs: the transport itself |
//! | [`loopback`] | a NIC that talks to itself |
//! | [`selftest`] | how a NIC takes memory that moves, tried |
//!
//! The only crate that sees rdma-sys, of which it takes types and inline calls. No program is linked with libibverbs: a machine without it runs
//! everything else, and is told what is missing when it asks for RDMA.

pub mod choice;
pub mod lanes;
pub mod loopback;
pub mod pipe;
pub mod selftest;
pub mod transport;
pub mod verbs;
