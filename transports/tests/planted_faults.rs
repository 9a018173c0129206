//! The suite can fail: a transport with a fault must not pass it.

mod one_process;

use std::cell::RefCell;
use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};

use windlass_transports::conformance::{CASES, run_case};
use windlass_transports::link::{Limits, Planted};
use windlass_transports::sim::{Network, Options};
use windlass_transports::{Capabilities, Event, Message, MessageId, Rank, Token, Transport};

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Fault {
    None,
    DeliversTwice,
    MatchesWithoutLabel,
    IgnoresFingerprints,
    IgnoresWithdrawals,
    TakesSendsAtOnce,
    SwallowsLosses,
    LosesTwice,
    SwallowsRefusals,
    DropsEveryHundredth,
    ReportsEarly,
    LeavesBroken,
    TrustsCompletions,
    ForgetsWhatItHas,
    WithdrawsLate,
    SwallowsArrivals,
    ForgetsTheOrder,
}

/// A transport with a fault.
#[derive(Debug)]
struct Faulty {
    fault: Fault,
    inner: Box<dyn Transport>,
    early: Vec<Event>,
    told: Vec<Token>,
    count: u64,
    /// To be withdrawn, after so many polls.
    late: Vec<(Token, u32)>,
}

impl Faulty {
    fn distort(&self, message: &Message) -> Message {
        let mut message = *message;
        match self.fault {
            Fault::MatchesWithoutLabel => message.id.label = 0,
            Fault::IgnoresFingerprints => message.fingerprint = [0; 2],
            _ => {}
        }
        message
    }
}

impl Transport for Faulty {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    unsafe fn post_send(&mut self, peer: Rank, message: &Message, memory: *const u8, token: Token) {
        self.count += 1;
        if self.fault == Fault::TakesSendsAtOnce {
            // Buffers without bound: the copy is never freed.
            // SAFETY: the poster keeps the memory valid for `bytes` bytes.
            let copy = unsafe { std::slice::from_raw_parts(memory, message.bytes) }.to_vec().leak();
            self.early.push(Event::Sent(token));
            self.told.push(token);
            // SAFETY: the copy lives for ever.
            unsafe { self.inner.post_send(peer, message, copy.as_ptr(), token) };
            return;
        }
        if self.fault == Fault::DropsEveryHundredth && self.count.is_multiple_of(100) {
            self.early.push(Event::Sent(token));
            return;
        }
        let message = self.distort(message);
        // SAFETY: the caller's contract.
        unsafe { self.inner.post_send(peer, &message, memory, token) };
    }

    unsafe fn post_recv(&mut self, peer: Rank, message: &Message, memory: *mut u8, token: Token) {
        if self.fault == Fault::ReportsEarly && message.bytes > 1 << 20 {
            self.early.push(Event::Received(token));
            self.told.push(token);
        }
        let message = self.distort(message);
        // SAFETY: the caller's contract.
        unsafe { self.inner.post_recv(peer, &message, memory, token) };
    }

    fn seek(&mut self, peer: Rank, id: &MessageId) -> Option<u64> {
        let order = self.inner.seek(peer, id);
        order.map(|order| if self.fault == Fault::ForgetsTheOrder { u64::from(peer) } else { order })
    }

    fn withdraw(&mut self, token: Token) {
        match self.fault {
            Fault::IgnoresWithdrawals => {}
            Fault::WithdrawsLate => self.late.push((token, 3)),
            _ => self.inner.withdraw(token),
        }
    }

    fn poll(&mut self, events: &mut Vec<Event>) -> bool {
        let before = events.len();
        for (token, polls) in &mut self.late {
            if *polls == 1 {
                self.inner.withdraw(*token);
            }
            *polls = polls.saturating_sub(1);
        }
        let moved = self.inner.poll(events);
        let mut fresh = events.split_off(before);
        fresh.retain(|event| !self.late.iter().any(|(token, _)| event.ends(*token)));
        fresh.retain(|event| match event {
            Event::Sent(token) | Event::Received(token) => !self.told.contains(token),
            Event::Lost { .. } => self.fault != Fault::SwallowsLosses,
            Event::Refused { .. } => self.fault != Fault::SwallowsRefusals,
            Event::Arrived { .. } => self.fault != Fault::SwallowsArrivals,
            Event::Mismatch { .. } | Event::Broken { .. } | Event::Reopened { .. } => true,
        });
        for event in fresh {
            let twice = match event {
                Event::Received(_) => self.fault == Fault::DeliversTwice,
                Event::Lost { .. } => self.fault == Fault::LosesTwice,
                _ => false,
            };
            events.extend(twice.then(|| event.clone()));
            events.push(event);
        }
        events.append(&mut self.early);
        moved
    }

    fn reopen(&mut self, peer: Rank) {
        if self.fault != Fault::LeavesBroken {
            self.inner.reopen(peer);
        }
    }

    fn give_up(&mut self, peer: Rank) {
        self.inner.give_up(peer);
    }

    fn sever(&mut self, peer: Rank) {
        self.inner.sever(peer);
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

fn faulty(fault: Fault, inner: Box<dyn Transport>) -> Box<dyn Transport> {
    let (early, told, late) = (Vec::new(), Vec::new(), Vec::new());
    Box::new(Faulty { fault, inner, early, told, count: 0, late })
}

/// The cases that fail with this fault.
fn failing(fault: Fault) -> Vec<&'static str> {
    let current: RefCell<Option<Network>> = RefCell::new(None);
    let limits = Limits { eager_bytes: 2000, credit_bytes: 20_000, credit_messages: 32, announcements: 8 };
    let mut make = |ranks: usize| {
        let planted = match fault {
            Fault::TrustsCompletions => Some(Planted::TrustCompletion),
            Fault::ForgetsWhatItHas => Some(Planted::DeliverTwice),
            _ => None,
        };
        let network = Network::new(ranks, 3, Options { limits, planted, ..Options::default() });
        let endpoints = network.endpoints();
        *current.borrow_mut() = Some(network);
        endpoints.into_iter().map(|inner| faulty(fault, Box::new(inner))).collect()
    };
    let mut drive = || {
        if let Some(network) = &*current.borrow() {
            network.step();
        }
    };
    let mut failed = Vec::new();
    for case in CASES {
        if catch_unwind(AssertUnwindSafe(|| run_case(case, &mut make, &mut drive))).is_err() {
            failed.push(case.name);
            break;
        }
    }
    failed
}

#[test]
fn every_planted_fault_is_caught() {
    assert!(failing(Fault::None).is_empty(), "the transport under the faults is right");
    for fault in [
        Fault::DeliversTwice,
        Fault::MatchesWithoutLabel,
        Fault::IgnoresFingerprints,
        Fault::IgnoresWithdrawals,
        Fault::TakesSendsAtOnce,
        Fault::SwallowsLosses,
        Fault::LosesTwice,
        Fault::SwallowsRefusals,
        Fault::DropsEveryHundredth,
        Fault::ReportsEarly,
        Fault::LeavesBroken,
        Fault::TrustsCompletions,
        Fault::ForgetsWhatItHas,
        Fault::SwallowsArrivals,
        Fault::ForgetsTheOrder,
    ] {
        let failed = failing(fault);
        println!("{fault:?}: {failed:?}");
        assert!(!failed.is_empty(), "{fault:?} passes the suite");
    }
}

/// Sends are withdrawn while their receivers copy them from where they lie.
fn lending_fails(fault: Fault) -> Option<String> {
    let case =
        CASES.iter().find(|case| case.name == "a send withdrawn in any state").expect("there is such a case");
    let run = || {
        let mut make = |ranks| {
            let lanes = one_process::lanes(ranks, Limits::default(), true);
            lanes.into_iter().map(|inner| faulty(fault, inner)).collect()
        };
        run_case(case, &mut make, &mut || {});
    };
    let panic = catch_unwind(AssertUnwindSafe(run)).err()?;
    Some(panic.downcast_ref::<String>().cloned().unwrap_or_default())
}

#[test]
fn lent_memory_that_is_revoked_too_late_is_caught() {
    assert_eq!(lending_fails(Fault::None), None);
    let failed = lending_fails(Fault::WithdrawsLate).expect("it passes the suite");
    assert!(failed.contains("received wrong bytes"), "{failed}");
}
