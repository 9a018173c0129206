//! What this machine is like, as far as it matters to windlass: facts, for `windlass doctor` and for whoever reports a fault.
//!
//! What they mean, good or bad, is not said here. Nothing is changed: what is tried is given back at once.

mod devices;
mod host;
mod pairs;
mod rdma;
mod sharing;

use serde::Serialize;

use crate::config::{Config, Origin};

pub use devices::{DeviceNode, Opening};
pub use host::{FileSystem, Host, HugePages, Limit, NumaNode, Scheduler};
pub use pairs::{AfterMove, Pair, PairFound, PairMode};
pub use rdma::{DmaBufImport, Rdma, RdmaChoice, RdmaDevice, RdmaGid, RdmaPort, RdmaRail, RdmaRejected};
pub use sharing::Sharing;

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub struct Facts {
    /// What this program was built with.
    pub build: Build,
    /// The machine.
    pub host: Host,
    /// The settings of this process.
    pub settings: Settings,
    /// Whether processes can share memory and wake each other.
    pub sharing: Sharing,
    /// RDMA.
    pub rdma: Rdma,
    /// The nodes of devices whose memory is exported as dma-bufs.
    pub accelerators: Vec<DeviceNode>,
    /// How the NICs that this host uses take the memory of the accelerators that open.
    pub pairs: Vec<Pair>,
}

/// What this program was built with.
#[derive(Clone, Debug, Serialize)]
pub struct Build {
    /// Its version.
    pub version: String,
    /// The instruction set.
    pub machine: String,
    /// Whether it speaks RDMA.
    pub rdma: bool,
    /// Whether it is one that leaves arithmetic out, for a test.
    pub planted_fault: bool,
    /// Whether it was built without optimisation.
    pub debug: bool,
}

/// The settings of this process.
#[derive(Clone, Debug, Serialize)]
pub struct Settings {
    /// Each of them, when they can be read.
    pub values: Vec<Setting>,
    /// Why they cannot.
    pub error: Option<String>,
}

/// One setting.
#[derive(Clone, Debug, Serialize)]
pub struct Setting {
    /// Its name in the configuration file.
    pub key: String,
    /// Its value.
    pub value: String,
    /// Where that came from: `default`, a file, or an environment variable.
    pub origin: String,
    /// Nobody set it.
    pub is_default: bool,
}

impl Facts {
    /// Looks around. Takes a fraction of a second; a NIC that does not answer costs five seconds with each accelerator.
    pub fn gather() -> Self {
        let config = Config::from_environment();
        let rdma = Rdma::gather(config.as_ref().unwrap_or(&Config::default()));
        let pairs = Pair::gather(&rdma.choice.rails);
        Self {
            build: Build {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                machine: std::env::consts::ARCH.to_owned(),
                rdma: rdma.built,
                planted_fault: crate::fault::PLANTED,
                debug: cfg!(debug_assertions),
            },
            host: Host::gather(),
            settings: Settings::of(config),
            sharing: Sharing::gather(),
            rdma,
            accelerators: DeviceNode::gather(),
            pairs,
        }
    }
}

impl Settings {
    fn of(config: Result<Config, crate::JoinError>) -> Self {
        match config {
            Ok(config) => {
                let values = config.settings().map(|(key, value, origin)| Setting {
                    key: key.to_owned(),
                    value,
                    is_default: origin == Origin::Default,
                    origin: origin.to_string(),
                });
                Self { values: values.collect(), error: None }
            }
            Err(error) => Self { values: Vec::new(), error: Some(error.to_string()) },
        }
    }
}
