//! Runs peers alone: `peers [-n RANKS] [-i ITERATIONS] [--cache FOLDER] [PEER…] [BYTES…]`.
//!
//! Prints one JSON line per peer, size and label.

use std::path::PathBuf;
use std::process::ExitCode;

use windlass_benches::peers::{Budget, Peer, default_cache};

const USAGE: &str =
    "usage: peers [-n RANKS] [-i ITERATIONS] [--cache FOLDER] [openmpi|mpich|gloo|torch…] [BYTES…]";

struct Wanted {
    ranks: usize,
    cache: PathBuf,
    peers: Vec<Peer>,
    sizes: Vec<usize>,
    budget: Budget,
}

fn parse(mut words: impl Iterator<Item = String>) -> Option<Wanted> {
    let mut wanted = Wanted {
        ranks: 2,
        cache: default_cache(),
        peers: Vec::new(),
        sizes: Vec::new(),
        budget: Budget::default(),
    };
    while let Some(word) = words.next() {
        match word.as_str() {
            "-n" => wanted.ranks = words.next()?.parse().ok()?,
            "-i" => wanted.budget.iterations = words.next()?.parse().ok()?,
            "--cache" => wanted.cache = words.next()?.into(),
            name => match Peer::from_name(name) {
                Some(peer) => wanted.peers.push(peer),
                None => wanted.sizes.push(name.parse().ok()?),
            },
        }
    }
    if wanted.peers.is_empty() {
        wanted.peers.extend([Peer::OpenMpi, Peer::Mpich, Peer::Gloo]);
    }
    if wanted.sizes.is_empty() {
        wanted.sizes.extend([8, 4 << 10, 32 << 10, 256 << 10, 2 << 20, 16 << 20]);
    }
    Some(wanted)
}

fn main() -> ExitCode {
    let Some(wanted) = parse(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let mut status = ExitCode::SUCCESS;
    for peer in wanted.peers {
        let report = peer
            .prepare(&wanted.cache, &mut |line| eprintln!("{line}"))
            .and_then(|prepared| prepared.run(wanted.ranks, &wanted.sizes, wanted.budget));
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
