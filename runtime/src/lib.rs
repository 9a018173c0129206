//! Asynchronous collective communication for training jobs.
//!
//! ```no_run
//! use windlass::ReduceOp;
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let comm = windlass::init()?; // started by: windlass run -n 4 -- ./program
//!     let mut gradient = comm.alloc::<f32>(1 << 20)?; // peers reach it directly
//!     gradient.fill(comm.rank() as f32);
//!     comm.blocking().all_reduce(&mut gradient, ReduceOp::Avg)?;
//!     Ok(())
//! }
//! ```
//!
//! Asynchronous calls own their memory and give it back: `let gradient = comm.all_reduce(gradient, ReduceOp::Sum).await?;`

pub mod bootstrap;
mod communicator;
mod config;
mod engine;
mod error;
mod fault;
mod fork;
mod group;
mod job;
mod memory;
mod metrics;
mod operation;
mod progress;
mod registry;
mod request;
mod simulation;
mod transfer;
mod world;

pub use bootstrap::{Identity, Server};
pub use communicator::{Blocking, Borrowed, Communicator, Scope, Tag, init};
pub use config::{Config, ModelFile, Origin, TransportChoice};
pub use error::{AbortReason, Error, Failed, JoinError, PeerCause, Problem, Refusal};
pub use memory::{Buffer, Memory, MemoryMut, Span};
pub use operation::Operation;
pub use registry::SimulationOptions;
pub use request::RawRequest;
pub use simulation::Simulation;
pub use world::{threads, threads_with};

pub use windlass_collectives::{Algorithm, Call, Choice, Collective, Fingerprint, Model, Topology};
pub use windlass_kernels::{DataType, Element, ReduceOp, bf16, f16};
