//! What NICs and accelerators mean.

use windlass::diagnosis::{DeviceNode, DmaBufImport, Host, Opening, Rdma, RdmaDevice, RdmaPort};

use super::machine::size;
use super::report::Finding;

/// What a rank registers at least: rings for each peer, and the buffers.
const ENOUGH_LOCKED_BYTES: u64 = 1 << 30;

/// The largest packet. Ethernet needs an MTU of 4200 for it.
const BEST_MTU_BYTES: u32 = 4096;

pub(super) fn rdma(rdma: &Rdma, host: &Host) -> Vec<Finding> {
    if !rdma.built {
        let here = match rdma.kernel_devices.as_slice() {
            [] => "this host has no RDMA device".to_owned(),
            devices => format!("this host has {}", devices.join(", ")),
        };
        return vec![Finding::note(
            "rdma.build",
            format!("this program was built without RDMA; {here}"),
            &["tools/setup --rdma && tools/cargo build --release"],
        )];
    }
    let mut found = Vec::new();
    if let Some(error) = &rdma.library_error {
        let of = "rdma.library";
        let text = format!("this host's RDMA cannot be used: {error}");
        found.push(match rdma.kernel_devices.as_slice() {
            [] => Finding::note(of, format!("no RDMA: {error}"), &[]),
            _ => Finding::problem(of, text, &["apt-get install libibverbs1 ibverbs-providers"]),
        });
        return found;
    }
    found.push(Finding::ok("rdma.library", "libibverbs is loaded"));
    for name in rdma.kernel_devices.iter().filter(|name| !rdma.devices.iter().any(|d| d.name == **name)) {
        found.push(Finding::problem(
            "rdma.provider",
            format!("the kernel has {name}, and libibverbs knows no way to drive it"),
            &["apt-get install ibverbs-providers, or the vendor's own"],
        ));
    }
    for device in &rdma.devices {
        found.extend(of_device(device));
    }
    found.extend(choice(rdma));
    if !rdma.devices.is_empty() {
        found.push(locked_memory(host));
        if !rdma.fork_is_safe {
            found.push(Finding::note(
                "rdma.fork",
                "a fork can take registered memory away from the NIC: its writes would go to pages of the child",
                &["export IBV_FORK_SAFE=1, or use Linux 5.12 with rdma-core 35 or later"],
            ));
        }
    }
    found
}

fn of_device(device: &RdmaDevice) -> Vec<Finding> {
    let name = &device.name;
    if let Some(error) = &device.error {
        return vec![Finding::problem("rdma.device", format!("{name} does not answer: {error}"), &[])];
    }
    let mut found: Vec<Finding> = device.ports.iter().map(|port| of_port(name, port)).collect();
    if let Some(error) = &device.register_error {
        found.push(Finding::problem("rdma.register", format!("not one page is registered: {error}"), &[]));
    }
    found.push(match device.dmabuf {
        Some(DmaBufImport::Yes) => Finding::ok("rdma.dmabuf", format!("{name} imports dma-bufs: device memory is registered straight")),
        Some(DmaBufImport::No) => Finding::note(
            "rdma.dmabuf",
            format!("{name} does not import dma-bufs: device memory goes by way of the host"),
            &["a newer driver may: mlx5, efa, irdma, bnxt_re and mana of Linux 6.x do"],
        ),
        Some(DmaBufImport::LibraryTooOld) => Finding::note(
            "rdma.dmabuf",
            format!("whether {name} imports dma-bufs cannot be asked: rdma-core is older than 34; device memory goes by way of the host"),
            &["install rdma-core 34 or later"],
        ),
        Some(DmaBufImport::Unclear { errno }) => Finding::note(
            "rdma.dmabuf",
            format!("whether {name} imports dma-bufs is not clear (errno {errno}): device memory goes by way of the host"),
            &[],
        ),
        None => Finding::problem("rdma.dmabuf", format!("{name} does not open a second time"), &[]),
    });
    found
}

fn of_port(device: &str, port: &RdmaPort) -> Finding {
    let gids: Vec<String> = port
        .gids
        .iter()
        .map(|gid| {
            let interface = gid.interface.as_deref().map_or_else(String::new, |name| format!(" on {name}"));
            let here = if gid.here { "" } else { ", not of this host" };
            format!("{}: {} ({}{interface}{here})", gid.index, gid.address, gid.kind)
        })
        .collect();
    let gids = if gids.is_empty() { "no GIDs".to_owned() } else { format!("GIDs {}", gids.join(", ")) };
    let text = format!(
        "{device} port {}: {}, {}, packets of {}; {gids}",
        port.number,
        port.state,
        port.link,
        size(port.mtu_bytes.into())
    );
    let interface = port.gids.iter().find(|gid| gid.here).and_then(|gid| gid.interface.as_deref());
    match interface {
        Some(name)
            if port.link == "Ethernet" && port.state == "active" && port.mtu_bytes < BEST_MTU_BYTES =>
        {
            Finding::note(
                "rdma.port",
                format!("{text}. Larger packets are faster, if the switches carry them"),
                &[&format!("ip link set {name} mtu 4200")],
            )
        }
        _ => Finding::ok("rdma.port", text),
    }
}

fn choice(rdma: &Rdma) -> Vec<Finding> {
    let mut found = Vec::new();
    for rail in &rdma.choice.rails {
        found.push(Finding::ok(
            "rdma.chosen",
            format!(
                "uses {} port {}, GID {} ({}): {}",
                rail.device, rail.port, rail.gid_index, rail.address, rail.reason
            ),
        ));
    }
    for rejected in &rdma.choice.rejected {
        let port = rejected.port.map_or_else(String::new, |port| format!(" port {port}"));
        let text = format!("leaves out {}{port}: {}", rejected.device, rejected.reason);
        found.push(match rejected.elsewhere {
            true => Finding::ok("rdma.rejected", text),
            false => Finding::note("rdma.rejected", text, &[]),
        });
    }
    if let Some(error) = &rdma.choice.error {
        let of = "rdma.choice";
        found.push(match rdma.devices.as_slice() {
            [] => Finding::note(of, error.clone(), &[]),
            _ => Finding::problem(of, error.clone(), &[]),
        });
    }
    found
}

fn locked_memory(host: &Host) -> Finding {
    let of = "rdma.locked_memory";
    if host.may_lock {
        return Finding::ok(of, "this process may lock any memory (CAP_IPC_LOCK)");
    }
    match host.locked_memory.soft {
        None => Finding::ok(of, "locked memory is not limited"),
        Some(bytes) if bytes >= ENOUGH_LOCKED_BYTES => Finding::note(
            of,
            format!("{} of memory may be locked: larger buffers are not registered", size(bytes)),
            &["ulimit -l unlimited"],
        ),
        Some(bytes) => {
            let fix = match host.locked_memory.hard {
                None => "ulimit -l unlimited",
                Some(_) => {
                    "`* - memlock unlimited` in /etc/security/limits.conf and a new login; LimitMEMLOCK=infinity for a service; docker run --ulimit memlock=-1"
                }
            };
            Finding::problem(
                of,
                format!("only {} of memory may be locked, and NICs need theirs locked", size(bytes)),
                &[fix],
            )
        }
    }
}

pub(super) fn accelerators(nodes: &[DeviceNode]) -> Vec<Finding> {
    if nodes.is_empty() {
        return vec![Finding::ok("accelerators.none", "no device here exports its memory as dma-bufs")];
    }
    nodes.iter().map(node).collect()
}

fn node(node: &DeviceNode) -> Finding {
    let of = "accelerators.node";
    let driver = node.driver.as_ref().map_or_else(String::new, |driver| format!(" ({driver})"));
    let text = format!("{}: {}{driver}", node.path, node.what);
    let errno = match node.opening {
        Opening::Opens => return Finding::ok(of, format!("{text}; opens")),
        Opening::Permitted => {
            return Finding::ok(
                of,
                format!("{text}; may be opened, which was not tried: one process alone can have it"),
            );
        }
        Opening::Refused { errno } => errno,
    };
    let said = std::io::Error::from_raw_os_error(errno);
    let text = format!("{text}; does not open: {said}");
    match errno {
        libc::EACCES | libc::EPERM => {
            let group = if node.path.contains("udmabuf") { "kvm" } else { "render" };
            let fix =
                format!("sudo usermod -aG {group} $USER, and a new login; docker run --device {}", node.path);
            Finding::note(of, text, &[&fix])
        }
        libc::EBUSY => Finding::note(
            of,
            format!("{text}. Another process has it"),
            &[&format!("fuser -v {}", node.path)],
        ),
        _ => Finding::note(of, format!("{text}. The driver is not ready"), &["dmesg | tail"]),
    }
}
