//! Findings, and how they are told: as text, and as JSON.

use std::fmt::Write;

use serde::Serialize;
use windlass::diagnosis::Facts;

/// Where text is wrapped.
const COLUMNS: usize = 116;

/// How bad it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    /// As it should be.
    Ok,
    /// Works, but could be better, or is worth knowing.
    Note,
    /// Does not work, or will not when it is asked for.
    Problem,
}

impl Level {
    const fn sign(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Problem => "PROBLEM",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Finding {
    /// What, for programs: stable.
    pub(super) name: &'static str,
    pub(super) level: Level,
    /// What, for people.
    pub(super) text: String,
    /// What to do: commands, or advice where no command does it.
    pub(super) fix: Vec<String>,
}

impl Finding {
    pub(super) fn ok(name: &'static str, text: impl Into<String>) -> Self {
        Self { name, level: Level::Ok, text: text.into(), fix: Vec::new() }
    }

    pub(super) fn note(name: &'static str, text: impl Into<String>, fix: &[&str]) -> Self {
        let fix = fix.iter().map(|line| (*line).to_owned()).collect();
        Self { name, level: Level::Note, text: text.into(), fix }
    }

    pub(super) fn problem(name: &'static str, text: impl Into<String>, fix: &[&str]) -> Self {
        Self { level: Level::Problem, ..Self::note(name, text, fix) }
    }
}

/// What belongs together.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Section {
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    pub(super) findings: Vec<Finding>,
}

/// All of it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report<'a> {
    version: &'static str,
    pub(super) problems: usize,
    pub(super) notes: usize,
    pub(super) sections: Vec<Section>,
    facts: &'a Facts,
}

impl<'a> Report<'a> {
    pub(super) fn new(facts: &'a Facts, sections: Vec<Section>) -> Self {
        let count = |level| sections.iter().flat_map(|s| &s.findings).filter(|f| f.level == level).count();
        let (problems, notes) = (count(Level::Problem), count(Level::Note));
        Self { version: env!("CARGO_PKG_VERSION"), problems, notes, sections, facts }
    }

    pub(super) fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    pub(super) fn to_text(&self) -> String {
        let mut text = String::new();
        for section in &self.sections {
            let _ = writeln!(text, "{}", section.title);
            for finding in &section.findings {
                wrapped(&mut text, &format!("  {:<8} ", finding.level.sign()), &finding.text);
                for fix in &finding.fix {
                    wrapped(&mut text, "           fix: ", fix);
                }
            }
            text.push('\n');
        }
        let plural = |count: usize, what: &str| match count {
            0 => format!("no {what}s"),
            1 => format!("1 {what}"),
            _ => format!("{count} {what}s"),
        };
        let _ = writeln!(text, "{}, {}", plural(self.problems, "problem"), plural(self.notes, "note"));
        text
    }
}

/// Words in lines under each other, the first after `lead`.
fn wrapped(text: &mut String, lead: &str, words: &str) {
    let mut column = lead.len();
    text.push_str(lead);
    for (i, word) in words.split(' ').enumerate() {
        let length = word.chars().count();
        if i > 0 && column + 1 + length > COLUMNS {
            let _ = write!(text, "\n{:width$}", "", width = lead.len());
            column = lead.len();
        } else if i > 0 {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += length;
    }
    text.push('\n');
}
