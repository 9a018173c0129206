//! The lane between two ranks: cells that are used again, the end, and memory that is lent and taken back.

use windlass_transports::shm::lane::{CELLS, Content, Positions};

use super::*;

type Shown = windlass_transports::shm::lane::Cell;

/// Cells that are under way at once: as if [`CELLS`] were so few.
const CAPACITY: u64 = 2;
const MESSAGES: u64 = 3;

/// What a planted mistake leaves out.
#[derive(Clone, Copy, PartialEq)]
enum Plant {
    Nothing,
    /// The writer does not look how much has been read.
    NoRoom,
    /// The writer shows before it stores.
    EarlyShow,
    /// The reader tells before it loads.
    EarlyRead,
    /// The writer closes before its last cell.
    EarlyClose,
    /// The reader takes any number for the one it awaits.
    AnyNumber,
}

struct Lane {
    positions: Positions,
    cells: [Shown; CAPACITY as usize],
    /// What the cells hold, or the bounce buffers that they name.
    bytes: [Cell; CAPACITY as usize],
}

impl Lane {
    fn at(&self, number: u64) -> (&Shown, &Cell) {
        let place = (number % CAPACITY) as usize;
        (&self.cells[place], &self.bytes[place])
    }
}

fn write(lane: &Lane, plant: Plant) {
    for number in 1..=MESSAGES {
        if plant != Plant::NoRoom {
            until(|| number - lane.positions.read() <= CAPACITY);
        }
        if plant == Plant::EarlyClose && number == MESSAGES {
            lane.positions.close();
        }
        let (cell, bytes) = lane.at(number);
        if plant == Plant::EarlyShow {
            cell.show(number, Content::Bytes(1));
            bytes.write(mark(number, 0));
        } else {
            bytes.write(mark(number, 0));
            cell.show(number, Content::Bytes(1));
        }
    }
    lane.positions.close();
}

fn read(lane: &Lane, plant: Plant) {
    let mut number = 1;
    loop {
        let (cell, bytes) = lane.at(number);
        let shown = || match plant {
            Plant::AnyNumber => (1..=MESSAGES).any(|any| cell.shown(any).is_some()),
            _ => cell.shown(number) == Some(Content::Bytes(1)),
        };
        if !shown() {
            if lane.positions.is_closed() && !shown() {
                break;
            }
            thread::yield_now();
            continue;
        }
        if plant == Plant::EarlyRead {
            lane.positions.set_read(number);
            assert_eq!(bytes.read(), mark(number, 0));
        } else {
            assert_eq!(bytes.read(), mark(number, 0));
            lane.positions.set_read(number);
        }
        number += 1;
    }
    assert_eq!(number - 1, MESSAGES, "all cells came before the end");
}

fn scene(plant: Plant) {
    loom::model(move || {
        let lane = Arc::new(Lane {
            positions: Positions::new(),
            cells: [Shown::new(), Shown::new()],
            bytes: [Cell::new(), Cell::new()],
        });
        let writer = {
            let lane = Arc::clone(&lane);
            thread::spawn(move || write(&lane, plant))
        };
        read(&lane, plant);
        writer.join().unwrap();
    });
}

#[test]
fn every_cell_arrives_once_and_in_order() {
    const { assert!(CELLS >= CAPACITY) };
    scene(Plant::Nothing);
}

#[test]
#[should_panic]
fn canary_no_room() {
    scene(Plant::NoRoom);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn canary_early_show() {
    scene(Plant::EarlyShow);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn canary_early_read() {
    scene(Plant::EarlyRead);
}

#[test]
#[should_panic(expected = "all cells came before the end")]
fn canary_early_close() {
    scene(Plant::EarlyClose);
}

#[test]
#[should_panic]
fn canary_any_number() {
    scene(Plant::AnyNumber);
}

/// What a planted mistake does with lent memory.
#[derive(Clone, Copy, PartialEq)]
enum Lending {
    Right,
    /// The owner writes before its transport has revoked.
    EarlyWrite,
    /// The reader looks whether the memory is lent before it reads it.
    EarlyLook,
    /// The reader tells that it has read before it tells what it has taken.
    LateTaken,
}

/// One cell lends two words. The writer withdraws at some time, gives the memory back, and then learns what was taken.
fn lend(lending: Lending) {
    const LENT: u64 = 7;
    loom::model(move || {
        let memory = Arc::new([AtomicU64::new(LENT), AtomicU64::new(LENT)]);
        let (cell, positions) = (Arc::new(Shown::new()), Arc::new(Positions::new()));
        let reader = {
            let (memory, cell, positions) = (Arc::clone(&memory), Arc::clone(&cell), Arc::clone(&positions));
            thread::spawn(move || {
                until(|| cell.shown(1) == Some(Content::Lent));
                let load = || [0, 1].map(|at: usize| memory[at].load(Ordering::Relaxed));
                let (copy, is_lent) = if lending == Lending::EarlyLook {
                    let is_lent = positions.is_lent(1);
                    (load(), is_lent)
                } else {
                    let copy = load();
                    (copy, positions.is_lent(1))
                };
                if lending == Lending::LateTaken {
                    positions.set_read(1);
                }
                if is_lent {
                    assert_eq!(copy, [LENT; 2], "what counts is what was lent");
                    positions.set_taken(2);
                }
                positions.set_read(1);
                is_lent
            })
        };
        cell.show(1, Content::Lent);
        if lending != Lending::EarlyWrite {
            positions.revoke(1);
        }
        memory[1].store(LENT + 1, Ordering::Relaxed);
        positions.revoke(1);
        until(|| positions.read() == 1);
        let taken = positions.taken();
        let is_lent = reader.join().unwrap();
        assert_eq!(taken, if is_lent { 2 } else { 0 }, "both know what was taken");
    });
}

#[test]
fn what_is_lent_is_taken_right_or_not_at_all() {
    lend(Lending::Right);
}

#[test]
#[should_panic(expected = "what counts is what was lent")]
fn canary_early_write() {
    lend(Lending::EarlyWrite);
}

#[test]
#[should_panic(expected = "what counts is what was lent")]
fn canary_early_look() {
    lend(Lending::EarlyLook);
}

#[test]
#[should_panic(expected = "both know what was taken")]
fn canary_late_taken() {
    lend(Lending::LateTaken);
}
