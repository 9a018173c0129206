//! What was found: tables for people, JSON for programs, lines for the drawing.

use serde::Serialize;
use windlass::{Algorithm, Estimate, Experiment, LowerBound};

use super::Question;
use super::losses::Losses;
use crate::bench::plot::{Line, bytes_label};

/// One algorithm on one number of ranks, as the JSON has it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    pub(super) collective: &'static str,
    pub(super) algorithm: &'static str,
    pub(super) ranks: u32,
    pub(super) bytes: u64,
    pub(super) time_us: f64,
    /// No algorithm that sends messages is faster.
    pub(super) bound_us: f64,
    pub(super) latency_bound_us: f64,
    pub(super) bandwidth_bound_us: f64,
    pub(super) messages: u64,
    pub(super) bytes_sent: u64,
    pub(super) links: u64,
    pub(super) link_bytes_max: u64,
    pub(super) link_bytes_mean: f64,
    /// Beside operand and result.
    pub(super) memory_bytes: u64,
    /// Of a message at most.
    pub(super) chunk_bytes: u64,
    /// Elements checked on every rank, of so many.
    pub(super) checked: u64,
    pub(super) elements: u64,
}

impl Row {
    pub(super) fn new(experiment: &Experiment, estimate: &Estimate, bound: &LowerBound) -> Self {
        Self {
            collective: experiment.call.collective.name(),
            algorithm: experiment.algorithm.name(),
            ranks: experiment.ranks,
            bytes: experiment.call.size_bytes(experiment.ranks),
            time_us: estimate.time_ns / 1e3,
            bound_us: bound.time_ns() / 1e3,
            latency_bound_us: bound.latency_ns / 1e3,
            bandwidth_bound_us: bound.bandwidth_ns / 1e3,
            messages: estimate.messages,
            bytes_sent: estimate.bytes,
            links: estimate.links,
            link_bytes_max: estimate.most_link_bytes,
            link_bytes_mean: estimate.mean_link_bytes(),
            memory_bytes: estimate.memory_bytes,
            chunk_bytes: experiment.model.chunk_bytes,
            checked: estimate.watched,
            elements: estimate.elements,
        }
    }
}

/// Everything that was found.
pub(super) struct Report<'a> {
    pub(super) question: &'a Question<'a>,
    pub(super) algorithms: Vec<Algorithm>,
    pub(super) growth: Vec<u32>,
    pub(super) rows: Vec<Row>,
}

/// Four significant digits.
pub(super) fn time(us: f64) -> String {
    let (value, unit) = match us {
        ..1e3 => (us, "us"),
        ..1e6 => (us / 1e3, "ms"),
        _ => (us / 1e6, "s"),
    };
    let decimals = match value {
        ..10.0 => 3,
        ..100.0 => 2,
        _ => 1,
    };
    format!("{value:.decimals$} {unit}")
}

impl Report<'_> {
    pub(super) fn title(&self) -> String {
        let call = self.question.call(self.question.arguments.ranks);
        let size = bytes_label(call.size_bytes(self.question.arguments.ranks) as f64);
        format!("{}, {size}: simulated time", call.collective)
    }

    fn at(&self, algorithm: Algorithm, ranks: u32) -> Option<&Row> {
        self.rows.iter().find(|row| row.algorithm == algorithm.name() && row.ranks == ranks)
    }

    pub(super) fn text(&self) -> String {
        let ranks = self.question.arguments.ranks;
        let (call, model) = (self.question.call(ranks), self.question.model());
        let mut text = format!(
            "{} of {} bytes ({} x {}) on {ranks} ranks, seed {}\n  a message takes {} ns + {} ns a byte ({:.3} GB/s), combining {} ns a \
             byte; chunks of {} bytes\n",
            call.collective,
            call.size_bytes(ranks),
            call.count,
            call.data_type,
            self.question.arguments.seed,
            model.message_ns,
            model.message_byte_ns,
            1.0 / model.message_byte_ns,
            model.reduce_byte_ns,
            model.chunk_bytes
        );
        text.push_str(&self.comparison());
        if self.growth.len() > 1 {
            text.push_str(&self.growth());
        }
        text
    }

    /// The algorithms on all the ranks.
    fn comparison(&self) -> String {
        let ranks = self.question.arguments.ranks;
        let mut text = format!(
            "\n  {:<20} {:>10} {:>8} {:>11} {:>10} {:>10} {:>9} {:>11}  {}\n",
            "algorithm",
            "time",
            "x bound",
            "messages",
            "link max",
            "link mean",
            "links",
            "memory/rank",
            "checked"
        );
        for &algorithm in &self.algorithms {
            let Some(row) = self.at(algorithm, ranks) else {
                let messages = self.question.experiment(algorithm, ranks).messages() as f64 / 1e6;
                text.push_str(&format!(
                    "  {:<20} {:>10}  about {messages:.0} million messages: name it with --algorithm to run it\n",
                    algorithm.name(),
                    "-"
                ));
                continue;
            };
            let mapped = algorithm.needs_mapped_peers() || row.bound_us == 0.0;
            let coarser = match row.chunk_bytes > self.question.model().chunk_bytes {
                true => format!("; in chunks of {}", bytes_label(row.chunk_bytes as f64).trim()),
                false => String::new(),
            };
            let ratio = if mapped { "-".to_owned() } else { format!("{:.2}", row.time_us / row.bound_us) };
            text.push_str(&format!(
                "  {:<20} {:>10} {ratio:>8} {:>11} {:>10} {:>10} {:>9} {:>11}  {}\n",
                row.algorithm,
                time(row.time_us),
                row.messages,
                bytes_label(row.link_bytes_max as f64).trim(),
                bytes_label(row.link_bytes_mean).trim(),
                row.links,
                bytes_label(row.memory_bytes as f64).trim(),
                checked(row) + &coarser
            ));
        }
        text
    }

    /// Time against the number of ranks.
    fn growth(&self) -> String {
        let mut text = format!("\n  {:>7} {:>12} {:>12}", "ranks", "latency >=", "bandwidth >=");
        for algorithm in &self.algorithms {
            text.push_str(&format!(" {:>19}", algorithm.name()));
        }
        text.push('\n');
        for &ranks in &self.growth {
            let call = self.question.call(ranks);
            let bound = LowerBound::of(&call, ranks, &self.question.model());
            text.push_str(&format!(
                "  {ranks:>7} {:>12} {:>12}",
                time(bound.latency_ns / 1e3),
                time(bound.bandwidth_ns / 1e3)
            ));
            for &algorithm in &self.algorithms {
                let told = self.at(algorithm, ranks).map_or_else(|| "-".to_owned(), |row| time(row.time_us));
                text.push_str(&format!(" {told:>19}"));
            }
            text.push('\n');
        }
        text
    }

    /// The algorithms' times, and the bounds, against the number of ranks.
    pub(super) fn lines(&self) -> Vec<Line> {
        let of = |name: &str, points: Vec<(f64, f64)>| (name.to_owned(), points);
        let mut lines: Vec<Line> = Vec::new();
        for &algorithm in &self.algorithms {
            let rows = self.growth.iter().filter_map(|ranks| self.at(algorithm, *ranks));
            lines.push(of(algorithm.name(), rows.map(|row| (f64::from(row.ranks), row.time_us)).collect()));
        }
        let bound = |pick: fn(&LowerBound) -> f64| {
            let model = self.question.model();
            let points = self.growth.iter().map(|&ranks| {
                let bound = LowerBound::of(&self.question.call(ranks), ranks, &model);
                (f64::from(ranks), pick(&bound) / 1e3)
            });
            points.collect()
        };
        lines.push(of("latency bound", bound(|bound| bound.latency_ns)));
        lines.push(of("bandwidth bound", bound(|bound| bound.bandwidth_ns)));
        for (_, points) in &mut lines {
            points.retain(|(ranks, us)| *ranks > 0.0 && *us > 0.0);
        }
        lines.retain(|(_, points)| !points.is_empty());
        lines
    }

    pub(super) fn json(&self, losses: Option<&Losses>) -> serde_json::Value {
        let model = self.question.model();
        serde_json::json!({
            "seed": self.question.arguments.seed,
            "latency_ns": model.message_ns,
            "byte_ns": model.message_byte_ns,
            "reduce_byte_ns": model.reduce_byte_ns,
            "chunk_bytes": model.chunk_bytes,
            "rows": self.rows,
            "losses": losses,
        })
    }
}

fn checked(row: &Row) -> String {
    match (row.elements, row.checked) {
        (0, _) => "no rank left before all had entered".to_owned(),
        (all, some) if all == some => format!("all {all} elements, on every rank with a result"),
        (all, some) => format!("{some} of {all} elements, on every rank with a result"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_their_digits() {
        assert_eq!(
            [0.5, 12.345, 999.0, 1234.0, 2.5e6].map(time),
            ["0.500 us", "12.35 us", "999.0 us", "1.234 ms", "2.500 s"]
        );
    }
}
