//! The one place that names transports: which carries a job's messages, and whether its ranks map each other.

use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

#[cfg(feature = "rdma")]
use windlass_rdma::{
    choice::Wishes,
    transport::{self as rdma, PeerAddress, Rdma},
};
use windlass_transports::Transport;
use windlass_transports::reach::Reach;
#[cfg(feature = "rdma")]
use windlass_transports::reach::Register;
use windlass_transports::shm::{Board, Lanes};
use windlass_transports::tcp::{self, Tcp};

use crate::clock::Clock;
use crate::config::{Config, TransportChoice};
use crate::device::reached::Reached;
use crate::error::JoinError;
use crate::job::segments::Segments;

#[doc(hidden)]
pub use windlass_transports::link::Planted;
pub(crate) use windlass_transports::sim::Network;
pub use windlass_transports::sim::{Fault, Options as SimulationOptions, Traffic, Wire};

/// A transport that waits for the peers' addresses.
#[derive(Debug)]
pub(crate) enum Unconnected {
    /// Lanes of shared memory: it needs none.
    Shared,
    Tcp(Box<Tcp>, SocketAddr),
    #[cfg(feature = "rdma")]
    Rdma(Box<Rdma>, PeerAddress),
}

/// What carries a job.
#[derive(Debug)]
pub(crate) struct Carriers {
    /// Carries messages.
    pub(crate) messages: Option<Box<dyn Transport>>,
    /// Whether the ranks reach each other's memory.
    pub(crate) mapped: bool,
    /// What deadlines are measured by.
    pub(crate) clock: Clock,
}

/// What carries a simulated job.
pub(crate) fn simulated(network: &Network, rank: u32, clock: Clock) -> Carriers {
    Carriers { messages: Some(Box::new(network.endpoint(rank))), mapped: false, clock }
}

/// What carries a simulated job whose ranks share a host: the board alone.
pub(crate) fn simulated_host(clock: Clock) -> Carriers {
    Carriers { messages: None, mapped: true, clock }
}

/// Opens what the configuration asks for. `job` names the job on the wire; `reached` is this rank's memory.
pub(crate) fn open(
    config: &Config,
    rank: u32,
    job: u128,
    reached: &Arc<Reached>,
) -> Result<Unconnected, JoinError> {
    match config.transport {
        TransportChoice::Auto | TransportChoice::Shm => Ok(Unconnected::Shared),
        TransportChoice::Tcp => {
            let (tcp, address) = Tcp::bind(rank, job).map_err(refused)?;
            Ok(Unconnected::Tcp(Box::new(tcp), address))
        }
        TransportChoice::Rdma => open_rdma(config, rank, job, reached),
    }
}

#[cfg(feature = "rdma")]
fn open_rdma(
    config: &Config,
    rank: u32,
    job: u128,
    reached: &Arc<Reached>,
) -> Result<Unconnected, JoinError> {
    let wishes = Wishes { devices: config.rdma_devices.clone(), gid_index: config.rdma_gid_index };
    let pairs = usize::from(config.rdma_pairs);
    let options = rdma::Options { wishes, pairs, ..rdma::Options::default() };
    let register = Arc::clone(reached) as Arc<dyn Register>;
    let (rdma, address) = Rdma::bind(rank, job, options, Some(register)).map_err(no_rdma)?;
    Ok(Unconnected::Rdma(Box::new(rdma), address))
}

#[cfg(not(feature = "rdma"))]
fn open_rdma(_: &Config, _: u32, _: u128, _: &Arc<Reached>) -> Result<Unconnected, JoinError> {
    Err(no_rdma(
        "this windlass was built without it (cargo build --features rdma; tools/setup --rdma installs the headers)",
    ))
}

fn no_rdma(why: impl std::fmt::Display) -> JoinError {
    JoinError::Configuration {
        setting: "WINDLASS_TRANSPORT".to_owned(),
        value: TransportChoice::Rdma.to_string(),
        problem: format!(
            "RDMA cannot be used: {why}. `windlass doctor` says what this host has, and what to do"
        ),
    }
}

fn refused(error: tcp::Error) -> JoinError {
    let hint = "the TCP transport needs a loopback address and two descriptors for every peer (ulimit -n)";
    match error {
        tcp::Error::System { call, errno } => JoinError::System { call, errno, hint },
        _ => JoinError::System { call: "connect", errno: rustix::io::Errno::MFILE.raw_os_error(), hint },
    }
}

/// The peers' addresses, by rank. Who has told none that can be read has not joined this job.
fn parsed<A: FromStr>(peers: &[Option<String>]) -> Result<Vec<A>, JoinError> {
    let missing = |rank| JoinError::Missing { missing: vec![rank], after: Duration::ZERO };
    let address = |(rank, address): (usize, &Option<String>)| {
        address.as_ref().and_then(|text| text.parse().ok()).ok_or_else(|| missing(rank as u32))
    };
    peers.iter().enumerate().map(address).collect()
}

impl Unconnected {
    /// Where the peers reach this rank.
    pub(crate) fn address(&self) -> Option<String> {
        match self {
            Self::Shared => None,
            Self::Tcp(_, address) => Some(address.to_string()),
            #[cfg(feature = "rdma")]
            Self::Rdma(_, address) => Some(address.to_string()),
        }
    }

    /// Meets the peers, who may reach each other's `segments`.
    pub(crate) fn connect(
        self,
        rank: u32,
        board: &Arc<Board>,
        segments: &Arc<Segments>,
        peers: &[Option<String>],
    ) -> Result<Carriers, JoinError> {
        let (messages, mapped): (Box<dyn Transport>, bool) = match self {
            Self::Shared => {
                let reach = Arc::clone(segments) as Arc<dyn Reach>;
                (Box::new(Lanes::new(rank, Arc::clone(board), Some(reach))), true)
            }
            Self::Tcp(mut tcp, _) => {
                tcp.connect(parsed::<SocketAddr>(peers)?).map_err(refused)?;
                (tcp, false)
            }
            #[cfg(feature = "rdma")]
            Self::Rdma(mut rdma, _) => {
                rdma.connect(&parsed::<PeerAddress>(peers)?).map_err(no_rdma)?;
                (rdma, false)
            }
        };
        Ok(Carriers { messages: Some(messages), mapped, clock: Clock::Machine })
    }
}
