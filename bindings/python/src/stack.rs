//! A stack that any thread pushes to and one takes whole.
//!
//! Without a lock: a child forked while another thread pushed finds it usable, and a thread of the runtime never waits for one that
//! holds the interpreter.

use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering};

pub(crate) struct Stack<T> {
    top: AtomicPtr<Node<T>>,
}

struct Node<T> {
    value: T,
    below: *mut Self,
}

impl<T> Stack<T> {
    pub(crate) const fn new() -> Self {
        Self { top: AtomicPtr::new(null_mut()) }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.top.load(Ordering::Relaxed).is_null()
    }

    pub(crate) fn push(&self, value: T) {
        let node = Box::into_raw(Box::new(Node { value, below: null_mut() }));
        let mut top = self.top.load(Ordering::Relaxed);
        loop {
            // SAFETY: the node is this thread's until the exchange below publishes it.
            unsafe { (*node).below = top };
            match self.top.compare_exchange_weak(top, node, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => top = now,
            }
        }
    }

    /// Everything, in the order in which it was pushed.
    pub(crate) fn take(&self) -> Vec<T> {
        let mut node = self.top.swap(null_mut(), Ordering::Acquire);
        let mut values = Vec::new();
        while !node.is_null() {
            // SAFETY: the exchange has made the whole chain this thread's, and each node came from a box.
            let Node { value, below } = *unsafe { Box::from_raw(node) };
            values.push(value);
            node = below;
        }
        values.reverse();
        values
    }
}

impl<T> Drop for Stack<T> {
    fn drop(&mut self) {
        drop(self.take());
    }
}

// SAFETY: values are moved in by one thread and out by another, and never shared.
unsafe impl<T: Send> Send for Stack<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Stack<T> {}
