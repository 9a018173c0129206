//! Memory for messages that arrive before their receive, kept for reuse.

const SMALLEST: usize = 256;

/// Free buffers by powers of two.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    free: Vec<Vec<Vec<u8>>>,
    kept: usize,
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

    fn class(bytes: usize) -> usize {
        bytes.div_ceil(SMALLEST).next_power_of_two().trailing_zeros() as usize
    }
}
