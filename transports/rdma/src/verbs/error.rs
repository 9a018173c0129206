//! What can go wrong, by verb: where, why, and what to do.

use std::sync::Arc;

use rustix::process::{Resource, getrlimit};

/// A verb failed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{verb} on {device}: {}{}", std::io::Error::from_raw_os_error(*errno), remedy(verb, *errno))]
pub struct VerbError {
    /// The verb, by its name in C.
    pub verb: &'static str,
    /// The device.
    pub device: Arc<str>,
    /// Its error.
    pub errno: i32,
}

impl VerbError {
    pub(super) fn new(verb: &'static str, device: &str, errno: i32) -> Self {
        Self { verb, device: device.into(), errno }
    }
}

fn remedy(verb: &str, errno: i32) -> &'static str {
    match (verb, errno) {
        ("ibv_get_device_list", libc::ENOSYS) => {
            ". The kernel has no RDMA: modprobe ib_uverbs, and the NIC's own module"
        }
        ("ibv_open_device", libc::EACCES | libc::EPERM) => {
            ". /dev/infiniband/uverbs* does not open: let this user read and write it (group rdma), and a container have the device"
        }
        ("ibv_open_device", libc::ENODEV | libc::ENOENT) => {
            ". There is no such device; `rdma link` shows those there are"
        }
        ("ibv_create_cq" | "ibv_create_qp" | "ibv_alloc_pd", libc::ENOMEM) => {
            ". The NIC has no room for another one, or the memory that may be locked is used up (ulimit -l)"
        }
        ("ibv_modify_qp", libc::ETIMEDOUT | libc::EHOSTUNREACH | libc::ENETUNREACH) => {
            ". The peer's address does not answer: check the GIDs of both ends (windlass doctor) and the network between them"
        }
        ("ibv_query_gid" | "ibv_query_port", libc::EINVAL | libc::ENODATA) => {
            ". There is no such port or GID; `windlass doctor` lists them"
        }
        _ => "",
    }
}

/// Memory was not registered.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// The limit of locked memory.
    #[error(
        "{device} cannot pin {bytes} bytes: locked memory is limited to {} (ulimit -l). Raise it: `ulimit -l unlimited`, \
         `* - memlock unlimited` in /etc/security/limits.conf, LimitMEMLOCK=infinity for a service, --ulimit memlock=-1 for a container",
        limit.map_or_else(|| "no fixed size, so memory is short".to_owned(), |b| format!("{b} bytes"))
    )]
    LockedMemory {
        /// The device.
        device: Arc<str>,
        /// What was to be registered.
        bytes: usize,
        /// `RLIMIT_MEMLOCK` in bytes; `None` when there is none.
        limit: Option<u64>,
    },
    /// The NIC has no room for another region, or the limit of one region is passed.
    #[error("{device} takes no region of {bytes} bytes: it has as many as it can, or none can be as large")]
    Full {
        /// The device.
        device: Arc<str>,
        /// What was to be registered.
        bytes: usize,
    },
    /// The NIC's driver does not import dma-bufs, or the library is too old to ask it.
    #[error(
        "{device} does not import dma-bufs (errno {errno}): its driver has no such call, or rdma-core is older than 34; memory goes by way of the host"
    )]
    NoImport {
        /// The device.
        device: Arc<str>,
        /// What it answered.
        errno: i32,
    },
    /// The exporter has taken the dma-buf's memory away for good.
    #[error("the dma-buf was revoked by its exporter before {device} registered it: export the memory anew")]
    Revoked {
        /// The device.
        device: Arc<str>,
    },
    /// The descriptor is open, and no dma-buf.
    #[error("descriptor {descriptor} is no dma-buf, or is closed: {device} cannot register it")]
    NoDmaBuf {
        /// The device.
        device: Arc<str>,
        /// The descriptor.
        descriptor: i32,
    },
    /// The range does not lie in the memory, or cannot be described to the NIC.
    #[error(
        "{device} refuses the range of {bytes} bytes at offset {offset}: it must lie in the memory, and a dma-buf's offset and the address it is given must have the same place in their pages"
    )]
    Range {
        /// The device.
        device: Arc<str>,
        /// Where it begins.
        offset: u64,
        /// Its length.
        bytes: usize,
    },
    /// The memory or its exporter forbids it.
    #[error(
        "{device} may not reach this memory (errno {errno}): it is mapped read only, or the exporter permits no peer-to-peer access by this NIC"
    )]
    Forbidden {
        /// The device.
        device: Arc<str>,
        /// `EPERM` or `EACCES`.
        errno: i32,
    },
    /// The memory is not mapped where it should be.
    #[error("{bytes} bytes to be registered with {device} are not mapped in this process")]
    Unmapped {
        /// The device.
        device: Arc<str>,
        /// What was to be registered.
        bytes: usize,
    },
    /// Another error of the verb.
    #[error(transparent)]
    Verb(VerbError),
}

/// What is registered, as far as errors depend on it.
pub(super) enum Subject {
    Host { bytes: usize },
    DmaBuf { descriptor: i32, offset: u64, bytes: usize },
}

impl RegisterError {
    pub(super) fn new(subject: &Subject, device: &Arc<str>, errno: i32) -> Self {
        let device = Arc::clone(device);
        let (verb, bytes) = match *subject {
            Subject::Host { bytes } => ("ibv_reg_mr", bytes),
            Subject::DmaBuf { bytes, .. } => ("ibv_reg_dmabuf_mr", bytes),
        };
        match (subject, errno) {
            // The kernel's answer both to the limit and to a lack of memory.
            (Subject::Host { .. }, libc::ENOMEM | libc::EAGAIN) => {
                Self::LockedMemory { device, bytes, limit: getrlimit(Resource::Memlock).current }
            }
            (Subject::DmaBuf { .. }, libc::EOPNOTSUPP | libc::EPROTONOSUPPORT | libc::ENOSYS) => {
                Self::NoImport { device, errno }
            }
            (Subject::DmaBuf { .. }, libc::ENODEV) => Self::Revoked { device },
            (Subject::DmaBuf { descriptor, .. }, libc::EBADF) => {
                Self::NoDmaBuf { device, descriptor: *descriptor }
            }
            (Subject::DmaBuf { offset, .. }, libc::EINVAL | libc::ERANGE | libc::EOVERFLOW) => {
                Self::Range { device, offset: *offset, bytes }
            }
            (_, libc::EPERM | libc::EACCES) => Self::Forbidden { device, errno },
            (Subject::Host { .. }, libc::EFAULT) => Self::Unmapped { device, bytes },
            (_, libc::ENOSPC | libc::ENOMEM) => Self::Full { device, bytes },
            _ => Self::Verb(VerbError { verb, device, errno }),
        }
    }
}

/// Work was not posted.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{cause}, after {posted} of the work requests were posted")]
pub struct PostError {
    /// How many of the requests are posted; the first that is not, and all after it, are not.
    pub posted: usize,
    /// Why.
    pub cause: VerbError,
}

impl PostError {
    /// The queue has no room: poll completions first.
    pub fn is_full(&self) -> bool {
        self.cause.errno == libc::ENOMEM
    }
}

pub(super) fn last_errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registration_errors_name_the_culprit_and_the_remedy() {
        let device: Arc<str> = "mlx5_0".into();
        let host = |errno| RegisterError::new(&Subject::Host { bytes: 4096 }, &device, errno).to_string();
        let buffer = |errno| {
            RegisterError::new(&Subject::DmaBuf { descriptor: 7, offset: 12, bytes: 4096 }, &device, errno)
        };
        assert!(
            host(libc::ENOMEM).contains("ulimit -l") && host(libc::ENOMEM).contains("4096"),
            "{}",
            host(libc::ENOMEM)
        );
        assert!(host(libc::EFAULT).contains("not mapped"));
        assert!(host(libc::EIO).starts_with("ibv_reg_mr on mlx5_0: "));
        assert_eq!(buffer(libc::ENODEV), RegisterError::Revoked { device: device.clone() });
        assert_eq!(
            buffer(libc::EOPNOTSUPP),
            RegisterError::NoImport { device: device.clone(), errno: libc::EOPNOTSUPP }
        );
        assert_eq!(
            buffer(libc::EPROTONOSUPPORT),
            RegisterError::NoImport { device: device.clone(), errno: libc::EPROTONOSUPPORT }
        );
        assert_eq!(buffer(libc::EBADF), RegisterError::NoDmaBuf { device: device.clone(), descriptor: 7 });
        assert!(buffer(libc::EINVAL).to_string().contains("offset 12"));
        assert!(buffer(libc::EPERM).to_string().contains("peer-to-peer"));
        for errno in [libc::ENOMEM, libc::EFAULT, libc::EPERM, libc::EIO] {
            assert!(host(errno).contains("mlx5_0"), "{}", host(errno));
        }
    }

    #[test]
    fn verbs_that_fail_say_where_and_what_to_do() {
        let error = VerbError::new("ibv_open_device", "rxe0_0", libc::EACCES).to_string();
        assert!(error.contains("rxe0_0") && error.contains("/dev/infiniband"), "{error}");
        let error = VerbError::new("ibv_get_device_list", "this host", libc::ENOSYS).to_string();
        assert!(error.contains("modprobe ib_uverbs"), "{error}");
        let full = PostError { posted: 3, cause: VerbError::new("ibv_post_send", "rxe0_0", libc::ENOMEM) };
        assert!(full.is_full() && full.to_string().contains("after 3"), "{full}");
    }
}
