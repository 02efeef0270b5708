//! `cargo xtask`: the one entry for everything that is done to this repository.
#![forbid(unsafe_code)]

mod bench;
mod demo;
mod lint;
mod prepare;
mod run;
mod suites;
mod venv;

use clap::{Parser, Subcommand};

/// Builds, shows, tests and measures PandaStack.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Installs what is missing, builds, bakes the templates and runs the sample
    Demo,
    /// Runs every test that this host can run
    Test(suites::Selection),
    /// Checks format, lints, layering, docs and licences
    Lint,
    /// Regenerates the numbers of the docs
    Bench(bench::Arguments),
}

fn main() {
    let outcome = match Cli::parse().command {
        Command::Demo => demo::run(),
        Command::Test(selection) => suites::run(&selection),
        Command::Lint => lint::run(),
        Command::Bench(arguments) => bench::run(&arguments),
    };
    if let Err(error) = outcome {
        eprintln!("error: {error:#}");
        std::process::exit(1);
    }
}
