//! The invariants, kept by books of their own: nothing here asks a machine anything.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What the model saw happen.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) enum Seen {
    Touched {
        by: u32,
        owner: u32,
        place: u64,
    },
    /// The network wrote.
    Landed {
        from: u32,
        owner: u32,
        place: u64,
    },
    /// The region lives under this generation. Calm: and the rank has heard everything that its exporter said.
    Began {
        owner: u32,
        generation: u32,
        is_calm: bool,
    },
    Mapped {
        by: u32,
        owner: u32,
        place: u64,
    },
    Unmapped {
        by: u32,
        owner: u32,
        place: u64,
    },
    /// Steps of `by` may touch this generation of `owner`'s.
    Resumed {
        by: u32,
        owner: u32,
        generation: u32,
    },
    /// A step of `by` may not touch `owner`'s region.
    Paused {
        by: u32,
        owner: u32,
    },
    /// The exporter of `owner` said or did something.
    Stirred {
        owner: u32,
    },
    Asked {
        owner: u32,
        ticket: u64,
        deadline_ns: u64,
    },
    Acknowledged {
        owner: u32,
        ticket: u64,
        place: u64,
    },
    Refused {
        owner: u32,
        ticket: u64,
        waiting_on: Option<Vec<u32>>,
    },
    Withdrew {
        owner: u32,
        from: u32,
    },
    Answered {
        by: u32,
        owner: u32,
    },
    LeaseTaken {
        by: u32,
        owner: u32,
    },
    LeaseBack {
        by: u32,
        owner: u32,
    },
    Time {
        now_ns: u64,
    },
    Crashed {
        rank: u32,
    },
    Stopped {
        rank: u32,
    },
    Woke {
        rank: u32,
    },
    /// The operation ended well: the owner's memory is its user's again.
    Ended {
        rank: u32,
    },
    /// A machine called another one's word stale, which nothing in the model makes it.
    Stale {
        rank: u32,
        what: String,
    },
}

/// What was broken.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Violation {
    pub(crate) invariant: &'static str,
    pub(crate) what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.what)
    }
}

#[derive(Clone, Debug, Default, Hash)]
pub(crate) struct Checker {
    silent: BTreeSet<(u32, u64)>,
    generations: BTreeMap<u32, u32>,
    resumed: BTreeMap<(u32, u32), u32>,
    mapped: BTreeMap<(u32, u32, u64), u32>,
    leases: BTreeMap<(u32, u32), u32>,
    open: BTreeMap<(u32, u64), u64>,
    owed: BTreeMap<(u32, u32), u32>,
    /// Generations that have begun since the owner's exporter last stirred.
    calm: BTreeMap<u32, u32>,
    /// Importer and owner, where the importer has resumed no such generation yet.
    stirred: BTreeSet<(u32, u32)>,
    absent: BTreeSet<u32>,
    ended: BTreeSet<u32>,
    ranks: u32,
}

impl Checker {
    pub(crate) fn new(ranks: u32) -> Self {
        let pairs = (0..ranks).flat_map(|by| (0..ranks).map(move |owner| (by, owner)));
        Self { ranks, stirred: pairs.collect(), ..Self::default() }
    }

    pub(crate) fn see(&mut self, seen: &Seen) -> Result<(), Violation> {
        match seen {
            Seen::Touched { by, owner, place } => self.touched(*by, *owner, *place),
            Seen::Landed { from, owner, place } => self.silence(*from, *owner, *place),
            Seen::Began { owner, generation, is_calm } => {
                if *is_calm {
                    self.stirred.remove(&(*owner, *owner));
                    self.calm.insert(*owner, *generation);
                }
                grows(&mut self.generations, *owner, *generation, format!("rank {owner} began"))
            }
            Seen::Resumed { by, owner, generation } => {
                if self.calm.get(owner) == Some(generation) {
                    self.stirred.remove(&(*by, *owner));
                }
                let what = format!("rank {by} resumed on rank {owner}'s");
                grows(&mut self.resumed, (*by, *owner), *generation, what)
            }
            Seen::Mapped { by, owner, place } => {
                *self.mapped.entry((*by, *owner, *place)).or_default() += 1;
                Ok(())
            }
            Seen::Unmapped { by, owner, place } => {
                let count = self.mapped.entry((*by, *owner, *place)).or_default();
                *count = count.saturating_sub(1);
                Ok(())
            }
            Seen::Paused { by, owner } => {
                let told = self.stirred.contains(&(*by, *owner));
                expect(told, "nobody else waits", || {
                    format!("rank {by} waits for rank {owner}'s region, which nothing has stirred")
                })
            }
            Seen::Stirred { owner } => {
                self.calm.remove(owner);
                self.stirred.extend((0..self.ranks).map(|by| (by, *owner)));
                Ok(())
            }
            Seen::Asked { owner, ticket, deadline_ns } => {
                self.open.insert((*owner, *ticket), *deadline_ns);
                Ok(())
            }
            Seen::Acknowledged { owner, ticket, place } => {
                self.silent.insert((*owner, *place));
                self.answered(*owner, *ticket)
            }
            Seen::Refused { owner, ticket, waiting_on } => {
                self.refused(*owner, *ticket, waiting_on.as_deref())
            }
            Seen::Withdrew { owner, from } => {
                *self.owed.entry((*from, *owner)).or_default() += 1;
                Ok(())
            }
            Seen::Answered { by, owner } => {
                let owed = self.owed.entry((*by, *owner)).or_default();
                let is_owed = *owed > 0;
                *owed = owed.saturating_sub(1);
                expect(is_owed, "one answer a withdrawal", || format!("rank {by} to rank {owner}"))
            }
            Seen::LeaseTaken { by, owner } => {
                *self.leases.entry((*by, *owner)).or_default() += 1;
                Ok(())
            }
            Seen::LeaseBack { by, owner } => {
                *self.leases.entry((*by, *owner)).or_default() -= 1;
                Ok(())
            }
            of_ranks => self.see_ranks(of_ranks),
        }
    }

    /// What concerns no single region.
    fn see_ranks(&mut self, seen: &Seen) -> Result<(), Violation> {
        match seen {
            Seen::Time { now_ns } => self.time(*now_ns),
            Seen::Crashed { rank } => {
                self.absent.insert(*rank);
                self.leases.retain(|(by, _), _| by != rank);
                self.mapped.retain(|(by, _, _), _| by != rank);
                self.open.retain(|(owner, _), _| owner != rank);
                Ok(())
            }
            Seen::Stopped { rank } => {
                self.absent.insert(*rank);
                Ok(())
            }
            Seen::Woke { rank } => {
                self.absent.remove(rank);
                Ok(())
            }
            Seen::Ended { rank } => {
                self.ended.insert(*rank);
                Ok(())
            }
            Seen::Stale { rank, what } => Err(violation("nothing is stale", format!("rank {rank}: {what}"))),
            of_regions => Err(violation("the books are complete", format!("nobody enters {of_regions:?}"))),
        }
    }

    /// Nothing moves any more: what must not be left over.
    pub(crate) fn finish(&self) -> Result<(), Violation> {
        let open = self.open.keys().find(|(owner, _)| !self.absent.contains(owner));
        expect(open.is_none(), "everything ends", || format!("ticket {open:?} was never answered"))?;
        let lease = self
            .leases
            .iter()
            .find(|((by, _), count)| **count > 0 && !self.absent.contains(by))
            .map(|(k, _)| k);
        expect(lease.is_none(), "everything ends", || format!("a lease was never given back: {lease:?}"))
    }

    fn touched(&self, by: u32, owner: u32, place: u64) -> Result<(), Violation> {
        self.silence(by, owner, place)?;
        let mapped = by == owner || self.mapped.get(&(by, owner, place)).is_some_and(|count| *count > 0);
        expect(mapped, "silence after acknowledgement", || {
            format!("rank {by} touched place {place} of rank {owner}'s region, which it does not map")
        })
    }

    fn silence(&self, by: u32, owner: u32, place: u64) -> Result<(), Violation> {
        expect(!self.silent.contains(&(owner, place)), "silence after acknowledgement", || {
            format!("rank {by} touched place {place} of rank {owner}'s region after its acknowledgement")
        })?;
        expect(!self.ended.contains(&owner), "silence at the end", || {
            format!("rank {by} touched rank {owner}'s memory after its operation had ended")
        })
    }

    fn refused(&mut self, owner: u32, ticket: u64, waiting_on: Option<&[u32]>) -> Result<(), Violation> {
        if let Some(waiting_on) = waiting_on {
            let holding = self.holding(owner);
            let known = |rank: &u32| {
                *rank == owner || holding.contains(rank) || self.owed.contains_key(&(*rank, owner))
            };
            expect(
                !waiting_on.is_empty() && waiting_on.iter().all(known),
                "bounded pause or a refusal that names",
                || {
                    format!(
                        "rank {owner} refused ticket {ticket} for {waiting_on:?}; {holding:?} hold its region"
                    )
                },
            )?;
        }
        self.answered(owner, ticket)
    }

    fn answered(&mut self, owner: u32, ticket: u64) -> Result<(), Violation> {
        let was_open = self.open.remove(&(owner, ticket)).is_some();
        expect(was_open, "one answer a ticket", || format!("rank {owner} answered ticket {ticket} again"))
    }

    fn time(&self, now_ns: u64) -> Result<(), Violation> {
        let late = self.open.iter().find(|((owner, _), by)| **by <= now_ns && !self.absent.contains(owner));
        expect(late.is_none(), "bounded pause or a refusal that names", || {
            format!("ticket {late:?} is unanswered at {now_ns}")
        })
    }

    fn holding(&self, owner: u32) -> Vec<u32> {
        let leases =
            self.leases.iter().filter(|((_, o), count)| *o == owner && **count > 0).map(|((by, _), _)| *by);
        let maps = self.mapped.iter().filter(|((_, o, _), count)| *o == owner && **count > 0);
        leases.chain(maps.map(|((by, _, _), _)| *by)).collect()
    }
}

fn violation(invariant: &'static str, what: String) -> Violation {
    Violation { invariant, what }
}

fn expect(holds: bool, invariant: &'static str, what: impl FnOnce() -> String) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(violation(invariant, what())) }
}

fn grows<K: Ord>(of: &mut BTreeMap<K, u32>, key: K, generation: u32, what: String) -> Result<(), Violation> {
    let before = of.insert(key, generation);
    expect(before.is_none_or(|before| before < generation), "a generation is used once", || {
        format!("{what} generation {generation} after {before:?}")
    })
}
