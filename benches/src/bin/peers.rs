//! Runs peers alone: `peers [-n RANKS] [-i ITERATIONS] [--cache FOLDER] [PEER…] [COLLECTIVE…] [BYTES…]`.
//!
//! Prints one JSON line per peer, size and label.

use std::path::PathBuf;
use std::process::ExitCode;

use windlass::{Call, Collective, DataType, ReduceOp};
use windlass_benches::peers::{Budget, Peer, default_cache};

const USAGE: &str = "usage: peers [-n RANKS] [-i ITERATIONS] [--cache FOLDER] [openmpi|mpich|gloo|torch…] [COLLECTIVE…] [BYTES…]";

struct Wanted {
    ranks: usize,
    cache: PathBuf,
    peers: Vec<Peer>,
    collectives: Vec<Collective>,
    sizes: Vec<u64>,
    budget: Budget,
}

fn parse(mut words: impl Iterator<Item = String>) -> Option<Wanted> {
    let mut wanted = Wanted {
        ranks: 2,
        cache: default_cache(),
        peers: Vec::new(),
        collectives: Vec::new(),
        sizes: Vec::new(),
        budget: Budget::default(),
    };
    while let Some(word) = words.next() {
        match word.as_str() {
            "-n" => wanted.ranks = words.next()?.parse().ok()?,
            "-i" => wanted.budget.iterations = words.next()?.parse().ok()?,
            "--cache" => wanted.cache = words.next()?.into(),
            name => match (Peer::from_name(name), name.parse()) {
                (Some(peer), _) => wanted.peers.push(peer),
                (None, Ok(collective)) => wanted.collectives.push(collective),
                (None, Err(_)) => wanted.sizes.push(name.parse().ok()?),
            },
        }
    }
    if wanted.peers.is_empty() {
        wanted.peers.extend([Peer::OpenMpi, Peer::Mpich, Peer::Gloo]);
    }
    if wanted.collectives.is_empty() {
        wanted.collectives.push(Collective::AllReduce);
    }
    if wanted.sizes.is_empty() {
        wanted.sizes.extend([8, 4 << 10, 32 << 10, 256 << 10, 2 << 20, 16 << 20]);
    }
    Some(wanted)
}

impl Wanted {
    /// Each collective of each size, or about it.
    fn calls(&self) -> Vec<Call> {
        let call = |collective: Collective, bytes: u64| {
            let blocks = if collective.has_blocks() { self.ranks.max(1) as u64 } else { 1 };
            let some = collective != Collective::Barrier;
            let count = if some { (bytes / size_of::<f32>() as u64 / blocks).max(1) } else { 0 };
            Call { collective, data_type: DataType::F32, op: ReduceOp::Sum, count, root: 0 }
        };
        let collectives = self.collectives.iter();
        collectives
            .flat_map(|&collective| self.sizes.iter().map(move |&bytes| call(collective, bytes)))
            .collect()
    }
}

fn main() -> ExitCode {
    let Some(wanted) = parse(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let mut status = ExitCode::SUCCESS;
    let calls = wanted.calls();
    for &peer in &wanted.peers {
        let report = peer
            .prepare(&wanted.cache, &mut |line| eprintln!("{line}"))
            .and_then(|prepared| prepared.run(wanted.ranks, &calls, wanted.budget));
        match report {
            Ok(lines) => {
                for line in lines {
                    match serde_json::to_string(&line) {
                        Ok(text) => println!("{text}"),
                        Err(error) => eprintln!("cannot print a result: {error}"),
                    }
                }
            }
            Err(error) => {
                eprintln!("peer unavailable: {}: {error}", peer.name());
                status = ExitCode::FAILURE;
            }
        }
    }
    status
}
