//! `pandastack sandbox cp`: files and directories in and out.
//!
//! The guest is not trusted. What it names is checked by [`location`], what it sends is written
//! by [`host_dir`] only, which cannot leave the destination; symbolic links and special files
//! are left out, in both directions: one in a project directory could lead to a secret beside it.

mod download;
mod guest;
mod host_dir;
mod location;
mod transfer;
mod upload;

use std::path::Path;

use anyhow::bail;
use pandastack_types::SandboxId;

use super::resolve;
use crate::cli::Context;
use crate::client::Client;
use crate::output;
use crate::signals::Signals;
use crate::status::Status;
use guest::Guest;
use location::Location;
use transfer::Transfer;

/// Examples.
pub const EXAMPLES: &str = "\
Examples:
  pandastack sandbox cp data.csv 1b9d:/root/
  pandastack sandbox cp 1b9d:/root/plot.png .
  pandastack sandbox cp ./project 1b9d:/work      # a whole directory
  pandastack sandbox cp ./0:/x 1b9d:/tmp/         # ./ marks a path of this host

A directory is copied into DST if that exists, and as DST otherwise. Symbolic links and special
files are left out; the exit status is 1 when there were any.";

/// From where to where.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// What to copy: a path of this host, or ID:/path in a sandbox
    #[arg(value_name = "SRC")]
    source: String,
    /// Where to: a path of this host, or ID:/path in a sandbox
    #[arg(value_name = "DST")]
    destination: String,
}

pub async fn run(client: &Client, args: Args, context: Context) -> anyhow::Result<Status> {
    let mut signals = Signals::listen()?;
    let mut transfer = Transfer::begin();
    // Given up at a signal; drafts of files are removed when the work is dropped.
    signals.unless_interrupted(copy(client, &args, &mut transfer)).await?;
    let summary = transfer.finish();
    if context.json {
        output::json(&summary)?;
    }
    Ok(if summary.left_out == 0 { Status::SUCCESS } else { Status::NEGATIVE })
}

async fn copy(client: &Client, args: &Args, transfer: &mut Transfer) -> anyhow::Result<()> {
    match (Location::parse(&args.source), Location::parse(&args.destination)) {
        (Location::Host(source), Location::Guest { sandbox, path }) => {
            let guest = open(client, &sandbox).await?;
            upload::upload(&guest, Path::new(&source), &path, transfer).await
        }
        (Location::Guest { sandbox, path }, Location::Host(destination)) => {
            let guest = open(client, &sandbox).await?;
            download::download(&guest, &path, Path::new(&destination), transfer).await
        }
        (Location::Host(_), Location::Host(_)) => {
            bail!("neither side is in a sandbox; write that one as ID:/path")
        }
        (Location::Guest { .. }, Location::Guest { .. }) => {
            bail!("both sides are in a sandbox; copy to this host first")
        }
    }
}

async fn open<'a>(client: &'a Client, sandbox: &str) -> anyhow::Result<Guest<'a>> {
    let id: SandboxId = resolve(client, sandbox).await?;
    Ok(Guest::new(client, id))
}
