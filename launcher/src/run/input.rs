//! Rank 0's standard input.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::io::{Errno, retry_on_intr};
use rustix::pipe::{PipeFlags, pipe_with};

use super::readiness::wait_ready;

/// How often a launcher in the background looks whether it has been brought to the foreground.
const BACKGROUND_POLL: Duration = Duration::from_millis(200);

/// The descriptor that rank 0 gets. A file or pipe is handed over as it is, so that what rank 0 leaves unread stays
/// for the next program. A terminal is read here instead: the kernel stops a process that reads its terminal from
/// another process group than the foreground's, and the ranks have their own.
pub(crate) fn for_rank_0() -> Result<OwnedFd, Errno> {
    let stdin = rustix::stdio::stdin();
    if !rustix::termios::isatty(stdin) {
        return rustix::io::fcntl_dupfd_cloexec(stdin, 3);
    }
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    // Detached: it may wait for a key when the job ends.
    std::thread::spawn(move || pass_on(&write));
    Ok(read)
}

/// Until the terminal's end of input, or until rank 0 is gone.
fn pass_on(pipe: &OwnedFd) {
    let stdin = rustix::stdio::stdin();
    let mut buffer = [0_u8; 4096];
    loop {
        let mut fds = [PollFd::new(&stdin, PollFlags::IN)];
        if wait_ready(&mut fds, None).is_err() {
            return;
        }
        // A read from the background would stop the whole launcher.
        if rustix::termios::tcgetpgrp(stdin).is_ok_and(|foreground| foreground != rustix::process::getpgrp())
        {
            std::thread::sleep(BACKGROUND_POLL);
            continue;
        }
        match retry_on_intr(|| rustix::io::read(stdin, &mut buffer)) {
            Ok(0) | Err(_) => return,
            Ok(count) => {
                let mut bytes = &buffer[..count];
                while !bytes.is_empty() {
                    match retry_on_intr(|| rustix::io::write(pipe.as_fd(), bytes)) {
                        Ok(written) => bytes = &bytes[written..],
                        Err(_) => return,
                    }
                }
            }
        }
    }
}
