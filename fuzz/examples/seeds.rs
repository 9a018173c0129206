//! Writes `fuzz/seeds` from real messages: `cargo run --manifest-path fuzz/Cargo.toml --example seeds`.
//! The rendezvous's are written by the test `seeds` of `runtime/src/bootstrap/protocol.rs`. Files named `regression-…` are inputs
//! that found something, and are left alone.

use std::path::Path;

use windlass::{Config, ModelFile};
use windlass_fuzz::{LIMITS, message};
use windlass_memory::accelerator::{Exported, Region};
use windlass_transports::ledger::Generation;
use windlass_transports::link::Position;
use windlass_transports::link::place::Place;
use windlass_transports::link::wire::{Detail, Header, Kind};
use windlass_transports::shm::Board;
use windlass_transports::shm::board::Shape;
use windlass_transports::tcp::greeting::Greeting;

fn seed(target: &str, name: &str, bytes: &[u8]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    std::fs::create_dir_all(&folder).expect("a folder for the seeds");
    std::fs::write(folder.join(name), bytes).expect("a seed is written");
}

fn frame(kind: Kind, id: u8, size: u8, detail: Detail) -> Vec<u8> {
    let header = Header { kind, ack: 0, message: message(id, size), detail };
    let mut bytes = header.encode().to_vec();
    bytes.resize(bytes.len() + header.payload(), id);
    bytes
}

fn streams() {
    let none = Detail::Credits { bytes: 0, messages: 0 };
    // A receive each of message 1 (8 bytes) and 2 (100 bytes), and a send of message 3 (40 bytes).
    let posts = [1, 1, 2, 1, 2, 7, 0, 3, 5];
    let after = |posts: &[u8], name, cut, frames: &[Vec<u8>]| {
        let count = posts.len() as u8 / 3;
        seed("stream", name, &[&[count, cut][..], posts, &frames.concat()].concat());
    };
    let with = |name, cut, frames: &[Vec<u8>]| after(&posts, name, cut, frames);
    with("eager", 255, &[frame(Kind::Eager, 1, 2, none), frame(Kind::Eager, 4, 3, none)]);
    with(
        "pieces",
        7,
        &[frame(Kind::Data, 2, 7, Detail::Piece(60)), frame(Kind::Data, 2, 7, Detail::Piece(40))],
    );
    let piece = |of, detail| frame(Kind::Data, 2, of, Detail::Piece(detail));
    with("abandoned", 64, &[piece(7, 60), frame(Kind::Abandon, 2, 7, none), piece(7, 100)]);
    with("cleared", 64, &[frame(Kind::Clear, 3, 5, none), frame(Kind::Rescind, 3, 5, none)]);
    with("announced", 64, &[frame(Kind::Announce, 5, 5, none), frame(Kind::Retract, 5, 5, none)]);
    with("stalled", 64, &[frame(Kind::Stalled, 0, 0, none), frame(Kind::Resumed, 0, 0, none)]);
    // Three sends of 40 bytes are more than may be announced: the peer seeks the last, and one that is never posted.
    let sends = [0, 3, 5, 0, 4, 5, 0, 5, 5];
    let seek = |id| frame(Kind::Seek, id, 0, none);
    after(
        &sends,
        "asked",
        255,
        &[seek(5), seek(6), frame(Kind::Forget, 6, 0, none), frame(Kind::Clear, 5, 5, none)],
    );
    // A stalled sender finds what is sought here; the other message comes by itself.
    let searches = [2, 6, 0, 2, 7, 0];
    let stalled = frame(Kind::Stalled, 0, 0, none);
    after(
        &searches,
        "sought",
        255,
        &[stalled, frame(Kind::Found, 6, 5, none), frame(Kind::Eager, 7, 2, none)],
    );
    with("refused", 64, &[frame(Kind::RefuseClear, 2, 6, none), frame(Kind::RefuseMessage, 9, 0, none)]);
    with("credit", 64, &[frame(Kind::Credit, 0, 0, Detail::Credits { bytes: 1, messages: 1 })]);
}

/// Of links whose clearances say where their message belongs: a receive of message 2 (100 bytes) and a send of message 3 (40 bytes).
fn placed() {
    let none = Detail::Credits { bytes: 0, messages: 0 };
    let keys = |rail| [(rail, 9), (rail + 2, 10)].into_iter().collect();
    let place = Place { address: 4096, keys: keys(0), generation: Generation(1) };
    let clear = [frame(Kind::Clear, 3, 5, none), place.encode().to_vec()].concat();
    let stale = Place { generation: Generation(2), ..place };
    let stale = [frame(Kind::Clear, 3, 5, none), stale.encode().to_vec()].concat();
    let elsewhere = Place { keys: keys(5), ..place };
    let elsewhere = [frame(Kind::Clear, 3, 5, none), elsewhere.encode().to_vec()].concat();
    // A header alone, whose payload lands. A cut ends with it, and the next begins with an odd byte.
    let header = frame(Kind::Data, 2, 7, Detail::Piece(100))[..64].to_vec();
    let posts = [1, 2, 7, 0, 3, 5];
    let with = |name, lands, bytes: &[Vec<u8>]| {
        seed("placed", name, &[&[2, 64, lands][..], &posts, &bytes.concat()].concat())
    };
    with("cleared", 0, &[clear.clone()]);
    with("stale", 0, &[stale]);
    with("by-other-rails", 0, &[elsewhere]);
    with("twice", 0, &[clear.clone(), clear]);
    with("landed", 50, &[header.clone(), vec![1; 64], vec![1; 64]]);
    with("too-much", 200, &[header, vec![1; 64]]);
}

fn steps() {
    seed("frames", "eager", &[2, 1, 2, 0, 7, 1, 2, 0, 7, 2, 2, 0, 2, 2, 2, 0]);
    seed("frames", "pieces", &[2, 2, 7, 0, 10, 2, 7, 60, 10, 2, 7, 40]);
    seed("frames", "sends", &[0, 3, 5, 0, 9, 3, 5, 0, 6, 0, 0, 99, 13, 3, 5, 0, 4, 0, 0, 0]);
    seed("frames", "withdrawn", &[2, 2, 7, 0, 4, 0, 0, 0, 10, 2, 7, 100, 14, 2, 7, 0]);
    seed(
        "frames",
        "asked",
        &[0, 3, 5, 0, 0, 4, 5, 0, 0, 5, 5, 0, 22, 5, 0, 0, 6, 0, 0, 99, 24, 7, 0, 0, 9, 5, 5, 0, 6, 0, 0, 99],
    );
    seed(
        "frames",
        "sought",
        &[
            25, 6, 0, 0, 25, 7, 0, 0, 18, 0, 0, 0, 23, 6, 5, 0, 7, 7, 2, 0, 2, 6, 5, 0, 10, 6, 5, 40, 6, 0,
            0, 99,
        ],
    );
    let mut all = Vec::new();
    for name in 0..64 {
        all.extend([0, name, 0, 0, 5, 0, 0, 70, 7, 0, 0, 50, 2, name, 0, 0, 5, 0, 1, 200, 8, 0, 1, 90]);
    }
    seed("pair", "all", &all);
    seed(
        "pair",
        "late",
        &(0..24)
            .flat_map(|name| [0, name, 0, 0])
            .chain((0..24).flat_map(|name| [2, name, 0, 0]))
            .collect::<Vec<_>>(),
    );
    // Many sends of one class, so that the sender stalls; each second message is sought before it is received.
    let classes = (0..64u8).filter(|name| name & 7 == 0);
    let sent = classes.clone().flat_map(|name| [0, name, 0, 0]);
    let told = [5, 0, 0, 255, 7, 0, 0, 255];
    let sought = classes.clone().rev().flat_map(|name| [10, name, 0, 0]).chain([5, 0, 1, 255, 7, 0, 1, 255]);
    let received = classes.rev().step_by(2).flat_map(|name| [2, name, 0, 0]);
    seed("pair", "sought", &sent.chain(told).chain(sought).chain(told).chain(received).collect::<Vec<_>>());
    seed("pair", "withdrawn", &[2, 0, 0, 0, 5, 0, 1, 200, 4, 0, 1, 0, 0, 0, 0, 0, 7, 0, 1, 255, 5, 0, 0, 50]);
    seed("pair", "odd", &[2, 8, 255, 0, 0, 8, 0, 0, 0, 16, 0, 0, 2, 16, 255, 0]);
}

fn main() {
    streams();
    placed();
    steps();
    let (generation, position) = (Generation(2), Position { frames: 7, bytes: 70 });
    let greeting = Greeting { job: 1 << 100, rank: 3, limits: LIMITS, generation, position };
    seed("greeting", "one", &greeting.encode());
    let exported = Exported { region: Region::new(1, 2), generation: 3, offset: 4160, bytes: 1 << 20 };
    seed("exported", "one", &exported.to_wire());
    seed("exported", "none", &Exported { bytes: 0, ..exported }.to_wire());
    for (name, pages, lanes) in [("lanes", 8, 1), ("plain", 6, 0)] {
        let shape = Shape { ranks: 2, slot_bytes: 100, stage_bytes: 5000, lanes, note_bytes: 8 };
        let segment = Board::create(shape).expect("a board");
        // SAFETY: the header's bytes, in the first page of a mapping that nobody else has.
        let header = unsafe { std::slice::from_raw_parts(segment.mapping().base().as_ptr(), 48) };
        seed("board", name, &[&[pages, 0], header].concat());
    }
    seed("config", "model", &[b"\0", ModelFile::from(Config::default().model).to_text().as_bytes()].concat());
    seed("config", "one-constant", b"\0flag_ns = 77.5\nslot_bytes = 4096\n");
    seed(
        "config",
        "settings",
        b"\x01transport = \"tcp\"\nalgorithm = \"ring\"\ntimeout = 5\njoin_timeout = 1.5\n",
    );
    seed("config", "auto", b"\x01algorithm = \"auto\"\nreport_after = 0\n");
    seed("config", "unknown", b"\x01tiemout = 5\n");
}
