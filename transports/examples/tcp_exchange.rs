//! Two threads exchange messages over loopback, by raw nonblocking sockets and through the TCP transport, in alternating blocks.
//!
//! `cargo run --release -p windlass-transports --example tcp_exchange [eager_bytes [socket_buffer]]`

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use windlass_transports::link::Limits;
use windlass_transports::message::{COLLECTIVE_TAG, Message, MessageId};
use windlass_transports::tcp::{Options, Tcp};
use windlass_transports::{Event, Token, Transport};

const SIZES: [usize; 6] = [8, 4 << 10, 64 << 10, 256 << 10, 2 << 20, 16 << 20];
const BLOCK: Duration = Duration::from_millis(10);
const ROUNDS: usize = 24;

/// Both directions at once, as fast as two nonblocking sockets go.
fn exchange_raw(stream: &mut TcpStream, out: &[u8], into: &mut [u8]) {
    let (mut sent, mut received) = (0, 0);
    while sent < out.len() || received < into.len() {
        if sent < out.len() {
            match stream.write(&out[sent..]) {
                Ok(bytes) => sent += bytes,
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
        if received < into.len() {
            match stream.read(&mut into[received..]) {
                Ok(bytes) => received += bytes,
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
    }
}

struct Exchange {
    tcp: Tcp,
    peer: u32,
    sequence: u64,
    events: Vec<Event>,
}

impl Exchange {
    fn run(&mut self, out: &[u8], into: &mut [u8]) {
        self.sequence += 1;
        let id =
            MessageId { communicator: 1, tag: COLLECTIVE_TAG, sequence: self.sequence, label: 0, chunk: 0 };
        let message = Message { id, fingerprint: [1, 2], bytes: out.len() };
        // SAFETY: both slices outlive the loop, which ends when both operations have ended.
        unsafe {
            self.tcp.post_recv(self.peer, &message, into.as_mut_ptr(), Token(0));
            self.tcp.post_send(self.peer, &message, out.as_ptr(), Token(1));
        }
        let mut ended = 0;
        while ended < 2 {
            self.tcp.poll(&mut self.events);
            for event in self.events.drain(..) {
                match event {
                    Event::Sent(_) | Event::Received(_) => ended += 1,
                    other => panic!("{other:?}"),
                }
            }
        }
    }
}

/// Repeats `step` in step with the other thread; microseconds per step.
fn timed(barrier: &Barrier, repeats: u32, mut step: impl FnMut()) -> f64 {
    barrier.wait();
    step();
    let start = Instant::now();
    for _ in 0..repeats {
        step();
    }
    start.elapsed().as_secs_f64() * 1e6 / f64::from(repeats)
}

fn rank(mut stream: TcpStream, tcp: Tcp, peer: u32, barrier: &Barrier) -> Vec<(Vec<f64>, Vec<f64>)> {
    stream.set_nonblocking(true).expect("nonblocking");
    stream.set_nodelay(true).expect("nodelay");
    let mut exchange = Exchange { tcp, peer, sequence: 0, events: Vec::new() };
    SIZES
        .iter()
        .map(|&size| {
            let (out, mut into) = (vec![1; size], vec![0; size]);
            let guess = 6.0 + size as f64 / 2500.0;
            let repeats = (BLOCK.as_secs_f64() * 1e6 / guess).clamp(2.0, 2000.0) as u32;
            (0..ROUNDS)
                .map(|_| {
                    let raw = timed(barrier, repeats, || exchange_raw(&mut stream, &out, &mut into));
                    let ours = timed(barrier, repeats, || exchange.run(&out, &mut into));
                    (raw, ours)
                })
                .unzip()
        })
        .collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let mut arguments = std::env::args().skip(1).filter_map(|argument| argument.parse::<usize>().ok());
    let mut options = Options::default();
    if let Some(eager) = arguments.next() {
        let credit = (8 * eager).max(512 << 10) as u32;
        options.limits = Limits { eager_bytes: eager as u32, credit_bytes: credit, ..options.limits };
    }
    options.send_buffer = arguments.next();
    options.receive_buffer = options.send_buffer;
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let near = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
    let (far, _) = listener.accept().expect("accept");
    let bound = [0, 1].map(|rank| Tcp::bind_with(rank, 7, options).expect("bind"));
    let addresses: Vec<SocketAddr> = bound.iter().map(|(_, address)| *address).collect();
    let [(mut first, _), (mut second, _)] = bound;
    first.connect(&addresses).expect("connect");
    second.connect(&addresses).expect("connect");
    let barrier = Barrier::new(2);
    let figures = std::thread::scope(|scope| {
        let other = scope.spawn(|| rank(far, second, 0, &barrier));
        let figures = rank(near, first, 1, &barrier);
        other.join().expect("the other rank");
        figures
    });
    println!("{:>10} {:>10} {:>10} {:>7}", "bytes", "raw us", "tcp us", "ratio");
    for (size, (raw, ours)) in SIZES.iter().zip(figures) {
        let ratio = median(ours.iter().zip(&raw).map(|(ours, raw)| ours / raw).collect());
        println!("{size:>10} {:>10.2} {:>10.2} {ratio:>7.2}", median(raw), median(ours));
    }
}
