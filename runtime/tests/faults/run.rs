//! Drives the real runtime through a plan, and keeps what every operation came to.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use windlass::{
    Communicator, Config, Error, Fault, List, Operation, Received, Simulation, SimulationOptions,
};

use super::check::operand;
use super::plan::{Call, PATIENCE, Plan, TIMEOUT};

/// An operation under way.
enum Started {
    Alone(Operation<Vec<i64>>),
    Into(Operation<(Vec<i64>, Vec<i64>)>),
    Any(Operation<Received<Vec<i64>>>),
    List(Operation<List<Vec<i64>>>),
    Nothing(Operation<()>),
}

/// How an operation ended.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    /// With this in its output.
    Ended(Vec<i64>),
    Failed(Error),
    /// It had not ended when everything had been given time to.
    Hangs,
}

/// One operation of one rank.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) rank: u32,
    pub(crate) call: usize,
    /// Of a call that is two operations: the one that receives.
    pub(crate) receives: bool,
    pub(crate) outcome: Outcome,
}

/// What came of a plan.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) records: Vec<Record>,
    /// When no living rank waited any more.
    pub(crate) ended: Duration,
    pub(crate) trace: u64,
    /// Streams that were opened anew, at either end.
    pub(crate) reconnects: u64,
}

fn start(comm: &Communicator, index: usize, call: Call) -> Vec<(bool, Started)> {
    let (rank, ranks) = (comm.rank(), comm.size());
    let mine = |count| operand(rank, index, count);
    let all = ranks as usize;
    match call {
        Call::AllReduce { count, op } if index % 2 == 1 => {
            // Each rank's list is cut alike.
            let mut first = mine(count);
            let rest = first.split_off(count / 3);
            vec![(true, Started::List(comm.all_reduce(List::new(vec![first, rest]), op)))]
        }
        Call::AllReduce { count, op } => vec![(true, Started::Alone(comm.all_reduce(mine(count), op)))],
        Call::ReduceScatter { count, op } => {
            vec![(true, Started::Into(comm.reduce_scatter_into(mine(count * all), vec![0; count], op)))]
        }
        Call::AllGather { count } => {
            vec![(true, Started::Into(comm.all_gather_into(mine(count), vec![0; count * all])))]
        }
        Call::Broadcast { count, root } => vec![(true, Started::Alone(comm.broadcast(mine(count), root)))],
        Call::Barrier => vec![(true, Started::Nothing(comm.barrier()))],
        Call::Shift { count, by } => {
            let (to, from, tag) = ((rank + by) % ranks, (rank + ranks - by) % ranks, index as u32);
            if index % 3 == 1 {
                let both = comm.sendrecv(mine(count), to, vec![0; count], from, tag);
                return vec![(true, Started::Into(both))];
            }
            let sent = (false, Started::Alone(comm.send(mine(count), to, tag)));
            if index % 3 == 2 {
                return vec![sent, (true, Started::Any(comm.recv_any(vec![0; count], tag)))];
            }
            vec![sent, (true, Started::Alone(comm.recv(vec![0; count], from, tag)))]
        }
    }
}

fn outcome(started: Started) -> Outcome {
    fn of<M: Send + 'static>(operation: Operation<M>, output: impl FnOnce(M) -> Vec<i64>) -> Outcome {
        if !operation.is_done() {
            return Outcome::Hangs;
        }
        operation.wait().map_or_else(|failed| Outcome::Failed(failed.error), |m| Outcome::Ended(output(m)))
    }
    match started {
        Started::Alone(operation) => of(operation, |memory| memory),
        Started::Into(operation) => of(operation, |(_, output)| output),
        Started::Any(operation) => of(operation, Received::into_memory),
        Started::List(operation) => of(operation, |list| list.into_members().concat()),
        Started::Nothing(operation) => of(operation, |()| Vec::new()),
    }
}

/// What is done from outside at a time.
enum Deed {
    Call(u32),
    Fault(Fault),
}

/// Runs `plan`; `skipped` is a rank and a call that it does not make, for the canary.
pub(crate) fn run(plan: &Plan, skipped: Option<(u32, usize)>) -> Run {
    let mut config = Config::default();
    config.algorithm = plan.algorithm;
    config.timeout = Duration::from_micros(TIMEOUT);
    config.report_after = Duration::ZERO;
    // Longer than any cut that nothing excuses.
    config.reconnect = Duration::from_micros(TIMEOUT);
    config.model.chunk_bytes = plan.chunk_bytes;
    let mut options = SimulationOptions { patience: PATIENCE * 1_000, ..SimulationOptions::default() };
    options.limits.eager_bytes = plan.eager_bytes;
    options.planted = plan.planted;
    let simulation = Simulation::new(plan.ranks, plan.seed, options, &config).expect("a simulation");
    let mut deeds: Vec<(u64, Deed)> = Vec::new();
    for (rank, times) in plan.times.iter().enumerate() {
        deeds.extend(times.iter().map(|time| (*time, Deed::Call(rank as u32))));
    }
    let faults = plan.injuries.iter().flat_map(|injury| &injury.faults);
    deeds.extend(faults.map(|(time, fault)| (*time, Deed::Fault(fault.clone()))));
    deeds.sort_by_key(|(time, _)| *time);

    let mut started: Vec<(u32, usize, bool, Started)> = Vec::new();
    let mut next: Vec<usize> = vec![0; plan.ranks as usize];
    let (mut stopped, mut dead) = (BTreeSet::new(), BTreeSet::new());
    // Calls that a stopped rank would have made.
    let mut late: VecDeque<u32> = VecDeque::new();
    for (time, deed) in deeds {
        simulation.run_until(Duration::from_micros(time));
        match deed {
            Deed::Call(rank) => late.push_back(rank),
            Deed::Fault(fault) => {
                match &fault {
                    Fault::Lose(rank) => drop(dead.insert(*rank)),
                    Fault::Stop(rank) => drop(stopped.insert(*rank)),
                    Fault::Continue(rank) => drop(stopped.remove(rank)),
                    _ => {}
                }
                simulation.inject(fault);
            }
        }
        for _ in 0..late.len() {
            let Some(rank) = late.pop_front() else { break };
            if stopped.contains(&rank) {
                late.push_back(rank);
            } else if !dead.contains(&rank) {
                let index = next[rank as usize];
                next[rank as usize] += 1;
                if skipped != Some((rank, index)) {
                    let begun = start(&simulation.communicators()[rank as usize], index, plan.calls[index]);
                    started.extend(begun.into_iter().map(|(receives, s)| (rank, index, receives, s)));
                }
            }
        }
    }
    let bound = plan.last() + 2 * TIMEOUT;
    simulation.finish(Duration::from_micros(bound));
    let ended = simulation.now();
    let living = started.into_iter().filter(|(rank, ..)| !dead.contains(rank));
    let records = living.map(|(rank, call, receives, started)| Record {
        rank,
        call,
        receives,
        outcome: outcome(started),
    });
    let reconnects = simulation.communicators().iter().map(|comm| comm.reconnects().streams).sum();
    Run { records: records.collect(), ended, trace: simulation.trace(), reconnects }
}
