//! The life word of simulated device memory, under every interleaving and every value a load may return.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" LOOM_MAX_PREEMPTIONS=2 cargo test -p windlass-memory --test loom --release
//! ```
//!
//! [`Life`] is the product's own code over loom's atomics. A region's bytes are an atomic where an owner may read what an engine
//! writes at the same time (the snapshot of a revoke), and else a cell that loom watches. Each model has canaries: the
//! same scene with one planted mistake, which loom must find.
#![cfg(loom)]

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering, fence};
use loom::thread;
use windlass_memory::accelerator::life::{Life, State};

const GENERATION: u32 = 5;
const STORED: u64 = 7;
const POISON: u64 = 0x7FF5;

/// Memory that its users claim to order.
struct Cell(UnsafeCell<u64>);

// SAFETY: loom reports two accesses that are not ordered, which is what these tests are about.
unsafe impl Send for Cell {}
// SAFETY: as above.
unsafe impl Sync for Cell {}

impl Cell {
    fn read(&self) -> u64 {
        // SAFETY: the pointer is the cell's own; loom ends the test when a write is concurrent.
        self.0.with(|value| unsafe { *value })
    }

    fn write(&self, value: u64) {
        // SAFETY: as above.
        self.0.with_mut(|place| unsafe { *place = value });
    }
}

struct Scene {
    life: Life,
    word: AtomicU64,
    cell: Cell,
}

fn scene(state: State) -> Arc<Scene> {
    let cell = Cell(UnsafeCell::new(0));
    Arc::new(Scene { life: Life::new(GENERATION, state), word: AtomicU64::new(0), cell })
}

/// A revoke in the middle of work: whoever ends well is in the snapshot.
#[test]
fn work_that_ends_well_is_in_the_snapshot() {
    loom::model(|| {
        let scene = scene(State::Alive);
        let engine = {
            let scene = Arc::clone(&scene);
            thread::spawn(move || {
                scene.life.enter(GENERATION).is_ok() && {
                    scene.word.store(STORED, Ordering::Relaxed);
                    scene.life.leave(GENERATION).is_ok()
                }
            })
        };
        scene.life.set(GENERATION, State::Dead);
        let snapshot = scene.word.load(Ordering::Relaxed);
        if engine.join().unwrap() {
            assert_eq!(snapshot, STORED, "work that ended well is lost");
        }
        assert!(scene.life.is_quiet());
    });
}

/// The same by hand, with either fence or neither.
fn by_hand(engine_fences: bool, owner_fences: bool) {
    loom::model(move || {
        let words = Arc::new((AtomicU64::new(1), AtomicU64::new(0)));
        let engine = {
            let words = Arc::clone(&words);
            thread::spawn(move || {
                words.1.store(STORED, Ordering::Release);
                if engine_fences {
                    fence(Ordering::SeqCst);
                }
                words.0.load(Ordering::Acquire) == 1
            })
        };
        words.0.store(0, Ordering::Release);
        if owner_fences {
            fence(Ordering::SeqCst);
        }
        let snapshot = words.1.load(Ordering::Acquire);
        if engine.join().unwrap() {
            assert_eq!(snapshot, STORED, "work that ended well is lost");
        }
    });
}

#[test]
fn two_fences_are_enough() {
    by_hand(true, true);
}

#[test]
#[should_panic(expected = "work that ended well is lost")]
fn canary_an_engine_without_a_fence() {
    by_hand(false, true);
}

#[test]
#[should_panic(expected = "work that ended well is lost")]
fn canary_an_owner_without_a_fence() {
    by_hand(true, false);
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Mistake {
    None,
    /// The engine does not count itself in.
    Uncounted,
    /// The engine goes on after it was told that the memory is gone.
    GoesOn,
    /// The owner does not ask whether anybody is at work.
    PoisonsAtOnce,
    /// The owner asks first and kills then.
    AsksTooEarly,
}

/// Poison goes only where no engine is, and none comes after it.
fn poison(mistake: Mistake) {
    loom::model(move || {
        let scene = scene(State::Alive);
        let engine = {
            let scene = Arc::clone(&scene);
            thread::spawn(move || {
                let entered = match mistake {
                    Mistake::Uncounted => scene.life.state(GENERATION) == State::Alive,
                    _ => scene.life.enter(GENERATION).is_ok(),
                };
                if entered || mistake == Mistake::GoesOn {
                    scene.cell.write(STORED);
                }
                if entered && mistake != Mistake::Uncounted {
                    let _ = scene.life.leave(GENERATION);
                }
            })
        };
        let early = mistake == Mistake::AsksTooEarly && scene.life.is_quiet();
        scene.life.set(GENERATION, State::Dead);
        let quiet = match mistake {
            Mistake::PoisonsAtOnce => true,
            Mistake::AsksTooEarly => early,
            _ => scene.life.is_quiet(),
        };
        if quiet {
            scene.cell.write(POISON);
        }
        engine.join().unwrap();
        if quiet {
            assert_eq!(scene.cell.read(), POISON, "the poison was changed by one who keeps the rules");
        }
    });
}

#[test]
fn poison_is_never_put_under_an_engine() {
    poison(Mistake::None);
}

#[test]
#[should_panic]
fn canary_an_engine_that_is_not_counted() {
    poison(Mistake::Uncounted);
}

#[test]
#[should_panic]
fn canary_an_engine_that_goes_on() {
    poison(Mistake::GoesOn);
}

#[test]
#[should_panic]
fn canary_an_owner_that_poisons_at_once() {
    poison(Mistake::PoisonsAtOnce);
}

#[test]
#[should_panic]
fn canary_an_owner_that_asks_too_early() {
    poison(Mistake::AsksTooEarly);
}

/// Who finds new memory alive finds the bytes there.
fn birth(early: bool) {
    loom::model(move || {
        let scene = scene(State::Unborn);
        let engine = {
            let scene = Arc::clone(&scene);
            thread::spawn(move || {
                if scene.life.enter(GENERATION).is_ok() {
                    assert_eq!(scene.cell.read(), STORED);
                    let _ = scene.life.leave(GENERATION);
                }
            })
        };
        if early {
            scene.life.set(GENERATION, State::Alive);
        }
        scene.cell.write(STORED);
        if !early {
            scene.life.set(GENERATION, State::Alive);
        }
        engine.join().unwrap();
    });
}

#[test]
fn who_enters_new_memory_sees_its_bytes() {
    birth(false);
}

#[test]
#[should_panic]
fn canary_alive_before_its_bytes() {
    birth(true);
}

/// A transparent move: the owner has the memory to itself, and engines never notice.
#[test]
fn a_transparent_move_has_the_memory_to_itself() {
    loom::model(|| {
        let scene = scene(State::Alive);
        let engine = {
            let scene = Arc::clone(&scene);
            thread::spawn(move || {
                let entered = scene.life.enter(GENERATION);
                if entered.is_err() {
                    assert_eq!(entered, Err(State::Moving));
                    return;
                }
                let before = scene.cell.read();
                scene.cell.write(before + 1);
                assert_eq!(scene.life.leave(GENERATION), Ok(()), "it waits for those inside");
            })
        };
        scene.life.set(GENERATION, State::Moving);
        if scene.life.is_quiet() {
            let saved = scene.cell.read();
            scene.cell.write(POISON);
            scene.cell.write(saved);
            scene.life.set(GENERATION, State::Alive);
        }
        engine.join().unwrap();
        assert!(scene.cell.read() <= 1);
    });
}

/// Pinned memory: an importer is counted, or finds the door shut.
#[test]
fn an_importer_is_counted_or_finds_the_door_shut() {
    loom::model(|| {
        let scene = scene(State::Alive);
        let importer = {
            let scene = Arc::clone(&scene);
            thread::spawn(move || {
                scene.life.pin();
                scene.life.state(GENERATION) == State::Alive
            })
        };
        scene.life.set(GENERATION, State::Moving);
        let pinned = scene.life.pins() > 0;
        assert!(!importer.join().unwrap() || pinned, "pinned memory would move");
    });
}
