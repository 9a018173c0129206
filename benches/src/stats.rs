//! Samples, and what is said of them.

use serde::{Deserialize, Serialize};

/// Where the two cores that a sample ran on sat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Label {
    /// An exchange of flags stayed within one core's siblings, or nearly.
    Near,
    /// It crossed to another core.
    Far,
    /// The cores moved during the batch, or there are more ranks than cores: nearness says nothing.
    Unsettled,
}

impl Label {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Near, Self::Far, Self::Unsettled];

    /// The label of a batch, from the probes before and after it.
    #[must_use]
    pub fn of_batch(before: Self, after: Self) -> Self {
        if before == after { before } else { Self::Unsettled }
    }

    /// As it is printed.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Near => "near",
            Self::Far => "far",
            Self::Unsettled => "unsettled",
        }
    }
}

/// One operation: the slowest rank's time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// Nanoseconds.
    pub ns: f64,
    /// Where the cores sat.
    pub label: Label,
}

/// What is quoted of a set of samples, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// How many samples.
    pub count: usize,
    /// The fastest.
    pub min_ns: f64,
    /// The middle one, or the mean of the middle two.
    pub median_ns: f64,
    /// The arithmetic mean.
    pub mean_ns: f64,
    /// The smallest sample that at least 99 % do not exceed.
    pub p99_ns: f64,
}

impl Summary {
    /// Of these nanoseconds; none of no samples.
    pub fn of(ns: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = ns.into_iter().collect();
        if sorted.is_empty() {
            return None;
        }
        sorted.sort_unstable_by(f64::total_cmp);
        let count = sorted.len();
        let median_ns = (sorted[(count - 1) / 2] + sorted[count / 2]) / 2.0;
        let p99 = (count * 99).div_ceil(100) - 1;
        Some(Self {
            count,
            min_ns: sorted[0],
            median_ns,
            mean_ns: sorted.iter().sum::<f64>() / count as f64,
            p99_ns: sorted[p99],
        })
    }

    /// Of the samples with this label only.
    pub fn of_label(samples: &[Sample], label: Label) -> Option<Self> {
        Self::of(samples.iter().filter(|sample| sample.label == label).map(|sample| sample.ns))
    }
}

/// A summary per label that occurs.
pub fn by_label(samples: &[Sample]) -> Vec<(Label, Summary)> {
    Label::ALL.iter().filter_map(|&label| Some((label, Summary::of_label(samples, label)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_of_a_hundred() {
        let summary = Summary::of((1..=100).rev().map(f64::from)).unwrap();
        assert_eq!(
            summary,
            Summary { count: 100, min_ns: 1.0, median_ns: 50.5, mean_ns: 50.5, p99_ns: 99.0 }
        );
    }

    #[test]
    fn a_summary_of_one_and_of_none() {
        let summary = Summary::of([7.0]).unwrap();
        assert_eq!((summary.min_ns, summary.median_ns, summary.p99_ns), (7.0, 7.0, 7.0));
        assert_eq!(Summary::of([]), None);
    }

    #[test]
    fn labels_are_kept_apart() {
        let samples = [
            Sample { ns: 1.0, label: Label::Near },
            Sample { ns: 9.0, label: Label::Far },
            Sample { ns: 3.0, label: Label::Near },
        ];
        let split = by_label(&samples);
        assert_eq!(split.len(), 2);
        assert_eq!((split[0].0, split[0].1.median_ns), (Label::Near, 2.0));
        assert_eq!((split[1].0, split[1].1.count), (Label::Far, 1));
        assert_eq!(Label::of_batch(Label::Near, Label::Far), Label::Unsettled);
    }
}
