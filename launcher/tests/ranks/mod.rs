//! Jobs of real processes: the test binary starts itself anew as the rank program.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// A test that passes does not wait for it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);

/// Names the rank program to a process that was started as one.
pub(crate) const PROGRAM: &str = "WINDLASS_TEST_PROGRAM";

/// `windlass run` with this binary's `program` as the rank program.
pub(crate) fn job(arguments: &[&str], program: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_windlass"));
    let own = std::env::current_exe().unwrap();
    command.arg("run").args(arguments).arg("--").arg(own).args(["--exact", "rank_main", "--nocapture"]);
    command.env(PROGRAM, program);
    command
}

/// One rank of a world without a launcher, as torchrun would start it.
pub(crate) fn lone_rank(program: &str, rank: u32, ranks: u32, port: u16) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "rank_main", "--nocapture"]).env(PROGRAM, program);
    command.env("RANK", rank.to_string()).env("WORLD_SIZE", ranks.to_string());
    command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
    command
}

/// A process with its output, and what was there before it.
pub(crate) struct Started {
    pub(crate) child: Child,
    lines: Receiver<String>,
    said: Vec<String>,
    mark: String,
    before: Vec<String>,
}

impl Started {
    pub(crate) fn start(mut command: Command) -> Self {
        let mark = format!("{}-{:?}", std::process::id(), Instant::now()).replace(' ', "");
        let before = leftovers();
        let (sender, lines) = channel();
        let mut child = command
            .env("WINDLASS_TEST_MARK", &mark)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let streams: [Box<dyn Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for stream in streams {
            let sender = sender.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    if sender.send(line).is_err() {
                        return;
                    }
                }
            });
        }
        Self { child, lines, said: Vec::new(), mark, before }
    }

    /// Waits for lines that contain `text` and returns the words behind it, one a line, in the order they came.
    pub(crate) fn await_lines(&mut self, text: &str, count: usize) -> Vec<String> {
        let deadline = Instant::now() + PATIENCE;
        let found = |said: &[String]| -> Vec<String> {
            said.iter().filter_map(|l| l.split_once(text)).map(|(_, rest)| rest.trim().to_owned()).collect()
        };
        while found(&self.said).len() < count {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => self.said.push(line),
                Err(_) => panic!(
                    "`{text}` was not said {count} times:\n{}\n{}",
                    self.said.join("\n"),
                    self.states()
                ),
            }
        }
        found(&self.said)
    }

    /// What the job's processes are doing.
    fn states(&self) -> String {
        let read =
            |pid: i32, file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
        let line = |pid| format!("{pid} {} {}\n", read(pid, "stat").trim(), read(pid, "wchan"));
        marked(&self.mark).into_iter().map(line).collect()
    }

    /// Waits for the end; checks that no process, file or socket is left.
    pub(crate) fn finish(mut self) -> (ExitStatus, String) {
        let deadline = Instant::now() + PATIENCE;
        while let Ok(line) = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            self.said.push(line);
        }
        let status = match self.child.try_wait().unwrap() {
            Some(status) => status,
            None if Instant::now() < deadline => self.child.wait().unwrap(),
            None => panic!("the job does not end:\n{}\n{}", self.said.join("\n"), self.states()),
        };
        let deadline = Instant::now() + Duration::from_secs(3);
        loop {
            let processes = self.states();
            let left: Vec<_> = leftovers().into_iter().filter(|l| !self.before.contains(l)).collect();
            if processes.is_empty() && left.is_empty() {
                break;
            }
            assert!(Instant::now() < deadline, "left behind: {left:?}\n{processes}");
            std::thread::sleep(Duration::from_millis(10));
        }
        (status, self.said.join("\n"))
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        for pid in marked(&self.mark) {
            // SAFETY: kill takes two numbers and touches no memory of this process. Who has ended by now need not be killed.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The processes whose environment names this mark.
fn marked(mark: &str) -> Vec<i32> {
    let entry = format!("WINDLASS_TEST_MARK={mark}");
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let has = |pid: &i32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|&byte| byte == 0).any(|variable| variable == entry.as_bytes())
    };
    pids.filter(has).collect()
}

/// What windlass may leave outside its processes: files in /tmp and /dev/shm, and sockets with abstract names.
fn leftovers() -> Vec<String> {
    let mut all = Vec::new();
    for directory in ["/tmp", "/dev/shm"] {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let names = entries.map(|e| format!("{directory}/{}", e.file_name().to_string_lossy()));
        all.extend(names.filter(|n| directory == "/dev/shm" || n.contains("windlass")));
    }
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
    all.extend(
        sockets
            .lines()
            .filter_map(|l| l.split_once('@'))
            .map(|(_, n)| n.to_owned())
            .filter(|n| n.contains("windlass")),
    );
    all
}

pub(crate) fn signal(pid: i32, number: i32) {
    // SAFETY: kill takes two numbers and touches no memory of this process.
    assert_eq!(unsafe { libc::kill(pid, number) }, 0, "kill {pid} {number}");
}

/// User and system time of a process so far.
pub(crate) fn processor_time(pid: i32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    // SAFETY: sysconf takes a number and returns one.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
    Duration::from_secs_f64(ticks as f64 / per_second)
}
