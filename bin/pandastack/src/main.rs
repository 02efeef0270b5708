//! `pandastack`: untrusted code in throwaway microVMs, from one program.
//!
//! The program parses, wires and runs; what it does is in the crates. Its modules:
//!
//! | modules | are |
//! | --- | --- |
//! | `cli`, `status`, `output`, `signals`, `logging`, `terminal`, `progress` | the command line and how we talk to people |
//! | `serve`, `server`, `hold`, `workshop`, `engines`, `confinement`, `api_key` | the server, also inside `run` |
//! | `run`, `sandbox`, `volume`, `exec`, `egress`, `attach`, `client`, `config` | the commands that talk to a server |
//! | `template`, `doctor` | the commands that look at this host |
#![forbid(unsafe_code)]

mod api_key;
mod attach;
mod cli;
mod client;
mod config;
mod confinement;
mod dirs;
mod doctor;
mod egress;
mod engines;
mod exec;
mod hold;
mod logging;
mod network;
mod output;
mod prefix;
mod previews;
mod private_file;
mod progress;
mod run;
mod sandbox;
mod serve;
mod server;
mod signals;
mod snapshot;
mod status;
mod template;
mod terminal;
mod volume;
mod workshop;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser;

use crate::cli::{Cli, Command, Context};
use crate::status::{Status, report};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let json = cli.global.json;
    if let Command::Hold { .. } = cli.command {
        // Without a runtime: it is one thread with a handful of descriptors.
        return hold::run().map_or_else(|error| report(&error, json), |()| Status::SUCCESS).into();
    }
    start(cli).unwrap_or_else(|error| report(&error, json)).into()
}

fn start(cli: Cli) -> anyhow::Result<Status> {
    // People read what commands print; only a server's log is its output.
    let verbosity = if matches!(cli.command, Command::Serve(_)) { "info" } else { "warn" };
    logging::start(&cli.global, verbosity)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let outcome = runtime.block_on(dispatch(cli.command, Context { json: cli.global.json }));
    // A write to a pipe that nobody reads may hang in a thread; it must not hold us back.
    runtime.shutdown_background();
    outcome
}

async fn dispatch(command: Command, context: Context) -> anyhow::Result<Status> {
    match command {
        Command::Serve(args) => serve::run(args, context).await,
        Command::Run(args) => run::run(args, context).await,
        Command::Sandbox(command) => sandbox::run(command, context).await,
        Command::Template(command) => template::run(command, context).await,
        Command::Snapshot(command) => snapshot::run(command, context).await,
        Command::Volume(command) => volume::run(command, context).await,
        Command::Doctor(args) => doctor::run(args, context).await,
        Command::Version => version(context),
        // Answered before.
        Command::Hold { .. } => Ok(Status::SUCCESS),
    }
}

fn version(context: Context) -> anyhow::Result<Status> {
    let version = env!("CARGO_PKG_VERSION");
    if context.json {
        output::json(&serde_json::json!({"version": version}))?;
    } else {
        output::line(&format!("pandastack {version}"))?;
    }
    Ok(Status::SUCCESS)
}
