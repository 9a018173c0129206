//! libibverbs itself: found at run time, its functions resolved once.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::fmt;
use std::sync::Arc;

use libloading::Library;
use rdma_sys as sys;

use super::error::{VerbError, last_errno};

/// The file's name that every distribution ships.
const LIBRARY: &str = "libibverbs.so.1";

/// Why the verbs cannot be used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Absent {
    /// The library is not there, or does not load.
    #[error(
        "{LIBRARY} cannot be loaded: {reason}. Install rdma-core: apt-get install libibverbs1 ibverbs-providers, or dnf install libibverbs"
    )]
    Library {
        /// The loader's words.
        reason: Arc<str>,
    },
    /// It lacks a function that every release since 2018 has.
    #[error(
        "{LIBRARY} has no {symbol}: it is older than rdma-core 17, or no libibverbs; install rdma-core anew"
    )]
    Symbol {
        /// The function's name.
        symbol: &'static str,
    },
}

/// What libibverbs says of forked children and registered memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ForkSafety {
    /// The kernel copies pinned pages at the fork (5.12 and later): nothing is needed.
    Kernel,
    /// The library keeps registered memory away from children (`ibv_fork_init`).
    Library,
    /// A child that writes, or a parent that does, may take registered pages away from the NIC.
    None,
    /// The library is too old to say (before rdma-core 35).
    Unknown,
}

macro_rules! functions {
    (required {$($name:ident: fn($($argument:ty),*) $(-> $result:ty)?;)*} optional {$($other:ident: fn($($extra:ty),*) $(-> $returns:ty)?;)*}) => {
        /// The functions that are called, by their names in C.
        #[derive(Clone, Copy)]
        pub(super) struct Functions {
            $(pub(super) $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
            $(pub(super) $other: Option<unsafe extern "C" fn($($extra),*) $(-> $returns)?>,)*
        }

        impl Functions {
            fn resolve(library: &Library) -> Result<Self, Absent> {
                Ok(Self {
                    // SAFETY: the types are those of infiniband/verbs.h, whose ABI the library's file name (.so.1) stands for.
                    $($name: unsafe { library.get(concat!(stringify!($name), "\0").as_bytes()) }
                        .map(|symbol| *symbol)
                        .map_err(|_| Absent::Symbol { symbol: stringify!($name) })?,)*
                    // SAFETY: as above.
                    $($other: unsafe { library.get(concat!(stringify!($other), "\0").as_bytes()) }.map(|symbol| *symbol).ok(),)*
                })
            }
        }
    };
}

functions! {
    required {
        ibv_get_device_list: fn(*mut c_int) -> *mut *mut sys::ibv_device;
        ibv_free_device_list: fn(*mut *mut sys::ibv_device);
        ibv_get_device_name: fn(*mut sys::ibv_device) -> *const c_char;
        ibv_open_device: fn(*mut sys::ibv_device) -> *mut sys::ibv_context;
        ibv_close_device: fn(*mut sys::ibv_context) -> c_int;
        ibv_query_device: fn(*mut sys::ibv_context, *mut sys::ibv_device_attr) -> c_int;
        ibv_query_port: fn(*mut sys::ibv_context, u8, *mut sys::_compat_ibv_port_attr) -> c_int;
        ibv_query_gid: fn(*mut sys::ibv_context, u8, c_int, *mut sys::ibv_gid) -> c_int;
        ibv_alloc_pd: fn(*mut sys::ibv_context) -> *mut sys::ibv_pd;
        ibv_dealloc_pd: fn(*mut sys::ibv_pd) -> c_int;
        ibv_reg_mr: fn(*mut sys::ibv_pd, *mut c_void, usize, c_int) -> *mut sys::ibv_mr;
        ibv_dereg_mr: fn(*mut sys::ibv_mr) -> c_int;
        ibv_create_comp_channel: fn(*mut sys::ibv_context) -> *mut sys::ibv_comp_channel;
        ibv_destroy_comp_channel: fn(*mut sys::ibv_comp_channel) -> c_int;
        ibv_create_cq: fn(*mut sys::ibv_context, c_int, *mut c_void, *mut sys::ibv_comp_channel, c_int) -> *mut sys::ibv_cq;
        ibv_destroy_cq: fn(*mut sys::ibv_cq) -> c_int;
        ibv_get_cq_event: fn(*mut sys::ibv_comp_channel, *mut *mut sys::ibv_cq, *mut *mut c_void) -> c_int;
        ibv_ack_cq_events: fn(*mut sys::ibv_cq, u32);
        ibv_create_qp: fn(*mut sys::ibv_pd, *mut sys::ibv_qp_init_attr) -> *mut sys::ibv_qp;
        ibv_modify_qp: fn(*mut sys::ibv_qp, *mut sys::ibv_qp_attr, c_int) -> c_int;
        ibv_query_qp: fn(*mut sys::ibv_qp, *mut sys::ibv_qp_attr, c_int, *mut sys::ibv_qp_init_attr) -> c_int;
        ibv_destroy_qp: fn(*mut sys::ibv_qp) -> c_int;
        ibv_get_async_event: fn(*mut sys::ibv_context, *mut sys::ibv_async_event) -> c_int;
        ibv_ack_async_event: fn(*mut sys::ibv_async_event);
    }
    optional {
        ibv_reg_dmabuf_mr: fn(*mut sys::ibv_pd, u64, usize, u64, c_int, c_int) -> *mut sys::ibv_mr;
        ibv_is_fork_initialized: fn() -> sys::ibv_fork_status;
    }
}

struct Inner {
    functions: Functions,
    /// The functions lie in it.
    _library: Library,
}

/// libibverbs, loaded. A clone is the same one.
#[derive(Clone)]
pub struct Verbs(Arc<Inner>);

impl fmt::Debug for Verbs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verbs").field("imports_dmabufs", &self.has_dmabuf()).finish_non_exhaustive()
    }
}

impl Verbs {
    /// Loads libibverbs and resolves what is called of it.
    pub fn load() -> Result<Self, Absent> {
        Self::load_from(LIBRARY)
    }

    fn load_from(name: &str) -> Result<Self, Absent> {
        // SAFETY: the library's initialisers are those of rdma-core, which do no more than set up its own data.
        let library = unsafe { Library::new(name) };
        // The loader's own words are the source.
        let library = library.map_err(|error| {
            let reason = std::error::Error::source(&error).unwrap_or(&error).to_string();
            Absent::Library { reason: reason.into() }
        })?;
        let functions = Functions::resolve(&library)?;
        Ok(Self(Arc::new(Inner { functions, _library: library })))
    }

    pub(super) fn functions(&self) -> &Functions {
        &self.0.functions
    }

    /// Whether the library knows `ibv_reg_dmabuf_mr` (rdma-core 34 and later). Whether a NIC does, [`Device::dmabuf_support`](super::Device::dmabuf_support) says.
    pub fn has_dmabuf(&self) -> bool {
        self.functions().ibv_reg_dmabuf_mr.is_some()
    }

    /// What becomes of registered memory at a fork.
    pub fn fork_safety(&self) -> ForkSafety {
        let Some(is_initialized) = self.functions().ibv_is_fork_initialized else {
            return ForkSafety::Unknown;
        };
        // SAFETY: it takes nothing and reads the library's own state.
        match unsafe { is_initialized() } {
            sys::IBV_FORK_UNNEEDED => ForkSafety::Kernel,
            sys::IBV_FORK_ENABLED => ForkSafety::Library,
            _ => ForkSafety::None,
        }
    }

    /// The names of the host's RDMA devices that the library has a provider for, in the kernel's order.
    ///
    /// # Errors
    /// `ENOSYS` when the kernel has no RDMA (no module `ib_uverbs`).
    pub fn devices(&self) -> Result<Vec<Arc<str>>, VerbError> {
        let mut names = Vec::new();
        self.each_device(|name, _| {
            names.push(Arc::from(name));
            None::<()>
        })?;
        Ok(names)
    }

    /// Shows each device, as long as the list of them lives, until `visit` has found what it looks for.
    pub(super) fn each_device<T>(
        &self,
        mut visit: impl FnMut(&str, *mut sys::ibv_device) -> Option<T>,
    ) -> Result<Option<T>, VerbError> {
        let functions = self.functions();
        let mut count = 0;
        // SAFETY: `count` is written before the call returns, and the list is freed below.
        let list = unsafe { (functions.ibv_get_device_list)(&raw mut count) };
        if list.is_null() {
            return Err(VerbError::new("ibv_get_device_list", "this host", last_errno()));
        }
        let mut found = None;
        for i in 0..usize::try_from(count).unwrap_or(0) {
            // SAFETY: the list has `count` entries, each a device that lives as long as the list.
            let device = unsafe { *list.add(i) };
            // SAFETY: the device lives, and its name ends with a zero.
            let name = unsafe { CStr::from_ptr((functions.ibv_get_device_name)(device)) };
            found = visit(&name.to_string_lossy(), device);
            if found.is_some() {
                break;
            }
        }
        // SAFETY: the list came from ibv_get_device_list and is not used any more; a device that was opened outlives it.
        unsafe { (functions.ibv_free_device_list)(list) };
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_the_remedy() {
        let error = Verbs::load_from("libibverbs-that-is-not-there.so.1").unwrap_err();
        assert!(matches!(error, Absent::Library { .. }));
        let text = error.to_string();
        assert!(text.contains("libibverbs-that-is-not-there") && text.contains("apt-get install"), "{text}");
        // A library that loads and is another one.
        let error = Verbs::load_from("libc.so.6").unwrap_err();
        assert_eq!(error, Absent::Symbol { symbol: "ibv_get_device_list" });
        assert!(error.to_string().contains("rdma-core"), "{error}");
    }
}
