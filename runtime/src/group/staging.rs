//! Messages of device memory that go through the host: one that is sent is copied out of the device before it is posted, one that has come is copied
//! into it before anybody hears of it. Both in pieces, under leases of their own, so that the memory may move in between; a message
//! whose memory is on its way waits.
//!
//! Large messages of memory that the transport reaches itself only pass by.
//!
//! It stands between those who post and the transport: see [`Group::post_message`], [`Group::withdraw`] and [`Group::unstage`].

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use windlass_transports::{Event, Message, Token};

use super::{Group, lock};
use crate::device::{Attached, address};
use crate::engine::scratch::Line;
use crate::engine::shadow::{self, Run};
use crate::error::Error;

/// Memory of messages that are over, kept for the next.
const SPARE: usize = 8;

/// A message of device memory.
#[derive(Debug)]
enum Passing {
    /// By way of the host.
    Staged(Staged),
    /// The transport reaches this memory itself.
    Direct(Run),
}

/// A message that is in the host's memory.
#[derive(Debug)]
struct Staged {
    sends: bool,
    peer: u32,
    message: Message,
    memory: Vec<Line>,
    /// What is left to be copied.
    left: Run,
}

/// The messages of a communicator that are in the host's memory.
#[derive(Debug, Default)]
pub(crate) struct Staging {
    messages: BTreeMap<Token, Passing>,
    /// Those that are to be copied now.
    due: Vec<Token>,
    spare: Vec<Vec<Line>>,
}

impl Staging {
    fn leave(&mut self, token: Token) {
        if let Some(Passing::Staged(staged)) = self.messages.remove(&token)
            && self.spare.len() < SPARE
        {
            self.spare.push(staged.memory);
        }
    }
}

impl Staged {
    fn address(&mut self) -> *mut u8 {
        self.memory.as_mut_ptr().cast()
    }

    /// Copies what is left. False while the device's memory is on its way.
    fn copy(&mut self, attached: &Attached) -> Result<bool, Error> {
        let (memory, sends) = (&mut self.memory, self.sends);
        shadow::copy(attached, &mut self.left, |operand, at, bytes| {
            let bytes = &mut shadow::bytes_of(memory)[at..at + bytes];
            if sends {
                attached.accelerator.read(operand, bytes)
            } else {
                attached.accelerator.write(operand, bytes)
            }
        })
    }
}

impl Group {
    /// Posts a message of host or device memory to rank `peer` of the job.
    pub(crate) fn post_message(
        &self,
        sends: bool,
        peer: u32,
        message: &Message,
        memory: *mut u8,
        token: Token,
    ) {
        let Some((slot, offset)) = address::decode(memory) else {
            return self.job.post(sends, peer, message, memory, token);
        };
        let left = Run { slot, offset, at: 0, bytes: message.bytes };
        let mut staging = lock(&self.staging);
        self.stages.store(true, Ordering::Release);
        if self.job.reaches_devices && message.bytes > self.job.eager_bytes {
            staging.messages.insert(token, Passing::Direct(left));
            return self.job.post(sends, peer, message, memory, token);
        }
        let mut memory = staging.spare.pop().unwrap_or_default();
        memory.resize(message.bytes.div_ceil(size_of::<Line>()), Line([0; size_of::<Line>()]));
        let mut staged = Staged { sends, peer, message: *message, memory, left };
        if sends {
            staging.due.push(token);
        } else {
            // Its memory stays where it is until the message is over.
            self.job.post(false, peer, message, staged.address(), token);
        }
        staging.messages.insert(token, Passing::Staged(staged));
    }

    /// Forgets a message: see [`Transport::withdraw`](windlass_transports::Transport::withdraw).
    pub(crate) fn withdraw(&self, token: Token) {
        if !self.stages.load(Ordering::Acquire) {
            return self.job.withdraw(token);
        }
        // Under the lock, or another thread could post it afterwards, from memory that is the next message's by then.
        let mut staging = lock(&self.staging);
        staging.due.retain(|due| *due != token);
        self.job.withdraw(token);
        if let Some(Passing::Direct(run)) = staging.messages.get(&token) {
            self.job.reached.forget(run);
        }
        staging.leave(token);
    }

    /// What the transport says of messages, for those who have posted them: a message that has to be copied into the device yet is not over, and
    /// is told of later. Copies what can be copied, and posts what can leave then. Whether anything moved.
    ///
    /// # Errors
    /// The device's memory is lost, or it refuses.
    pub(crate) fn unstage(&self, events: &mut Vec<Event>) -> Result<bool, Error> {
        if !self.stages.load(Ordering::Acquire) {
            return Ok(false);
        }
        let Some(attached) = self.job.attached.get() else { return Ok(false) };
        attached.attend(&self.job);
        let mut staging = lock(&self.staging);
        let staging = &mut *staging;
        events.retain(|event| match event {
            Event::Received(token) if staging.messages.contains_key(token) => {
                staging.due.push(*token);
                false
            }
            Event::Sent(token) | Event::Mismatch { token, .. } => {
                staging.leave(*token);
                true
            }
            _ => true,
        });
        let mut moved = false;
        for token in std::mem::take(&mut staging.due) {
            let settled = match staging.messages.get_mut(&token) {
                None => continue,
                Some(Passing::Staged(staged)) => staged.copy(attached)?,
                Some(Passing::Direct(run)) => self.job.reached.settle(run.slot)?,
            };
            if !settled {
                staging.due.push(token);
                continue;
            }
            moved = true;
            match staging.messages.get_mut(&token) {
                Some(Passing::Staged(staged)) if staged.sends => {
                    let (peer, message) = (staged.peer, staged.message);
                    self.job.post(true, peer, &message, staged.address(), token);
                }
                _ => {
                    staging.leave(token);
                    events.push(Event::Received(token));
                }
            }
        }
        self.stages.store(!staging.messages.is_empty(), Ordering::Release);
        let regions = attached.regions();
        let lost = staging.messages.values().find_map(|passing| match passing {
            Passing::Direct(run) => regions.lost_in(run.slot),
            // Whoever copies finds out.
            Passing::Staged(_) => None,
        });
        lost.map_or(Ok(moved), Err)
    }
}
