//! The byte ring between two ranks.

use windlass_transports::shm::lane::Positions;

use super::*;

/// Bytes that are under way at once.
const CAPACITY: u64 = 2;
const MESSAGES: u64 = 3;

/// What a planted mistake leaves out.
#[derive(Clone, Copy, PartialEq)]
enum Plant {
    Nothing,
    /// The writer does not look how much room there is.
    NoRoom,
    /// The writer tells before it stores.
    EarlyTail,
    /// The reader tells before it loads.
    EarlyHead,
    /// The writer closes before its last byte.
    EarlyClose,
}

struct Lane {
    positions: Positions,
    ring: [Cell; CAPACITY as usize],
}

fn write(lane: &Lane, plant: Plant) {
    for message in 0..MESSAGES {
        let mut tail = message;
        if plant != Plant::NoRoom {
            until(|| {
                let (position, room) = lane.positions.room(CAPACITY);
                tail = position;
                room > 0
            });
        }
        if plant == Plant::EarlyClose && message + 1 == MESSAGES {
            lane.positions.close();
        }
        let cell = &lane.ring[(tail % CAPACITY) as usize];
        if plant == Plant::EarlyTail {
            lane.positions.push(1);
            cell.write(mark(message, 0));
        } else {
            cell.write(mark(message, 0));
            lane.positions.push(1);
        }
    }
    lane.positions.close();
}

fn read(lane: &Lane, plant: Plant) {
    let mut read = 0;
    loop {
        let closed = lane.positions.is_closed();
        let (head, waiting) = lane.positions.waiting();
        if waiting == 0 {
            if closed {
                break;
            }
            thread::yield_now();
            continue;
        }
        let cell = &lane.ring[(head % CAPACITY) as usize];
        if plant == Plant::EarlyHead {
            lane.positions.pop(1);
            assert_eq!(cell.read(), mark(read, 0));
        } else {
            assert_eq!(cell.read(), mark(read, 0));
            lane.positions.pop(1);
        }
        read += 1;
    }
    assert_eq!(read, MESSAGES, "all bytes came before the end");
}

fn scene(plant: Plant) {
    loom::model(move || {
        let lane = Arc::new(Lane { positions: Positions::new(), ring: [Cell::new(), Cell::new()] });
        let writer = {
            let lane = Arc::clone(&lane);
            thread::spawn(move || write(&lane, plant))
        };
        read(&lane, plant);
        writer.join().unwrap();
    });
}

#[test]
fn every_byte_arrives_once_and_in_order() {
    scene(Plant::Nothing);
}

#[test]
#[should_panic]
fn canary_no_room() {
    scene(Plant::NoRoom);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn canary_early_tail() {
    scene(Plant::EarlyTail);
}

#[test]
#[should_panic(expected = "Causality violation")]
fn canary_early_head() {
    scene(Plant::EarlyHead);
}

#[test]
#[should_panic(expected = "all bytes came before the end")]
fn canary_early_close() {
    scene(Plant::EarlyClose);
}
