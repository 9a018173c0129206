//! Whom to wake and what to drop once the lock is released: a waker or a drop may call back into windlass.

use std::any::Any;
use std::task::Waker;

use super::Stream;

/// No operation has this number.
const NOW: u64 = u64::MAX;

/// What is to be done once the lock is released: a waker or a drop may call back into windlass.
#[derive(Default)]
pub(crate) struct Due {
    wakers: Vec<Waker>,
    memory: Vec<Box<dyn Any + Send>>,
}

impl Due {
    /// Wakes and drops.
    pub(crate) fn settle(self) {
        drop(self.memory);
        self.wakers.into_iter().for_each(Waker::wake);
    }
}

impl Stream {
    pub(crate) fn keep(&mut self, sequence: u64, memory: Box<dyn Any + Send>) {
        self.keep.push((sequence, memory));
    }

    /// Who drove an operation leaves it to the progress thread. Whether it is still under way.
    pub(crate) fn let_go(&mut self, sequence: u64) -> bool {
        let first = self.next - self.queue.len() as u64;
        if let Some(active) = self.active.as_mut().filter(|active| active.sequence == sequence) {
            active.asynchronous = true;
            return true;
        }
        let pending = sequence.checked_sub(first).and_then(|place| self.queue.get_mut(place as usize));
        pending.map(|pending| pending.asynchronous = true).is_some()
    }

    pub(crate) fn wake_at(&mut self, sequence: u64, waker: &Waker) {
        if let Some((_, known)) = self.wakers.iter_mut().find(|(s, _)| *s == sequence) {
            known.clone_from(waker);
        } else {
            self.wakers.push((sequence, waker.clone()));
        }
    }

    /// Wakes a transfer's waiter and drops its memory once the lock is released.
    pub(crate) fn settle_later(&mut self, waker: Option<Waker>, memory: Option<Box<dyn Any + Send>>) {
        self.wakers.extend(waker.map(|w| (NOW, w)));
        self.keep.extend(memory.map(|m| (NOW, m)));
    }

    /// Those whose wakers are due, and memory that may be dropped: to be used after the lock is released.
    #[inline]
    pub(crate) fn due(&mut self, ended: u64, failed: bool) -> Option<Due> {
        if self.wakers.is_empty() && self.keep.is_empty() { None } else { Some(self.collect(ended, failed)) }
    }

    fn collect(&mut self, ended: u64, failed: bool) -> Due {
        let mut due = Due::default();
        self.wakers.retain(|(sequence, waker)| {
            let over = failed || *sequence < ended || *sequence == NOW;
            if over {
                due.wakers.push(waker.clone());
            }
            !over
        });
        let mut i = 0;
        while i < self.keep.len() {
            if failed || self.keep[i].0 < ended || self.keep[i].0 == NOW {
                due.memory.push(self.keep.swap_remove(i).1);
            } else {
                i += 1;
            }
        }
        due
    }
}
