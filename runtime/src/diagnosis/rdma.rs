//! RDMA: the library, the devices, and the choice.

use serde::Serialize;

use crate::config::Config;

/// RDMA, as this process sees it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Rdma {
    /// Whether this program speaks it.
    pub built: bool,
    /// The kernel's RDMA devices, whether or not the library can use them.
    pub kernel_devices: Vec<String>,
    /// Why the library cannot be used, or lists no devices.
    pub library_error: Option<String>,
    /// Whether the library registers dma-bufs (rdma-core 34 and later).
    pub library_imports_dmabufs: bool,
    /// Whether a fork can take registered memory away from the NIC.
    pub fork_is_safe: bool,
    /// The devices that the library can use.
    pub devices: Vec<RdmaDevice>,
    /// Which of them this host should use.
    pub choice: RdmaChoice,
}

/// An RDMA device.
#[derive(Clone, Debug, Serialize)]
pub struct RdmaDevice {
    /// Its name.
    pub name: String,
    /// Why it could not be asked.
    pub error: Option<String>,
    /// Its ports.
    pub ports: Vec<RdmaPort>,
    /// Whether it registers dma-bufs.
    pub dmabuf: Option<DmaBufImport>,
    /// Why it does not register a page of ordinary memory.
    pub register_error: Option<String>,
}

/// Whether a NIC registers dma-bufs.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DmaBufImport {
    /// It does.
    Yes,
    /// Its driver does not.
    No,
    /// The library has no such call.
    LibraryTooOld,
    /// The question got an answer that says neither.
    Unclear {
        /// The error it was answered with.
        errno: i32,
    },
}

/// A port.
#[derive(Clone, Debug, Serialize)]
pub struct RdmaPort {
    /// Its number, from 1.
    pub number: u8,
    /// `active`, `down`, …
    pub state: String,
    /// `Ethernet`, `InfiniBand`, or `other`.
    pub link: String,
    /// The most that one of its packets carries.
    pub mtu_bytes: u32,
    /// Its GIDs.
    pub gids: Vec<RdmaGid>,
}

/// A GID.
#[derive(Clone, Debug, Serialize)]
pub struct RdmaGid {
    /// Its place in the port's table.
    pub index: u8,
    /// The address that it is made of.
    pub address: String,
    /// `RoCE v1`, `RoCE v2`, `InfiniBand`, or `unknown`.
    pub kind: String,
    /// The network device it belongs to, by its name where that is.
    pub interface: Option<String>,
    /// Whether the address is one of this host's.
    pub here: bool,
}

/// Which ports this host should use.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RdmaChoice {
    /// Those to use.
    pub rails: Vec<RdmaRail>,
    /// Those not to use.
    pub rejected: Vec<RdmaRejected>,
    /// Why none can be used.
    pub error: Option<String>,
}

/// A port to use.
#[derive(Clone, Debug, Serialize)]
pub struct RdmaRail {
    /// Its device.
    pub device: String,
    /// Its number.
    pub port: u8,
    /// Which GID.
    pub gid_index: u8,
    /// The address that the GID is made of.
    pub address: String,
    /// What speaks for it.
    pub reason: String,
}

/// A device or port not to use.
#[derive(Clone, Debug, Serialize)]
pub struct RdmaRejected {
    /// The device.
    pub device: String,
    /// The port, when it is about one.
    pub port: Option<u8>,
    /// Why.
    pub reason: String,
    /// That is as it should be: it serves another network namespace, or there are better ones, or the user named others.
    pub elsewhere: bool,
}

impl Rdma {
    pub(super) fn gather(config: &Config) -> Self {
        let entries = std::fs::read_dir("/sys/class/infiniband").into_iter().flatten().flatten();
        let mut kernel_devices: Vec<String> =
            entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        kernel_devices.sort();
        let mut rdma = Self { kernel_devices, ..Self::default() };
        asked::ask(&mut rdma, config);
        rdma
    }
}

#[cfg(feature = "rdma")]
mod asked {
    use windlass_rdma::choice::{self, NoChoice, Reason, Rejected, Wishes};
    use windlass_rdma::verbs::{
        Access, Device, DmaBufSupport, ForkSafety, GidEntry, MemoryRegion, Port, Verbs,
    };

    use super::{DmaBufImport, Rdma, RdmaDevice, RdmaGid, RdmaPort, RdmaRail, RdmaRejected};
    use crate::config::Config;

    /// Asks the library and the devices.
    pub(super) fn ask(rdma: &mut Rdma, config: &Config) {
        rdma.built = true;
        let verbs = match Verbs::load() {
            Ok(verbs) => verbs,
            Err(absent) => return rdma.library_error = Some(absent.to_string()),
        };
        rdma.library_imports_dmabufs = verbs.has_dmabuf();
        rdma.fork_is_safe = matches!(verbs.fork_safety(), ForkSafety::Kernel | ForkSafety::Library);
        let facts = match choice::Facts::gather(&verbs) {
            Ok(facts) => facts,
            Err(error) => return rdma.library_error = Some(error.to_string()),
        };
        for found in &facts.devices {
            rdma.devices.push(device(&verbs, found, &facts));
        }
        let wishes = Wishes { devices: config.rdma_devices.clone(), gid_index: config.rdma_gid_index };
        match choice::choose(&facts, &wishes) {
            Ok(choice) => {
                rdma.choice.rails = choice
                    .rails
                    .iter()
                    .map(|rail| RdmaRail {
                        device: rail.device.to_string(),
                        port: rail.port,
                        gid_index: rail.gid_index,
                        address: rail.gid.to_string(),
                        reason: rail.reason.to_owned(),
                    })
                    .collect();
                rdma.choice.rejected = choice.rejected.iter().map(rejected).collect();
            }
            Err(error) => {
                rdma.choice.error = Some(error.to_string());
                if let NoChoice::AllRejected { rejected: all } = &error {
                    rdma.choice.rejected = all.iter().map(rejected).collect();
                }
            }
        }
    }

    fn rejected(of: &Rejected) -> RdmaRejected {
        RdmaRejected {
            device: of.device.to_string(),
            port: of.port,
            reason: of.reason.to_string(),
            elsewhere: matches!(of.reason, Reason::NotHere { .. } | Reason::NotNamed | Reason::Loopback),
        }
    }

    fn device(verbs: &Verbs, found: &choice::Found, facts: &choice::Facts) -> RdmaDevice {
        let mut told = RdmaDevice {
            name: found.name.to_string(),
            error: None,
            ports: Vec::new(),
            dmabuf: None,
            register_error: None,
        };
        match &found.ports {
            Ok(ports) => told.ports = ports.iter().map(|(p, gids)| port(p, gids, facts)).collect(),
            Err(error) => told.error = Some(error.to_string()),
        }
        if let Ok(device) = Device::open(verbs, &found.name) {
            told.dmabuf = Some(match device.dmabuf_support() {
                DmaBufSupport::Yes => DmaBufImport::Yes,
                DmaBufSupport::No { .. } => DmaBufImport::No,
                DmaBufSupport::LibraryTooOld => DmaBufImport::LibraryTooOld,
                DmaBufSupport::Unclear { errno } => DmaBufImport::Unclear { errno },
            });
            let mut page = vec![0_u8; 4096];
            // SAFETY: the page outlives the region, and no work names it.
            let region = unsafe {
                MemoryRegion::register(&device, page.as_mut_ptr(), page.len(), Access::LOCAL_WRITE)
            };
            told.register_error = region.err().map(|error| error.to_string());
        }
        told
    }

    fn port(port: &Port, gids: &[GidEntry], facts: &choice::Facts) -> RdmaPort {
        RdmaPort {
            number: port.number,
            state: port.state.to_string(),
            link: port.link.to_string(),
            mtu_bytes: port.mtu.bytes(),
            gids: gids
                .iter()
                .map(|entry| RdmaGid {
                    index: entry.index,
                    address: entry.gid.to_string(),
                    kind: entry.kind.to_string(),
                    interface: entry.interface.clone(),
                    here: facts.addresses.contains(&entry.gid.ip()),
                })
                .collect(),
        }
    }
}

#[cfg(not(feature = "rdma"))]
mod asked {
    use super::Rdma;
    use crate::config::Config;

    /// This build knows nobody to ask.
    pub(super) fn ask(_rdma: &mut Rdma, _config: &Config) {}
}
