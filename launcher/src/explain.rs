//! `windlass explain`: which algorithm and chunk a call gets, why, and where that changes.

use std::process::ExitCode;

use clap::Args;
use windlass::numa::{self, NodesChoice};
use windlass::{
    Algorithm, Association, Call, Choice, Collective, Config, DataType, ReduceOp, Topology, TransportChoice,
};

use crate::bench::{bytes, name, names, sized};
use crate::cli::Transport;

pub(crate) const EXAMPLES: &str = "\
Examples:
  windlass explain all_reduce -n 4 -b 1M
  windlass explain all_reduce -n 2 -b 8 -e 64M                    where the choice changes in between
  windlass explain all_gather -n 16 -b 64K --transport tcp --dtype bf16
  WINDLASS_ALGORITHM=ring windlass explain all_reduce -n 4        what an override does
  windlass explain all_reduce -n 4 --reproducible                 among those that fold by rank
  windlass explain all_reduce -n 8 --nodes 2                      where two NUMA nodes have four ranks each
  WINDLASS_MODEL=model.toml windlass explain all_reduce -n 4      with what `windlass tune` measured

The choice is a pure function of the call, the ranks and the model, so this is what every rank does. Times are what the
model predicts, to compare algorithms; `windlass bench` measures.";

/// The flags of `windlass explain`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ExplainArguments {
    #[arg(value_name = "COLLECTIVE", value_parser = sized, help = names(|c| !c.is_uneven()))]
    collective: Collective,
    /// How many ranks, all on one host.
    #[arg(short = 'n', long = "ranks", value_name = "N", default_value_t = 2,
          value_parser = clap::value_parser!(u32).range(1..=65_536))]
    ranks: u32,
    /// The size to explain; K, M and G are powers of 1024.
    #[arg(short = 'b', long = "begin", value_name = "BYTES", default_value = "1M", value_parser = bytes)]
    begin: u64,
    /// Also tell where the choice changes from BYTES to here [without: from 8 bytes to 1G].
    #[arg(short = 'e', long = "end", value_name = "BYTES", value_parser = bytes)]
    end: Option<u64>,
    /// The elements' type, such as f32, bf16, e4m3 or i64.
    #[arg(long, value_name = "TYPE", default_value = "f32", value_parser = name::<DataType>)]
    dtype: DataType,
    /// The transport [default: WINDLASS_TRANSPORT, else auto].
    #[arg(long, value_enum)]
    transport: Option<Transport>,
    /// Choose among the algorithms whose results have the same bits, as WINDLASS_REPRODUCIBLE does.
    #[arg(long)]
    reproducible: bool,
    /// The ranks' NUMA nodes: how many, or each rank's, as in 0,0,1,1 [default: WINDLASS_NODES, else one].
    #[arg(long, value_name = "NODES")]
    nodes: Option<NodesChoice>,
}

/// Everything the choice depends on.
struct Question<'a> {
    arguments: &'a ExplainArguments,
    config: Config,
    topology: Topology,
    transport: TransportChoice,
}

/// `windlass explain`.
pub(crate) fn explain(arguments: &ExplainArguments) -> ExitCode {
    match answer(arguments) {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(problem) => {
            eprintln!("windlass: {problem}");
            ExitCode::from(2)
        }
    }
}

fn answer(arguments: &ExplainArguments) -> Result<String, String> {
    if let Some(end) = arguments.end.filter(|end| *end < arguments.begin) {
        return Err(format!("-b {} is more than -e {end}", arguments.begin));
    }
    if arguments.collective.is_point_to_point() && arguments.ranks < 2 {
        return Err(format!("{} is between two ranks: use -n 2 or more", arguments.collective));
    }
    let mut config = Config::from_environment().map_err(|error| error.to_string())?;
    config.reproducible |= arguments.reproducible;
    config.check().map_err(|error| error.to_string())?;
    let transport = arguments.transport.map_or(config.transport, Transport::choice);
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
    let nodes = match &arguments.nodes {
        Some(nodes) => {
            nodes.of_ranks(arguments.ranks).map_err(|problem| format!("--nodes {nodes} {problem}"))?
        }
        None => config.nodes_of(arguments.ranks).map_err(|error| error.to_string())?,
    };
    let nodes = nodes.and_then(|nodes| numa::nodes(&nodes)).filter(|_| transport.maps());
    let topology = Topology { ranks: arguments.ranks, mapped: transport.maps(), cores, nodes };
    let question = Question { arguments, config, topology, transport };
    let call = question.call(arguments.begin);
    let choice = question.choice(&call)?;
    let mut text = question.head(&call);
    for &algorithm in Algorithm::ALL {
        text.push_str(&question.line(&call, &choice, algorithm));
    }
    text.push_str(&question.sizes(&choice, &call));
    if arguments.collective != Collective::Barrier {
        text.push_str(&question.ranges()?);
    }
    Ok(text)
}

impl Question<'_> {
    fn blocks(&self) -> u64 {
        if self.arguments.collective.has_blocks() { u64::from(self.topology.ranks) } else { 1 }
    }

    /// The smallest unit by which sizes differ.
    fn unit(&self) -> u64 {
        self.arguments.dtype.size_bytes() as u64 * self.blocks()
    }

    fn call(&self, bytes: u64) -> Call {
        let count = match self.arguments.collective {
            Collective::Barrier => 0,
            _ => (bytes / self.unit()).max(1),
        };
        let (collective, data_type) = (self.arguments.collective, self.arguments.dtype);
        let root = u32::from(collective.is_point_to_point());
        Call { collective, data_type, op: ReduceOp::Sum, count, root }
    }

    fn choice(&self, call: &Call) -> Result<Choice, String> {
        let choice = self.config.model.choose(call, &self.topology, self.config.policy());
        choice.map_err(|unsupported| unsupported.to_string())
    }

    fn head(&self, call: &Call) -> String {
        let transport = self.transport.to_string();
        let how = if self.topology.mapped { "shared memory" } else { &transport };
        let mut text = format!(
            "{} of {} bytes ({} x {}) on {} ranks over {how}{}\n",
            call.collective,
            call.size_bytes(self.topology.ranks),
            call.count,
            call.data_type,
            self.topology.ranks,
            match &self.topology.nodes {
                Some(nodes) => format!(", on {} NUMA nodes", nodes.count()),
                None => String::new(),
            }
        );
        for (key, value, origin) in
            self.config.settings().filter(|(key, ..)| ["algorithm", "reproducible", "model"].contains(key))
        {
            let flag = self.arguments.reproducible && key == "reproducible";
            let origin = if flag { "--reproducible".to_owned() } else { origin.to_string() };
            text.push_str(&format!("  {key}: {value} ({origin})\n"));
        }
        text.push_str(&format!("\n    {:<20} {:<8} {:>14}  \n", "algorithm", "order", "predicted"));
        text
    }

    fn line(&self, call: &Call, choice: &Choice, algorithm: Algorithm) -> String {
        let predicted = self.config.model.predict(call, &self.topology, algorithm);
        let time = predicted.map_or_else(|| "-".to_owned(), time);
        let chosen = choice.algorithm == algorithm;
        let forced = self.config.algorithm == Some(algorithm);
        let why = match predicted {
            _ if chosen && forced => "chosen: the configuration asks for it".to_owned(),
            _ if chosen && self.config.algorithm.is_some() => {
                "chosen: the cheapest, as the algorithm asked for cannot serve this call".to_owned()
            }
            _ if chosen => "chosen: the cheapest".to_owned(),
            Some(_) if self.config.reproducible && !algorithm.is_reproducible(call.collective) => {
                "adds in an order of its own, and results are to be reproducible".to_owned()
            }
            Some(ns) if ns < choice.predicted_ns => {
                "cheaper, but the configuration asks for another".to_owned()
            }
            Some(ns) => format!("{:.2} x the chosen one's time", ns / choice.predicted_ns.max(1e-9)),
            None => self.why_not(call, algorithm),
        };
        let order = match algorithm.association() {
            Association::ByRank if call.collective.reduces() => "by rank",
            Association::Own if call.collective.reduces() => "its own",
            _ => "-",
        };
        let mark = if chosen { "*" } else { " " };
        format!("  {mark} {:<20} {order:<8} {time:>14}  {why}\n", algorithm.name())
    }

    fn why_not(&self, call: &Call, algorithm: Algorithm) -> String {
        let predict = |call: &Call, topology: &Topology| self.config.model.predict(call, topology, algorithm);
        let mapped = Topology { mapped: true, ..self.topology.clone() };
        let smallest = Call { count: call.count.min(1), ..*call };
        if algorithm.needs_mapped_peers() && !self.topology.mapped && predict(&smallest, &mapped).is_some() {
            return "needs memory that all ranks map".to_owned();
        }
        if predict(&smallest, &self.topology).is_some() {
            return format!("more than a slot holds ({} bytes)", self.config.model.slot_bytes);
        }
        let apart = Topology { ranks: 2, mapped: true, nodes: numa::nodes(&[0, 1]), ..self.topology };
        if algorithm == Algorithm::Hierarchical && predict(&smallest, &apart).is_some() {
            return "needs memory that ranks on several NUMA nodes map".to_owned();
        }
        let ranks = self.topology.ranks.next_power_of_two();
        let even = Topology { ranks, nodes: None, ..self.topology };
        if predict(&smallest, &even).is_some() {
            return format!("not on {} ranks", self.topology.ranks);
        }
        format!("no algorithm for {}", call.collective)
    }

    fn sizes(&self, choice: &Choice, call: &Call) -> String {
        if call.count == 0 {
            return String::new();
        }
        if self.topology.mapped {
            let pieces = format!("heap memory is staged in pieces of {} bytes", choice.piece_bytes);
            return format!("\n  registered memory is reached where it lies; {pieces}\n");
        }
        format!("\n  messages are cut into chunks of {} bytes\n", choice.chunk_bytes)
    }

    /// Which algorithm serves which sizes, to the element.
    fn ranges(&self) -> Result<String, String> {
        let (from, to) = match self.arguments.end {
            Some(end) => (self.arguments.begin, end),
            None => (8, 1 << 30),
        };
        let unit = self.unit();
        let first = (from / unit).max(1);
        let last = (to / unit).max(first);
        let of = |units: u64| self.choice(&self.call(units * unit)).map(|choice| choice.algorithm);
        let mut text = format!("\n  from {} to {} bytes:\n", first * unit, last * unit);
        let mut begin = first;
        let mut probe = first;
        while begin <= last {
            let algorithm = of(begin)?;
            while probe < last && of(probe)? == algorithm {
                probe = probe.saturating_mul(2).min(last);
            }
            let end = if of(probe)? == algorithm {
                last
            } else {
                bisect(begin, probe, &|units| Ok(of(units)? == algorithm))?
            };
            text.push_str(&format!("    {:>12} .. {:>12}  {algorithm}\n", begin * unit, end * unit));
            (begin, probe) = (end + 1, end + 1);
        }
        Ok(text)
    }
}

/// The last number from `same` on, below `other`, for which it is the same.
fn bisect(mut same: u64, mut other: u64, is: &dyn Fn(u64) -> Result<bool, String>) -> Result<u64, String> {
    while other - same > 1 {
        let middle = same + (other - same) / 2;
        if is(middle)? {
            same = middle;
        } else {
            other = middle;
        }
    }
    Ok(same)
}

fn time(ns: f64) -> String {
    if ns < 1e3 {
        format!("{ns:.0} ns")
    } else if ns < 1e6 {
        format!("{:.2} us", ns / 1e3)
    } else {
        format!("{:.2} ms", ns / 1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_found_to_the_element() {
        assert_eq!(bisect(1, 1000, &|n| Ok(n <= 317)), Ok(317));
        assert_eq!(bisect(5, 6, &|n| Ok(n <= 5)), Ok(5));
    }

    #[test]
    fn times_have_units() {
        assert_eq!([110.0, 2_500.0, 3_250_000.0].map(time), ["110 ns", "2.50 us", "3.25 ms"]);
    }
}
