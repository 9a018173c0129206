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

mod adopted;
pub mod bootstrap;
mod clock;
mod communicator;
mod config;
mod device;
pub mod diagnosis;
mod engine;
mod error;
mod exchange;
mod faces;
mod fault;
mod fork;
mod group;
mod job;
mod list;
mod memory;
mod metrics;
pub mod numa;
mod operation;
mod operator;
mod progress;
mod registry;
mod request;
#[doc(hidden)]
pub mod scheduler;
mod scope;
mod simulation;
mod transfer;
mod world;

pub use adopted::{Adopted, Registration};
pub use bootstrap::{Identity, Server};
pub use communicator::{Blocking, Communicator, Tag, init};
pub use config::{Config, ModelFile, Origin, TransportChoice};
pub use device::{Device, DeviceBuffer, Movements};
pub use error::{AbortReason, Error, Failed, JoinError, PeerCause, Problem, Refusal};
pub use exchange::Received;
pub use faces::{BlockingLists, ScopedLists};
pub use fork::is_forked;
pub use job::Reconnects;
pub use list::{List, Piece};
pub use memory::{Buffer, Memory, MemoryMut, Span};
pub use operation::Operation;
#[doc(hidden)]
pub use registry::Planted;
pub use registry::{Fault, SimulationOptions, Traffic, Wire};
pub use request::RawRequest;
pub use scope::{Borrowed, Scope};
pub use simulation::{Estimate, Experiment, ExperimentError, LowerBound, Simulation};
pub use world::{threads, threads_with};

pub use windlass_collectives::{
    Algorithm, Association, Call, Choice, Collective, Extent, Fingerprint, Model, Nodes, Policy, Topology,
};
pub use windlass_kernels::{
    Bool, Combine, Complex, DataType, Element, F8E4M3, F8E5M2, F32I32, F64I32, F64I64, I32I32, I64I64,
    ReduceOp, Unsupported, UserOp, bf16, f16,
};
pub use windlass_memory::accelerator;
pub use windlass_memory::adopted::NotAdopted;
