//! What the verbs alone make of two NICs: the limit that the RDMA transport is compared with. Nothing of the transport is in it.
//!
//! ```text
//! bare_verbs 0 10.77.0.1:7000 [--bytes N,N…] [--seconds S]     on the one host, which listens there
//! bare_verbs 1 10.77.0.1:7000 [the same]                       on the other
//! deploy/testbed/run --hosts 2 sh -c 'bare_verbs $WINDLASS_TESTBED_HOST host0:7000'
//! ```
//!
//! An 8-byte ping-pong by writes with immediates; a stream of 1 MiB writes; the bytes of an all-reduce of two ranks, by halves (each rank sends one half,
//! and then the other) and whole; and how long it takes to recycle a broken connection and to register memory anew. Both sleep on completion channels:
//! where cores are few, spinning would measure the scheduler. Rank 0 prints JSON.

mod line;

use std::net::TcpStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use line::{Line, WINDOW};

/// What a stream's writes have.
const STREAM_BYTES: usize = 1 << 20;

/// What both ranks are asked for.
#[derive(Debug)]
struct Request {
    rank: usize,
    address: String,
    bytes: Vec<usize>,
    time: Duration,
}

const USAGE: &str = "usage: bare_verbs 0|1 ADDRESS:PORT [--bytes N,N…] [--seconds S]   (both ranks the same but for the first)";

fn parse(mut words: impl Iterator<Item = String>) -> Result<Request, String> {
    let rank = match words.next().as_deref() {
        Some("0") => 0,
        Some("1") => 1,
        other => return Err(format!("the rank is 0 or 1, not {}", other.unwrap_or("nothing"))),
    };
    let address = words.next().ok_or("where rank 0 listens is missing")?;
    let mut request = Request {
        rank,
        address,
        bytes: vec![8, 4 << 10, 64 << 10, 1 << 20, 4 << 20],
        time: Duration::from_secs(2),
    };
    while let Some(word) = words.next() {
        let value = words.next().ok_or(format!("{word} needs a value"))?;
        match word.as_str() {
            "--bytes" => {
                let sizes = value.split(',').map(str::parse::<usize>).collect::<Result<Vec<_>, _>>();
                request.bytes =
                    sizes.map_err(|_| format!("--bytes takes numbers with commas, not {value}"))?;
                if request.bytes.iter().any(|n| n % 2 == 1 || !(2..=line::ROOM).contains(n)) {
                    return Err(format!("--bytes are even, from 2 to {}", line::ROOM));
                }
            }
            "--seconds" => {
                let seconds = value.parse().ok().and_then(|s| Duration::try_from_secs_f64(s).ok());
                request.time = seconds.ok_or(format!("--seconds takes a number, not {value}"))?;
            }
            _ => return Err(format!("{word} is no option")),
        }
    }
    Ok(request)
}

fn main() -> ExitCode {
    let request = match parse(std::env::args().skip(1)) {
        Ok(request) => request,
        Err(wrong) => {
            eprintln!("bare_verbs: {wrong}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(&request) {
        Ok(json) => {
            if request.rank == 0 {
                println!("{json}");
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("bare_verbs: rank {}: {error}", request.rank);
            ExitCode::FAILURE
        }
    }
}

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn run(request: &Request) -> Outcome<String> {
    let mut line = Line::open(request.rank, &request.address)?;
    let mut parts = vec![format!(
        "\"device\": \"{}\", \"gid\": \"{}\", \"mtu_bytes\": {}",
        line.device_name(),
        line.attachment().gid,
        line.attachment().mtu.bytes()
    )];
    let times = ping_pong(&mut line, request)?;
    parts.push(format!("\"ping_pong\": {}", summary(8, times)));
    let (writes, seconds) = stream(&mut line, request)?;
    let rate = (writes * STREAM_BYTES) as f64 / seconds / 1e9;
    parts.push(format!("\"stream\": {{\"bytes\": {STREAM_BYTES}, \"writes\": {writes}, \"window\": {WINDOW}, \"gbps\": {rate:.4}}}"));
    for (name, halves) in [("halves", true), ("whole", false)] {
        let mut rows = Vec::new();
        for &bytes in &request.bytes {
            rows.push(summary(bytes, exchange(&mut line, request, bytes, halves)?));
        }
        parts.push(format!("\"{name}\": [{}]", rows.join(", ")));
    }
    let (recycle, register) = recover(&mut line)?;
    parts.push(format!("\"recycle\": {}", summary(0, recycle)));
    parts.push(format!("\"register\": {}", summary(STREAM_BYTES, register)));
    Ok(format!("{{{}}}", parts.join(", ")))
}

/// How often something can be done in the time, by one measurement that both ranks make and rank 0 decides.
fn rounds(
    line: &mut Line,
    request: &Request,
    mut once: impl FnMut(&mut Line) -> Outcome<()>,
) -> Outcome<usize> {
    line.meet()?;
    let begin = Instant::now();
    for _ in 0..4 {
        once(line)?;
    }
    let each = begin.elapsed().as_secs_f64() / 4.0;
    let count = (request.time.as_secs_f64() / each.max(1e-7)).clamp(8.0, 1e6) as u64;
    Ok(usize::try_from(line.agree(count)?)?)
}

/// There and back, timed at rank 0: half of it is what is told.
fn ping_pong(line: &mut Line, request: &Request) -> Outcome<Vec<f64>> {
    let rank = request.rank;
    let mut once = move |line: &mut Line| {
        if rank == 0 {
            line.write(0, 8, Some(1))?;
            line.received()
        } else {
            line.received()?;
            line.write(0, 8, Some(1))
        }
    };
    let count = rounds(line, request, &mut once)?;
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let begin = Instant::now();
        once(line)?;
        times.push(begin.elapsed().as_secs_f64() * 1e6 / 2.0);
    }
    line.settle()?;
    Ok(times)
}

/// Rank 0 writes as long as the time lasts, with a full window; rank 1 sleeps.
fn stream(line: &mut Line, request: &Request) -> Outcome<(usize, f64)> {
    line.meet()?;
    let (mut writes, begin) = (0, Instant::now());
    if request.rank == 0 {
        while begin.elapsed() < request.time || writes < 2 * WINDOW {
            line.write(writes % line::SLOTS * STREAM_BYTES, STREAM_BYTES, None)?;
            writes += 1;
        }
        line.settle()?;
    }
    let seconds = begin.elapsed().as_secs_f64();
    line.meet()?;
    Ok((writes, seconds))
}

/// What an all-reduce of two ranks carries: by halves, each sends the half that the other adds up, and then the half that it has added up itself.
fn exchange(line: &mut Line, request: &Request, bytes: usize, halves: bool) -> Outcome<Vec<f64>> {
    let once = move |line: &mut Line| {
        let (turns, piece) = if halves { (2, bytes / 2) } else { (1, bytes) };
        for turn in 0..turns {
            line.write(turn * piece, piece, Some(turn as u32))?;
            line.received()?;
        }
        Ok(())
    };
    let count = rounds(line, request, once)?;
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let begin = Instant::now();
        once(line)?;
        times.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    line.settle()?;
    Ok(times)
}

/// Reset and connected again, until a write has gone over; and memory of a stream's write deregistered and registered.
fn recover(line: &mut Line) -> Outcome<(Vec<f64>, Vec<f64>)> {
    let (mut recycles, mut registers) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        line.meet()?;
        let begin = Instant::now();
        line.recycle()?;
        line.write(0, 8, Some(1))?;
        line.received()?;
        recycles.push(begin.elapsed().as_secs_f64() * 1e6);
        line.settle()?;
        let begin = Instant::now();
        line.register_anew(STREAM_BYTES)?;
        registers.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    line.meet()?;
    Ok((recycles, registers))
}

fn summary(bytes: usize, mut times: Vec<f64>) -> String {
    times.sort_by(f64::total_cmp);
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    format!(
        "{{\"bytes\": {bytes}, \"iterations\": {}, \"min_us\": {:.2}, \"median_us\": {:.2}, \"p99_us\": {:.2}}}",
        times.len(),
        at(0.0),
        at(0.5),
        at(0.99)
    )
}

/// A stream to the other rank for what the verbs need to begin.
fn meet(rank: usize, address: &str) -> std::io::Result<TcpStream> {
    if rank == 0 {
        return Ok(std::net::TcpListener::bind(address)?.accept()?.0);
    }
    let begin = Instant::now();
    loop {
        match TcpStream::connect(address) {
            Err(error) if begin.elapsed() > Duration::from_secs(20) => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
            stream => return stream,
        }
    }
}
