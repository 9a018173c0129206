//! Device nodes whose memory can be exported as dma-bufs.

use std::fs::{File, read_dir, read_link};
use std::path::{Path, PathBuf};

use serde::Serialize;

/// A node in `/dev`.
#[derive(Clone, Debug, Serialize)]
pub struct DeviceNode {
    /// Its path.
    pub path: String,
    /// What it is.
    pub what: &'static str,
    /// The kernel driver behind it, when it is known.
    pub driver: Option<String>,
    /// Whether this process can use it.
    pub opening: Opening,
}

/// Whether a node opens.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Opening {
    /// It does.
    Opens,
    /// It may be opened. It was not tried, as one process alone can have it open.
    Permitted,
    /// It does not, with this error.
    Refused {
        /// `EACCES`, `EBUSY`, …
        errno: i32,
    },
}

/// Folder, how names begin, what it is, and the folder where the kernel tells the driver.
const KINDS: &[(&str, &str, &str, &str)] = &[
    ("/dev", "udmabuf", "host memory as dma-bufs, by the kernel", ""),
    ("/dev/dma_heap", "system", "host memory as dma-bufs, by the kernel", ""),
    ("/dev", "windlass_accelerator", "the testbed's accelerator, whose memory moves", ""),
    ("/dev/accel", "accel", "a compute accelerator", "/sys/class/accel"),
    ("/dev", "hl", "a Gaudi, by a driver older than Linux 6.2", "/sys/class/habanalabs"),
    ("/dev/dri", "renderD", "a GPU", "/sys/class/drm"),
];

/// Drivers that one process at a time can open.
const EXCLUSIVE: &[&str] = &["habanalabs"];

impl DeviceNode {
    pub(super) fn gather() -> Vec<Self> {
        let mut nodes = Vec::new();
        for &(folder, prefix, what, class) in KINDS {
            let names = read_dir(folder).into_iter().flatten().flatten();
            let mut names: Vec<String> =
                names.filter_map(|entry| entry.file_name().into_string().ok()).collect();
            names.retain(|name| is_numbered(name, prefix));
            names.sort_by_key(|name| (name.len(), name.clone()));
            for name in names {
                let driver = (!class.is_empty()).then(|| driver(&Path::new(class).join(&name))).flatten();
                let path = Path::new(folder).join(&name);
                let exclusive = prefix == "hl" || driver.as_deref().is_some_and(|d| EXCLUSIVE.contains(&d));
                let opening = if exclusive { permitted(&path) } else { opens(&path) };
                nodes.push(Self { path: path.display().to_string(), what, driver, opening });
            }
        }
        nodes
    }
}

/// The name itself, or the name with a number.
fn is_numbered(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit()))
        && (name != "hl" && name != "accel" && name != "renderD")
}

fn driver(class: &Path) -> Option<String> {
    let link: PathBuf = read_link(class.join("device/driver")).ok()?;
    Some(link.file_name()?.to_str()?.to_owned())
}

fn opens(path: &Path) -> Opening {
    match File::options().read(true).write(true).open(path) {
        Ok(_) => Opening::Opens,
        Err(error) => Opening::Refused { errno: error.raw_os_error().unwrap_or(0) },
    }
}

fn permitted(path: &Path) -> Opening {
    match rustix::fs::access(path, rustix::fs::Access::READ_OK | rustix::fs::Access::WRITE_OK) {
        Ok(()) => Opening::Permitted,
        Err(errno) => Opening::Refused { errno: errno.raw_os_error() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_numbers_are_nodes() {
        assert!(
            is_numbered("accel0", "accel") && is_numbered("hl12", "hl") && is_numbered("udmabuf", "udmabuf")
        );
        assert!(
            !is_numbered("hl_controlD0", "hl") && !is_numbered("hl", "hl") && !is_numbered("accel", "accel")
        );
        assert!(!is_numbered("renderDx", "renderD") && is_numbered("renderD128", "renderD"));
    }

    #[test]
    fn a_node_opens_or_says_why_not() {
        assert_eq!(opens(Path::new("/dev/null")), Opening::Opens);
        assert_eq!(opens(Path::new("/dev/is-not-there")), Opening::Refused { errno: libc::ENOENT });
        assert_eq!(permitted(Path::new("/dev/null")), Opening::Permitted);
    }
}
