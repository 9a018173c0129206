//! The peers' ranks beside ours: they sleep while ours work, and ours while they do.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use windlass::Call;
use windlass_benches::peers::{MOST_ITERATIONS, Peer, PeerError, Session};
use windlass_benches::stats::{Label, Sample, Summary};

use super::report::PeerTime;

/// After this long without an answer a peer is given up.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a block of a peer's operations takes, about.
const BLOCK: Duration = Duration::from_millis(30);

/// Installs the peers; who cannot be is named with what to do, and left out, as is one that does none of the calls.
pub(super) fn prepare(peers: &[Peer], cache: &Path, calls: &[Call]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for peer in peers {
        if let Some(call) = calls.first().filter(|_| !calls.iter().any(|call| peer.serves(call))) {
            eprintln!("windlass: {}", PeerError::unserved(*peer, call));
            continue;
        }
        match peer.prepare(cache, &mut |line| eprintln!("windlass: {}: {line}", peer.name())) {
            Ok(_) if names.iter().any(|name| name == peer.name()) => {}
            Ok(_) => names.push(peer.name().to_owned()),
            Err(error) => eprintln!("windlass: {} is not compared: {error}", peer.name()),
        }
    }
    names
}

/// Where Open MPI puts its segments. It leaves them behind after every run, so they get a folder that goes at the end.
#[derive(Debug)]
pub(super) struct Backing(PathBuf);

impl Backing {
    /// A folder on the memory file system; none where Open MPI is not compared.
    pub(super) fn create(names: &[String]) -> io::Result<Option<Self>> {
        let memory = Path::new("/dev/shm");
        if !memory.is_dir() || names.iter().all(|name| name != Peer::OpenMpi.name()) {
            return Ok(None);
        }
        let folder = memory.join(format!("windlass-bench-{}", std::process::id()));
        std::fs::DirBuilder::new().mode(0o700).create(&folder)?;
        Ok(Some(Self(folder)))
    }

    /// What tells Open MPI.
    pub(super) fn variable(&self) -> OsString {
        let mut variable = OsString::from("OMPI_MCA_btl_sm_backing_directory=");
        variable.push(&self.0);
        variable
    }
}

impl Drop for Backing {
    fn drop(&mut self) {
        // It is on the memory file system of this host: what cannot be removed now goes with the next boot.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// One peer, as rank 0 asks it.
#[derive(Debug)]
pub(super) struct Rival {
    peer: Peer,
    /// None when it has failed.
    session: Option<Session>,
    samples: Vec<Sample>,
    iterations: usize,
}

/// Starts the ranks of all peers.
pub(super) fn start(names: &[String], cache: &Path, ranks: usize) -> Vec<Rival> {
    let started = |name: &String| {
        let peer = Peer::from_name(name)?;
        let prepared = peer.prepare(cache, &mut |_| ());
        let session = match prepared.and_then(|prepared| prepared.session(ranks, PATIENCE)) {
            Ok(session) => Some(session),
            Err(error) => {
                eprintln!("windlass: {name} is not compared: {error}");
                None
            }
        };
        Some(Rival { peer, session, samples: Vec::new(), iterations: 1 })
    };
    names.iter().filter_map(started).collect()
}

impl Rival {
    pub(super) fn name(&self) -> &'static str {
        self.peer.name()
    }

    pub(super) fn begin(&mut self) {
        self.samples.clear();
        self.iterations = 1;
    }

    /// One block, as long as the last one says that a block should be.
    pub(super) fn block(&mut self, call: &Call) {
        let name = self.name();
        let Some(session) = self.session.as_mut().filter(|_| self.peer.serves(call)) else { return };
        let started = std::time::Instant::now();
        // Without cores enough one operation may take seconds.
        let warmup = match self.iterations {
            1 if self.samples.is_empty() => 1,
            1 => 0,
            _ => 2,
        };
        match session.run(call, self.iterations, warmup, PATIENCE) {
            Ok(block) => {
                if block.wrong > 0 {
                    eprintln!(
                        "windlass: {name} gave {} wrong elements of {}",
                        block.wrong,
                        call.fingerprint()
                    );
                }
                let each = started.elapsed().as_secs_f64() / (warmup + self.iterations) as f64;
                self.iterations = ((BLOCK.as_secs_f64() / each) as usize).clamp(1, MOST_ITERATIONS);
                self.samples.extend(block.samples);
            }
            Err(error) => {
                eprintln!("windlass: {name} is not compared any more: {error}");
                self.session = None;
            }
        }
    }

    /// The median within the label; of a peer whose ranks move and have no such label, of all.
    pub(super) fn median_us(&self, label: Label) -> Option<PeerTime> {
        let time = |summary: Summary, same_label| PeerTime { us: summary.median_ns / 1e3, same_label };
        let all = || Summary::of(self.samples.iter().map(|sample| sample.ns));
        match Summary::of_label(&self.samples, label) {
            Some(within) => Some(time(within, true)),
            None => all().map(|summary| time(summary, false)),
        }
    }
}
