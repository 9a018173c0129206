//! Finding and ending every process below this one.
//!
//! A subreaper's descendants cannot leave it: whoever loses its parent becomes the subreaper's child, in whatever
//! session or process group it has put itself. So the tree that /proc shows below a subreaper is complete.

use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal};

/// A process that the kernel cannot kill (uninterruptible in a driver) is given up after this long.
const PATIENCE: Duration = Duration::from_secs(2);

/// One line of the process table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process {
    /// Its id.
    pub(crate) pid: i32,
    parent: i32,
    /// Clock ticks after boot at which it started: with the id, unique.
    start: u64,
    zombie: bool,
}

/// Makes this process the new parent of every descendant that loses its own.
pub(crate) fn adopt_orphans() -> Result<(), rustix::io::Errno> {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
}

/// The processes below this one, each after its parent, without those in `spare` and below them, zombies left out.
pub(crate) fn alive(spare: &[Process]) -> Vec<Process> {
    below(&table(), rustix::process::getpid().as_raw_pid(), spare)
}

/// Kills the processes below this one, and collects those that become its children; `collected` hears of each.
/// Returns how many could not be killed, which is 0 but for processes stuck in the kernel.
pub(crate) fn end(spare: &[Process], collected: &mut dyn FnMut(i32, i32)) -> usize {
    let deadline = Instant::now() + PATIENCE;
    let mut pause = Duration::from_micros(200);
    let mut empty_listings = 0;
    loop {
        let processes = alive(spare);
        // The lowest first: whoever is killed while it does this leaves those that watch over the rest alive.
        processes.iter().rev().for_each(kill);
        collect(collected);
        // A listing is not one instant: a process may change its parent while it is read. Two that are empty, with
        // nobody left to fork in between, are proof.
        empty_listings = if processes.is_empty() { empty_listings + 1 } else { 0 };
        if empty_listings == 2 {
            return 0;
        }
        if Instant::now() > deadline {
            return processes.len();
        }
        if !processes.is_empty() {
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
        }
    }
}

/// Collects the children that have ended.
pub(crate) fn collect(collected: &mut dyn FnMut(i32, i32)) {
    while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
        collected(pid.as_raw_pid(), status.as_raw());
    }
}

/// Through a pidfd, and only if the id still means the process that was listed.
fn kill(process: &Process) {
    let Some(pid) = Pid::from_raw(process.pid) else { return };
    let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    if stat(process.pid).is_some_and(|now| now.start == process.start) {
        // It may have ended by itself; or belong to another user (a set-uid program), which the listing then shows.
        let _ = pidfd_send_signal(pidfd, Signal::KILL);
    }
}

fn below(table: &[Process], root: i32, spare: &[Process]) -> Vec<Process> {
    let mut found = Vec::new();
    let mut parents = vec![root];
    while let Some(parent) = parents.pop() {
        for process in table.iter().filter(|process| process.parent == parent) {
            let spared = spare.iter().any(|s| s.pid == process.pid && s.start == process.start);
            if !spared {
                parents.push(process.pid);
                if !process.zombie {
                    found.push(*process);
                }
            }
        }
    }
    found
}

fn table() -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| stat(entry.file_name().to_str()?.parse().ok()?)).collect()
}

fn stat(pid: i32) -> Option<Process> {
    parse_stat(pid, &std::fs::read(format!("/proc/{pid}/stat")).ok()?)
}

/// The second field is the program's name in parentheses, and may itself hold anything, parentheses included.
fn parse_stat(pid: i32, text: &[u8]) -> Option<Process> {
    let after_name = text.iter().rposition(|&byte| byte == b')')? + 1;
    let fields: Vec<&str> = std::str::from_utf8(&text[after_name..]).ok()?.split_ascii_whitespace().collect();
    Some(Process {
        pid,
        parent: fields.get(1)?.parse().ok()?,
        start: fields.get(19)?.parse().ok()?,
        zombie: matches!(*fields.first()?, "Z" | "X"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, parent: i32, zombie: bool) -> Process {
        Process { pid, parent, start: 1, zombie }
    }

    #[test]
    fn a_name_with_parentheses_and_spaces_is_read_over() {
        let text = b"7 (a) Z 1 (b) S 3 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 1";
        let expected = Process { pid: 7, parent: 3, start: 4242, zombie: false };
        assert_eq!(parse_stat(7, text), Some(expected));
    }

    #[test]
    fn a_process_comes_after_its_parent() {
        let table = [13, 12, 11, 14].map(|pid| process(pid, pid - 1, false));
        let found: Vec<i32> = below(&table, 10, &[]).iter().map(|process| process.pid).collect();
        assert_eq!(found, [11, 12, 13, 14]);
    }

    #[test]
    fn the_tree_goes_through_zombies_and_stops_at_the_spared() {
        let table = [
            process(10, 1, false),
            process(11, 10, true),
            process(12, 11, false),
            process(20, 10, false),
            process(21, 20, false),
            process(30, 1, false),
        ];
        let found = below(&table, 10, &[process(20, 10, false)]);
        assert_eq!(found, [process(12, 11, false)]);
    }
}
