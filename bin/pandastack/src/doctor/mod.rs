//! `pandastack doctor`: what this host offers, and what to do about what it does not.

mod checks;
mod facts;
mod fork;
mod repair;

use std::path::PathBuf;

use pandastack_types::{Isolation, JailLevel};
use serde::Serialize;

use crate::cli::Context;
use crate::dirs;
use crate::engines::MachineArgs;
use crate::output;
use crate::status::Status;
use checks::{Check, Verdict};
use facts::Facts;
use repair::Repaired;

/// Examples.
pub const EXAMPLES: &str = "\
Examples:
  pandastack doctor
  pandastack doctor --json | jq '.checks[] | select(.verdict != \"ok\")'
  pandastack doctor --repair --data-dir /srv/panda

The exit status is 1 when something essential is missing.";

/// What to look at.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Where templates and records are kept [default: the system's for root, else the user's]
    #[arg(long, value_name = "DIR", env = "PANDASTACK_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// First bring the data directory in order that a killed server has left: end its sandboxes in
    /// the records, remove their machines, keep what is hibernated and every snapshot. Refused while
    /// a server runs in it, which has done the same at its start
    #[arg(long)]
    repair: bool,
    #[command(flatten)]
    machines: MachineArgs,
}

#[derive(Serialize)]
struct Report {
    /// Whether sandboxes can run here.
    ready: bool,
    engine: &'static str,
    isolation: Isolation,
    jail: JailLevel,
    checks: Vec<Check>,
    /// What `--repair` did.
    #[serde(skip_serializing_if = "Option::is_none")]
    repaired: Option<Repaired>,
}

pub async fn run(args: Args, context: Context) -> anyhow::Result<Status> {
    let data_dir = args.data_dir.map_or_else(dirs::default_data_dir, Ok)?;
    let repaired = match args.repair {
        true => Some(repair::run(&data_dir, args.machines).await?),
        false => None,
    };
    let facts = Facts::gather(&data_dir, args.machines).await;
    let checks = checks::judge(&facts);
    let ready = checks.iter().all(|check| check.verdict != Verdict::Missing);
    if context.json {
        let (engine, isolation) = facts.engine();
        let jail = facts.jail.grade();
        output::json(&Report { ready, engine, isolation, jail, checks, repaired })?;
    } else {
        repaired.as_ref().map_or(Ok(()), repair::print)?;
        print(&checks, ready)?;
    }
    Ok(if ready { Status::SUCCESS } else { Status::NEGATIVE })
}

fn print(checks: &[Check], ready: bool) -> anyhow::Result<()> {
    for check in checks {
        output::line(&format!("{:7} {:11} {}", check.verdict.word(), check.name, check.finding))?;
        if let Some(fix) = &check.fix {
            output::line(&format!("{:19} -> {fix}", ""))?;
        }
    }
    output::line(if ready {
        "\nSandboxes can run on this host."
    } else {
        "\nSandboxes cannot run on this host until what is missing is there."
    })
}
