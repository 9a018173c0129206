//! The accelerators: memory that is an array of random weights, and drivers that move it, take it and lie about it.

use windlass::scheduler::{Descriptor, Notice, Replacement, Ticket};

/// Two words a chunk, so that half of one can be written.
pub(crate) type Cell = [u64; 2];

/// One place of a region's contents.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Memory {
    pub(crate) cells: Vec<Cell>,
    /// Neither moved away from nor revoked: an access finds it.
    pub(crate) is_alive: bool,
}

/// One rank's driver.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Exporter {
    /// All places there have been, by descriptor.
    pub(crate) places: Vec<Memory>,
    pub(crate) current: usize,
    /// Asked and not answered: the ticket, by when, and whether to ask again from inside the answer.
    pub(crate) asked: Vec<(Ticket, u64, bool)>,
    /// Answered with yes, and not moved yet.
    pub(crate) granted: Vec<Ticket>,
    pub(crate) announced: Option<usize>,
    /// Revoked, and not replaced yet.
    pub(crate) is_revoked: bool,
    /// It never says anything again.
    pub(crate) is_gone: bool,
    /// The contents have ended: lost or freed.
    pub(crate) has_ended: bool,
    pub(crate) notices: Vec<Notice>,
    next_ticket: u64,
}

impl Exporter {
    pub(crate) fn new(rank: u32, cells: Vec<Cell>) -> Self {
        Self {
            places: vec![Memory { cells, is_alive: true }],
            current: 0,
            asked: Vec::new(),
            granted: Vec::new(),
            announced: None,
            is_revoked: false,
            is_gone: false,
            has_ended: false,
            notices: Vec::new(),
            next_ticket: u64::from(rank) * 1000,
        }
    }

    pub(crate) fn ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        Ticket(self.next_ticket)
    }

    pub(crate) fn ask(&mut self, deadline_ns: u64, again: bool) {
        let ticket = self.ticket();
        self.asked.push((ticket, deadline_ns, again));
        self.notices.push(Notice::Move { ticket, deadline_ns });
    }

    pub(crate) fn free(&mut self, deadline_ns: u64) {
        let ticket = self.ticket();
        self.has_ended = true;
        self.asked.push((ticket, deadline_ns, false));
        self.notices.push(Notice::Free { ticket, deadline_ns });
    }

    pub(crate) fn announce(&mut self) {
        let place = self.place();
        self.announced = Some(place);
        self.notices.push(Notice::Announce(Descriptor(place as u64)));
    }

    /// A place for the contents, which has none yet: touching it before the move is found out by value.
    fn place(&mut self) -> usize {
        self.places
            .push(Memory { cells: vec![[u64::MAX / 3; 2]; self.places[0].cells.len()], is_alive: true });
        self.places.len() - 1
    }

    fn relocate(&mut self) -> Descriptor {
        let to = self.announced.take().unwrap_or_else(|| self.place());
        self.places[to].cells = self.places[self.current].cells.clone();
        self.places[self.current].is_alive = false;
        self.current = to;
        Descriptor(to as u64)
    }

    pub(crate) fn finish_move(&mut self) {
        let ticket = self.granted.remove(0);
        let outcome = Replacement::Preserved(self.relocate());
        self.notices.push(Notice::Replaced { ticket: Some(ticket), outcome });
    }

    pub(crate) fn revoke(&mut self) {
        self.places[self.current].is_alive = false;
        self.is_revoked = true;
        self.granted.clear();
        self.notices.push(Notice::Revoke);
    }

    pub(crate) fn replace(&mut self, is_lost: bool) {
        self.is_revoked = false;
        self.has_ended |= is_lost;
        let outcome = if is_lost { Replacement::Lost } else { Replacement::Preserved(self.relocate()) };
        self.notices.push(Notice::Replaced { ticket: None, outcome });
    }

    /// It moves the memory and says so afterwards.
    pub(crate) fn move_unasked(&mut self) {
        self.granted.clear();
        let outcome = Replacement::Preserved(self.relocate());
        self.notices.push(Notice::Replaced { ticket: None, outcome });
    }
}
