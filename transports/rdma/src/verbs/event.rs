//! What a device tells without being asked.

use std::mem::MaybeUninit;

use rdma_sys as sys;
use rdma_sys::ibv_event_type as of;

use super::device::Device;
use super::error::{VerbError, last_errno};

/// An asynchronous event of a device.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// A peer used a key of this end that does not hold, or no longer: the queue pair is in the error state.
    AccessError {
        /// Its number.
        queue_pair: u32,
    },
    /// A queue pair failed for another reason.
    QueuePairError {
        /// Its number.
        queue_pair: u32,
    },
    /// A completion queue overflowed or broke; its queue pairs are in error.
    CompletionQueueError,
    /// The port carries traffic again.
    PortActive {
        /// Its number, from 1.
        port: u8,
    },
    /// The port carries nothing any more.
    PortError {
        /// Its number, from 1.
        port: u8,
    },
    /// The port's GIDs, LID, keys or subnet manager have changed.
    PortChanged {
        /// Its number, from 1.
        port: u8,
    },
    /// The device is gone, or broken.
    DeviceFatal,
    /// An event about queue pairs in order, or of a kind that is not used here.
    Notice {
        /// Its number in `ibv_event_type`.
        kind: u32,
    },
}

impl Device {
    /// The next event that waits, if there is one. Never blocks.
    ///
    /// # Errors
    /// When the device has been removed.
    pub fn next_event(&self) -> Result<Option<Event>, VerbError> {
        let functions = self.0.functions();
        let mut event = MaybeUninit::<sys::ibv_async_event>::uninit();
        // SAFETY: the context is open, and the event is written when the call returns 0. The descriptor does not block.
        if unsafe { (functions.ibv_get_async_event)(self.0.context, event.as_mut_ptr()) } != 0 {
            return match last_errno() {
                libc::EAGAIN | libc::EINTR => Ok(None),
                errno => Err(self.0.failed("ibv_get_async_event", errno)),
            };
        }
        let event = event.as_mut_ptr();
        // SAFETY: the field was written. It is read as the number it is in C: a newer kernel may tell of kinds that the enum does not have.
        let kind = unsafe { (&raw const (*event).event_type).cast::<u32>().read() };
        // SAFETY: the kind says which field of the union is written.
        let told = unsafe { decode(kind, &raw const (*event).element) };
        // SAFETY: the event came from ibv_get_async_event and is acknowledged once; until then what it names is not destroyed.
        unsafe { (functions.ibv_ack_async_event)(event) };
        Ok(Some(told))
    }
}

/// # Safety
/// `element` is that of an event of this kind that is not acknowledged.
unsafe fn decode(kind: u32, element: *const sys::ibv_async_event_element_t) -> Event {
    const fn number(kind: of) -> u32 {
        kind as u32
    }
    // SAFETY: called for kinds of ports only, whose element is a port's number.
    let port = || unsafe { u8::try_from((*element).port_num).unwrap_or(0) };
    // SAFETY: called for kinds of queue pairs only; the queue pair lives until the event is acknowledged.
    let queue_pair = || unsafe { (*(*element).qp).qp_num };
    match kind {
        k if k == number(of::IBV_EVENT_QP_ACCESS_ERR) => Event::AccessError { queue_pair: queue_pair() },
        k if k == number(of::IBV_EVENT_QP_FATAL) || k == number(of::IBV_EVENT_QP_REQ_ERR) => {
            Event::QueuePairError { queue_pair: queue_pair() }
        }
        k if k == number(of::IBV_EVENT_CQ_ERR) => Event::CompletionQueueError,
        k if k == number(of::IBV_EVENT_PORT_ACTIVE) => Event::PortActive { port: port() },
        k if k == number(of::IBV_EVENT_PORT_ERR) => Event::PortError { port: port() },
        k if k == number(of::IBV_EVENT_DEVICE_FATAL) => Event::DeviceFatal,
        k if [
            of::IBV_EVENT_LID_CHANGE,
            of::IBV_EVENT_PKEY_CHANGE,
            of::IBV_EVENT_SM_CHANGE,
            of::IBV_EVENT_CLIENT_REREGISTER,
            of::IBV_EVENT_GID_CHANGE,
        ]
        .map(number)
        .contains(&k) =>
        {
            Event::PortChanged { port: port() }
        }
        kind => Event::Notice { kind },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_that_nobody_knows_are_told_by_their_number() {
        let element = sys::ibv_async_event_element_t { port_num: 2 };
        // SAFETY: the element is a port's number, and so the kinds want it.
        let decoded = |kind: u32| unsafe { decode(kind, &raw const element) };
        assert_eq!(decoded(of::IBV_EVENT_PORT_ERR as u32), Event::PortError { port: 2 });
        assert_eq!(decoded(of::IBV_EVENT_GID_CHANGE as u32), Event::PortChanged { port: 2 });
        assert_eq!(decoded(of::IBV_EVENT_DEVICE_FATAL as u32), Event::DeviceFatal);
        assert_eq!(decoded(4711), Event::Notice { kind: 4711 });
    }
}
