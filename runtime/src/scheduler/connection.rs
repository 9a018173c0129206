//! A stream to a peer that can break: when it is opened anew, and when the peer is given up.
//!
//! The transport reports that it broke or stands; the membership, that the peer has died. Between them stands what this rank is willing to
//! try: attempts with growing rests, for a bounded time from the break on. An end that waits to be called, or whose call was heard, waits for
//! a peer that is late; that is the business of the operations' deadlines, and of who hears of deaths.

use std::time::Duration;

use super::table::connection::{Effect, Event, State, TABLE};
use super::table::find;

/// Attempts within one bound. The rests grow, so that a bound of minutes has fewer.
const MOST_ATTEMPTS: u32 = 1000;
/// The first rest; each is twice the one before, up to the longest.
const FIRST_REST: Duration = Duration::from_millis(1);
const LONGEST_REST: Duration = Duration::from_millis(250);

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
        after: Duration,
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
/// - Inputs: [`handle_broken`](Self::handle_broken), [`handle_stands`](Self::handle_stands), [`handle_died`](Self::handle_died),
///   [`handle_time`](Self::handle_time).
/// - Output: [`poll_action`](Self::poll_action).
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Connection {
    state: State,
    within: Duration,
    dead: bool,
    /// The first break since anything has passed.
    since: Option<Duration>,
    attempts: u32,
    rested: Duration,
    action: Option<ConnectionAction>,
}

impl Connection {
    /// A stream that stands, and is opened anew `within` this time from a break on.
    pub const fn new(within: Duration) -> Self {
        Self {
            state: State::Open,
            within,
            dead: false,
            since: None,
            attempts: 0,
            rested: Duration::ZERO,
            action: None,
        }
    }

    /// It broke, or could not be opened. Times are counted from any beginning.
    pub fn handle_broken(&mut self, now: Duration) {
        let since = *self.since.get_or_insert(now);
        self.rested = now + LONGEST_REST.min(FIRST_REST * (1 << self.attempts.min(8)));
        match self.hopeless(now - since) {
            Some(why) => self.turn(Event::Hopeless, Some(why)),
            None => self.turn(Event::Broke, None),
        }
    }

    /// It stands again. `progressed`: something has passed since it last did.
    pub fn handle_stands(&mut self, progressed: bool) {
        if progressed {
            (self.since, self.attempts) = (None, 0);
        }
        self.turn(Event::Stands, None);
    }

    /// The peer has died. What it had said before may still come.
    pub fn handle_died(&mut self) {
        self.dead = true;
        self.turn(Event::Died, Some(Hopeless::Dead));
    }

    /// Time has passed. `heard`: the peer knows that the stream is being opened.
    pub fn handle_time(&mut self, now: Duration, heard: bool) {
        let after = self.since.map_or(Duration::ZERO, |since| now.saturating_sub(since));
        match self.state {
            State::Calling if !heard && after >= self.within => {
                let why = Hopeless::Exhausted { attempts: self.attempts, after };
                self.turn(Event::Hopeless, Some(why));
            }
            State::Resting if now >= self.rested => self.turn(Event::Rested, None),
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

    fn hopeless(&self, after: Duration) -> Option<Hopeless> {
        if self.dead {
            return Some(Hopeless::Dead);
        }
        if self.within.is_zero() {
            return Some(Hopeless::Off);
        }
        let spent = after >= self.within || self.attempts >= MOST_ATTEMPTS;
        spent.then_some(Hopeless::Exhausted { attempts: self.attempts, after })
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
