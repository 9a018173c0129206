//! Who may come in over TCP, and how a peer is lost.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use windlass_transports::message::{Message, MessageId};
use windlass_transports::tcp::{Error, Tcp};
use windlass_transports::{Event, LostCause, Token, Transport};

fn message(sequence: u64, bytes: usize) -> Message {
    let id = MessageId { communicator: 1, tag: 1, sequence, label: 0, chunk: 0 };
    Message { id, fingerprint: [0; 2], bytes }
}

/// Polls until `enough` events have come.
fn drive(ranks: &mut [&mut Tcp], enough: usize) -> Vec<(usize, Event)> {
    let (mut all, mut events, start) = (Vec::new(), Vec::new(), Instant::now());
    while all.len() < enough {
        for (rank, tcp) in ranks.iter_mut().enumerate() {
            tcp.poll(&mut events);
            all.extend(events.drain(..).map(|event| (rank, event)));
        }
        assert!(start.elapsed() < Duration::from_secs(10), "only {all:?}");
    }
    all
}

fn exchange(first: &mut Tcp, second: &mut Tcp, sequence: u64) {
    let (out, mut into) = ([sequence as u8; 100], [0u8; 100]);
    // SAFETY: both operations end before the buffers do.
    unsafe {
        second.post_recv(0, &message(sequence, 100), into.as_mut_ptr(), Token(1));
        first.post_send(1, &message(sequence, 100), out.as_ptr(), Token(2));
    }
    drive(&mut [first, second], 2);
    assert_eq!(into, out);
}

#[test]
fn strangers_are_sent_away_and_the_job_goes_on() {
    let (mut first, address) = Tcp::bind(0, 1).unwrap();
    let (mut second, other) = Tcp::bind(1, 1).unwrap();
    let (mut stranger, _) = Tcp::bind(1, 2).unwrap();
    let mut garbage = TcpStream::connect(address).unwrap();
    garbage.write_all(&[0x55; 100]).unwrap();
    let mut silent = TcpStream::connect(address).unwrap();
    first.connect([address, other]).unwrap();
    stranger.connect([address, other]).unwrap();
    let events = drive(&mut [&mut first, &mut stranger], 1);
    assert!(matches!(events[..], [(1, Event::Broken { peer: 0, .. })]), "{events:?}");
    second.connect([address, other]).unwrap();
    exchange(&mut first, &mut second, 1);
    let mut rest = Vec::new();
    // Closed with bytes unread, it may be reset.
    let _ = garbage.read_to_end(&mut rest);
    assert!(rest.is_empty());
    silent.write_all(&[1]).unwrap();
    exchange(&mut first, &mut second, 2);
}

#[test]
fn a_peer_that_is_not_there_is_reported_once_and_lost_once() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (mut tcp, address) = Tcp::bind(1, 1).unwrap();
    tcp.connect([nobody, address]).unwrap();
    let events = drive(&mut [&mut tcp], 1);
    assert!(matches!(&events[0].1, Event::Broken { peer: 0, cause: LostCause::System { .. } }), "{events:?}");
    let mut more = Vec::new();
    for _ in 0..200 {
        tcp.poll(&mut more);
    }
    assert!(more.is_empty(), "{more:?}");
    tcp.reopen(0);
    assert!(matches!(drive(&mut [&mut tcp], 1)[..], [(0, Event::Broken { peer: 0, .. })]));
    tcp.give_up(0);
    tcp.reopen(0);
    assert!(matches!(drive(&mut [&mut tcp], 1)[..], [(0, Event::Lost { peer: 0, .. })]));
}

#[test]
fn what_a_peer_said_before_it_left_arrives() {
    let (mut first, address) = Tcp::bind(0, 1).unwrap();
    let (mut second, other) = Tcp::bind(1, 1).unwrap();
    first.connect([address, other]).unwrap();
    second.connect([address, other]).unwrap();
    exchange(&mut first, &mut second, 1);
    let (out, mut into) = ([9u8; 1000], [0u8; 1000]);
    // SAFETY: the operations end before the buffers do.
    unsafe { first.post_send(1, &message(2, 1000), out.as_ptr(), Token(3)) };
    drive(&mut [&mut first], 1);
    drop(first);
    // SAFETY: as above.
    unsafe { second.post_recv(0, &message(2, 1000), into.as_mut_ptr(), Token(4)) };
    let events = drive(&mut [&mut second], 2);
    assert_eq!(events[0].1, Event::Received(Token(4)));
    assert_eq!(events[1].1, Event::Broken { peer: 0, cause: LostCause::Closed });
    assert_eq!(into, out);
}

#[test]
fn the_descriptor_wakes_a_waiter() {
    let (mut first, address) = Tcp::bind(0, 1).unwrap();
    let (mut second, other) = Tcp::bind(1, 1).unwrap();
    first.connect([address, other]).unwrap();
    second.connect([address, other]).unwrap();
    exchange(&mut first, &mut second, 1);
    let bytes = 8 << 20;
    let (out, mut into) = (vec![3u8; bytes], vec![0u8; bytes]);
    // SAFETY: both threads' operations end inside the scope, before the buffers.
    unsafe {
        second.post_recv(0, &message(2, bytes), into.as_mut_ptr(), Token(1));
        first.post_send(1, &message(2, bytes), out.as_ptr(), Token(2));
    }
    let wait = |mut tcp: Tcp| {
        let mut events = Vec::new();
        while events.is_empty() {
            if !tcp.poll(&mut events) {
                let descriptor = tcp.descriptor().unwrap();
                let mut polled = [rustix::event::PollFd::new(&descriptor, rustix::event::PollFlags::IN)];
                let limit = rustix::event::Timespec { tv_sec: 5, tv_nsec: 0 };
                assert!(
                    rustix::event::poll(&mut polled, Some(&limit)).unwrap() > 0,
                    "nobody woke the waiter"
                );
            }
        }
        // Who stops polling says what it owes: the sender of a large message waits for it.
        assert!(tcp.acknowledge());
        (tcp, events)
    };
    let ended = std::thread::scope(|scope| {
        let other = scope.spawn(|| wait(second));
        (wait(first).1, other.join().unwrap().1)
    });
    assert_eq!(ended, (vec![Event::Sent(Token(2))], vec![Event::Received(Token(1))]));
    assert_eq!(into, out);
}

#[test]
fn too_few_descriptors_are_a_typed_error() {
    let (mut tcp, address) = Tcp::bind(0, 1).unwrap();
    let many = vec![address; 50_000_000 / size_of::<SocketAddr>()];
    match tcp.connect(&many) {
        Err(error @ Error::DescriptorLimit { needed, limit }) => {
            assert!(needed > limit);
            assert!(error.to_string().contains(&format!("ulimit -n {needed}")), "{error}");
        }
        other => panic!("{other:?}"),
    }
}
