//! Which NUMA node each rank is on: from the CPUs it may use, or as the configuration says.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use windlass_collectives::Nodes;

/// What the configuration says of the ranks' NUMA nodes. `WINDLASS_NODES`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum NodesChoice {
    /// Each rank's is that of the CPUs it is bound to. Unless every rank is bound to one, they are taken to be on the same.
    #[default]
    Auto,
    /// So many, each with as many consecutive ranks as the next, or one more.
    Blocks(u32),
    /// The node of each rank.
    Each(Vec<u32>),
}

/// No number of nodes, and no list of them.
const FORM: &str = "must be auto, a number of nodes from 1 on, or the node of each rank, as in 0,0,1,1";

impl FromStr for NodesChoice {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if matches!(text, "" | "auto") {
            return Ok(Self::Auto);
        }
        let numbers = text.split(',').map(|number| number.trim().parse::<u32>().map_err(|_| FORM.to_owned()));
        let numbers: Vec<u32> = numbers.collect::<Result<_, _>>()?;
        match numbers[..] {
            [0] => Err(FORM.to_owned()),
            [nodes] => Ok(Self::Blocks(nodes)),
            _ => Ok(Self::Each(numbers)),
        }
    }
}

impl fmt::Display for NodesChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Blocks(nodes) => write!(f, "{nodes}"),
            Self::Each(nodes) => {
                let names: Vec<_> = nodes.iter().map(u32::to_string).collect();
                f.write_str(&names.join(","))
            }
        }
    }
}

impl NodesChoice {
    /// The node of each of `ranks` ranks, if it is said.
    ///
    /// # Errors
    /// When it is not said of so many.
    pub fn of_ranks(&self, ranks: u32) -> Result<Option<Vec<u32>>, String> {
        match self {
            Self::Auto => Ok(None),
            Self::Blocks(nodes) if *nodes > ranks => {
                Err(format!("means more nodes than the job's {ranks} ranks"))
            }
            Self::Blocks(nodes) => {
                let node = |rank: u32| (u64::from(rank) * u64::from(*nodes) / u64::from(ranks)) as u32;
                Ok(Some((0..ranks).map(node).collect()))
            }
            Self::Each(nodes) if nodes.len() != ranks as usize => {
                Err(format!("names the nodes of {} ranks, and the job has {ranks}", nodes.len()))
            }
            Self::Each(nodes) => Ok(Some(nodes.clone())),
        }
    }
}

/// The nodes of ranks, given that of each; `None` where all are on the same.
pub fn nodes(node_of_rank: &[u32]) -> Option<Arc<Nodes>> {
    let first = node_of_rank.first()?;
    node_of_rank.iter().any(|node| node != first).then(|| Arc::new(Nodes::of(node_of_rank)))
}

/// The NUMA node of a CPU; `None` where the kernel does not tell.
pub fn node_of_cpu(cpu: u32) -> Option<u32> {
    let entries = std::fs::read_dir(format!("/sys/devices/system/cpu/cpu{cpu}")).ok()?;
    let name = |entry: std::io::Result<std::fs::DirEntry>| entry.ok()?.file_name().into_string().ok();
    entries.filter_map(name).find_map(|name| name.strip_prefix("node")?.parse().ok())
}

/// The NUMA node that all these CPUs are on, if it is one.
pub(crate) fn common_node(cpus: &[u32], node_of_cpu: impl Fn(u32) -> Option<u32>) -> Option<u32> {
    let (first, others) = cpus.split_first()?;
    let node = node_of_cpu(*first)?;
    others.iter().all(|cpu| node_of_cpu(*cpu) == Some(node)).then_some(node)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_numbered_or_listed() {
        let of = |text: &str, ranks| text.parse::<NodesChoice>().and_then(|choice| choice.of_ranks(ranks));
        assert_eq!(of("auto", 4), Ok(None));
        assert_eq!(of("", 4), Ok(None));
        assert_eq!(of("2", 4), Ok(Some(vec![0, 0, 1, 1])));
        assert_eq!(of("2", 5), Ok(Some(vec![0, 0, 0, 1, 1])));
        assert_eq!(of("1", 1), Ok(Some(vec![0])));
        assert_eq!(of("3, 1,3", 3), Ok(Some(vec![3, 1, 3])));
        for (text, ranks) in [("0", 4), ("5", 4), ("0,1", 4), ("0,1,", 3), ("a", 1), ("-1", 1), ("0;1", 2)] {
            assert!(of(text, ranks).is_err(), "{text}");
        }
        for text in ["auto", "2", "0,1,0"] {
            assert_eq!(text.parse::<NodesChoice>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_rank_is_on_the_node_of_all_its_cpus() {
        let node = |cpu| (cpu < 8).then_some(cpu / 4);
        assert_eq!(common_node(&[0, 3], node), Some(0));
        assert_eq!(common_node(&[5], node), Some(1));
        for spread in [&[3, 4][..], &[7, 8], &[9], &[]] {
            assert_eq!(common_node(spread, node), None, "{spread:?}");
        }
    }

    #[test]
    fn ranks_of_one_node_have_no_map() {
        assert_eq!((nodes(&[]), nodes(&[4, 4])), (None, None));
        assert_eq!(nodes(&[4, 2]).map(|nodes| nodes.count()), Some(2));
    }
}
