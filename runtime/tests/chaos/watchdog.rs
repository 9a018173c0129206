//! A test that hangs says where every thread is, and ends.

use std::process::Command;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// Lives as long as the test does.
pub(crate) struct Watchdog(#[expect(dead_code, reason = "its end is the news")] Sender<()>);

/// Aborts the process with every thread's state when the watchdog is not dropped in time.
pub(crate) fn watch(seconds: u64) -> Watchdog {
    let (alive, news) = channel();
    std::thread::spawn(move || {
        if news.recv_timeout(Duration::from_secs(seconds)) == Err(RecvTimeoutError::Timeout) {
            eprintln!("the test has not ended after {seconds} s; its threads:\n{}", threads());
            std::process::abort();
        }
    });
    Watchdog(alive)
}

fn threads() -> String {
    let pid = std::process::id().to_string();
    let stacks = Command::new("gdb").args(["-p", &pid, "-batch", "-ex", "thread apply all bt 25"]).output();
    if let Ok(stacks) = stacks
        && stacks.status.success()
    {
        return String::from_utf8_lossy(&stacks.stdout).into_owned();
    }
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lines = tasks.map(|task| {
        let read = |file: &str| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
        let state = read("status").lines().find(|l| l.starts_with("State")).unwrap_or_default().to_owned();
        format!("{} {state} in {} {}", read("comm").trim(), read("wchan"), read("syscall"))
    });
    lines.collect()
}
