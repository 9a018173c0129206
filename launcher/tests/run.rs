//! `windlass run` as a user meets it: real processes, killed for real.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

#[path = "run/streams.rs"]
mod streams;

/// Long enough for a machine that is busy with other tests; a test that passes does not wait for it.
const PATIENCE: Duration = Duration::from_secs(20);

fn windlass(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_windlass"));
    command.arg("run").args(arguments).stdin(Stdio::null());
    command
}

fn output(arguments: &[&str]) -> Output {
    windlass(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn sorted_lines(bytes: &[u8]) -> Vec<String> {
    let mut lines: Vec<String> = text(bytes).lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// The processes whose environment names this mark. Every process of a job inherits it.
fn marked(mark: &str) -> Vec<i32> {
    let entry = format!("WINDLASS_TEST_MARK={mark}");
    processes(|pid| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|&byte| byte == 0).any(|variable| variable == entry.as_bytes())
    })
}

fn processes(accept: impl Fn(i32) -> bool) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|&pid| accept(pid)).collect()
}

fn named(mark: &str, name: &str) -> i32 {
    let found: Vec<i32> = marked(mark)
        .into_iter()
        .filter(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name)
        })
        .collect();
    assert_eq!(found.len(), 1, "processes called {name}");
    found[0]
}

fn await_none(mark: &str) {
    let deadline = Instant::now() + Duration::from_secs(3);
    loop {
        let left = marked(mark);
        if left.is_empty() {
            return;
        }
        if Instant::now() > deadline {
            let lines: Vec<_> =
                left.iter().map(|pid| std::fs::read_to_string(format!("/proc/{pid}/stat"))).collect();
            left.into_iter().for_each(|pid| kill(pid, libc::SIGKILL));
            panic!("left behind: {lines:?}");
        }
        std::thread::yield_now();
    }
}

fn kill(pid: i32, signal: i32) {
    // SAFETY: kill takes two numbers and touches no memory of this process.
    unsafe { libc::kill(pid, signal) };
}

/// A test run in the background may have been started with signals ignored, which a shell in a rank cannot undo.
fn default_dispositions(command: &mut Command) {
    // SAFETY: signal(2) with SIG_DFL, between fork and exec, is async-signal-safe and touches no memory.
    unsafe {
        command.pre_exec(|| {
            for signal in [libc::SIGINT, libc::SIGQUIT, libc::SIGHUP] {
                libc::signal(signal, libc::SIG_DFL);
            }
            Ok(())
        });
    }
}

/// A job whose processes can be found, and whose output can be awaited line by line.
struct Job {
    child: Child,
    mark: String,
    lines: Receiver<String>,
    errors: Receiver<String>,
}

impl Job {
    fn start(arguments: &[&str]) -> Self {
        Self::spawn(windlass(arguments))
    }

    fn spawn(mut command: Command) -> Self {
        let mark = format!("{}-{:?}", std::process::id(), Instant::now()).replace(' ', "");
        let mut child = command
            .env("WINDLASS_TEST_MARK", &mark)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = read_lines(child.stdout.take().unwrap());
        let errors = read_lines(child.stderr.take().unwrap());
        Self { child, mark, lines, errors }
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// Waits for `count` lines on standard output.
    fn await_lines(&self, count: usize) -> Vec<String> {
        let mut lines: Vec<String> = (0..count).map(|_| self.lines.recv_timeout(PATIENCE).unwrap()).collect();
        lines.sort();
        lines
    }

    /// Waits for the launcher's end and for the end of whoever holds its output; checks that nothing is left.
    fn finish(mut self) -> (ExitStatus, Vec<String>, String) {
        let (mut lines, mut errors) = (Vec::new(), String::new());
        let deadline = Instant::now() + PATIENCE;
        let left = || deadline.saturating_duration_since(Instant::now());
        while let Ok(line) = self.lines.recv_timeout(left()) {
            lines.push(line);
        }
        while let Ok(line) = self.errors.recv_timeout(left()) {
            errors.push_str(&line);
            errors.push('\n');
        }
        let status = match self.child.try_wait().unwrap() {
            Some(status) => status,
            None if Instant::now() < deadline => self.child.wait().unwrap(),
            None => panic!("the launcher does not end; so far:\n{errors}"),
        };
        await_none(&self.mark);
        (status, lines, errors)
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        let _ = self.child.kill();
    }
}

fn read_lines(source: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(source).split(b'\n').map_while(Result::ok) {
            if sender.send(text(&line)).is_err() {
                return;
            }
        }
    });
    receiver
}

#[test]
fn a_rank_killed_by_signal_9_ends_the_job_at_once_and_is_named() {
    let directory = std::env::temp_dir().join(format!("windlass-run-test-{}", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    let start = Instant::now();
    let script = "echo up >&2; test $RANK = 2 && kill -9 $$; sleep 100";
    let mut command = windlass(&["-n", "4", "--", "sh", "-c", script]);
    command.current_dir(&directory).env("TMPDIR", &directory);
    let job = Job::spawn(command);
    let pid = job.pid().to_string();
    let (status, _, errors) = job.finish();
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert_eq!(status.code(), Some(137));
    assert!(errors.contains("rank 2 (pid "), "{errors}");
    assert!(errors.contains("was killed by signal 9 (SIGKILL)"), "{errors}");
    assert!(errors.contains("ranks 0-1,3: ended by windlass (SIGTERM)"), "{errors}");
    assert!(errors.contains("    | up"), "{errors}");
    // Removing a directory succeeds only if it is empty.
    std::fs::remove_dir(&directory).unwrap();
    let shared = std::fs::read_dir("/dev/shm").unwrap().flatten();
    let left: Vec<_> =
        shared.map(|entry| entry.file_name()).filter(|name| text(name.as_bytes()).contains(&pid)).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn ranks_that_ignore_sigterm_are_killed_within_the_second() {
    let job = Job::start(&[
        "-n",
        "3",
        "--",
        "sh",
        "-c",
        "trap '' TERM; echo up; read x < /dev/null; test $RANK = 1 && { sleep 0.3; exit 7; }; while :; do sleep 100; done",
    ]);
    job.await_lines(3);
    let start = Instant::now();
    let (status, _, errors) = job.finish();
    assert!(start.elapsed() < Duration::from_millis(1800), "{:?}", start.elapsed());
    assert_eq!(status.code(), Some(7));
    assert!(errors.contains("rank 1 (pid ") && errors.contains("exited with code 7"), "{errors}");
    assert!(errors.contains("ranks 0,2: ended by windlass (SIGKILL)"), "{errors}");
}

/// Ranks whose children have left their session, closed their output and ignore what can be ignored.
const STUBBORN: &str = "trap '' TERM HUP INT; \
    setsid sh -c 'trap \"\" TERM HUP INT; echo deep; exec >/dev/null 2>&1; while :; do sleep 100; done' & \
    (sleep 100 > /dev/null 2>&1 &) ; echo up; while :; do sleep 100; done";

fn stubborn_job() -> Job {
    let job = Job::start(&["-n", "2", "--output", "plain", "--", "sh", "-c", STUBBORN]);
    assert_eq!(job.await_lines(4), ["deep", "deep", "up", "up"]);
    assert!(marked(&job.mark).len() >= 3 + 2 * 4, "the job is not as the test needs it");
    job
}

#[test]
fn the_launchers_death_leaves_nothing() {
    let job = stubborn_job();
    kill(job.pid(), libc::SIGKILL);
    let (status, ..) = job.finish();
    assert_eq!(status.signal(), Some(9));
}

#[test]
fn the_guards_death_leaves_nothing_and_is_told() {
    for name in ["wl-guard", "wl-warden"] {
        let job = stubborn_job();
        kill(named(&job.mark, name), libc::SIGKILL);
        let (status, _, errors) = job.finish();
        assert_eq!(status.code(), Some(137), "{errors}");
        assert!(
            errors.contains("was killed by signal 9") || errors.contains("watches over the ranks"),
            "{errors}"
        );
    }
}

#[test]
fn any_two_deaths_at_once_leave_nothing() {
    for pair in [["wl-guard", "windlass"], ["wl-warden", "windlass"], ["wl-guard", "wl-warden"]] {
        let job = stubborn_job();
        let pids = pair.map(|name| named(&job.mark, name));
        pids.iter().for_each(|&pid| kill(pid, libc::SIGKILL));
        job.finish();
    }
}

#[test]
fn ranks_die_even_with_all_three_that_watch_over_them() {
    let job = Job::start(&["-n", "3", "--", "sh", "-c", "trap '' TERM HUP; echo up; exec sleep 100"]);
    job.await_lines(3);
    let pids = ["windlass", "wl-warden", "wl-guard"].map(|name| named(&job.mark, name));
    pids.iter().for_each(|&pid| kill(pid, libc::SIGKILL));
    job.finish();
}

#[test]
fn a_second_signal_kills_ranks_that_go_on_after_the_first() {
    let script = "trap 'echo again' INT TERM; echo up; while :; do sleep 0.02; done";
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let mut command = windlass(&["-n", "2", "--output", "plain", "--", "sh", "-c", script]);
        default_dispositions(&mut command);
        let job = Job::spawn(command);
        assert_eq!(job.await_lines(2), ["up"; 2]);
        kill(job.pid(), signal);
        assert_eq!(job.await_lines(2), ["again"; 2]);
        kill(job.pid(), signal);
        let (status, _, errors) = job.finish();
        assert_eq!(status.code(), Some(137), "{errors}");
        // The shells tell of their sleeps' death first.
        assert!(errors.contains("windlass: the job was ended by SIG"), "{errors}");
    }
}

#[test]
fn what_a_finished_job_leaves_running_is_ended() {
    let job = Job::start(&["-n", "2", "--", "sh", "-c", "setsid sleep 100 & sleep 100 & echo bye"]);
    let (status, lines, errors) = job.finish();
    assert_eq!((status.code(), lines.len(), errors.as_str()), (Some(0), 2, ""));
}

#[test]
fn children_from_before_the_launcher_are_spared() {
    let mut command = Command::new("sh");
    let script =
        "sleep 7777 > /dev/null 2>&1 & echo $!; exec \"$0\" run -n 1 -- sh -c 'sleep 100 & echo done'";
    command.args(["-c", script, env!("CARGO_BIN_EXE_windlass")]);
    let output = command.output().unwrap();
    let pid: i32 = text(&output.stdout).lines().next().unwrap().parse().unwrap();
    let command_line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    assert_eq!(text(&command_line), "sleep\x007777\x00");
    kill(pid, libc::SIGKILL);
}

#[test]
fn exit_codes_are_those_of_the_first_failure() {
    assert_eq!(output(&["-n", "3", "true"]).status.code(), Some(0));
    for (script, code) in [("exit 3", 3), ("exit 255", 255), ("kill -TERM $$", 143), ("kill -USR1 $$", 138)] {
        let script = format!("test $RANK = 1 || exec sleep 100; {script}");
        let output = output(&["-n", "2", "--", "sh", "-c", &script]);
        assert_eq!(output.status.code(), Some(code), "{script}: {}", text(&output.stderr));
        assert!(text(&output.stderr).starts_with("windlass: rank 1 (pid "), "{}", text(&output.stderr));
    }
}

#[test]
fn every_rank_finds_its_place_in_its_environment() {
    let script = "echo $RANK $WORLD_SIZE $LOCAL_RANK $LOCAL_WORLD_SIZE $MASTER_ADDR $WINDLASS_TRANSPORT $A $B \
                  ${WINDLASS_RENDEZVOUS%$WINDLASS_JOB}; echo port $MASTER_PORT job $WINDLASS_JOB";
    let mut command =
        windlass(&["-n", "2", "-x", "A=1=2", "-x", "B", "--transport", "tcp", "sh", "-c", script]);
    let output =
        command.env("B", "b").env("RANK", "77").env("WINDLASS_RENDEZVOUS", "outer").output().unwrap();
    let lines = sorted_lines(&output.stdout);
    assert_eq!(lines[0], "[0] 0 2 0 2 127.0.0.1 tcp 1=2 b unix:@windlass-");
    assert_eq!(lines[2], "[1] 1 2 1 2 127.0.0.1 tcp 1=2 b unix:@windlass-");
    let words: Vec<&str> = lines[1].split(' ').collect();
    assert!(words[2].parse::<u16>().unwrap() > 0);
    assert!(words[4].len() == 32 && words[4].bytes().all(|byte| byte.is_ascii_hexdigit()), "{words:?}");
    assert_eq!(lines[1][4..], lines[3][4..], "one port and one id for the whole job");
}

#[test]
fn each_rank_is_bound_to_its_share_unless_shares_differ() {
    let cpus = std::thread::available_parallelism().unwrap().get();
    let script = "grep Cpus_allowed_list /proc/self/status";
    let shares = |arguments: &[&str]| {
        let output = output(&[arguments, &["--output", "plain", "sh", "-c", script]].concat());
        let mut lines = sorted_lines(&output.stdout);
        lines.dedup();
        lines.len()
    };
    let count = cpus.to_string();
    assert_eq!(shares(&["-n", &count]), cpus);
    assert_eq!(shares(&["-n", &count, "--bind-to", "none"]), 1);
    assert_eq!(shares(&["-n", &(2 * cpus).to_string()]), cpus);
    assert_eq!(shares(&["-n", &(2 * cpus + 1).to_string()]), 1);
}

#[test]
fn signals_reach_every_rank() {
    let script = "for s in INT TERM HUP QUIT USR1 USR2; do trap \"echo $s; exit 0\" $s; done; \
                  echo up; while :; do sleep 0.02; done";
    let signals = [
        (libc::SIGINT, "INT"),
        (libc::SIGTERM, "TERM"),
        (libc::SIGHUP, "HUP"),
        (libc::SIGQUIT, "QUIT"),
        (libc::SIGUSR1, "USR1"),
        (libc::SIGUSR2, "USR2"),
    ];
    for (signal, name) in signals {
        let mut command = windlass(&["-n", "3", "--output", "plain", "--", "sh", "-c", script]);
        default_dispositions(&mut command);
        let job = Job::spawn(command);
        job.await_lines(3);
        kill(job.pid(), signal);
        assert_eq!(job.await_lines(3), [name; 3]);
        let (status, ..) = job.finish();
        assert_eq!(status.code(), Some(0), "{name}");
    }
}

#[test]
fn a_stop_stops_every_rank_and_a_continue_wakes_them() {
    let job = Job::start(&["-n", "2", "--output", "plain", "--", "sh", "-c", "echo $$; exec sleep 100"]);
    let ranks: Vec<i32> = job.await_lines(2).iter().map(|line| line.parse().unwrap()).collect();
    let state = |pid: i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit(") ").next().unwrap().chars().next().unwrap()
    };
    let await_state = |stopped: bool| {
        let deadline = Instant::now() + PATIENCE;
        while !ranks.iter().chain([&job.pid()]).all(|&pid| (state(pid) == 'T') == stopped) {
            assert!(Instant::now() < deadline, "stopped: {stopped}");
        }
    };
    kill(job.pid(), libc::SIGTSTP);
    await_state(true);
    kill(job.pid(), libc::SIGCONT);
    await_state(false);
    kill(job.pid(), libc::SIGTERM);
    let (status, ..) = job.finish();
    assert_eq!(status.code(), Some(143));
}

#[test]
fn what_cannot_run_is_said_at_once_and_nothing_starts() {
    let check = |arguments: &[&str], code: i32, words: &[&str]| {
        let output = output(arguments);
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {errors}");
        assert!(words.iter().all(|word| errors.contains(word)), "{arguments:?}: {errors}");
        assert_eq!(text(&output.stdout), "");
    };
    check(&["--", "/no/such/program"], 127, &["/no/such/program", "No such file", "os error 2"]);
    check(&["--", "no-such-program"], 127, &["no-such-program", "PATH"]);
    check(&["--", "/etc/passwd"], 126, &["/etc/passwd", "Permission denied", "chmod +x"]);
    check(&["--", "/tmp"], 126, &["/tmp", "Is a directory"]);
    check(&[], 2, &["no program", "windlass run -n 4 --"]);
    check(&["-n", "0", "--", "true"], 2, &["--ranks", "1..=65536"]);
    check(&["--wrong", "--", "true"], 2, &["--wrong"]);
    check(&["--transport", "pigeon", "true"], 2, &["pigeon", "auto"]);
    check(&["-x", "RANK=3", "true"], 2, &["-x RANK"]);
    let help = output(&["--help"]);
    assert!(text(&help.stdout).contains("windlass run -n 4 -- python train.py"));
    assert!(!text(&help.stdout).contains("__guard"));
}

#[test]
fn a_timeout_ends_the_job() {
    let job = Job::start(&["-n", "2", "--timeout", "0.2", "--", "sleep", "100"]);
    let (status, _, errors) = job.finish();
    assert_eq!(status.code(), Some(124));
    assert!(errors.contains("--timeout") && errors.contains("ranks 0-1: ended by windlass"), "{errors}");
}

#[test]
fn sixty_four_ranks_start_write_and_end() {
    let output = output(&["-n", "64", "--", "sh", "-c", "echo out; echo err >&2"]);
    let mut expected: Vec<String> = (0..64).map(|rank| format!("[{rank}] out")).collect();
    expected.sort();
    assert_eq!(sorted_lines(&output.stdout), expected);
    assert_eq!(text(&output.stderr).lines().count(), 64);
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn two_jobs_do_not_disturb_each_other() {
    let script = "echo $MASTER_PORT; exec sleep 100";
    let first = Job::start(&["-n", "2", "--output", "plain", "--", "sh", "-c", script]);
    let second = Job::start(&["-n", "2", "--output", "plain", "--", "sh", "-c", script]);
    assert_ne!(first.await_lines(2), second.await_lines(2), "each job has a port of its own");
    kill(first.pid(), libc::SIGKILL);
    first.finish();
    assert_eq!(marked(&second.mark).len(), 5, "the launcher, its two guards and two ranks");
    kill(second.pid(), libc::SIGTERM);
    assert_eq!(second.finish().0.code(), Some(143));
}

#[test]
fn metrics_are_served_whatever_clients_send() {
    let job = Job::start(&["-n", "1", "--metrics", "127.0.0.1:0", "--", "sleep", "100"]);
    let line = job.errors.recv_timeout(PATIENCE).unwrap();
    let address =
        line.strip_prefix("windlass: metrics at http://").unwrap().strip_suffix("/metrics").unwrap();
    let request = |bytes: &[u8]| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(bytes).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut response = Vec::new();
        stream.read_to_end(&mut response).unwrap();
        text(&response)
    };
    let _silent: Vec<TcpStream> = (0..4).map(|_| TcpStream::connect(address).unwrap()).collect();
    assert!(request(b"\x16\x03\x01\x00garbage\r\n\r\n").starts_with("HTTP/1.1 400 "));
    assert!(request(b"GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404 "));
    let metrics = request(b"GET /metrics HTTP/1.1\r\n\r\n");
    assert!(metrics.contains("Content-Type: text/plain; version=0.0.4"), "{metrics}");

    let taken = output(&["--metrics", address, "--", "true"]);
    let errors = text(&taken.stderr);
    assert!(errors.contains(address) && errors.contains("Address already in use"), "{errors}");
    assert_eq!(taken.status.code(), Some(1));
    kill(job.pid(), libc::SIGTERM);
    job.finish();
}
