//! The one place that names transports: which carries a job's messages, and whether its ranks map each other.

use std::net::SocketAddr;
use std::sync::Arc;

use windlass_transports::Transport;
use windlass_transports::reach::Reach;
use windlass_transports::shm::{Board, Lanes};
use windlass_transports::tcp::{self, Tcp};

use crate::clock::Clock;
use crate::config::{Config, TransportChoice};
use crate::error::JoinError;
use crate::job::segments::Segments;

#[doc(hidden)]
pub use windlass_transports::link::Planted;
pub(crate) use windlass_transports::sim::Network;
pub use windlass_transports::sim::{Fault, Options as SimulationOptions, Traffic, Wire};

/// A transport that waits for the peers' addresses.
#[derive(Debug)]
pub(crate) struct Unconnected {
    tcp: Option<(Tcp, SocketAddr)>,
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

/// Opens what the configuration asks for. `job` names the job on the wire.
pub(crate) fn open(config: &Config, rank: u32, job: u128) -> Result<Unconnected, JoinError> {
    let tcp = match config.transport {
        TransportChoice::Tcp => Some(bind(rank, job)?),
        TransportChoice::Auto | TransportChoice::Shm => None,
    };
    Ok(Unconnected { tcp })
}

fn bind(rank: u32, job: u128) -> Result<(Tcp, SocketAddr), JoinError> {
    Tcp::bind(rank, job).map_err(refused)
}

fn refused(error: tcp::Error) -> JoinError {
    let hint = "the TCP transport needs a loopback address and two descriptors for every peer (ulimit -n)";
    match error {
        tcp::Error::System { call, errno } => JoinError::System { call, errno, hint },
        _ => JoinError::System { call: "connect", errno: rustix::io::Errno::MFILE.raw_os_error(), hint },
    }
}

impl Unconnected {
    /// Where the peers reach this rank.
    pub(crate) fn address(&self) -> Option<String> {
        self.tcp.as_ref().map(|(_, address)| address.to_string())
    }

    /// Meets the peers, who may reach each other's `segments`.
    pub(crate) fn connect(
        self,
        rank: u32,
        board: &Arc<Board>,
        segments: &Arc<Segments>,
        peers: &[Option<String>],
    ) -> Result<Carriers, JoinError> {
        let Some((mut tcp, _)) = self.tcp else {
            let reach = Arc::clone(segments) as Arc<dyn Reach>;
            return Ok(Carriers {
                messages: Some(Box::new(Lanes::new(rank, Arc::clone(board), Some(reach)))),
                mapped: true,
                clock: Clock::Machine,
            });
        };
        let mut addresses = Vec::new();
        for (rank, address) in peers.iter().enumerate() {
            let parsed = address.as_ref().and_then(|a| a.parse().ok());
            addresses.push(parsed.ok_or(JoinError::Missing {
                missing: vec![rank as u32],
                after: std::time::Duration::ZERO,
            })?);
        }
        tcp.connect(addresses).map_err(refused)?;
        Ok(Carriers { messages: Some(Box::new(tcp)), mapped: false, clock: Clock::Machine })
    }
}
