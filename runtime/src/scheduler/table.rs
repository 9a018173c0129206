//! What a region and an import do in each state on each event: the machines run on these rows, the golden files and the diagrams in
//! `docs/scheduler.md` are printed from them. A pair that has no row cannot happen; the machine panics, for its caller is wrong.

use std::fmt::{Debug, Write};

/// One transition.
#[derive(Clone, Copy, Debug)]
pub struct Row<S: 'static, E: 'static, F: 'static> {
    /// In this state,
    pub from: S,
    /// on this event,
    pub event: E,
    /// go to this one
    pub to: S,
    /// and do these, in this order.
    pub effects: &'static [F],
}

/// The row for an event.
///
/// # Panics
///
/// If there is none.
pub(super) fn find<S: Copy + Eq + Debug, E: Copy + Eq + Debug, F>(
    table: &'static [Row<S, E, F>],
    from: S,
    event: E,
) -> &'static Row<S, E, F> {
    let row = table.iter().find(|row| row.from == from && row.event == event);
    row.unwrap_or_else(|| panic!("{event:?} cannot happen in state {from:?}"))
}

macro_rules! rows {
    ($($from:ident { $($event:ident => $to:ident [$($effect:ident)*])* })*) => {
        &[$($(Row { from: State::$from, event: Event::$event, to: State::$to, effects: &[$(Effect::$effect),*] },)*)*]
    };
}

/// A stream that can break.
pub mod connection {
    use super::Row;

    /// How it stands.
    #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
    pub enum State {
        /// Bytes pass.
        Open,
        /// It is being opened.
        Calling,
        /// That failed, and is tried again after a while.
        Resting,
        /// An end: it is not opened any more.
        Lost,
    }

    /// What can happen to it.
    #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
    pub enum Event {
        /// It broke, or could not be opened.
        Broke,
        /// Derived: the same, but the peer is dead or the bound is passed; or a call is not heard within it.
        Hopeless,
        /// Derived: the rest is over.
        Rested,
        /// The transport has opened it.
        Stands,
        /// The peer has died.
        Died,
    }

    /// What is done then.
    #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
    pub enum Effect {
        /// Tell the transport to open it.
        Reopen,
        /// Tell the transport and the operations that the peer is lost.
        GiveUp,
    }

    /// All that can happen.
    pub const TABLE: &[Row<State, Event, Effect>] = rows! {
        Open {
            Broke => Calling [Reopen]
            Hopeless => Lost [GiveUp]
            Stands => Open []
            Died => Open []
        }
        Calling {
            Broke => Resting []
            Hopeless => Lost [GiveUp]
            Stands => Open []
            Died => Lost [GiveUp]
        }
        Resting {
            Broke => Resting []
            Hopeless => Lost [GiveUp]
            Rested => Calling [Reopen]
            Stands => Open []
            Died => Lost [GiveUp]
        }
        Lost {
            Broke => Lost []
            Hopeless => Lost []
            Stands => Lost []
            Died => Lost []
        }
    };
}

/// The owner's side.
pub mod owner {
    use super::Row;

    /// Where a region is in its life.
    #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
    pub enum State {
        /// The engine registers the current generation.
        Registering,
        /// It does, but in vain: the memory is asked for, revoked or freed already.
        Cancelling,
        /// Peers may use it.
        Active,
        /// No new access begins; those under way come to their end.
        Quiescing,
        /// Nobody touches it; its registration is being undone.
        Deregistering,
        /// Nobody can touch it. The exporter has it.
        Withdrawn,
        /// An end: freed.
        Freed,
        /// An end: the contents are gone.
        Lost,
    }

    /// What can happen to a region.
    #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
    pub enum Event {
        /// The registration is done.
        Registered,
        /// The registration failed.
        Unregistrable,
        /// The exporter asks for the memory.
        Move,
        /// The same, of memory that it has revoked.
        MoveInVain,
        /// The exporter has taken the memory.
        Revoke,
        /// The memory is freed.
        Free,
        /// The exporter says where the memory will be next.
        Announce,
        /// Derived: no lease is out, and every peer has answered or is fenced.
        Quiet,
        /// Derived: every ticket was refused, so the memory stays.
        Kept,
        /// The registration is undone.
        Deregistered,
        /// The contents are at their new place.
        Preserved,
        /// The contents are gone.
        Gone,
        /// Derived: withdrawn, and freed on the way.
        Released,
        /// The exporter did not come back in time.
        Overdue,
    }

    /// What a region does then.
    #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
    pub enum Effect {
        /// Begin the next generation.
        NextGeneration,
        /// Register it.
        Register,
        /// Let this rank's own steps go on, and tell every peer that has answered the last withdrawal.
        Advertise,
        /// Tell the peers that map ahead.
        AnnounceAhead,
        /// Tell every peer that holds it to stop.
        Withdraw,
        /// What the peers hold is dead: they cannot touch anything by it.
        Bury,
        /// Undo the registration.
        Deregister,
        /// Answer every open ticket: nobody touches the memory.
        Acknowledge,
        /// Answer every open ticket: there is nothing to move.
        RefuseRevoked,
        /// Give the exporter a time by which to come back.
        Await,
        /// Fail the operations: the contents are gone.
        FailRevoked,
        /// Fail the operations: the exporter did not come back.
        FailOverdue,
        /// Fail the operations: the memory cannot be registered.
        FailUnregistrable,
        /// Tell the peers that no generation follows.
        End,
    }

    /// The transitions.
    pub const TABLE: &[Row<State, Event, Effect>] = rows! {
        Registering {
            Registered => Active [Advertise]
            Unregistrable => Lost [FailUnregistrable End]
            Move => Cancelling []
            Revoke => Cancelling [Bury]
            Free => Cancelling [FailRevoked End]
            Announce => Registering [AnnounceAhead]
        }
        Cancelling {
            Registered => Deregistering [Deregister]
            Unregistrable => Withdrawn [Acknowledge Await]
            Move => Cancelling []
            MoveInVain => Cancelling [RefuseRevoked]
            Revoke => Cancelling [Bury RefuseRevoked]
            Free => Cancelling [FailRevoked End]
            Announce => Cancelling [AnnounceAhead]
        }
        Active {
            Move => Quiescing [Withdraw]
            Revoke => Quiescing [Withdraw Bury]
            Free => Quiescing [FailRevoked Withdraw End]
            Announce => Active [AnnounceAhead]
        }
        Quiescing {
            Quiet => Deregistering [Deregister]
            Kept => Active [NextGeneration Advertise]
            Move => Quiescing []
            MoveInVain => Quiescing [RefuseRevoked]
            Revoke => Quiescing [Bury RefuseRevoked]
            Free => Quiescing [FailRevoked End]
            Announce => Quiescing [AnnounceAhead]
        }
        Deregistering {
            Deregistered => Withdrawn [Acknowledge Await]
            Move => Deregistering []
            MoveInVain => Deregistering [RefuseRevoked]
            Revoke => Deregistering [Bury RefuseRevoked]
            Free => Deregistering [FailRevoked End]
            Announce => Deregistering [AnnounceAhead]
        }
        Withdrawn {
            Preserved => Registering [NextGeneration Register]
            Kept => Registering [NextGeneration Register]
            Gone => Lost [FailRevoked End]
            Overdue => Lost [FailOverdue End]
            Released => Freed [Acknowledge]
            Move => Withdrawn [Acknowledge Await]
            MoveInVain => Withdrawn [RefuseRevoked]
            Revoke => Withdrawn [Bury Await]
            Free => Freed [FailRevoked End Acknowledge]
            Announce => Withdrawn [AnnounceAhead]
        }
        Freed {
            Move => Freed [Acknowledge]
            MoveInVain => Freed [RefuseRevoked]
            Revoke => Freed []
            Free => Freed [Acknowledge]
            Announce => Freed []
        }
        Lost {
            Move => Lost [Acknowledge]
            MoveInVain => Lost [RefuseRevoked]
            Revoke => Lost []
            Free => Freed [Acknowledge]
            Announce => Lost []
        }
    };
}

/// The importer's side.
pub mod importer {
    use super::Row;

    /// Where a peer's region is, as seen from here.
    #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
    pub enum State {
        /// Never advertised.
        Unknown,
        /// The engine maps it, or imports its key.
        Mapping,
        /// It does, but in vain: the region has been withdrawn or has ended.
        Cancelling,
        /// Steps may take leases.
        Mapped,
        /// An access failed. No new one begins; what follows is the owner's to say.
        Broken,
        /// Withdrawn; accesses under way come to their end.
        Draining,
        /// No access is under way; the mapping is being undone.
        Unmapping,
        /// Nothing is mapped; the owner knows, or will as soon as it asks.
        Gone,
        /// An end: no generation follows.
        Ended,
    }

    /// What can happen to an import.
    #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
    pub enum Event {
        /// The owner advertises the next generation.
        Advertise,
        /// The same, of memory that has been mapped ahead.
        AdvertiseMapped,
        /// It is mapped.
        Mapped,
        /// It cannot be mapped.
        Unmappable,
        /// An access failed.
        Break,
        /// The owner withdraws it.
        Withdraw,
        /// Derived: no lease is out.
        Drained,
        /// It is unmapped.
        Unmapped,
        /// The owner says that no generation follows.
        End,
        /// Derived: nothing is mapped any more, and none follows.
        Over,
    }

    /// What an import does then.
    #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
    pub enum Effect {
        /// Map the memory, unless that is under way already.
        Map,
        /// Let the steps go on, from where the owner's watermark says.
        Resume,
        /// Unmap it.
        Unmap,
        /// Answer the withdrawal, if one waits for it.
        Answer,
        /// Fail the operations: no generation follows.
        FailRevoked,
        /// Fail the operations: it cannot be mapped.
        FailUnmappable,
        /// Unmap what was mapped ahead.
        Discard,
    }

    /// The transitions.
    pub const TABLE: &[Row<State, Event, Effect>] = rows! {
        Unknown {
            Advertise => Mapping [Map]
            AdvertiseMapped => Mapped [Resume]
            End => Ended [FailRevoked Discard]
        }
        Mapping {
            Mapped => Mapped [Resume]
            Unmappable => Gone [FailUnmappable]
            Withdraw => Cancelling []
            End => Cancelling [FailRevoked]
        }
        Cancelling {
            Mapped => Unmapping [Unmap]
            Unmappable => Gone [Answer]
            Withdraw => Cancelling []
            End => Cancelling [FailRevoked]
        }
        Mapped {
            Break => Broken []
            Withdraw => Draining []
            End => Draining [FailRevoked]
        }
        Broken {
            Break => Broken []
            Withdraw => Draining []
            End => Draining [FailRevoked]
        }
        Draining {
            Break => Draining []
            Drained => Unmapping [Unmap]
            Withdraw => Draining []
            End => Draining [FailRevoked]
        }
        Unmapping {
            Unmapped => Gone [Answer]
            Withdraw => Unmapping []
            End => Unmapping [FailRevoked]
        }
        Gone {
            Advertise => Mapping [Map]
            AdvertiseMapped => Mapped [Resume]
            Withdraw => Gone [Answer]
            End => Gone [FailRevoked]
            Over => Ended [Discard]
        }
        Ended {
            Withdraw => Ended [Answer]
            End => Ended []
        }
    };
}

/// The rows as text, one a line.
pub fn text<S: Debug, E: Debug, F: Debug>(table: &[Row<S, E, F>]) -> String {
    let mut out = String::new();
    for row in table {
        let effects: Vec<String> = row.effects.iter().map(|effect| format!("{effect:?}")).collect();
        let line = format!(
            "{:<14} {:<16} -> {:<14} {}",
            format!("{:?}", row.from),
            format!("{:?}", row.event),
            format!("{:?}", row.to),
            effects.join(", ")
        );
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out
}

/// The transitions between different states as a Mermaid diagram.
pub fn diagram<S: Debug + Eq, E: Debug, F: Debug>(table: &[Row<S, E, F>]) -> String {
    let mut out = "stateDiagram-v2\n".to_owned();
    for (i, row) in table.iter().enumerate().filter(|(_, row)| row.from != row.to) {
        let same = |other: &Row<S, E, F>| other.from == row.from && other.to == row.to;
        if table[..i].iter().any(same) {
            continue;
        }
        let events: Vec<String> =
            table[i..].iter().filter(|r| same(r)).map(|r| format!("{:?}", r.event)).collect();
        let _ = writeln!(out, "    {:?} --> {:?}: {}", row.from, row.to, events.join(" / "));
    }
    out
}
