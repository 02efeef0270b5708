//! `cargo xtask`: the one entry for everything that is done to this repository.
#![forbid(unsafe_code)]

mod apt;
mod bench;
mod demo;
mod fuzz;
mod lint;
mod nested;
mod prepare;
mod qemu;
mod run;
mod stress;
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
    /// Builds the program with fault points, for `cargo nextest run --test crash`
    Faulty,
    /// Feeds bytes to everything that reads what guests and files say
    Fuzz(fuzz::Arguments),
    /// Forks sandboxes in trees, kills some, and checks that nothing is lost
    Stress(stress::Plan),
    /// Checks format, lints, layering, docs and licences
    Lint,
    /// Regenerates the numbers of the docs
    Bench(bench::Arguments),
    /// Runs a command in an emulated machine that has KVM
    Nested(nested::Arguments),
    /// Runs a command with another QEMU than the host's, without installing it
    Qemu(qemu::Arguments),
}

fn main() {
    let outcome = match Cli::parse().command {
        Command::Demo => demo::run(),
        Command::Test(selection) => suites::run(&selection),
        Command::Faulty => prepare::faulty_program(),
        Command::Fuzz(arguments) => fuzz::run(&arguments),
        Command::Stress(plan) => stress::run(&plan),
        Command::Lint => lint::run(),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Nested(arguments) => nested::run(&arguments),
        Command::Qemu(arguments) => qemu::run(&arguments),
    };
    if let Err(error) = outcome {
        eprintln!("error: {error:#}");
        std::process::exit(1);
    }
}
