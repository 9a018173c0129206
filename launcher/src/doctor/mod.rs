//! `windlass doctor`: what this machine can do, what is wrong, and the exact fix.
//!
//! The runtime finds out the facts; here is said what they mean. So the same judgement is shown machines that are not here.

mod machine;
mod nic;
mod pair;
mod report;
#[cfg(test)]
mod tests;

use std::io::Write;
use std::process::ExitCode;

use clap::Args;
use windlass::diagnosis::Facts;

use report::{Report, Section};

pub(crate) const EXAMPLES: &str = "\
Examples:
  windlass doctor                                     each finding: ok, note, or problem with its fix
  windlass doctor --json | jq '.sections[].findings[] | select(.level == \"problem\")'
  WINDLASS_RDMA_DEVICES=mlx5_0 windlass doctor        what a setting makes of it
  ssh other-host windlass doctor                      hosts differ: ask each of them

JSON: {version, problems, notes, sections: [{name, title, findings: [{name, level, text, fix: [command or advice]}]}], facts}; level is ok,
note or problem; facts are what the findings are made of. Nothing is changed on the machine.

Accelerator × NIC: a few pages of each accelerator that opens are registered with each NIC in use, written, read back, and moved and revoked where that
can be done; then they are freed. The verdict says whether such memory goes straight from the NIC, or by way of the host, and why.

Exit status: 0 without a problem (notes are none), 1 with one.";

/// The flags of `windlass doctor`.
#[derive(Debug, Clone, Args)]
pub(crate) struct DoctorArguments {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// `windlass doctor`.
pub(crate) fn doctor(arguments: &DoctorArguments) -> ExitCode {
    let facts = Facts::gather();
    let report = judge(&facts);
    let told = if arguments.json { report.to_json() + "\n" } else { report.to_text() };
    // Whoever reads may have had enough.
    let _ = std::io::stdout().write_all(told.as_bytes());
    ExitCode::from(u8::from(report.problems > 0))
}

/// What the facts mean.
fn judge(facts: &Facts) -> Report<'_> {
    let mut sections = vec![
        Section { name: "build", title: "This build", findings: machine::build(&facts.build) },
        Section { name: "host", title: "This host", findings: machine::host(&facts.host) },
        Section { name: "settings", title: "Settings", findings: machine::settings(&facts.settings) },
        Section { name: "sharing", title: "Shared memory", findings: machine::sharing(&facts.sharing) },
        Section { name: "rdma", title: "RDMA", findings: nic::rdma(&facts.rdma, &facts.host) },
        Section {
            name: "accelerators",
            title: "Accelerators",
            findings: nic::accelerators(&facts.accelerators),
        },
    ];
    // Only where there are both.
    if !facts.pairs.is_empty() {
        let findings = facts.pairs.iter().map(pair::finding).collect();
        sections.push(Section { name: "pairs", title: "Accelerator × NIC", findings });
    }
    Report::new(facts, sections)
}
