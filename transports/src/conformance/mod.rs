//! What every transport must do, as one suite.
//!
//! [`run`] takes a transport's constructor and panics at the first broken promise, naming the case. It is itself tested: transports with a
//! planted fault must not pass (`tests/planted_faults.rs`).

mod cases;
mod cluster;
mod departures;
mod seeking;

pub use cluster::Cluster;

use std::time::Duration;

use crate::Transport;

/// One case of the suite.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Its name.
    pub name: &'static str,
    /// How many ranks it needs.
    pub ranks: usize,
    /// Panics if the transport is wrong.
    pub check: fn(&mut Cluster<'_>),
}

/// All cases.
pub const CASES: &[Case] = &[
    Case { name: "every size, posted before and after", ranks: 2, check: cases::sizes },
    Case { name: "identities differ in one field", ranks: 2, check: cases::identities },
    Case { name: "many tags out of order", ranks: 2, check: cases::out_of_order },
    Case { name: "a stuck communicator starves no other", ranks: 2, check: cases::stuck_communicator },
    Case { name: "users starve no collective", ranks: 2, check: cases::stuck_users },
    Case { name: "large messages beyond the announcements", ranks: 2, check: cases::many_large },
    Case { name: "a flood both ways", ranks: 2, check: cases::flood },
    Case { name: "all pairs", ranks: 5, check: cases::all_pairs },
    Case { name: "messages sought", ranks: 3, check: seeking::in_order },
    Case { name: "a message sought behind a stall", ranks: 2, check: seeking::behind_a_stall },
    Case { name: "mismatch", ranks: 2, check: cases::mismatch },
    Case { name: "two receives of one identity", ranks: 2, check: cases::duplicate_receive },
    Case { name: "a receive withdrawn in any state", ranks: 2, check: departures::withdrawn_receive },
    Case { name: "a send withdrawn in any state", ranks: 2, check: departures::withdrawn_send },
    Case { name: "a withdrawn receive posted anew", ranks: 2, check: departures::reposted_receive },
    Case { name: "a stream that breaks", ranks: 2, check: departures::broken_stream },
    Case { name: "a lost peer", ranks: 3, check: departures::lost_peer },
];

/// Runs the whole suite. `make` gives connected transports of so many ranks, new ones each time; `drive` is called between polls, for a
/// network that must be driven.
///
/// # Panics
/// A case fails.
pub fn run(mut make: impl FnMut(usize) -> Vec<Box<dyn Transport>>, mut drive: impl FnMut()) {
    for case in CASES {
        run_case(case, &mut make, &mut drive);
    }
}

/// Runs one case.
///
/// # Panics
/// It fails.
pub fn run_case(
    case: &Case,
    make: &mut dyn FnMut(usize) -> Vec<Box<dyn Transport>>,
    drive: &mut dyn FnMut(),
) {
    run_case_at_leisure(case, make, drive, Duration::from_millis(5));
}

/// Runs one case over a transport whose messages may be under way for up to `quiet` while no rank notices anything.
///
/// # Panics
/// It fails.
pub fn run_case_at_leisure(
    case: &Case,
    make: &mut dyn FnMut(usize) -> Vec<Box<dyn Transport>>,
    drive: &mut dyn FnMut(),
    quiet: Duration,
) {
    let mut cluster = Cluster::new(case.name, make(case.ranks), drive, quiet);
    (case.check)(&mut cluster);
    cluster.check_untouched();
}
