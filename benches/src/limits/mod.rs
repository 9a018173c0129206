//! What the hardware allows for an all-reduce (sum of f32) between processes of one machine.
//!
//! Every limit is a struct with a `run` that is *one operation*, so that the caller's own loop times it in the
//! same way as it times windlass. All ranks run the same limits on the same [`Arena`] in the same order.
//! There is no runtime here, hence no deadline: a rank that dies leaves the others spinning, and whoever
//! started them must end them.

mod arena;
mod direct;
mod heap;
mod sum;
mod tcp;

#[cfg(test)]
mod tests;

pub use arena::{Arena, ArenaError, MAX_RANKS, PROBE_NEAR_NS, Shape, Wait, cpus, pin, probe_near_far};
pub use direct::{Direct, LINE_BYTES, PUBLISH_BYTES, STREAM_BYTES, Way};
pub use heap::{CHUNK_BYTES, Heap, HeapWay};
pub use sum::Width;
pub use tcp::{Tcp, tcp_pair};

/// Constructors of the limits, by name.
#[derive(Clone, Copy, Debug)]
pub enum Limit {}

impl Limit {
    /// Buffers that all ranks map: see [`Direct`].
    pub fn direct(arena: Arena, rank: usize) -> Direct {
        Direct::new(arena, rank)
    }

    /// Private buffers, staged: see [`Heap`].
    pub fn heap(arena: Arena, rank: usize) -> Heap {
        Heap::new(arena, rank)
    }

    /// A raw exchange over a connected stream: see [`Tcp`].
    ///
    /// # Errors
    /// When the stream refuses `TCP_NODELAY` or non-blocking mode.
    pub fn tcp(stream: std::net::TcpStream) -> std::io::Result<Tcp> {
        Tcp::new(stream)
    }
}
