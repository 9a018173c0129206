//! Memory on its way back to the system.
//!
//! To unmap much memory takes the system far longer than anything else a move needs, and whoever happens to be the last with it may be an
//! engine, hold a lock, or be about to answer a peer that waits. So it goes by a thread of the process. To wake that thread would cost its waker the core as
//! well: while memory goes now and then, it looks around by itself.

use std::os::fd::OwnedFd;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::{Mapping, Promptness, serve};

/// How long the thread stays awake after something has come, and how often it looks meanwhile.
const DOZE_FOR: Duration = Duration::from_millis(200);
const DOZE: Duration = Duration::from_millis(2);

/// What is left of pages.
pub(super) type Left = (Mapping, OwnedFd);

#[derive(Debug)]
struct Leaving {
    queue: Mutex<Queue>,
    come: Condvar,
}

#[derive(Debug)]
struct Queue {
    left: Vec<Left>,
    /// The thread waits to be woken.
    asleep: bool,
}

static LEAVING: Leaving =
    Leaving { queue: Mutex::new(Queue { left: Vec::new(), asleep: false }), come: Condvar::new() };

/// Takes what nobody can find any more.
pub(super) fn leave(left: Left) {
    static STARTED: OnceLock<bool> = OnceLock::new();
    let started = STARTED.get_or_init(|| {
        let thread = std::thread::Builder::new().name("windlass-unmap".to_owned()).stack_size(64 << 10);
        thread.spawn(|| LEAVING.see_off()).is_ok()
    });
    // Without a thread it goes here.
    if !started {
        return;
    }
    let mut queue = LEAVING.lock();
    queue.left.push(left);
    if std::mem::take(&mut queue.asleep) {
        drop(queue);
        LEAVING.come.notify_one();
    }
}

impl Leaving {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread's life.
    fn see_off(&self) {
        serve(Promptness::Tidies);
        let mut last = Instant::now();
        loop {
            let left = std::mem::take(&mut self.lock().left);
            if !left.is_empty() {
                drop(left);
                last = Instant::now();
            }
            if last.elapsed() < DOZE_FOR {
                std::thread::sleep(DOZE);
                continue;
            }
            let mut queue = self.lock();
            queue.asleep = queue.left.is_empty();
            let _woken = self.come.wait_while(queue, |queue| queue.asleep);
        }
    }
}
