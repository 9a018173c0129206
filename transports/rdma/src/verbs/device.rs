//! A device, opened, with its protection domain.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use rdma_sys as sys;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::error::{VerbError, last_errno};
use super::library::{Functions, Verbs};

/// What all that is made of the device keeps alive.
pub(super) struct Opened {
    pub(super) verbs: Verbs,
    pub(super) name: Arc<str>,
    pub(super) context: *mut sys::ibv_context,
    pub(super) domain: *mut sys::ibv_pd,
}

// SAFETY: the verbs may be called from any thread with the same context and protection domain (ibv_open_device(3): libibverbs is thread-safe).
unsafe impl Send for Opened {}
// SAFETY: as above.
unsafe impl Sync for Opened {}

impl Drop for Opened {
    fn drop(&mut self) {
        // SAFETY: the domain came from ibv_alloc_pd of this context; whatever was made of it held an Arc of this, and is gone.
        unsafe { (self.functions().ibv_dealloc_pd)(self.domain) };
        // SAFETY: the context came from ibv_open_device, and nothing of it is left.
        unsafe { (self.functions().ibv_close_device)(self.context) };
    }
}

impl Opened {
    pub(super) fn functions(&self) -> &Functions {
        self.verbs.functions()
    }

    pub(super) fn failed(&self, verb: &'static str, errno: i32) -> VerbError {
        VerbError { verb, device: Arc::clone(&self.name), errno }
    }

    /// The result of a verb that returns 0 or an error number.
    pub(super) fn checked(&self, verb: &'static str, code: i32) -> Result<(), VerbError> {
        match code {
            0 => Ok(()),
            // Some old providers answer -1 and set errno.
            -1 => Err(self.failed(verb, last_errno())),
            errno => Err(self.failed(verb, errno.abs())),
        }
    }
}

/// An open device with one protection domain. A clone is the same one.
#[derive(Clone)]
pub struct Device(pub(super) Arc<Opened>);

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Device").field(&self.0.name).finish()
    }
}

impl Device {
    /// Opens the device of this name.
    ///
    /// # Errors
    /// `ENODEV` when there is none; `EACCES` when its node does not open.
    pub fn open(verbs: &Verbs, name: &str) -> Result<Self, VerbError> {
        let functions = verbs.functions();
        let opened = verbs.each_device(|listed, device| {
            (listed == name).then(|| {
                // SAFETY: the device is of the list that each_device holds.
                let context = unsafe { (functions.ibv_open_device)(device) };
                (context, last_errno())
            })
        })?;
        let failed = |verb, errno| VerbError::new(verb, name, errno);
        let (context, errno) = opened.ok_or_else(|| failed("ibv_open_device", libc::ENODEV))?;
        if context.is_null() {
            return Err(failed("ibv_open_device", if errno == 0 { libc::EIO } else { errno }));
        }
        // SAFETY: the context was just opened.
        let domain = unsafe { (functions.ibv_alloc_pd)(context) };
        if domain.is_null() {
            let error = failed("ibv_alloc_pd", last_errno());
            // SAFETY: the context was just opened, and nothing is made of it.
            unsafe { (functions.ibv_close_device)(context) };
            return Err(error);
        }
        let device = Self(Arc::new(Opened { verbs: verbs.clone(), name: name.into(), context, domain }));
        set_non_blocking(device.event_descriptor()).map_err(|errno| failed("fcntl", errno))?;
        Ok(device)
    }

    /// Its name: `mlx5_0`.
    pub fn name(&self) -> &Arc<str> {
        &self.0.name
    }

    /// The library it was opened by.
    pub fn verbs(&self) -> &Verbs {
        &self.0.verbs
    }

    /// Whether no hardware is behind it: soft-RoCE and soft-iWARP have no parent device.
    pub fn is_software(&self) -> bool {
        !std::path::Path::new("/sys/class/infiniband").join(&*self.0.name).join("device").exists()
    }

    /// How many entries a completion queue, and how many work requests a queue pair can have.
    ///
    /// # Errors
    /// When the device does not answer: it has been removed.
    pub fn most(&self) -> Result<(u32, u32), VerbError> {
        let attributes = self.query()?;
        let count = |n: i32| u32::try_from(n).unwrap_or(0);
        Ok((count(attributes.max_cqe), count(attributes.max_qp_wr)))
    }

    pub(super) fn query(&self) -> Result<sys::ibv_device_attr, VerbError> {
        // SAFETY: the structure is plain numbers, for which zero is a value.
        let mut attributes: sys::ibv_device_attr = unsafe { std::mem::zeroed() };
        // SAFETY: the context is open as long as `self`, and the structure is written before the call returns.
        let code = unsafe { (self.0.functions().ibv_query_device)(self.0.context, &raw mut attributes) };
        self.0.checked("ibv_query_device", code)?;
        Ok(attributes)
    }

    /// Readable when [`next_event`](Self::next_event) has one.
    pub fn event_descriptor(&self) -> BorrowedFd<'_> {
        // SAFETY: the context is open as long as `self`, and with it its descriptor.
        unsafe { BorrowedFd::borrow_raw((*self.0.context).async_fd) }
    }
}

/// So that asking for an event never waits.
pub(super) fn set_non_blocking(descriptor: BorrowedFd<'_>) -> Result<(), i32> {
    let flags = fcntl_getfl(descriptor).map_err(rustix::io::Errno::raw_os_error)?;
    fcntl_setfl(descriptor, flags | OFlags::NONBLOCK).map_err(rustix::io::Errno::raw_os_error)
}
