//! Which device, port and GID this host should use, and why not the others.
//!
//! [`Facts`] are what was found; [`choose`] is a function of them alone, so it can be asked about machines that are not here. RDMA devices are often
//! seen by all network namespaces of a machine: what decides is whether the address that a GID is made of is one of this host's.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ptr;
use std::sync::Arc;

use crate::verbs::{Device, Gid, GidEntry, GidKind, LinkLayer, Port, PortState, VerbError, Verbs};

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The devices, in the kernel's order.
    pub devices: Vec<Found>,
    /// This host's addresses: of this network namespace.
    pub addresses: Vec<IpAddr>,
}

/// A device that was found.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its name.
    pub name: Arc<str>,
    /// Its ports with their GIDs, or why it could not be asked.
    pub ports: Result<Vec<(Port, Vec<GidEntry>)>, VerbError>,
}

impl Facts {
    /// Looks around.
    ///
    /// # Errors
    /// When the kernel has no RDMA. A device that does not answer is found with its error.
    pub fn gather(verbs: &Verbs) -> Result<Self, VerbError> {
        let devices = verbs.devices()?.into_iter().map(|name| Found { ports: ports(verbs, &name), name });
        Ok(Self { devices: devices.collect(), addresses: addresses() })
    }
}

fn ports(verbs: &Verbs, name: &str) -> Result<Vec<(Port, Vec<GidEntry>)>, VerbError> {
    let device = Device::open(verbs, name)?;
    let ports = device.ports()?;
    ports.into_iter().map(|port| Ok((port, device.gids(&port)?))).collect()
}

/// This host's addresses, loopback included: RDMA over it works.
fn addresses() -> Vec<IpAddr> {
    let mut first = ptr::null_mut();
    // SAFETY: the list is written when the call returns 0, and freed below.
    if unsafe { libc::getifaddrs(&raw mut first) } != 0 {
        return Vec::new();
    }
    let (mut found, mut next) = (Vec::new(), first);
    while !next.is_null() {
        // SAFETY: `next` is an entry of the list.
        let entry = unsafe { &*next };
        next = entry.ifa_next;
        if entry.ifa_addr.is_null() {
            continue;
        }
        // SAFETY: the entry's address has at least its family.
        match i32::from(unsafe { (*entry.ifa_addr).sa_family }) {
            libc::AF_INET => {
                // SAFETY: the family says that it is one of IPv4.
                let address = unsafe { ptr::read_unaligned(entry.ifa_addr.cast::<libc::sockaddr_in>()) };
                found.push(IpAddr::V4(Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr))));
            }
            libc::AF_INET6 => {
                // SAFETY: the family says that it is one of IPv6.
                let address = unsafe { ptr::read_unaligned(entry.ifa_addr.cast::<libc::sockaddr_in6>()) };
                found.push(IpAddr::V6(Ipv6Addr::from(address.sin6_addr.s6_addr)));
            }
            _ => {}
        }
    }
    // SAFETY: the list came from getifaddrs, and nothing of it is used any more.
    unsafe { libc::freeifaddrs(first) };
    found
}

/// What the user wants to be different.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Wishes {
    /// These devices and no others, in this order; each of them a name, or a name, a colon and a port. `WINDLASS_RDMA_DEVICES`.
    pub devices: Vec<String>,
    /// The GID at this place of each port's table. `WINDLASS_RDMA_GID_INDEX`.
    pub gid_index: Option<u8>,
}

/// A port to use.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rail {
    /// The device.
    pub device: Arc<str>,
    /// Its port.
    pub port: u8,
    /// The GID's place in the port's table.
    pub gid_index: u8,
    /// The GID.
    pub gid: Gid,
    /// What packets with it look like.
    pub kind: GidKind,
    /// What speaks for it.
    pub reason: &'static str,
}

/// Why a device or port is not used.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Reason {
    /// It could not be asked.
    Silent(VerbError),
    /// It has no port.
    NoPort,
    /// The user named others.
    NotNamed,
    /// The port carries no traffic.
    NotActive(PortState),
    /// The port has no GID at all.
    NoGid,
    /// There is no GID at the place that the user named.
    NoGidAt(u8),
    /// Its GID is a loopback address, by which no other host is reached, and there is a better port.
    Loopback,
    /// None of its GIDs is made of an address of this host: the network device belongs to another network namespace, or has no address.
    NotHere {
        /// One of the GIDs that it has.
        example: Gid,
        /// The network device that this belongs to, by its name where that is.
        interface: Option<String>,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Silent(error) => write!(f, "it does not answer: {error}"),
            Self::NoPort => write!(f, "it has no port"),
            Self::NotNamed => write!(f, "WINDLASS_RDMA_DEVICES names others"),
            Self::NotActive(state) => {
                write!(
                    f,
                    "the port is {state}: `ip link set <interface> up`, or see to the cable and the switch"
                )
            }
            Self::NoGid => write!(f, "the port has no GID: give its interface an address, `ip address add`"),
            Self::NoGidAt(index) => {
                write!(f, "the port has no GID at place {index}, which WINDLASS_RDMA_GID_INDEX asks for")
            }
            Self::Loopback => {
                write!(f, "it is on the loopback interface, and other ports reach other hosts, too")
            }
            Self::NotHere { example, interface } => {
                write!(f, "none of its GIDs ({example}, …) is an address of this host")?;
                let name = interface.as_deref().unwrap_or("its interface");
                write!(f, ": {name} is in another network namespace, or has no address")
            }
        }
    }
}

/// A device or port that is not used.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rejected {
    /// The device.
    pub device: Arc<str>,
    /// The port, when it is about one.
    pub port: Option<u8>,
    /// Why.
    pub reason: Reason,
}

/// What this host should use.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Choice {
    /// The ports to use, at least one; messages may be striped over all of them.
    pub rails: Vec<Rail>,
    /// What is left out.
    pub rejected: Vec<Rejected>,
}

/// Nothing can be used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum NoChoice {
    /// There is no device.
    #[error(
        "this host has no RDMA device. Load the NIC's module (`rdma link` lists devices), or make one of soft-RoCE: rdma link add rxe0 type rxe netdev <interface>"
    )]
    NoDevice,
    /// A name in `WINDLASS_RDMA_DEVICES` is nobody's.
    #[error("WINDLASS_RDMA_DEVICES names {name}, and there is none of that name and port: there are {}", known.join(", "))]
    Unknown {
        /// It.
        name: String,
        /// The devices there are.
        known: Vec<String>,
    },
    /// Each device is rejected for a reason of its own.
    #[error("no RDMA device can be used: {}", rejected.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    AllRejected {
        /// Each of them.
        rejected: Vec<Rejected>,
    },
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.device)?;
        if let Some(port) = self.port {
            write!(f, " port {port}")?;
        }
        write!(f, ": {}", self.reason)
    }
}

/// Chooses.
///
/// # Errors
/// When nothing can be used, with the reason for each device.
pub fn choose(facts: &Facts, wishes: &Wishes) -> Result<Choice, NoChoice> {
    if facts.devices.is_empty() {
        return Err(NoChoice::NoDevice);
    }
    let wanted: Vec<Wanted> =
        wishes.devices.iter().map(|wish| wanted(facts, wish)).collect::<Result<_, _>>()?;
    let mut choice = Choice::default();
    for found in &facts.devices {
        judge_device(found, facts, wishes, &wanted, &mut choice);
    }
    if wanted.is_empty() {
        leave_out_loopback(&mut choice);
    }
    // In the order in which the user named them; otherwise in the kernel's.
    choice.rails.sort_by_key(|rail| wanted.iter().position(|w| w.is(&rail.device, rail.port)));
    if choice.rails.is_empty() {
        return Err(NoChoice::AllRejected { rejected: choice.rejected });
    }
    Ok(choice)
}

/// A port on the loopback interface serves where there is no other.
fn leave_out_loopback(choice: &mut Choice) {
    let is_loopback = |rail: &Rail| rail.gid.ip().is_loopback();
    if choice.rails.iter().all(is_loopback) {
        return;
    }
    for rail in choice.rails.extract_if(.., |rail| is_loopback(rail)) {
        choice.rejected.push(Rejected {
            device: rail.device,
            port: Some(rail.port),
            reason: Reason::Loopback,
        });
    }
}

struct Wanted<'a> {
    device: &'a str,
    port: Option<u8>,
}

impl Wanted<'_> {
    fn is(&self, device: &str, port: u8) -> bool {
        self.device == device && self.port.is_none_or(|p| p == port)
    }
}

fn wanted<'a>(facts: &Facts, wish: &'a str) -> Result<Wanted<'a>, NoChoice> {
    let (device, port) = match wish.split_once(':') {
        Some((device, port)) => (device, Some(port.parse::<u8>())),
        None => (wish, None),
    };
    let known = |ports: &Result<Vec<(Port, Vec<GidEntry>)>, VerbError>| match (&port, ports) {
        (Some(Err(_)), _) => false,
        (Some(Ok(number)), Ok(ports)) => ports.iter().any(|(port, _)| port.number == *number),
        _ => true,
    };
    if facts.devices.iter().any(|found| &*found.name == device && known(&found.ports)) {
        return Ok(Wanted { device, port: port.and_then(Result::ok) });
    }
    let known = facts.devices.iter().map(|found| found.name.to_string()).collect();
    Err(NoChoice::Unknown { name: wish.to_owned(), known })
}

fn judge_device(found: &Found, facts: &Facts, wishes: &Wishes, wanted: &[Wanted<'_>], choice: &mut Choice) {
    let mut reject =
        |port, reason| choice.rejected.push(Rejected { device: Arc::clone(&found.name), port, reason });
    if !wanted.is_empty() && !wanted.iter().any(|w| w.device == &*found.name) {
        return reject(None, Reason::NotNamed);
    }
    let ports = match &found.ports {
        Ok(ports) if ports.is_empty() => return reject(None, Reason::NoPort),
        Ok(ports) => ports,
        Err(error) => return reject(None, Reason::Silent(error.clone())),
    };
    for (port, gids) in ports {
        if !wanted.is_empty() && !wanted.iter().any(|w| w.is(&found.name, port.number)) {
            reject(Some(port.number), Reason::NotNamed);
            continue;
        }
        match judge_port(port, gids, &facts.addresses, wishes.gid_index) {
            Ok((entry, reason)) => choice.rails.push(Rail {
                device: Arc::clone(&found.name),
                port: port.number,
                gid_index: entry.index,
                gid: entry.gid,
                kind: entry.kind,
                reason,
            }),
            Err(reason) => reject(Some(port.number), reason),
        }
    }
}

/// The GID of the port to use.
fn judge_port<'a>(
    port: &Port,
    gids: &'a [GidEntry],
    addresses: &[IpAddr],
    index: Option<u8>,
) -> Result<(&'a GidEntry, &'static str), Reason> {
    if !matches!(port.state, PortState::Active | PortState::ActiveDefer) {
        return Err(Reason::NotActive(port.state));
    }
    if let Some(index) = index {
        let entry = gids.iter().find(|entry| entry.index == index).ok_or(Reason::NoGidAt(index))?;
        return Ok((entry, "active, with the GID that WINDLASS_RDMA_GID_INDEX asks for"));
    }
    let first = gids.first().ok_or(Reason::NoGid)?;
    if port.link != LinkLayer::Ethernet {
        return Ok((first, "active; its subnet needs no address of this host"));
    }
    let here = gids.iter().filter(|entry| addresses.contains(&entry.gid.ip()));
    let (rank, entry) = here
        .map(|entry| (preference(entry), entry))
        .min_by_key(|(rank, entry)| (*rank, entry.index))
        .ok_or_else(|| Reason::NotHere {
            example: example(gids).gid,
            interface: example(gids).interface.clone(),
        })?;
    Ok((entry, PREFERENCES[rank]))
}

/// The GID that says most about where the port belongs.
fn example(gids: &[GidEntry]) -> &GidEntry {
    gids.iter().min_by_key(|entry| preference(entry)).unwrap_or(&gids[0])
}

/// What speaks for a GID, the best first.
const PREFERENCES: [&str; 4] = [
    "active, with a RoCE v2 GID of an IPv4 address of this host",
    "active, with a RoCE v2 GID of an IPv6 address of this host",
    "active, with a RoCE v2 GID of a link-local address of this host: peers behind a router are not reached",
    "active, with a GID of this host that is not RoCE v2: peers behind a router are not reached",
];

fn preference(entry: &GidEntry) -> usize {
    match (entry.kind, entry.gid.ip()) {
        (GidKind::RoceV2, IpAddr::V4(_)) => 0,
        (GidKind::RoceV2, IpAddr::V6(address)) if !address.is_unicast_link_local() => 1,
        (GidKind::RoceV2, _) => 2,
        _ => 3,
    }
}

#[cfg(test)]
mod tests;
