//! Memory for messages that arrive before their receive, and for what leaves from a copy, kept for reuse.

use std::sync::Arc;

use crate::reach::Register;

const SMALLEST: usize = 256;

/// Free buffers by powers of two.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    free: Vec<Vec<Vec<u8>>>,
    kept: usize,
    /// Knows foreign memory.
    pub(super) register: Option<Arc<dyn Register>>,
}

/// Free memory that is kept for reuse; what comes back beyond it returns to the allocator.
const KEEP: usize = 1 << 20;

impl Buffers {
    /// A buffer of at least `bytes` bytes, or of none if none are asked for.
    pub(super) fn take(&mut self, bytes: usize) -> Vec<u8> {
        if bytes == 0 {
            return Vec::new();
        }
        let class = Self::class(bytes);
        match self.free.get_mut(class).and_then(Vec::pop) {
            Some(buffer) => {
                self.kept -= buffer.len();
                buffer
            }
            None => vec![0; SMALLEST << class],
        }
    }

    /// Takes a buffer back.
    pub(super) fn put(&mut self, buffer: Vec<u8>) {
        if buffer.is_empty() || self.kept + buffer.len() > KEEP {
            return;
        }
        let class = Self::class(buffer.len());
        if self.free.len() <= class {
            self.free.resize_with(class + 1, Vec::new);
        }
        self.kept += buffer.len();
        self.free[class].push(buffer);
    }

    /// Whether the processor does not touch this memory.
    pub(super) fn is_foreign(&self, memory: *const u8) -> bool {
        self.register.as_ref().is_some_and(|register| register.is_foreign(memory))
    }

    /// Whether foreign memory is neither on its way to another place nor lost.
    pub(super) fn is_here(&self, memory: *const u8) -> bool {
        self.register.as_ref().is_some_and(|register| register.is_here(memory))
    }

    /// A copy of a send's payload; none while that is on its way to another place, or lost.
    ///
    /// # Safety
    /// `payload` is foreign, or valid for reads of so many bytes.
    pub(super) unsafe fn copy_of(&mut self, payload: *const u8, bytes: usize) -> Option<Vec<u8>> {
        let mut copy = self.take(bytes);
        // SAFETY: the caller's promise.
        if unsafe { self.read(payload, &mut copy[..bytes]) } {
            return Some(copy);
        }
        self.put(copy);
        None
    }

    /// Copies a send's payload. False while that is on its way to another place, or lost.
    ///
    /// # Safety
    /// `payload` is foreign, or valid for reads of as many bytes as `to` has.
    pub(super) unsafe fn read(&self, payload: *const u8, to: &mut [u8]) -> bool {
        match &self.register {
            Some(register) if register.is_foreign(payload) => register.load(payload, to),
            _ => {
                // SAFETY: the caller's promise; `to` is not the poster's.
                unsafe { std::ptr::copy_nonoverlapping(payload, to.as_mut_ptr(), to.len()) };
                true
            }
        }
    }

    /// Puts bytes that have come where their receive wants them.
    ///
    /// # Safety
    /// `memory` is foreign, or valid for writes of as many bytes.
    pub(super) unsafe fn put_into(&self, memory: *mut u8, bytes: &[u8]) {
        match &self.register {
            Some(register) if register.is_foreign(memory) => register.store(memory, bytes),
            // SAFETY: the caller's promise; the bytes are foreign to the receive's memory, so they do not overlap.
            _ => unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), memory, bytes.len()) },
        }
    }

    fn class(bytes: usize) -> usize {
        bytes.div_ceil(SMALLEST).next_power_of_two().trailing_zeros() as usize
    }
}
