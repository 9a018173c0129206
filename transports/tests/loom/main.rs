//! The orderings of shared memory, under every interleaving and every value a load may return.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" LOOM_MAX_PREEMPTIONS=2 cargo test -p windlass-transports --test loom --release
//! ```
//!
//! The lines and the doorbell are the product's own code over loom's atomics. What they protect is a [`Cell`], which loom
//! watches for accesses that no ordering separates. Each model has canaries: the same scene with one planted
//! mistake, which loom must find; a model whose canary passes proves nothing.
#![cfg(loom)]

mod lane;

use std::time::Duration;

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;
use windlass_transports::shm::{ArrivalLine, Doorbell, Watermark};

/// Memory that one rank writes and another reads without atomics: an operand, a slot, a stage.
struct Cell(UnsafeCell<u64>);

// SAFETY: loom reports two accesses that are not ordered, which is what these tests are about.
unsafe impl Send for Cell {}
// SAFETY: as above.
unsafe impl Sync for Cell {}

impl Cell {
    fn new() -> Self {
        Self(UnsafeCell::new(0))
    }

    fn read(&self) -> u64 {
        // SAFETY: the pointer is the cell's own; loom ends the test when a write is concurrent.
        self.0.with(|value| unsafe { *value })
    }

    fn write(&self, value: u64) {
        // SAFETY: as above.
        self.0.with_mut(|place| unsafe { *place = value });
    }
}

fn until(mut holds: impl FnMut() -> bool) {
    while !holds() {
        thread::yield_now();
    }
}

/// What operation `sequence` writes to word `word` of its line.
fn mark(sequence: u64, word: usize) -> u64 {
    100 * (sequence + 1) + word as u64
}

mod arrival {
    use super::*;

    fn publish(line: &ArrivalLine, sequence: u64) {
        line.describe([mark(sequence, 8), mark(sequence, 9)]);
        for (i, word) in line.body().iter().enumerate().take(2) {
            word.store(mark(sequence, i), Ordering::Relaxed);
        }
        line.raise(sequence, 1);
    }

    fn check(line: &ArrivalLine, sequence: u64) {
        assert_eq!(line.fingerprint(), [mark(sequence, 8), mark(sequence, 9)], "of operation {sequence}");
        for (i, word) in line.body().iter().enumerate().take(2) {
            assert_eq!(word.load(Ordering::Relaxed), mark(sequence, i), "word {i} of operation {sequence}");
        }
    }

    #[test]
    fn who_sees_the_word_sees_the_line_and_the_memory_behind_it() {
        loom::model(|| {
            let (line, operand) = (Arc::new(ArrivalLine::new()), Arc::new(Cell::new()));
            let peer = {
                let (line, operand) = (Arc::clone(&line), Arc::clone(&operand));
                thread::spawn(move || {
                    until(|| line.ready(0) == 1);
                    check(&line, 0);
                    assert_eq!(operand.read(), 7);
                })
            };
            operand.write(7);
            publish(&line, 0);
            peer.join().unwrap();
        });
    }

    #[test]
    fn each_chunk_is_visible_once_its_count_is() {
        loom::model(|| {
            let (line, stage) = (Arc::new(ArrivalLine::new()), Arc::new([Cell::new(), Cell::new()]));
            let peer = {
                let (line, stage) = (Arc::clone(&line), Arc::clone(&stage));
                thread::spawn(move || {
                    for chunk in 0..2 {
                        until(|| line.ready(3) > chunk as u32);
                        assert_eq!(stage[chunk].read(), mark(3, chunk));
                    }
                })
            };
            for chunk in 0..2 {
                stage[chunk].write(mark(3, chunk));
                line.raise(3, chunk as u32 + 1);
            }
            peer.join().unwrap();
        });
    }

    /// The product's line with one ordering too weak.
    #[test]
    #[should_panic(expected = "Causality violation")]
    fn canary_a_relaxed_word_shows_memory_too_early() {
        loom::model(|| {
            let (word, operand) = (Arc::new(AtomicU64::new(0)), Arc::new(Cell::new()));
            let peer = {
                let (word, operand) = (Arc::clone(&word), Arc::clone(&operand));
                thread::spawn(move || {
                    until(|| word.load(Ordering::Acquire) == 1);
                    operand.read();
                })
            };
            operand.write(7);
            word.store(1, Ordering::Relaxed);
            peer.join().unwrap();
        });
    }

    /// As above, for the line's own words, which are atomics: no race, but old values.
    #[test]
    #[should_panic(expected = "an old body")]
    fn canary_a_relaxed_word_shows_an_old_body() {
        loom::model(|| {
            let line = Arc::new((AtomicU64::new(0), AtomicU64::new(0)));
            let peer = {
                let line = Arc::clone(&line);
                thread::spawn(move || {
                    until(|| line.0.load(Ordering::Acquire) == 1);
                    assert_eq!(line.1.load(Ordering::Relaxed), 7, "an old body");
                })
            };
            line.1.store(7, Ordering::Relaxed);
            line.0.store(1, Ordering::Relaxed);
            peer.join().unwrap();
        });
    }

    #[derive(Clone, Copy, Eq, PartialEq)]
    enum Mistake {
        None,
        /// The owner does not wait for its peers' ended lines.
        ReusesAtOnce,
        /// The owner waits for one peer only.
        WaitsForOne,
        /// A peer says that it has ended, and then looks at the line.
        EndsTooEarly,
    }

    /// One line (one way) serves two operations after each other. Nobody spins, so that three threads are not too many
    /// for loom: who finds nothing gives up, and the interleavings in which everybody finds everything are among all of them.
    fn reuse(peers: usize, mistake: Mistake) {
        loom::model(move || {
            let line = Arc::new(ArrivalLine::new());
            let ended: Vec<_> = (0..peers).map(|_| Arc::new(Watermark::new())).collect();
            let readers: Vec<_> = ended
                .iter()
                .map(|ended| {
                    let (line, ended) = (Arc::clone(&line), Arc::clone(ended));
                    thread::spawn(move || {
                        for sequence in 0..2 {
                            if line.ready(sequence) == 0 {
                                return;
                            }
                            if mistake == Mistake::EndsTooEarly {
                                ended.store(sequence + 1);
                            }
                            check(&line, sequence);
                            ended.store(sequence + 1);
                        }
                    })
                })
                .collect();
            publish(&line, 0);
            let waits_for = match mistake {
                Mistake::ReusesAtOnce => 0,
                Mistake::WaitsForOne => 1,
                Mistake::None | Mistake::EndsTooEarly => peers,
            };
            if ended[..waits_for].iter().all(|ended| ended.load() >= 1) {
                publish(&line, 1);
            }
            readers.into_iter().for_each(|reader| reader.join().unwrap());
        });
    }

    /// The same with waiting, so that both operations always happen.
    #[test]
    fn a_line_serves_two_operations_of_one_reader() {
        loom::model(|| {
            let (line, ended) = (Arc::new(ArrivalLine::new()), Arc::new(Watermark::new()));
            let reader = {
                let (line, ended) = (Arc::clone(&line), Arc::clone(&ended));
                thread::spawn(move || {
                    for sequence in 0..2 {
                        until(|| line.ready(sequence) == 1);
                        check(&line, sequence);
                        ended.store(sequence + 1);
                    }
                })
            };
            for sequence in 0..2 {
                until(|| ended.load() >= sequence);
                publish(&line, sequence);
            }
            reader.join().unwrap();
        });
    }

    #[test]
    fn a_line_is_reused_after_its_reader_has_ended() {
        reuse(1, Mistake::None);
    }

    #[test]
    fn a_line_is_reused_after_every_reader_has_ended() {
        reuse(2, Mistake::None);
    }

    #[test]
    #[should_panic(expected = "of operation 0")]
    fn canary_a_line_is_reused_at_once() {
        reuse(1, Mistake::ReusesAtOnce);
    }

    #[test]
    #[should_panic(expected = "of operation 0")]
    fn canary_the_owner_waits_for_one_of_two_readers() {
        reuse(2, Mistake::WaitsForOne);
    }

    #[test]
    #[should_panic(expected = "of operation 0")]
    fn canary_the_reader_ends_before_its_last_look() {
        reuse(1, Mistake::EndsTooEarly);
    }
}

mod done {
    use super::*;

    #[derive(Clone, Copy, Eq, PartialEq)]
    enum Mistake {
        None,
        /// The peer says done before its last access.
        RaisesTooEarly,
        /// The owner takes its memory back chunk by chunk, one chunk too early.
        TakesTooMuch,
    }

    /// A peer reads two chunks of the owner's memory; the owner writes each again once it is done.
    fn hand_back(mistake: Mistake) {
        loom::model(move || {
            let (done, memory) = (Arc::new(Watermark::new()), Arc::new([Cell::new(), Cell::new()]));
            let peer = {
                let (done, memory) = (Arc::clone(&done), Arc::clone(&memory));
                thread::spawn(move || {
                    for chunk in 0..2 {
                        if mistake == Mistake::RaisesTooEarly {
                            done.raise(5, chunk as u32 + 1);
                        }
                        assert_eq!(memory[chunk].read(), 0);
                        done.raise(5, chunk as u32 + 1);
                    }
                })
            };
            for chunk in 0..2 {
                let needed = if mistake == Mistake::TakesTooMuch { chunk } else { chunk + 1 };
                until(|| done.reached(5, 2) >= needed as u32);
                memory[chunk].write(9);
            }
            peer.join().unwrap();
        });
    }

    #[test]
    fn the_owner_takes_back_what_its_peer_is_done_with() {
        hand_back(Mistake::None);
    }

    #[test]
    fn a_later_operation_says_done_for_the_one_before() {
        loom::model(|| {
            let (done, memory) = (Arc::new(Watermark::new()), Arc::new(Cell::new()));
            let peer = {
                let (done, memory) = (Arc::clone(&done), Arc::clone(&memory));
                thread::spawn(move || {
                    memory.read();
                    done.raise(5, 1);
                    done.raise(6, 0);
                })
            };
            until(|| done.reached(5, 1) == 1);
            memory.write(9);
            peer.join().unwrap();
        });
    }

    #[test]
    #[should_panic(expected = "Causality violation")]
    fn canary_the_peer_says_done_before_its_last_access() {
        hand_back(Mistake::RaisesTooEarly);
    }

    #[test]
    #[should_panic(expected = "Causality violation")]
    fn canary_the_owner_takes_back_one_chunk_too_many() {
        hand_back(Mistake::TakesTooMuch);
    }

    #[test]
    #[should_panic(expected = "Causality violation")]
    fn canary_a_relaxed_watermark_orders_nothing() {
        loom::model(|| {
            let (done, memory) = (Arc::new(AtomicU64::new(0)), Arc::new(Cell::new()));
            let peer = {
                let (done, memory) = (Arc::clone(&done), Arc::clone(&memory));
                thread::spawn(move || {
                    memory.read();
                    done.store(1, Ordering::Relaxed);
                })
            };
            until(|| done.load(Ordering::Acquire) == 1);
            memory.write(9);
            peer.join().unwrap();
        });
    }
}

/// A lost wake-up is a sleeper whom nobody wakes, which loom reports as a deadlock.
mod doorbell {
    // Loom's Arc cannot be dropped by a thread that a deadlock has ended.
    use std::sync::Arc;

    use super::{ArrivalLine, Doorbell, Duration, Mutex, thread};

    const RANK: usize = 3;

    struct Scene {
        bell: Doorbell,
        lines: [ArrivalLine; 2],
    }

    impl Scene {
        fn new() -> Arc<Self> {
            Arc::new(Self { bell: Doorbell::new(), lines: [ArrivalLine::new(), ArrivalLine::new()] })
        }

        fn raised(&self, line: usize) -> bool {
            self.lines[line].ready(1) == 1
        }

        fn sleep_until(&self, sleepers: &Mutex<u32>, lines: &[usize]) {
            let raised = || lines.iter().filter(|&&line| self.raised(line)).count();
            loop {
                let before = raised();
                if before == lines.len() {
                    return;
                }
                // As the runtime does: any change is worth another look, so it sleeps only while there is none.
                self.bell.park(sleepers, RANK, Duration::MAX, || raised() > before);
            }
        }

        fn raise_and_ring(&self, line: usize) {
            self.lines[line].raise(1, 1);
            if self.bell.somebody_sleeps() {
                self.bell.ring([RANK].into_iter());
            }
        }
    }

    #[test]
    fn one_ringer_wakes_one_sleeper() {
        loom::model(|| {
            let scene = Scene::new();
            let ringer = {
                let scene = Arc::clone(&scene);
                thread::spawn(move || scene.raise_and_ring(0))
            };
            scene.sleep_until(&Mutex::new(0), &[0]);
            ringer.join().unwrap();
        });
    }

    #[test]
    fn the_second_of_two_ringers_wakes_too() {
        loom::model(|| {
            let scene = Scene::new();
            let ringers = [0, 1].map(|line| {
                let scene = Arc::clone(&scene);
                thread::spawn(move || scene.raise_and_ring(line))
            });
            scene.sleep_until(&Mutex::new(0), &[0, 1]);
            ringers.into_iter().for_each(|ringer| ringer.join().unwrap());
        });
    }

    /// Two threads of one rank wait for different lines; the one that goes on must not take the other's bit along.
    fn two_sleepers(shared: bool) {
        loom::model(move || {
            let (scene, sleepers) = (Scene::new(), Arc::new(Mutex::new(0)));
            let other = {
                let scene = Arc::clone(&scene);
                let sleepers = if shared { Arc::clone(&sleepers) } else { Arc::new(Mutex::new(0)) };
                thread::spawn(move || scene.sleep_until(&sleepers, &[1]))
            };
            let ringer = {
                let scene = Arc::clone(&scene);
                thread::spawn(move || (0..2).for_each(|line| scene.raise_and_ring(line)))
            };
            scene.sleep_until(&sleepers, &[0]);
            ringer.join().unwrap();
            other.join().unwrap();
        });
    }

    #[test]
    fn two_threads_of_one_rank_are_both_woken() {
        two_sleepers(true);
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn canary_two_threads_of_one_rank_count_apart() {
        two_sleepers(false);
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn canary_a_ringer_without_a_fence_misses_the_sleeper() {
        loom::model(|| {
            let scene = Scene::new();
            let ringer = {
                let scene = Arc::clone(&scene);
                thread::spawn(move || {
                    scene.lines[0].raise(1, 1);
                    // Without `somebody_sleeps`, and so without its fence.
                    scene.bell.ring([RANK].into_iter());
                })
            };
            scene.sleep_until(&Mutex::new(0), &[0]);
            ringer.join().unwrap();
        });
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn canary_a_sleeper_that_does_not_look_again_is_missed() {
        loom::model(|| {
            let scene = Scene::new();
            let ringer = {
                let scene = Arc::clone(&scene);
                thread::spawn(move || scene.raise_and_ring(0))
            };
            while !scene.raised(0) {
                scene.bell.park(&Mutex::new(0), RANK, Duration::MAX, || false);
            }
            ringer.join().unwrap();
        });
    }

    #[test]
    #[should_panic(expected = "deadlock")]
    fn canary_a_line_raised_after_the_ring_is_missed() {
        loom::model(|| {
            let scene = Scene::new();
            let ringer = {
                let scene = Arc::clone(&scene);
                thread::spawn(move || {
                    if scene.bell.somebody_sleeps() {
                        scene.bell.ring([RANK].into_iter());
                    }
                    scene.lines[0].raise(1, 1);
                })
            };
            scene.sleep_until(&Mutex::new(0), &[0]);
            ringer.join().unwrap();
        });
    }
}
