//! A stream to a peer that can break: when it is opened anew, and when the peer is given up.
//!
//! The transport reports that it broke or stands; the membership, that the peer has died. Between them stands what this rank is willing to
//! try: attempts with growing rests, for a bounded time from the break on. An end that waits to be called, or whose call was heard, waits for
//! a peer that is late; that is the business of the operations' deadlines, and of who hears of deaths.

use super::table::connection::{Effect, Event, State, TABLE};
use super::table::find;

/// Attempts within one bound. The rests grow, so that a bound of minutes has fewer.
const MOST_ATTEMPTS: u32 = 1000;
/// The first rest; each is twice the one before, up to the longest.
const FIRST_REST_NS: u64 = 1_000_000;
const LONGEST_REST_NS: u64 = 250_000_000;

/// Why a stream is not opened any more.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Hopeless {
    /// The peer is dead.
    Dead,
    /// Nothing is opened anew in this job.
    Off,
    /// It was tried in vain.
    Exhausted {
        /// So often,
        attempts: u32,
        /// for so long.
        after_ns: u64,
    },
}

/// What the engine does.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum ConnectionAction {
    /// Open the stream anew.
    Reopen,
    /// The peer is lost.
    GiveUp(Hopeless),
}

/// The machine of one stream.
///
/// - Inputs: [`handle_broken`](Self::handle_broken), [`handle_renewed`](Self::handle_renewed), [`handle_stands`](Self::handle_stands),
///   [`handle_died`](Self::handle_died), [`handle_time`](Self::handle_time).
/// - Output: [`poll_action`](Self::poll_action).
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Connection {
    state: State,
    within_ns: u64,
    dead: bool,
    /// The first break since anything has passed.
    since_ns: Option<u64>,
    attempts: u32,
    rested_ns: u64,
    action: Option<ConnectionAction>,
}

impl Connection {
    /// A stream that stands, and is opened anew within this time from a break on; zero: not at all.
    pub const fn new(within_ns: u64) -> Self {
        Self {
            state: State::Open,
            within_ns,
            dead: false,
            since_ns: None,
            attempts: 0,
            rested_ns: 0,
            action: None,
        }
    }

    /// It broke, or could not be opened. Times are counted from any beginning.
    pub fn handle_broken(&mut self, now_ns: u64) {
        let since = *self.since_ns.get_or_insert(now_ns);
        self.rested_ns = now_ns + LONGEST_REST_NS.min(FIRST_REST_NS << self.attempts.min(8));
        match self.hopeless(now_ns.saturating_sub(since)) {
            Some(why) => self.turn(Event::Hopeless, Some(why)),
            None => self.turn(Event::Broke, None),
        }
    }

    /// One of both has taken it down to open it anew, once they had met: that says nothing against the peer, and whatever was tried before is over.
    pub fn handle_renewed(&mut self, now_ns: u64) {
        (self.since_ns, self.attempts) = (Some(now_ns), 0);
        if self.dead {
            self.turn(Event::Hopeless, Some(Hopeless::Dead));
        } else {
            self.turn(Event::Broke, None);
        }
    }

    /// It stands again. `progressed`: something has passed since it last did.
    pub fn handle_stands(&mut self, progressed: bool) {
        if progressed {
            (self.since_ns, self.attempts) = (None, 0);
        }
        self.turn(Event::Stands, None);
    }

    /// The peer has died. What it had said before may still come.
    pub fn handle_died(&mut self) {
        self.dead = true;
        self.turn(Event::Died, Some(Hopeless::Dead));
    }

    /// Time has passed. `heard`: the peer knows that the stream is being opened.
    pub fn handle_time(&mut self, now_ns: u64, heard: bool) {
        let after_ns = self.since_ns.map_or(0, |since| now_ns.saturating_sub(since));
        match self.state {
            State::Calling if !heard && after_ns >= self.within_ns => {
                let why = Hopeless::Exhausted { attempts: self.attempts, after_ns };
                self.turn(Event::Hopeless, Some(why));
            }
            State::Resting if now_ns >= self.rested_ns => self.turn(Event::Rested, None),
            _ => {}
        }
    }

    /// What is to be done.
    pub fn poll_action(&mut self) -> Option<ConnectionAction> {
        self.action.take()
    }

    /// Whether it is neither open nor given up: time matters.
    pub const fn is_mending(&self) -> bool {
        matches!(self.state, State::Calling | State::Resting)
    }

    fn hopeless(&self, after_ns: u64) -> Option<Hopeless> {
        if self.dead {
            return Some(Hopeless::Dead);
        }
        if self.within_ns == 0 {
            return Some(Hopeless::Off);
        }
        let spent = after_ns >= self.within_ns || self.attempts >= MOST_ATTEMPTS;
        spent.then_some(Hopeless::Exhausted { attempts: self.attempts, after_ns })
    }

    fn turn(&mut self, event: Event, why: Option<Hopeless>) {
        let row = find(TABLE, self.state, event);
        self.state = row.to;
        for effect in row.effects {
            self.action = match effect {
                Effect::Reopen => {
                    self.attempts += 1;
                    Some(ConnectionAction::Reopen)
                }
                Effect::GiveUp => why.map(ConnectionAction::GiveUp),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// Memory that moves takes a connection down as often as it likes: nobody is given up for it.
    #[test]
    fn what_is_taken_down_is_no_attempt_in_vain() {
        let mut connection = Connection::new(10 * SECOND);
        for renewed in 0..20 {
            connection.handle_renewed(renewed * SECOND);
            assert_eq!(connection.poll_action(), Some(ConnectionAction::Reopen), "{renewed}");
            connection.handle_stands(false);
        }
        // From the last time on it is as always.
        connection.handle_renewed(20 * SECOND);
        assert_eq!(connection.poll_action(), Some(ConnectionAction::Reopen));
        connection.handle_broken(29 * SECOND);
        assert_eq!(connection.poll_action(), None);
        connection.handle_broken(30 * SECOND);
        let why = Hopeless::Exhausted { attempts: 1, after_ns: 10 * SECOND };
        assert_eq!(connection.poll_action(), Some(ConnectionAction::GiveUp(why)));
    }

    /// Where nothing that breaks is opened anew, memory may move all the same.
    #[test]
    fn what_is_taken_down_is_opened_where_nothing_else_is() {
        let mut connection = Connection::new(0);
        connection.handle_renewed(SECOND);
        assert_eq!(connection.poll_action(), Some(ConnectionAction::Reopen));
        connection.handle_stands(false);
        connection.handle_broken(2 * SECOND);
        assert_eq!(connection.poll_action(), Some(ConnectionAction::GiveUp(Hopeless::Off)));
        connection.handle_died();
        connection.handle_renewed(3 * SECOND);
        assert!(!connection.is_mending());
    }
}
