//! A peer's running ranks, and the questions put to them.

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde::Deserialize;
use windlass::{Call, Collective};

use super::install::{last_lines, system};
use super::{Budget, Launch, Peer, PeerError, Prepared};
use crate::limits::{MAX_RANKS, cpus};
use crate::stats::{Label, Sample};
use crate::uneven::even;

/// The most operations one command can hold.
pub const MOST_ITERATIONS: usize = 8192;

/// At least what the loop's shared record takes; the file is sparse.
const CONTROL_BYTES: u64 = 16 << 20;

/// How long ranks may take to leave by themselves.
const FAREWELL: Duration = Duration::from_secs(3);

/// How much of what a peer says on standard error is kept.
const KEPT_OUTPUT: usize = 16 << 10;

/// The answer to one command.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    /// The count of each operation's call.
    pub count: u64,
    /// One per operation, in order.
    pub samples: Vec<Sample>,
    /// Wrong elements, over all ranks and operations.
    pub wrong: u64,
}

#[derive(Deserialize)]
struct Answer {
    count: u64,
    wrong: u64,
    labels: String,
    ns: Vec<f64>,
}

#[derive(Deserialize)]
struct Ready {
    ready: bool,
    version: String,
}

/// A peer's ranks. They sleep between commands; dropping the session ends them.
#[derive(Debug)]
pub struct Session {
    peer: Peer,
    ranks: usize,
    children: Vec<Child>,
    commands: Option<ChildStdin>,
    lines: Receiver<String>,
    complaints: Arc<Mutex<String>>,
    files: Files,
    version: String,
}

/// What a session puts on the memory file system, and takes away.
#[derive(Debug)]
struct Files {
    control: PathBuf,
    rendezvous: PathBuf,
    removed: bool,
}

impl Files {
    fn create() -> Result<Self, PeerError> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("windlass-peer-{}-{number}", std::process::id());
        let rendezvous = folder.join(format!("{name}-meet"));
        let files = Self { control: folder.join(name), rendezvous, removed: false };
        let control = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&files.control);
        control
            .and_then(|control| control.set_len(CONTROL_BYTES))
            .map_err(|error| system("create", &files.control, &error))?;
        Ok(files)
    }
}

impl Files {
    /// Takes the names away; who has opened or mapped the files keeps them.
    fn remove(&mut self) {
        if core::mem::replace(&mut self.removed, true) {
            return;
        }
        let _ = fs::remove_file(&self.control);
        // A folder for Gloo, a file for torch.
        if fs::remove_file(&self.rendezvous).is_err() {
            let _ = fs::remove_dir_all(&self.rendezvous);
        }
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        self.remove();
    }
}

impl Session {
    pub(super) fn start(prepared: &Prepared, ranks: usize, timeout: Duration) -> Result<Self, PeerError> {
        check("ranks", ranks, 1, MAX_RANKS)?;
        let files = Files::create()?;
        let (sender, lines) = channel();
        let complaints = Arc::new(Mutex::new(String::new()));
        let mut session = Self {
            peer: prepared.peer,
            ranks,
            children: Vec::new(),
            commands: None,
            lines,
            complaints,
            files,
            version: String::new(),
        };
        for (index, mut command) in commands(&prepared.launch, ranks, &session.files)?.into_iter().enumerate()
        {
            let first = index == 0;
            command.stdin(if first { Stdio::piped() } else { Stdio::null() });
            command.stdout(if first { Stdio::piped() } else { Stdio::null() });
            command.stderr(Stdio::piped()).process_group(0);
            let mut child =
                command.spawn().map_err(|error| system("start", Path::new(command.get_program()), &error))?;
            if let Some(errors) = child.stderr.take() {
                let kept = Arc::clone(&session.complaints);
                std::thread::spawn(move || keep_end(errors, &kept));
            }
            if let Some(output) = child.stdout.take() {
                let sender = sender.clone();
                std::thread::spawn(move || {
                    // Launchers mix remarks of their own into the answers.
                    let answers = BufReader::new(output).lines().map_while(Result::ok);
                    for line in answers.filter(|line| line.starts_with('{')) {
                        if sender.send(line).is_err() {
                            return;
                        }
                    }
                });
            }
            if first {
                session.commands = child.stdin.take();
            }
            session.children.push(child);
        }
        drop(sender);
        let line = session.answer("starting", timeout)?;
        let ready: Ready = serde_json::from_str(&line).map_err(|_| session.misunderstood(&line))?;
        if !ready.ready {
            return Err(session.misunderstood(&line));
        }
        // MPICH aligns its answer like a table's row.
        let words: Vec<&str> = ready.version.split_whitespace().filter(|&word| word != "Version:").collect();
        session.version = words.join(" ");
        Ok(session)
    }

    /// The peer's version, in its own words.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// A block of operations of one call, each timed; the ranks sleep again afterwards.
    ///
    /// MPI's ranks meet before each operation. Gloo's do not: its threads need the cores on which waiting
    /// ranks would spin, and it would look ten times slower than it is.
    ///
    /// # Errors
    /// When the peer dies or does not answer in time. The session is of no use then.
    pub fn run(
        &mut self,
        call: &Call,
        iterations: usize,
        warmup: usize,
        timeout: Duration,
    ) -> Result<Block, PeerError> {
        check("iterations", iterations, 1, MOST_ITERATIONS)?;
        self.check(call)?;
        let Call { collective, count, root, .. } = *call;
        let align = u8::from(matches!(self.peer, Peer::OpenMpi | Peer::Mpich));
        let bytes = even(call).size_bytes(self.ranks as u32);
        let doing = format!("doing {iterations} {collective} of {bytes} bytes");
        let command = format!("run {collective} {count} {root} {iterations} {warmup} {align}\n");
        let written = self.commands.as_mut().map(|pipe| pipe.write_all(command.as_bytes()).and(pipe.flush()));
        if !matches!(written, Some(Ok(()))) {
            return Err(self.ended(&doing));
        }
        let line = self.answer(&doing, timeout)?;
        // All ranks took part, so all have mapped it: even if we are killed now, nothing is left behind.
        self.files.remove();
        parse(&line)
            .filter(|block| block.count == count && block.samples.len() == iterations)
            .ok_or_else(|| self.misunderstood(&line))
    }

    /// Whether one command can hold the call.
    fn check(&self, call: &Call) -> Result<(), PeerError> {
        if !self.peer.serves(call) {
            return Err(PeerError::unserved(self.peer, call));
        }
        // MPI counts in int, and also the bytes of a vector of blocks are to be fewer.
        let least = if call.collective == Collective::Barrier { 0 } else { size_of::<f32>() };
        check("bytes", even(call).size_bytes(self.ranks as u32) as usize, least, i32::MAX as usize)?;
        check("the root", call.root as usize, 0, self.ranks - 1)
    }

    /// As many operations as the budget has time for, judged by three of them.
    ///
    /// # Errors
    /// As [`Session::run`].
    pub fn run_within(&mut self, call: &Call, budget: Budget) -> Result<Block, PeerError> {
        check("iterations", budget.iterations, 1, MOST_ITERATIONS)?;
        let started = Instant::now();
        self.run(call, 3, 1, budget.timeout)?;
        // Filling and checking count too: four operations have been done.
        let each = started.elapsed().div_f64(4.0).max(Duration::from_nanos(100));
        let affordable = (budget.per_size.as_secs_f64() / each.as_secs_f64()) as usize;
        let iterations = budget.iterations.min(affordable.max(5));
        self.run(call, iterations, budget.warmup.min(iterations), budget.timeout)
    }

    fn answer(&mut self, doing: &str, timeout: Duration) -> Result<String, PeerError> {
        match self.lines.recv_timeout(timeout) {
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Disconnected) => Err(self.ended(doing)),
            Err(RecvTimeoutError::Timeout) => {
                self.kill();
                let seconds = timeout.as_secs();
                Err(PeerError::TimedOut { peer: self.peer.name(), doing: doing.to_owned(), seconds })
            }
        }
    }

    fn ended(&mut self, doing: &str) -> PeerError {
        self.kill();
        let output = last_lines(&self.complaints.lock().unwrap_or_else(PoisonError::into_inner));
        PeerError::Ended { peer: self.peer.name(), doing: doing.to_owned(), output }
    }

    fn misunderstood(&self, line: &str) -> PeerError {
        PeerError::Answer { peer: self.peer.name(), line: line.chars().take(200).collect() }
    }

    /// Ends every process that the launcher started, also those that left its process group.
    fn kill(&mut self) {
        for child in &mut self.children {
            // A child that has been waited for may have lent its number to somebody else.
            if matches!(child.try_wait(), Ok(None)) {
                for pid in descendants(child.id()) {
                    let _ = kill_process(pid, Signal::KILL);
                }
                let _ = child.kill();
            }
            let _ = child.wait();
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // The end of its input tells rank 0, which tells the others.
        self.commands = None;
        let deadline = Instant::now() + FAREWELL;
        while Instant::now() < deadline {
            if self.children.iter_mut().all(|child| !matches!(child.try_wait(), Ok(None))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.kill();
    }
}

/// The command of each process to start; the first has rank 0's input and output.
fn commands(launch: &Launch, ranks: usize, files: &Files) -> Result<Vec<Command>, PeerError> {
    let per_rank = |make: &dyn Fn(&str, &str) -> Command| {
        (0..ranks).map(|rank| make(&rank.to_string(), &ranks.to_string())).collect()
    };
    Ok(match launch {
        Launch::Mpi { launcher, flags, crowded_flags, program } => {
            let mut command = Command::new(launcher);
            command.args(flags).args(crowded_flags.iter().filter(|_| ranks > cpus()));
            command.arg("-n").arg(ranks.to_string()).arg(program).arg(&files.control);
            vec![command]
        }
        Launch::Gloo { program, libraries } => {
            let meet = &files.rendezvous;
            fs::create_dir_all(meet).map_err(|error| system("create", meet, &error))?;
            let inherited = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
            let inherited = std::env::split_paths(&inherited).filter(|path| path.is_absolute());
            let path = std::env::join_paths(libraries.iter().cloned().chain(inherited)).unwrap_or_default();
            per_rank(&|rank, ranks| {
                let mut command = Command::new(program);
                command.env("LD_LIBRARY_PATH", &path).arg(&files.control).arg(meet).args([rank, ranks]);
                command
            })
        }
        Launch::Torch { python, script, library } => per_rank(&|rank, ranks| {
            let mut command = Command::new(python);
            command.arg(script).arg(&files.control).arg(&files.rendezvous).args([rank, ranks]).arg(library);
            command
        }),
    })
}

fn parse(line: &str) -> Option<Block> {
    let answer: Answer = serde_json::from_str(line).ok()?;
    if answer.labels.len() != answer.ns.len() {
        return None;
    }
    let label = |letter| match letter {
        b'n' => Label::Near,
        b'f' => Label::Far,
        _ => Label::Unsettled,
    };
    let pairs = answer.ns.iter().zip(answer.labels.bytes());
    let samples = pairs.map(|(&ns, letter)| Sample { ns, label: label(letter) }).collect();
    Some(Block { count: answer.count, samples, wrong: answer.wrong })
}

/// The processes below `root`, by their parents' numbers.
fn descendants(root: u32) -> Vec<Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let parents: Vec<(u32, u32)> = entries
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            Some((pid, parent_of(&fs::read_to_string(entry.path().join("stat")).ok()?)?))
        })
        .collect();
    let mut found = vec![root];
    let mut next = 0;
    while next < found.len() {
        let above = found[next];
        found.extend(parents.iter().filter(|&&(_, parent)| parent == above).map(|&(pid, _)| pid));
        next += 1;
    }
    found[1..].iter().filter_map(|&pid| Pid::from_raw(i32::try_from(pid).ok()?)).collect()
}

/// The parent's number in a line of `/proc/PID/stat`; the name before it may hold anything but ends at the
/// last parenthesis.
fn parent_of(stat: &str) -> Option<u32> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

fn keep_end(mut from: impl Read, kept: &Mutex<String>) {
    let mut piece = [0; 4096];
    while let Ok(length @ 1..) = from.read(&mut piece) {
        let mut text = kept.lock().unwrap_or_else(PoisonError::into_inner);
        text.push_str(&String::from_utf8_lossy(&piece[..length]));
        let surplus = text.len().saturating_sub(KEPT_OUTPUT);
        let cut = (surplus..=text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.drain(..cut);
    }
}

fn check(name: &'static str, value: usize, least: usize, most: usize) -> Result<(), PeerError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(PeerError::Argument { name, value, least, most })
}

#[cfg(test)]
mod tests {
    use windlass::{DataType, ReduceOp};

    use super::*;

    #[test]
    fn an_answer_is_read() {
        let line = r#"{"count":8,"wrong":1,"labels":"nfu","ns":[310,305,540]}"#;
        let block = parse(line).unwrap();
        assert_eq!((block.count, block.wrong), (8, 1));
        assert_eq!(block.samples[0], Sample { ns: 310.0, label: Label::Near });
        assert_eq!(block.samples[1].label, Label::Far);
        assert_eq!(block.samples[2].label, Label::Unsettled);
    }

    #[test]
    fn a_broken_answer_is_not() {
        assert_eq!(parse(r#"{"count":8,"wrong":0,"labels":"n","ns":[310,305]}"#), None);
        assert_eq!(parse("prterun noticed something"), None);
    }

    #[test]
    fn a_parent_is_found_behind_any_name() {
        assert_eq!(parent_of("42 (a ) b) S 7 42 42 0"), Some(7));
        assert_eq!(parent_of("nonsense"), None);
    }

    fn sum(count: u64) -> Call {
        let (collective, data_type, op) = (Collective::AllReduce, DataType::F32, ReduceOp::Sum);
        Call { collective, data_type, op, count, root: 0 }
    }

    #[test]
    fn a_call_that_a_peer_does_not_do_is_refused() {
        let mut session = pretend(&format!("{READY} cat")).session(2, SOON).unwrap();
        let refused = |session: &mut Session, call: Call| session.run(&call, 1, 0, SOON).unwrap_err();
        let error = refused(&mut session, Call { op: ReduceOp::Max, ..sum(8) });
        assert!(matches!(error, PeerError::Unserved { op: ReduceOp::Max, .. }), "{error}");
        let error = refused(&mut session, Call { root: 2, collective: Collective::Reduce, ..sum(8) });
        assert!(matches!(error, PeerError::Argument { name: "the root", .. }), "{error}");
        assert!(Peer::Mpich.serves(&Call { collective: Collective::Scan, ..sum(8) }));
        assert!(!Peer::Gloo.serves(&Call { collective: Collective::Scan, ..sum(8) }));
    }

    /// A stand-in for a peer, which speaks the protocol.
    fn pretend(script: &str) -> Prepared {
        let words = |list: &[&str]| list.iter().map(|&word| word.to_owned()).collect();
        let launch = Launch::Mpi {
            launcher: "sh".into(),
            flags: words(&["-c", script]),
            crowded_flags: Vec::new(),
            program: "program".into(),
        };
        Prepared { peer: Peer::Mpich, launch }
    }

    const READY: &str = r#"echo '{"ready":true,"ranks":2,"version":"pretended"}';"#;
    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn a_session_asks_and_is_answered() {
        let reply = r#"echo noise; echo '{"count":8,"wrong":0,"labels":"nn","ns":[1,2]}'"#;
        let prepared = pretend(&format!("{READY} while read line; do {reply}; done"));
        let mut session = prepared.session(2, SOON).unwrap();
        assert_eq!(session.version(), "pretended");
        for _ in 0..3 {
            assert_eq!(session.run(&sum(8), 2, 0, SOON).unwrap().samples.len(), 2);
        }
        assert!(matches!(session.run(&sum(16), 2, 0, SOON), Err(PeerError::Answer { .. })));
        assert!(matches!(session.run(&sum(8), 0, 0, SOON), Err(PeerError::Argument { .. })));
    }

    #[test]
    fn a_peer_that_dies_leaves_its_last_words() {
        let prepared = pretend(&format!("{READY} read line; echo 'out of luck' >&2; sleep 0.2; exit 1"));
        let mut session = prepared.session(2, SOON).unwrap();
        let error = session.run(&sum(8), 2, 0, SOON).unwrap_err();
        assert!(matches!(&error, PeerError::Ended { output, .. } if output == "out of luck"), "{error}");
    }

    #[test]
    fn a_peer_that_hangs_is_killed_with_all_its_children() {
        let prepared = pretend(&format!("{READY} setsid sleep 1000 & sleep 1000"));
        let mut session = prepared.session(2, SOON).unwrap();
        let both = Instant::now() + SOON;
        let mut below = descendants(session.children[0].id());
        while below.len() < 2 && Instant::now() < both {
            std::thread::yield_now();
            below = descendants(session.children[0].id());
        }
        let error = session.run(&sum(8), 2, 0, Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, PeerError::TimedOut { .. }), "{error}");
        assert_eq!(below.len(), 2, "both sleepers had started");
        for pid in below {
            let deadline = Instant::now() + SOON;
            let stat = format!("/proc/{}/stat", pid.as_raw_nonzero());
            // Whoever inherits orphans may take a moment to bury them.
            while fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
                assert!(Instant::now() < deadline, "{stat} lives on");
                std::thread::yield_now();
            }
        }
    }
}
