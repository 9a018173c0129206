//! Ports and GIDs: by what name a queue pair of this host is reached.

use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv6Addr};

use rdma_sys as sys;

use super::device::Device;
use super::error::VerbError;

/// What a port is able to carry now.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PortState {
    /// No link.
    Down,
    /// A link without addresses, as before a subnet manager has seen it.
    Init,
    /// Ready, but not activated.
    Armed,
    /// It carries traffic.
    Active,
    /// It carries traffic, and its link failed a moment ago.
    ActiveDefer,
    /// A state of this number.
    Unknown(u32),
}

impl From<u32> for PortState {
    fn from(code: u32) -> Self {
        use sys::ibv_port_state as of;
        match code {
            of::IBV_PORT_DOWN => Self::Down,
            of::IBV_PORT_INIT => Self::Init,
            of::IBV_PORT_ARMED => Self::Armed,
            of::IBV_PORT_ACTIVE => Self::Active,
            of::IBV_PORT_ACTIVE_DEFER => Self::ActiveDefer,
            _ => Self::Unknown(code),
        }
    }
}

impl fmt::Display for PortState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Down => write!(f, "down"),
            Self::Init => write!(f, "init"),
            Self::Armed => write!(f, "armed"),
            Self::Active => write!(f, "active"),
            Self::ActiveDefer => write!(f, "active, deferred"),
            Self::Unknown(code) => write!(f, "state {code}"),
        }
    }
}

/// What the NIC speaks below RDMA.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LinkLayer {
    /// InfiniBand: a subnet manager gives LIDs.
    InfiniBand,
    /// RoCE: GIDs are the addresses of a network device.
    Ethernet,
    /// Another: EFA.
    Other,
}

impl fmt::Display for LinkLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::InfiniBand => "InfiniBand",
            Self::Ethernet => "Ethernet",
            Self::Other => "other",
        })
    }
}

/// The most that one packet carries.
#[derive(Clone, Copy, Debug, Eq, PartialEq, PartialOrd, Ord)]
pub struct Mtu(u8);

impl Mtu {
    /// 256 to 4096 bytes, in powers of two; `None` for other sizes.
    pub fn from_bytes(bytes: u32) -> Option<Self> {
        (1..=5).map(Self).find(|mtu| mtu.bytes() == bytes)
    }

    /// Its size.
    pub const fn bytes(self) -> u32 {
        128 << self.0
    }

    /// As the verbs number it. What a driver says beyond the table is taken for the smallest, which every port carries.
    fn from_code(code: u32) -> Self {
        match code {
            1..=5 => Self(code as u8),
            _ => Self(1),
        }
    }

    pub(super) fn code(self) -> u32 {
        u32::from(self.0)
    }
}

/// A port of a device.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Port {
    /// Its number, from 1.
    pub number: u8,
    /// What it is able to carry now.
    pub state: PortState,
    /// The most that one of its packets carries now.
    pub mtu: Mtu,
    /// What it speaks.
    pub link: LinkLayer,
    /// Its address in an InfiniBand subnet; 0 with RoCE.
    pub lid: u16,
    /// How many GIDs its table has room for.
    pub gid_slots: u32,
}

/// A global identifier: 16 bytes, an IPv6 address by form.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Hash)]
pub struct Gid(pub [u8; 16]);

impl Gid {
    /// The address it is made of: IPv4 when it is mapped.
    pub fn ip(self) -> IpAddr {
        let address = Ipv6Addr::from(self.0);
        address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4)
    }

    /// An empty place of the table.
    pub fn is_empty(self) -> bool {
        // A port without an address has its prefix alone.
        self.0[8..] == [0; 8]
    }
}

impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ip().fmt(f)
    }
}

/// What packets with this GID look like.
#[derive(Clone, Copy, Debug, Eq, PartialEq, PartialOrd, Ord)]
pub enum GidKind {
    /// InfiniBand's own.
    InfiniBand,
    /// RoCE in Ethernet frames, which no router passes on.
    RoceV1,
    /// RoCE in UDP.
    RoceV2,
    /// The kernel does not say.
    Unknown,
}

impl fmt::Display for GidKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::InfiniBand => "InfiniBand",
            Self::RoceV1 => "RoCE v1",
            Self::RoceV2 => "RoCE v2",
            Self::Unknown => "unknown",
        })
    }
}

/// A place of a port's GID table that is taken.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct GidEntry {
    /// Its place.
    pub index: u8,
    /// What is there.
    pub gid: Gid,
    /// What packets with it look like.
    pub kind: GidKind,
    /// The network device that it belongs to, by its name where that device is, which may be another network namespace.
    pub interface: Option<String>,
}

/// Where queue pairs of this host are attached: a port and a GID of a device.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Attachment {
    /// The port's number, from 1.
    pub port: u8,
    /// The GID's place in the port's table.
    pub gid_index: u8,
    /// The GID.
    pub gid: Gid,
    /// The port's LID; 0 with RoCE.
    pub lid: u16,
    /// The most that one of the port's packets carries.
    pub mtu: Mtu,
    /// What the port speaks.
    pub link: LinkLayer,
}

impl Device {
    /// All ports.
    ///
    /// # Errors
    /// When the device does not answer: it has been removed.
    pub fn ports(&self) -> Result<Vec<Port>, VerbError> {
        (1..=self.query()?.phys_port_cnt).map(|number| self.port(number)).collect()
    }

    /// One port.
    ///
    /// # Errors
    /// `EINVAL` when there is none of this number.
    pub fn port(&self, number: u8) -> Result<Port, VerbError> {
        // SAFETY: the structure is plain numbers, for which zero is a value.
        let mut attributes: sys::ibv_port_attr = unsafe { std::mem::zeroed() };
        // SAFETY: the context is open, and the function writes the shorter structure that the longer one begins with.
        let code = unsafe {
            (self.0.functions().ibv_query_port)(self.0.context, number, (&raw mut attributes).cast())
        };
        self.0.checked("ibv_query_port", code)?;
        Ok(Port {
            number,
            state: PortState::from(attributes.state),
            mtu: Mtu::from_code(attributes.active_mtu),
            link: match attributes.link_layer {
                // Drivers that are older than RoCE leave it unsaid.
                0 | 1 if attributes.lid != 0 => LinkLayer::InfiniBand,
                1 => LinkLayer::InfiniBand,
                2 => LinkLayer::Ethernet,
                _ => LinkLayer::Other,
            },
            lid: attributes.lid,
            gid_slots: u32::try_from(attributes.gid_tbl_len).unwrap_or(0),
        })
    }

    /// The GIDs of a port, without the empty places of its table.
    ///
    /// # Errors
    /// When the device does not answer: it has been removed.
    pub fn gids(&self, port: &Port) -> Result<Vec<GidEntry>, VerbError> {
        let mut entries = Vec::new();
        for index in 0..u8::try_from(port.gid_slots).unwrap_or(u8::MAX) {
            let gid = match self.gid(port.number, index) {
                Ok(gid) if !gid.is_empty() => gid,
                Ok(_) => continue,
                // What the kernel says of a place that is empty.
                Err(error)
                    if [libc::ENODATA, libc::EINVAL, libc::ENOENT, libc::EAGAIN].contains(&error.errno) =>
                {
                    continue;
                }
                Err(error) => return Err(error),
            };
            let attribute = |name: &str| {
                let path = format!(
                    "/sys/class/infiniband/{}/ports/{}/gid_attrs/{name}/{index}",
                    self.name(),
                    port.number
                );
                fs::read_to_string(path)
                    .ok()
                    .map(|text| text.trim().to_owned())
                    .filter(|text| !text.is_empty())
            };
            let kind = match (attribute("types").as_deref(), port.link) {
                (_, LinkLayer::InfiniBand) => GidKind::InfiniBand,
                (Some("RoCE v2"), _) => GidKind::RoceV2,
                (Some("IB/RoCE v1"), LinkLayer::Ethernet) => GidKind::RoceV1,
                _ => GidKind::Unknown,
            };
            entries.push(GidEntry { index, gid, kind, interface: attribute("ndevs") });
        }
        Ok(entries)
    }

    fn gid(&self, port: u8, index: u8) -> Result<Gid, VerbError> {
        let mut gid = sys::ibv_gid { raw: [0; 16] };
        // SAFETY: the context is open, and the GID is written before the call returns.
        let code = unsafe {
            (self.0.functions().ibv_query_gid)(self.0.context, port, i32::from(index), &raw mut gid)
        };
        self.0.checked("ibv_query_gid", code)?;
        // SAFETY: all of the union's 16 bytes are written, whichever field they are read by.
        Ok(Gid(unsafe { gid.raw }))
    }

    /// Where queue pairs with this port and GID are attached.
    ///
    /// # Errors
    /// `EINVAL` when there is no such port or GID.
    pub fn attachment(&self, port: u8, gid_index: u8) -> Result<Attachment, VerbError> {
        let facts = self.port(port)?;
        let gid = self.gid(port, gid_index)?;
        if gid.is_empty() && facts.link == LinkLayer::Ethernet {
            return Err(self.0.failed("ibv_query_gid", libc::ENODATA));
        }
        Ok(Attachment { port, gid_index, gid, lid: facts.lid, mtu: facts.mtu, link: facts.link })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gids_read_as_addresses() {
        let mut gid = Gid([0; 16]);
        assert!(gid.is_empty());
        gid.0[10..12].fill(0xff);
        gid.0[12..].copy_from_slice(&[10, 77, 0, 1]);
        assert_eq!((gid.to_string().as_str(), gid.is_empty()), ("10.77.0.1", false));
        gid.0 = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0).octets();
        assert!(gid.is_empty(), "a prefix alone is no address");
        gid.0[15] = 1;
        assert_eq!(gid.to_string(), "fe80::1");
    }

    #[test]
    fn packets_have_five_sizes() {
        for (code, bytes) in [(1, 256), (2, 512), (3, 1024), (4, 2048), (5, 4096)] {
            assert_eq!(Mtu::from_code(code).bytes(), bytes);
            assert_eq!(Mtu::from_bytes(bytes).map(Mtu::code), Some(code));
        }
        assert_eq!(Mtu::from_bytes(1500), None);
        assert_eq!(Mtu::from_code(0).bytes(), 256);
        assert_eq!(Mtu::from_code(77).bytes(), 256);
    }

    #[test]
    fn states_of_ports_are_decoded() {
        assert_eq!(PortState::from(4), PortState::Active);
        assert_eq!(PortState::from(1).to_string(), "down");
        assert_eq!(PortState::from(9), PortState::Unknown(9));
    }
}
