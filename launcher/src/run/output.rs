//! The ranks' output: whole lines, each with its rank's tag, onto the launcher's own output.
//!
//! One thread serves standard output and one standard error. A thread reads from the ranks only when what it has
//! read before is written, so a slow consumer slows the ranks and nothing is lost or piles up. A line is kept back
//! until it is whole; one longer than [`LINE_BYTES`] is passed through as it comes, and its rank owns the output until
//! the line ends, so that it stays in one piece. An owner that falls silent for [`OWNER_PATIENCE`] has its line
//! broken: it might wait for a rank whose output waits for it.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::io::{Errno, retry_on_intr};

use super::readiness::wait_ready;

const LINE_BYTES: usize = 64 * 1024;
const READ_BYTES: usize = 64 * 1024;
const OWNER_PATIENCE: Duration = Duration::from_secs(1);
const TAIL_LINES: usize = 10;
const TAIL_LINE_BYTES: usize = 400;

/// How lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// As the rank wrote them.
    Plain,
    /// `[rank] line`.
    Tag,
    /// The same, the tag in a colour of its rank.
    ColourTag,
}

/// What became of the launcher's own output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SinkState {
    /// Everything was written.
    Open,
    /// The reader has gone (EPIPE).
    Closed,
    /// A write failed.
    Failed(Errno),
}

/// What a thread leaves behind.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// What became of the output.
    pub(crate) sink: SinkState,
    /// The last lines of each rank.
    pub(crate) tails: Vec<Vec<String>>,
}

/// Keeps lines of two threads apart where both write to the same terminal or file.
pub(crate) type WriteLock = Arc<Mutex<()>>;

#[derive(Debug)]
struct Stream {
    pipe: Option<OwnedFd>,
    tag: Vec<u8>,
    /// The start of a line that is not whole yet.
    partial: Vec<u8>,
    tail: VecDeque<Vec<u8>>,
}

/// The streams of all ranks that go to one sink.
#[derive(Debug)]
pub(crate) struct Lines<S> {
    streams: Vec<Stream>,
    sink: S,
    state: SinkState,
    lock: WriteLock,
    owner: Option<usize>,
    /// What is to be written next: whole lines, but for an owner's.
    pending: Vec<u8>,
}

impl<S: AsFd> Lines<S> {
    /// `pipes` holds the read end of each rank's output, in rank order.
    pub(crate) fn new(pipes: Vec<OwnedFd>, sink: S, style: Style, lock: WriteLock) -> Result<Self, Errno> {
        let mut streams = Vec::with_capacity(pipes.len());
        for (rank, pipe) in pipes.into_iter().enumerate() {
            // Only this end: the flag belongs to the pipe's end, so the rank's own writes still block.
            rustix::io::ioctl_fionbio(&pipe, true)?;
            streams.push(Stream {
                pipe: Some(pipe),
                tag: tag(rank, style),
                partial: Vec::new(),
                tail: VecDeque::new(),
            });
        }
        Ok(Self { streams, sink, state: SinkState::Open, lock, owner: None, pending: Vec::new() })
    }

    /// Passes lines on until every stream has ended, or until `finish` hangs up and all that was written is passed
    /// on. `lost` is called once when the sink takes no more; the streams are then read and dropped.
    pub(crate) fn run(mut self, finish: BorrowedFd<'_>, lost: &dyn Fn()) -> Result<Outcome, Errno> {
        let lock = Arc::clone(&self.lock);
        let mut held: Option<MutexGuard<'_, ()>> = None;
        let mut buffer = vec![0_u8; READ_BYTES];
        loop {
            let (ready, finishing) = self.wait(finish)?;
            let mut progress = false;
            for stream in ready {
                progress |= self.read(stream, &mut buffer)?;
                if self.owner.is_some() {
                    break;
                }
            }
            if self.owner.is_some() && !progress {
                self.break_line();
            }
            let done = self.streams.iter().all(|stream| stream.pipe.is_none());
            let drained = finishing && !progress && self.owner.is_none();
            if drained {
                (0..self.streams.len()).for_each(|stream| self.end_stream(stream));
            }
            if held.is_none() && !self.pending.is_empty() {
                held = Some(lock.lock().unwrap_or_else(PoisonError::into_inner));
            }
            self.write(lost);
            if self.owner.is_none() {
                held = None;
            }
            if done || drained {
                break;
            }
        }
        let tails = self.streams.iter().map(Stream::tail_text).collect();
        Ok(Outcome { sink: self.state, tails })
    }

    /// The streams to read now, and whether `finish` has hung up.
    fn wait(&self, finish: BorrowedFd<'_>) -> Result<(Vec<usize>, bool), Errno> {
        let mut fds = vec![PollFd::from_borrowed_fd(finish, PollFlags::IN)];
        let mut candidates = Vec::new();
        for (index, stream) in self.streams.iter().enumerate() {
            if let Some(pipe) = stream.pipe.as_ref().filter(|_| self.owner.is_none_or(|owner| owner == index))
            {
                fds.push(PollFd::new(pipe, PollFlags::IN));
                candidates.push(index);
            }
        }
        if let Some(owner) = self.owner {
            let ready = wait_ready(&mut fds[1..], Some(OWNER_PATIENCE))?;
            return Ok((if ready { vec![owner] } else { Vec::new() }, false));
        }
        if !candidates.is_empty() {
            wait_ready(&mut fds, None)?;
        }
        let finishing = !fds[0].revents().is_empty();
        let ready = candidates.into_iter().zip(&fds[1..]).filter(|(_, fd)| !fd.revents().is_empty());
        Ok((ready.map(|(index, _)| index).collect(), finishing))
    }

    /// Reads once. `false` when there was nothing to read.
    fn read(&mut self, index: usize, buffer: &mut [u8]) -> Result<bool, Errno> {
        let Some(pipe) = &self.streams[index].pipe else { return Ok(false) };
        match retry_on_intr(|| rustix::io::read(pipe, &mut *buffer)) {
            Ok(0) => self.end_stream(index),
            Ok(count) => self.take(index, &buffer[..count]),
            Err(Errno::AGAIN) => return Ok(false),
            Err(errno) => return Err(errno),
        }
        Ok(true)
    }

    fn take(&mut self, index: usize, mut bytes: &[u8]) {
        while let Some(newline) = bytes.iter().position(|&byte| byte == b'\n') {
            let (line, rest) = bytes.split_at(newline + 1);
            self.end_line(index, line);
            bytes = rest;
        }
        let stream = &mut self.streams[index];
        if self.owner == Some(index) {
            self.pending.extend_from_slice(bytes);
            return;
        }
        stream.partial.extend_from_slice(bytes);
        if stream.partial.len() > LINE_BYTES {
            stream.remember(&[]);
            self.pending.extend_from_slice(&stream.tag);
            self.pending.append(&mut stream.partial);
            self.owner = Some(index);
        }
    }

    /// `end` is the rest of a line, its newline included.
    fn end_line(&mut self, index: usize, end: &[u8]) {
        let stream = &mut self.streams[index];
        if self.owner == Some(index) {
            self.owner = None;
        } else {
            stream.remember(end);
            self.pending.extend_from_slice(&stream.tag);
            self.pending.append(&mut stream.partial);
        }
        self.pending.extend_from_slice(end);
    }

    fn end_stream(&mut self, index: usize) {
        if self.owner == Some(index) || !self.streams[index].partial.is_empty() {
            self.end_line(index, b"\n");
        }
        self.streams[index].pipe = None;
    }

    fn break_line(&mut self) {
        if let Some(owner) = self.owner {
            self.end_line(owner, b"\n");
        }
    }

    fn write(&mut self, lost: &dyn Fn()) {
        if self.state == SinkState::Open
            && let Err(errno) = write_all(self.sink.as_fd(), &self.pending)
        {
            self.state = if errno == Errno::PIPE { SinkState::Closed } else { SinkState::Failed(errno) };
            lost();
        }
        self.pending.clear();
    }
}

impl Stream {
    /// Keeps the line that `partial` and `end` make, shortened, among the last ones.
    fn remember(&mut self, end: &[u8]) {
        if self.tail.len() == TAIL_LINES {
            self.tail.pop_front();
        }
        let line =
            self.partial.iter().chain(end).copied().filter(|&byte| byte != b'\n').take(TAIL_LINE_BYTES);
        self.tail.push_back(line.collect());
    }

    fn tail_text(&self) -> Vec<String> {
        self.tail.iter().map(|line| String::from_utf8_lossy(line).into_owned()).collect()
    }
}

/// Writes all of it, also where somebody else has made the shared descriptor non-blocking.
fn write_all(sink: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        match rustix::io::write(sink, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                wait_ready(&mut [PollFd::new(&sink, PollFlags::OUT)], None)?;
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn tag(rank: usize, style: Style) -> Vec<u8> {
    match style {
        Style::Plain => Vec::new(),
        Style::Tag => format!("[{rank}] ").into_bytes(),
        // The six colours that are readable on dark and on light.
        Style::ColourTag => format!("\x1b[{}m[{rank}]\x1b[0m ", 31 + rank % 6).into_bytes(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pipe::pipe;

    /// Runs two streams into a pipe that the test reads, and feeds them with `feed`.
    fn collect(feed: impl FnOnce(Vec<OwnedFd>) + Send) -> (String, Outcome) {
        let (ends, feeds): (Vec<_>, Vec<_>) = (0..2).map(|_| pipe().unwrap()).unzip();
        let (read, write) = pipe().unwrap();
        let (finish, _finish_end) = pipe().unwrap();
        std::thread::scope(|scope| {
            let lines = Lines::new(ends, write, Style::Tag, WriteLock::default()).unwrap();
            let run = scope.spawn(move || lines.run(finish.as_fd(), &|| {}).unwrap());
            scope.spawn(move || feed(feeds));
            let mut text = String::new();
            std::io::Read::read_to_string(&mut std::fs::File::from(read), &mut text).unwrap();
            (text, run.join().unwrap())
        })
    }

    #[test]
    fn lines_are_tagged_and_a_last_one_without_newline_is_ended() {
        let (text, outcome) = collect(|feeds| {
            write_all(feeds[0].as_fd(), b"a\n\nb").unwrap();
        });
        assert_eq!(text, "[0] a\n[0] \n[0] b\n");
        assert_eq!(outcome.tails[0], ["a", "", "b"]);
        assert_eq!(outcome.sink, SinkState::Open);
    }

    #[test]
    fn a_line_longer_than_any_buffer_stays_in_one_piece() {
        let long = "x".repeat(5 * LINE_BYTES);
        let (text, outcome) = collect(|feeds| {
            std::thread::scope(|scope| {
                scope.spawn(|| write_all(feeds[0].as_fd(), format!("{long}\nend\n").as_bytes()).unwrap());
                scope.spawn(|| (0..2000).for_each(|_| write_all(feeds[1].as_fd(), b"short\n").unwrap()));
            });
        });
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.iter().filter(|line| **line == format!("[0] {long}")).count(), 1);
        assert_eq!(lines.iter().filter(|line| **line == "[1] short").count(), 2000);
        assert_eq!(lines.len(), 2002);
        assert_eq!(outcome.tails[0].last().unwrap(), "end");
        assert_eq!(outcome.tails[0][0].len(), TAIL_LINE_BYTES);
    }

    #[test]
    fn a_silent_owner_does_not_hold_up_the_others() {
        let long = "x".repeat(2 * LINE_BYTES);
        let (text, _) = collect(|feeds| {
            write_all(feeds[0].as_fd(), long.as_bytes()).unwrap();
            // More than the pipe holds: it is only taken once the owner has lost its turn.
            write_all(feeds[1].as_fd(), &b"y\n".repeat(100_000)).unwrap();
            write_all(feeds[0].as_fd(), b"rest\n").unwrap();
        });
        assert_eq!(text.lines().filter(|line| *line == format!("[0] {long}")).count(), 1);
        assert_eq!(text.lines().filter(|line| *line == "[1] y").count(), 100_000);
        assert_eq!(text.lines().filter(|line| *line == "[0] rest").count(), 1);
    }

    #[test]
    fn a_finish_takes_what_was_written_and_does_not_wait_for_the_writer() {
        let (end, feed) = pipe().unwrap();
        let (read, write) = pipe().unwrap();
        let (finish, finish_end) = pipe().unwrap();
        write_all(feed.as_fd(), b"one\ntwo").unwrap();
        drop(finish_end);
        let lines = Lines::new(vec![end], write, Style::Plain, WriteLock::default()).unwrap();
        lines.run(finish.as_fd(), &|| {}).unwrap();
        let mut text = String::new();
        std::io::Read::read_to_string(&mut std::fs::File::from(read), &mut text).unwrap();
        assert_eq!(text, "one\ntwo\n");
        drop(feed);
    }

    #[test]
    fn a_closed_sink_is_told_once_and_the_streams_are_still_read() {
        let (end, feed) = pipe().unwrap();
        let (read, write) = pipe().unwrap();
        let (finish, _finish_end) = pipe().unwrap();
        drop(read);
        let told = std::cell::Cell::new(0);
        std::thread::scope(|scope| {
            scope.spawn(move || write_all(feed.as_fd(), &b"line\n".repeat(100_000)).unwrap());
            let lines = Lines::new(vec![end], write, Style::Tag, WriteLock::default()).unwrap();
            let outcome = lines.run(finish.as_fd(), &|| told.set(told.get() + 1)).unwrap();
            assert_eq!(outcome.sink, SinkState::Closed);
        });
        assert_eq!(told.get(), 1);
    }
}
