//! The verbs layer on a real device, if there is one: both ends of a connection in one process. The testbed has one: `make test-rdma`.

mod accelerator;
mod dmabuf;
mod failures;
mod rig;
mod selftest;
mod traffic;
