//! The limit of loopback TCP between two processes.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};

use super::Width;

/// Bytes handed to the kernel at once: large enough that its cost per call does not count, small enough that
/// what arrives meanwhile is fetched while it is in the cache.
const PIECE: usize = 256 << 10;

/// A connected pair over the loopback interface, one end for each rank.
///
/// # Errors
/// When the loopback interface cannot be used.
pub fn tcp_pair() -> Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let ours = TcpStream::connect(listener.local_addr()?)?;
    loop {
        let (theirs, from) = listener.accept()?;
        // Somebody else on this machine may connect to the port first.
        if from == ours.local_addr()? {
            return Ok((ours, theirs));
        }
    }
}

/// Both directions at once over one stream, spinning.
#[derive(Debug)]
pub struct Tcp {
    stream: TcpStream,
    width: Width,
    arrived: Vec<f32>,
}

impl Tcp {
    /// This end.
    ///
    /// # Errors
    /// When the stream refuses `TCP_NODELAY` or non-blocking mode.
    pub fn new(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream, width: Width::detect(), arrived: Vec::new() })
    }

    /// One operation without arithmetic: sends `values` and receives as many bytes.
    ///
    /// # Errors
    /// When the connection breaks.
    pub fn exchange(&mut self, values: &[f32]) -> Result<()> {
        self.arrived.resize(values.len().max(self.arrived.len()), 0.0);
        self.transfer(values.as_ptr(), values.len(), false)
    }

    /// One operation: sends `values`, and adds what arrives to them, in place.
    ///
    /// # Errors
    /// When the connection breaks.
    pub fn run(&mut self, values: &mut [f32]) -> Result<()> {
        self.arrived.resize(values.len().max(self.arrived.len()), 0.0);
        self.transfer(values.as_mut_ptr(), values.len(), true)
    }

    /// Sums behind both directions: a float is overwritten only when it has been sent.
    ///
    /// `values` points to `count` floats; they may be written if `add` is set.
    fn transfer(&mut self, values: *const f32, count: usize, add: bool) -> Result<()> {
        let bytes = count * size_of::<f32>();
        let (mut sent, mut received, mut summed) = (0, 0, 0);
        while sent < bytes || received < bytes {
            let before = sent + received;
            if sent < bytes {
                let length = PIECE.min(bytes - sent);
                // SAFETY: the bytes lie in the `count` floats, and every pattern of bits is a byte. They are
                // not written while this slice lives.
                let piece = unsafe { core::slice::from_raw_parts(values.cast::<u8>().add(sent), length) };
                sent += progress((&self.stream).write(piece))?;
            }
            if received < bytes {
                let length = PIECE.min(bytes - received);
                let to = self.arrived.as_mut_ptr().cast::<u8>();
                // SAFETY: `arrived` holds at least `count` floats; every pattern of bits is a float.
                let piece = unsafe { core::slice::from_raw_parts_mut(to.add(received), length) };
                received += progress((&self.stream).read(piece))?;
            }
            let both = sent.min(received) / size_of::<f32>();
            if add && both > summed {
                // SAFETY: `run` passed a mutable slice as `values`; both ranges lie within `count` floats,
                // are complete, and are no longer sent nor received into.
                unsafe { self.add(values.cast_mut(), summed, both) };
                summed = both;
            }
            if sent + received == before {
                core::hint::spin_loop();
            }
        }
        Ok(())
    }

    /// # Safety
    /// `values` and `arrived` hold `to` floats, and nobody else uses those of `values` from `from` on.
    unsafe fn add(&self, values: *mut f32, from: usize, to: usize) {
        // SAFETY: as the caller promises.
        unsafe {
            let own = values.add(from);
            let arrived = self.arrived.as_ptr().add(from);
            self.width.sum(&[own.cast_const(), arrived], &[own], to - from, false);
        }
    }
}

/// How far a non-blocking call got. The end of the stream is an error here: the other rank is gone.
fn progress(outcome: Result<usize>) -> Result<usize> {
    match outcome {
        Ok(0) => Err(Error::from(ErrorKind::UnexpectedEof)),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(0),
        other => other,
    }
}
