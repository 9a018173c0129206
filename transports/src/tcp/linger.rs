//! What has left this rank and has not come to the peer's machine would be thrown away with the socket, as soon as anything that the peer has sent is
//! unread.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::ioctl::{Getter, Opcode, ioctl};

/// How often the sockets are looked at.
const LOOK: Duration = Duration::from_millis(1);

/// `SIOCOUTQ`, which is `TIOCOUTQ`: tcp(7).
const UNACKNOWLEDGED: Opcode = 0x5411;

/// Waits until the peers' machines have acknowledged what these sockets have sent, or the connection has ended, but no longer than `time`.
pub(super) fn linger<'a>(sockets: impl Iterator<Item = BorrowedFd<'a>>, time: Duration) {
    let begin = Instant::now();
    let mut waiting: Vec<_> = sockets.collect();
    loop {
        waiting.retain(|socket| is_under_way(*socket));
        if waiting.is_empty() || begin.elapsed() >= time {
            return;
        }
        std::thread::sleep(LOOK);
    }
}

fn is_under_way(socket: BorrowedFd<'_>) -> bool {
    // SAFETY: this request of a TCP socket stores one int: the bytes that are not acknowledged.
    let bytes = unsafe { ioctl(socket, Getter::<UNACKNOWLEDGED, rustix::ffi::c_int>::new()) };
    bytes.is_ok_and(|bytes| bytes > 0) && !has_ended(socket)
}

/// Whether the peer has closed, so that nobody will read.
fn has_ended(socket: BorrowedFd<'_>) -> bool {
    let mut asked = [PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::RDHUP)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let ended = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
    poll(&mut asked, Some(&now)).is_err() || asked[0].revents().intersects(ended)
}
