//! One rank: its machines, its part of the all-reduce, and what its engine has been asked to do.

use std::collections::VecDeque;

use windlass::scheduler::{
    Access, Descriptor, Fault, Generation, Import, Lease, Limits, Place, Receipt, Reduction, Region,
    RegionName,
};

use windlass::scheduler::table::{importer, owner};

use crate::exporter::Cell;

/// Who uses a region, and the place that is found through it.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Hold {
    pub(crate) owner: u32,
    pub(crate) lease: Lease,
    pub(crate) place: u64,
}

/// What a rank's core is doing, one memory access a step.
#[derive(Clone, Debug, Hash)]
pub(crate) enum Task {
    Sum { chunk: u32, place: Place, next: u32, sum: Cell, holds: Vec<Hold> },
    Commit { target: u32, chunk: u32, place: Place, hold: Hold, word: usize },
}

/// What the engine was asked for and has not finished.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Request {
    Register(Descriptor),
    Deregister,
    Map(u32, Descriptor),
    Unmap(u32, Descriptor),
    Break(u32),
}

/// What ranks say to each other. In order between two.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Message {
    Advertise {
        generation: Generation,
        descriptor: Descriptor,
        watermark: u32,
    },
    Announce(Descriptor),
    Withdraw(Generation),
    End,
    Withdrawn {
        generation: Generation,
        summed: u32,
    },
    /// A chunk was stored through a mapping: the signal that follows the stores.
    Arrived {
        chunk: u32,
        generation: Generation,
    },
    Delivered(u32),
    /// The sender has stopped using a broken connection.
    Reset,
    ResetDone(u32),
}

/// A write that the network has taken, by a key.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Flight {
    pub(crate) chunk: u32,
    pub(crate) from: Place,
    pub(crate) generation: Generation,
    pub(crate) place: u64,
    pub(crate) is_placed: bool,
    pub(crate) is_dropped: bool,
    /// The connection broke, which says nothing of the region.
    pub(crate) is_lost_with_link: bool,
    /// Until the sender's completion.
    pub(crate) lease: Option<Lease>,
}

#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Outcome {
    Success,
    Failed(&'static str),
}

#[derive(Clone, Debug, Hash)]
pub(crate) struct Rank {
    pub(crate) id: u32,
    pub(crate) is_alive: bool,
    pub(crate) is_stopped: bool,
    pub(crate) region: Region,
    /// None: this rank itself, or a dead owner.
    pub(crate) imports: Vec<Option<Import>>,
    /// Where each owner's region is, as last advertised, and what it had received then.
    pub(crate) advertised: Vec<(u64, u32)>,
    pub(crate) reduction: Reduction,
    pub(crate) receipts: Vec<Receipt>,
    pub(crate) scratch: Vec<Cell>,
    pub(crate) tasks: Vec<Task>,
    pub(crate) requests: Vec<Request>,
    /// Connections by which this rank writes, and that have broken.
    pub(crate) is_down: Vec<bool>,
    /// Queue pairs that an owner has broken, until it advertises again.
    pub(crate) is_cut: Vec<bool>,
    pub(crate) inbox: Vec<VecDeque<Message>>,
    /// Writes under way to each target.
    pub(crate) flights: Vec<VecDeque<Flight>>,
    pub(crate) summed: u32,
    pub(crate) dead_peers: Vec<bool>,
    pub(crate) outcome: Option<Outcome>,
    /// What it holds at the end, as its user finds it.
    pub(crate) place: u64,
}

/// What a run is about.
#[derive(Clone, Debug, Hash)]
pub(crate) struct Setup {
    pub(crate) ranks: u32,
    /// Chunks in each rank's slice.
    pub(crate) chunks: u32,
    pub(crate) slots: usize,
    /// Whether ranks reach each other by key, by turns.
    pub(crate) keys: u64,
    pub(crate) limits: (u64, u64),
    pub(crate) fault: Option<Fault>,
}

impl Setup {
    pub(crate) fn access(&self, by: u32, owner: u32) -> Access {
        let bit = (by * self.ranks + owner) % 64;
        if self.keys >> bit & 1 == 1 { Access::Key } else { Access::Mapped }
    }
}

impl Rank {
    pub(crate) fn new(id: u32, setup: &Setup) -> Self {
        let count = setup.ranks as usize;
        let peers: Vec<_> = (0..setup.ranks).filter(|r| *r != id).map(|r| (r, setup.access(r, id))).collect();
        let name = |owner| RegionName { owner, segment: 7 };
        let limits = Limits { drain_ns: setup.limits.0, return_ns: setup.limits.1 };
        let import = |owner| (owner != id).then(|| Import::new(name(owner)).plant(setup.fault));
        Self {
            id,
            is_alive: true,
            is_stopped: false,
            region: Region::new(name(id), Descriptor(0), &peers, limits).plant(setup.fault),
            imports: (0..setup.ranks).map(import).collect(),
            advertised: vec![(0, 0); count],
            reduction: Reduction::new(setup.chunks, setup.slots, count, true).plant(setup.fault),
            receipts: vec![Receipt::new(setup.chunks); count],
            scratch: vec![[0; 2]; setup.slots],
            tasks: Vec::new(),
            requests: Vec::new(),
            is_down: vec![false; count],
            is_cut: vec![false; count],
            inbox: vec![VecDeque::new(); count],
            flights: vec![VecDeque::new(); count],
            summed: 0,
            dead_peers: vec![false; count],
            outcome: None,
            place: 0,
        }
    }

    pub(crate) fn runs(&self) -> bool {
        self.is_alive && !self.is_stopped
    }

    /// Whether its operation has still something to do with an owner's region.
    pub(crate) fn uses(&self, owner: u32) -> bool {
        self.outcome.is_none()
            && (owner == self.id
                || !self.reduction.ledger(owner as usize).is_delivered()
                || !self.reduction.is_delivered())
    }

    /// Whether a lease would be granted now.
    pub(crate) fn may_lease(&self, owner: u32) -> bool {
        match &self.imports[owner as usize] {
            None => self.region.state() == owner::State::Active,
            Some(import) => import.state() == importer::State::Mapped,
        }
    }

    pub(crate) fn lease(&mut self, owner: u32) -> Option<Hold> {
        let (lease, place) = if owner == self.id {
            (self.region.lease().ok()?, self.place)
        } else {
            let import = self.imports[owner as usize].as_mut()?;
            (import.lease().ok()?, self.advertised[owner as usize].0)
        };
        Some(Hold { owner, lease, place })
    }

    pub(crate) fn give_back(&mut self, owner: u32, lease: Lease, now_ns: u64) {
        if owner == self.id {
            self.region.give_back(lease, now_ns);
        } else if let Some(import) = self.imports[owner as usize].as_mut() {
            import.give_back(lease);
        }
    }

    /// An access failed.
    pub(crate) fn broke(&mut self, owner: u32, lease: &Lease) {
        if let Some(import) = self.imports[owner as usize].as_mut() {
            import.handle_break(lease);
        }
    }

    pub(crate) fn is_delivered(&self) -> bool {
        self.reduction.is_delivered() && self.receipts.iter().all(Receipt::is_complete)
    }

    /// The watermark that a receiver said goes to the ledger.
    pub(crate) fn delivered(&mut self, target: u32, watermark: u32, is_break: bool) -> Result<(), String> {
        let ledger = self.reduction.ledger_mut(target as usize);
        let result =
            if is_break { ledger.handle_break(watermark) } else { ledger.handle_delivered(watermark) };
        self.reduction.handle_watermarks();
        result.map_err(|stale| stale.to_string())
    }
}
