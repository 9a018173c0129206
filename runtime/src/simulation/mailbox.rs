//! Where messages of a rank meet its receives.

/// A message's name at its receiver. A pair of ranks uses each name once in an operation.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Name {
    pub(super) peer: u32,
    pub(super) label: u32,
    pub(super) chunk: u32,
}

/// A rank's receives without a message, and messages without a receive. Both are few: an execution's window bounds them.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    /// With their steps.
    posted: Vec<(Name, u32)>,
    /// With their numbers and bytes.
    arrived: Vec<(Name, u32, u64)>,
    /// Bytes that wait for their receive, and the most that ever did.
    waiting: u64,
    pub(super) most_waiting: u64,
}

impl Mailbox {
    /// A receive: the message, if it is here.
    pub(super) fn post(&mut self, name: Name, step: u32) -> Option<u32> {
        let Some(index) = self.arrived.iter().position(|(of, ..)| *of == name) else {
            self.posted.push((name, step));
            return None;
        };
        let (_, message, bytes) = self.arrived.swap_remove(index);
        self.waiting -= bytes;
        Some(message)
    }

    /// A message: the step that receives it, if that is posted.
    pub(super) fn arrive(&mut self, name: Name, message: u32, bytes: u64) -> Option<u32> {
        if let Some(index) = self.posted.iter().position(|(of, _)| *of == name) {
            return Some(self.posted.swap_remove(index).1);
        }
        self.arrived.push((name, message, bytes));
        self.waiting += bytes;
        self.most_waiting = self.most_waiting.max(self.waiting);
        None
    }
}
