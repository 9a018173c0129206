//! One configuration: file < environment < what the program sets.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use windlass_collectives::{Algorithm, Association, Model, Policy};

use crate::error::JoinError;
use crate::numa::NodesChoice;

/// Which transport carries the data.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TransportChoice {
    /// The fastest that reaches all ranks.
    #[default]
    Auto,
    /// Shared memory; an error where ranks share no host.
    Shm,
    /// TCP, also between ranks of one host.
    Tcp,
    /// RDMA, also between ranks of one host; an error where there is none.
    Rdma,
}

impl TransportChoice {
    /// Whether ranks of a host reach each other's memory, so that nothing of theirs needs to be sent.
    pub const fn maps(self) -> bool {
        matches!(self, Self::Auto | Self::Shm)
    }
}

impl fmt::Display for TransportChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Auto => "auto",
            Self::Shm => "shm",
            Self::Tcp => "tcp",
            Self::Rdma => "rdma",
        })
    }
}

/// Where a setting's value came from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// This file.
    File(PathBuf),
    /// This environment variable.
    Environment(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => write!(f, "default"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Environment(name) => write!(f, "{name}"),
        }
    }
}

/// The settings of a job. All ranks must have the same values where [`agreement`](Self::agreement) says so.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Which transport carries the data. `WINDLASS_TRANSPORT`.
    pub transport: TransportChoice,
    /// Overrides the algorithm of every collective it can serve. `WINDLASS_ALGORITHM`.
    pub algorithm: Option<Algorithm>,
    /// The bits of every reduction depend on the operands of the ranks alone: not on its size, the algorithm, the chunks, the transport or the kind
    /// of memory. `WINDLASS_REPRODUCIBLE`.
    pub reproducible: bool,
    /// The NUMA nodes of the ranks, where they are not those of the CPUs that the ranks are bound to. `WINDLASS_NODES`.
    pub nodes: NodesChoice,
    /// How long an operation may take, in seconds on the command line. `WINDLASS_TIMEOUT`.
    pub timeout: Duration,
    /// How long a rank waits for the others to join. `WINDLASS_JOIN_TIMEOUT`.
    pub join_timeout: Duration,
    /// How long a rank tries to open a broken stream to a living peer anew; zero: not at all, the peer has failed then. `WINDLASS_RECONNECT`.
    pub reconnect: Duration,
    /// After how long a waiting operation is reported on stderr; zero never. `WINDLASS_REPORT_AFTER`.
    pub report_after: Duration,
    /// The RDMA devices to use, in this order: names, or a name, a colon and a port; none: all that serve this host. `WINDLASS_RDMA_DEVICES`, with commas.
    pub rdma_devices: Vec<String>,
    /// The place of the RDMA ports' tables whose GID is used; `None`: the best one of this host's. `WINDLASS_RDMA_GID_INDEX`.
    pub rdma_gid_index: Option<u8>,
    /// Within this time device memory that was taken away without a word is found, if NICs have it; zero: not before it is used.
    /// `WINDLASS_RDMA_WATCH`, in seconds.
    pub rdma_watch: Duration,
    /// Queue pairs of a connection on each NIC that it uses, from 1 to 4; of two ranks, the fewer. `WINDLASS_RDMA_PAIRS`.
    pub rdma_pairs: u8,
    /// The constants of the cost model: a file written by `windlass tune`. `WINDLASS_MODEL`.
    pub model: Model,
    /// Reductions of device memory over messages are done by its engine, although the transport goes through the host. For tests.
    #[doc(hidden)]
    pub adds_on_device: bool,
    origins: Vec<(&'static str, Origin)>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            transport: TransportChoice::Auto,
            algorithm: None,
            reproducible: false,
            nodes: NodesChoice::Auto,
            timeout: Duration::from_secs(30 * 60),
            join_timeout: Duration::from_secs(300),
            reconnect: Duration::from_secs(10),
            report_after: Duration::from_secs(10),
            rdma_devices: Vec::new(),
            rdma_gid_index: None,
            rdma_watch: Duration::from_secs(1),
            rdma_pairs: 1,
            model: Model::default(),
            adds_on_device: false,
            origins: Vec::new(),
        }
    }
}

type Apply = fn(&mut Config, &str) -> Result<(), String>;

struct Setting {
    key: &'static str,
    variable: &'static str,
    /// Whether all ranks must have the same value.
    shared: bool,
    apply: Apply,
    show: fn(&Config) -> String,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let value: f64 = text.parse().map_err(|_| "must be a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(value).map_err(|_| "must be a number of seconds, not negative".to_owned())
}

/// A setting in seconds, called as its field is.
macro_rules! time {
    ($field:ident, $variable:literal, shared: $shared:literal) => {
        Setting {
            key: stringify!($field),
            variable: $variable,
            shared: $shared,
            apply: |c, v| seconds(v).map(|time| c.$field = time),
            show: |c| c.$field.as_secs_f64().to_string(),
        }
    };
}

/// The one table of settings.
const SETTINGS: &[Setting] = &[
    Setting {
        key: "transport",
        variable: "WINDLASS_TRANSPORT",
        shared: true,
        apply: |c, v| {
            c.transport = match v {
                "auto" => TransportChoice::Auto,
                "shm" => TransportChoice::Shm,
                "tcp" => TransportChoice::Tcp,
                "rdma" => TransportChoice::Rdma,
                _ => return Err("must be auto, shm, tcp or rdma".to_owned()),
            };
            Ok(())
        },
        show: |c| c.transport.to_string(),
    },
    Setting {
        key: "algorithm",
        variable: "WINDLASS_ALGORITHM",
        shared: true,
        apply: |c, v| {
            c.algorithm = match v {
                "" | "auto" => None,
                _ => Some(
                    v.parse().map_err(|e: windlass_collectives::schedule::UnknownAlgorithm| e.to_string())?,
                ),
            };
            Ok(())
        },
        show: |c| c.algorithm.map_or_else(|| "auto".to_owned(), |a| a.to_string()),
    },
    Setting {
        key: "reproducible",
        variable: "WINDLASS_REPRODUCIBLE",
        shared: true,
        apply: |c, v| {
            c.reproducible = match v {
                "1" | "true" => true,
                "" | "0" | "false" => false,
                _ => return Err("must be true or false, or 1 or 0".to_owned()),
            };
            Ok(())
        },
        show: |c| c.reproducible.to_string(),
    },
    time!(timeout, "WINDLASS_TIMEOUT", shared: false),
    time!(join_timeout, "WINDLASS_JOIN_TIMEOUT", shared: false),
    time!(reconnect, "WINDLASS_RECONNECT", shared: true),
    time!(report_after, "WINDLASS_REPORT_AFTER", shared: false),
    Setting {
        key: "nodes",
        variable: "WINDLASS_NODES",
        shared: true,
        apply: |c, v| v.parse().map(|nodes| c.nodes = nodes),
        show: |c| c.nodes.to_string(),
    },
    Setting {
        key: "rdma_devices",
        variable: "WINDLASS_RDMA_DEVICES",
        shared: false,
        apply: |c, v| {
            let names = v.split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty());
            c.rdma_devices = names.collect();
            Ok(())
        },
        show: |c| if c.rdma_devices.is_empty() { "all".to_owned() } else { c.rdma_devices.join(",") },
    },
    Setting {
        key: "rdma_gid_index",
        variable: "WINDLASS_RDMA_GID_INDEX",
        shared: false,
        apply: |c, v| {
            c.rdma_gid_index = match v {
                "" | "auto" => None,
                _ => Some(v.parse().map_err(|_| "must be a place from 0 to 255, or auto".to_owned())?),
            };
            Ok(())
        },
        show: |c| c.rdma_gid_index.map_or_else(|| "auto".to_owned(), |index| index.to_string()),
    },
    time!(rdma_watch, "WINDLASS_RDMA_WATCH", shared: false),
    Setting {
        key: "rdma_pairs",
        variable: "WINDLASS_RDMA_PAIRS",
        shared: false,
        apply: |c, v| {
            let pairs = v.parse().ok().filter(|pairs| (1..=4).contains(pairs));
            c.rdma_pairs = pairs.ok_or_else(|| "must be a number of queue pairs from 1 to 4".to_owned())?;
            Ok(())
        },
        show: |c| c.rdma_pairs.to_string(),
    },
    Setting {
        key: "model",
        variable: "WINDLASS_MODEL",
        shared: true,
        apply: |c, v| {
            let text = std::fs::read_to_string(v).map_err(|e| format!("cannot be read: {e}"))?;
            c.model = ModelFile::parse(&text)?;
            Ok(())
        },
        show: |c| ModelFile::from(c.model).to_line(),
    },
];

impl Config {
    /// The configuration of this process: the file named by `WINDLASS_CONFIG`, if any, then the environment.
    pub fn from_environment() -> Result<Self, JoinError> {
        Self::load(|name| std::env::var(name).ok())
    }

    pub(crate) fn load(variable: impl Fn(&str) -> Option<String>) -> Result<Self, JoinError> {
        let mut config = Self::default();
        if let Some(path) = variable("WINDLASS_CONFIG") {
            config.read_file(PathBuf::from(path))?;
        }
        for setting in SETTINGS {
            if let Some(value) = variable(setting.variable) {
                config.set(setting, setting.variable, &value, Origin::Environment(setting.variable))?;
            }
        }
        config.check()?;
        Ok(config)
    }

    /// Refuses settings that contradict each other, as joining does.
    ///
    /// # Errors
    /// When the algorithm asked for is not reproducible, and results are to be.
    pub fn check(&self) -> Result<(), JoinError> {
        let Some(algorithm) =
            self.algorithm.filter(|a| self.reproducible && a.association() == Association::Own)
        else {
            return Ok(());
        };
        let by_rank = Algorithm::ALL.iter().filter(|a| a.association() == Association::ByRank);
        let names: Vec<_> = by_rank.map(|a| a.name()).collect();
        Err(JoinError::Configuration {
            setting: "WINDLASS_ALGORITHM".to_owned(),
            value: algorithm.name().to_owned(),
            problem: format!(
                "adds in an order of its own, and WINDLASS_REPRODUCIBLE is set: leave it out, or use one of {}",
                names.join(", ")
            ),
        })
    }

    /// What the configuration asks of the choice of algorithms.
    pub const fn policy(&self) -> Policy {
        Policy { algorithm: self.algorithm, by_rank: self.reproducible }
    }

    fn read_file(&mut self, path: PathBuf) -> Result<(), JoinError> {
        let wrong = |problem: String| JoinError::Configuration {
            setting: "WINDLASS_CONFIG".to_owned(),
            value: path.display().to_string(),
            problem,
        };
        let text = std::fs::read_to_string(&path).map_err(|e| wrong(format!("cannot be read: {e}")))?;
        let table: toml::Table = text.parse().map_err(|e: toml::de::Error| wrong(e.to_string()))?;
        for (key, value) in &table {
            let Some(setting) = SETTINGS.iter().find(|s| s.key == key) else {
                let known: Vec<_> = SETTINGS.iter().map(|s| s.key).collect();
                return Err(wrong(format!("`{key}` is no setting; there are {}", known.join(", "))));
            };
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            self.set(setting, key, &text, Origin::File(path.clone()))?;
        }
        Ok(())
    }

    fn set(&mut self, setting: &Setting, name: &str, value: &str, origin: Origin) -> Result<(), JoinError> {
        (setting.apply)(self, value).map_err(|problem| JoinError::Configuration {
            setting: name.to_owned(),
            value: value.to_owned(),
            problem,
        })?;
        self.origins.retain(|(key, _)| *key != setting.key);
        self.origins.push((setting.key, origin));
        Ok(())
    }

    /// The node of each rank, if the configuration says it.
    ///
    /// # Errors
    /// When it says it of another number of ranks.
    pub fn nodes_of(&self, ranks: u32) -> Result<Option<Vec<u32>>, JoinError> {
        self.nodes.of_ranks(ranks).map_err(|problem| JoinError::Configuration {
            setting: "WINDLASS_NODES".to_owned(),
            value: self.nodes.to_string(),
            problem,
        })
    }

    /// Every setting with its value and where the value came from.
    pub fn settings(&self) -> impl Iterator<Item = (&'static str, String, Origin)> + '_ {
        SETTINGS.iter().map(|s| {
            let origin = self.origins.iter().find(|(key, _)| *key == s.key).map(|(_, o)| o.clone());
            (s.key, (s.show)(self), origin.unwrap_or(Origin::Default))
        })
    }

    /// The settings that all ranks must share, as text that the rendezvous compares.
    pub(crate) fn agreement(&self) -> Vec<(String, String)> {
        SETTINGS.iter().filter(|s| s.shared).map(|s| (s.key.to_owned(), (s.show)(self))).collect()
    }
}

/// The model as `windlass tune` writes it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelFile {
    flag_ns: f64,
    line_ns: f64,
    switch_ns: f64,
    cached_byte_ns: f64,
    node_flag_ns: f64,
    node_byte_ns: f64,
    message_ns: f64,
    message_byte_ns: f64,
    reduce_byte_ns: f64,
    chunk_bytes: u64,
    stage_chunk_bytes: u64,
    slot_bytes: u64,
}

impl Default for ModelFile {
    fn default() -> Self {
        Self::from(Model::default())
    }
}

impl From<Model> for ModelFile {
    fn from(m: Model) -> Self {
        Self {
            flag_ns: m.flag_ns,
            line_ns: m.line_ns,
            switch_ns: m.switch_ns,
            cached_byte_ns: m.cached_byte_ns,
            node_flag_ns: m.node_flag_ns,
            node_byte_ns: m.node_byte_ns,
            message_ns: m.message_ns,
            message_byte_ns: m.message_byte_ns,
            reduce_byte_ns: m.reduce_byte_ns,
            chunk_bytes: m.chunk_bytes,
            stage_chunk_bytes: m.stage_chunk_bytes,
            slot_bytes: m.slot_bytes,
        }
    }
}

impl ModelFile {
    /// Reads a model; constants that are missing keep their shipped values.
    pub fn parse(text: &str) -> Result<Model, String> {
        let file: Self = toml::from_str(text).map_err(|e| e.to_string())?;
        let times = [
            file.flag_ns,
            file.line_ns,
            file.switch_ns,
            file.cached_byte_ns,
            file.node_flag_ns,
            file.node_byte_ns,
            file.message_ns,
            file.message_byte_ns,
            file.reduce_byte_ns,
        ];
        if !times.iter().all(|t| t.is_finite() && *t >= 0.0) {
            return Err("every time must be a number, not negative".to_owned());
        }
        let sizes =
            [(file.chunk_bytes, 1 << 30), (file.stage_chunk_bytes, 64 << 20), (file.slot_bytes, 1 << 20)];
        if !sizes.iter().all(|&(bytes, most)| (64..=most).contains(&bytes)) {
            return Err(
                "chunk_bytes, stage_chunk_bytes and slot_bytes must be 64 to 2^30, 2^26 and 2^20".to_owned()
            );
        }
        Ok(Model {
            flag_ns: file.flag_ns,
            line_ns: file.line_ns,
            switch_ns: file.switch_ns,
            cached_byte_ns: file.cached_byte_ns,
            node_flag_ns: file.node_flag_ns,
            node_byte_ns: file.node_byte_ns,
            message_ns: file.message_ns,
            message_byte_ns: file.message_byte_ns,
            reduce_byte_ns: file.reduce_byte_ns,
            chunk_bytes: file.chunk_bytes,
            stage_chunk_bytes: file.stage_chunk_bytes,
            slot_bytes: file.slot_bytes,
        })
    }

    /// The file's text.
    pub fn to_text(&self) -> String {
        toml::to_string(self).unwrap_or_default()
    }

    fn to_line(self) -> String {
        self.to_text().trim().replace('\n', ", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(pairs: &[(&str, &str)]) -> Result<Config, JoinError> {
        Config::load(|name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    #[test]
    fn the_environment_overrides_the_file() {
        let directory = std::env::temp_dir().join(format!("windlass-config-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let file = directory.join("windlass.toml");
        std::fs::write(&file, "timeout = 5\ntransport = \"tcp\"\n").unwrap();
        let path = file.to_str().unwrap();
        let config = with(&[("WINDLASS_CONFIG", path), ("WINDLASS_TIMEOUT", "7.5")]).unwrap();
        assert_eq!(config.timeout, Duration::from_millis(7500));
        assert_eq!(config.transport, TransportChoice::Tcp);
        let origin = |key| config.settings().find(|(k, ..)| *k == key).unwrap().2;
        assert_eq!(origin("timeout"), Origin::Environment("WINDLASS_TIMEOUT"));
        assert_eq!(origin("transport"), Origin::File(file.clone()));
        assert_eq!(origin("algorithm"), Origin::Default);
        std::fs::write(&file, "tiemout = 5\n").unwrap();
        assert!(with(&[("WINDLASS_CONFIG", path)]).unwrap_err().to_string().contains("timeout"));
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn wrong_values_are_named() {
        for (name, value) in [
            ("WINDLASS_TRANSPORT", "infiniband"),
            ("WINDLASS_ALGORITHM", "rign"),
            ("WINDLASS_REPRODUCIBLE", "maybe"),
            ("WINDLASS_NODES", "0"),
            ("WINDLASS_NODES", "0,1,x"),
            ("WINDLASS_TIMEOUT", "-1"),
            ("WINDLASS_TIMEOUT", "soon"),
            ("WINDLASS_RDMA_GID_INDEX", "256"),
            ("WINDLASS_RDMA_PAIRS", "0"),
            ("WINDLASS_RDMA_PAIRS", "5"),
            ("WINDLASS_MODEL", "/nonexistent"),
        ] {
            let error = with(&[(name, value)]).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(value), "{error}");
        }
    }

    #[test]
    fn devices_are_named_with_commas() {
        let config =
            with(&[("WINDLASS_RDMA_DEVICES", "mlx5_0, mlx5_1:2,"), ("WINDLASS_RDMA_GID_INDEX", "3")])
                .unwrap();
        assert_eq!(
            (config.rdma_devices.join("+").as_str(), config.rdma_gid_index),
            ("mlx5_0+mlx5_1:2", Some(3))
        );
        let shown: Vec<_> = config.settings().map(|(key, value, _)| format!("{key}={value}")).collect();
        assert!(shown.contains(&"rdma_devices=mlx5_0,mlx5_1:2".to_owned()), "{shown:?}");
        let all = with(&[("WINDLASS_RDMA_DEVICES", ""), ("WINDLASS_RDMA_GID_INDEX", "auto")]).unwrap();
        assert!(all.rdma_devices.is_empty() && all.rdma_gid_index.is_none() && all.rdma_pairs == 1);
        assert_eq!(with(&[("WINDLASS_RDMA_PAIRS", "4")]).unwrap().rdma_pairs, 4);
    }

    #[test]
    fn an_algorithm_with_an_order_of_its_own_is_not_reproducible() {
        let with = |algorithm| with(&[("WINDLASS_REPRODUCIBLE", "1"), ("WINDLASS_ALGORITHM", algorithm)]);
        let error = with("ring").unwrap_err().to_string();
        assert!(
            error.contains("ring") && error.contains("exchange") && error.contains("REPRODUCIBLE"),
            "{error}"
        );
        for algorithm in ["exchange", "direct", "pairwise", "auto"] {
            assert!(with(algorithm).unwrap().policy().by_rank, "{algorithm}");
        }
    }

    #[test]
    fn a_model_survives_its_file() {
        let model = Model { flag_ns: 77.5, ..Model::default() };
        assert_eq!(ModelFile::parse(&ModelFile::from(model).to_text()).unwrap(), model);
        assert!(ModelFile::parse("flag_ns = -1").is_err());
        assert!(ModelFile::parse("slot_bytes = 1").is_err());
        assert!(ModelFile::parse("speed = 1").is_err());
    }
}
