//! Counts the byte trigrams of a file on all ranks and prints the ten most frequent: the same answer for any number of ranks.
//!
//! windlass run -n 4 -- target/release/examples/histogram [FILE]

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::time::Instant;

use windlass::ReduceOp;

/// Every trigram of bytes has a counter.
const TRIGRAMS: usize = 1 << 24;
const DEFAULT_FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/alice.txt");

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let comm = windlass::init()?;
    let path = std::env::args().nth(1).unwrap_or_else(|| DEFAULT_FILE.to_owned());
    let counts = count(&comm, &path);
    // A rank that cannot read its part must not leave the others waiting: all learn of it by a sum.
    let mut failed = [i32::from(counts.is_err())];
    comm.blocking().all_reduce(&mut failed, ReduceOp::Sum)?;
    if failed[0] > 0 {
        return Err(counts.err().unwrap_or_else(|| "another rank could not read its part".into()));
    }
    let mut counts = counts?;
    let begin = Instant::now();
    comm.blocking().all_reduce(&mut counts, ReduceOp::Sum)?;
    let elapsed = begin.elapsed();
    if comm.rank() == 0 {
        report(&path, &counts, comm.size(), elapsed);
    }
    comm.finalize()?;
    Ok(())
}

/// Counts the trigrams that begin in this rank's part of the file.
fn count(
    comm: &windlass::Communicator,
    path: &str,
) -> Result<windlass::Buffer<i32>, Box<dyn std::error::Error>> {
    let mut file = File::open(path).map_err(|e| format!("{path}: {e}"))?;
    let length = file.metadata()?.len();
    let part = |rank: u32| length * u64::from(rank) / u64::from(comm.size());
    let (begin, end) = (part(comm.rank()), part(comm.rank() + 1));
    // A trigram that begins in this part may end in the next one.
    let wanted = (end + 2).min(length) - begin;
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(begin))?;
    file.take(wanted).read_to_end(&mut bytes)?;
    let mut counts = comm.alloc::<i32>(TRIGRAMS)?;
    for trigram in bytes.windows(3) {
        counts[usize::from(trigram[0]) << 16 | usize::from(trigram[1]) << 8 | usize::from(trigram[2])] += 1;
    }
    Ok(counts)
}

fn report(path: &str, counts: &[i32], ranks: u32, elapsed: std::time::Duration) {
    let mut order: Vec<usize> = (0..TRIGRAMS).filter(|&t| counts[t] > 0).collect();
    order.sort_unstable_by_key(|&t| (std::cmp::Reverse(counts[t]), t));
    let total: i64 = counts.iter().map(|&c| i64::from(c)).sum();
    println!("{path}: {total} trigrams, {} different, the most frequent:", order.len());
    let most = order.first().map_or(1, |&t| counts[t]);
    for &trigram in order.iter().take(10) {
        let bytes = [(trigram >> 16) as u8, (trigram >> 8) as u8, trigram as u8];
        let text = bytes.escape_ascii().to_string();
        let bar = "#".repeat((40 * counts[trigram] as usize).div_ceil(most as usize));
        println!("  {:<14}{:>8}  {bar}", format!("\"{text}\""), counts[trigram]);
    }
    eprintln!("{ranks} ranks summed {} MiB of counts each in {elapsed:.1?}", (TRIGRAMS * 4) >> 20);
}
