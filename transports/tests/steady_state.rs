//! Once warm, messages cost no allocation.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use windlass_transports::message::{COLLECTIVE_TAG, Message, MessageId};
use windlass_transports::tcp::Tcp;
use windlass_transports::{Event, Token, Transport};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: everything is passed to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Each rank sends to the other; rank 1 posts its receive late, so that messages wait in buffers.
fn exchange(ranks: &mut [Tcp; 2], events: &mut Vec<Event>, buffers: &mut [Vec<u8>; 4], sequence: u64) {
    let bytes = buffers[0].len();
    let id = MessageId { communicator: 1, tag: COLLECTIVE_TAG, sequence, label: 0, chunk: 0 };
    let message = Message { id, fingerprint: [1, 2], bytes };
    let memory = buffers.each_mut().map(|buffer| buffer.as_mut_ptr());
    // SAFETY: the buffers outlive the operations, which end before the return.
    unsafe {
        ranks[0].post_recv(1, &message, memory[0], Token(0));
        ranks[0].post_send(1, &message, memory[1], Token(1));
        ranks[1].post_send(0, &message, memory[2], Token(2));
    }
    let mut ended = 0;
    for turn in 0u64.. {
        if turn == 4 {
            // SAFETY: as above.
            unsafe { ranks[1].post_recv(0, &message, memory[3], Token(3)) };
        }
        for rank in ranks.iter_mut() {
            rank.poll(events);
        }
        ended +=
            events.drain(..).filter(|event| matches!(event, Event::Sent(_) | Event::Received(_))).count();
        if ended == 4 {
            return;
        }
    }
}

#[test]
fn no_allocation_in_the_steady_state() {
    let bound = [0, 1].map(|rank| Tcp::bind(rank, 5).unwrap());
    let addresses = [bound[0].1, bound[1].1];
    let mut ranks = bound.map(|(tcp, _)| tcp);
    for rank in &mut ranks {
        rank.connect(addresses).unwrap();
    }
    let mut events = Vec::with_capacity(64);
    for bytes in [8, 4096, 100_000, 1 << 20] {
        let mut buffers = [(); 4].map(|()| vec![1u8; bytes]);
        for sequence in 0..600 {
            exchange(&mut ranks, &mut events, &mut buffers, sequence);
        }
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        for sequence in 600..1200 {
            exchange(&mut ranks, &mut events, &mut buffers, sequence);
        }
        assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - before, 0, "{bytes} bytes");
    }
}
