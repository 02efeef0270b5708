//! `cargo xtask bench`: every number in the docs comes from here.
//!
//! Latency is taken from outside, through the whole REST API, up to the first successful exec.
//! Absolute times depend on the host and on what else it does; compare within one run.

mod create;
mod fork;
mod kvm;
mod kvm_report;
mod lifecycle;
mod net;
mod stats;
mod transport;

use std::fs;

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::Value;

use crate::prepare;
use crate::run::{capture, workspace};

/// Which benchmark, and how.
#[derive(Args)]
pub struct Arguments {
    #[command(subcommand)]
    name: Option<Name>,
}

#[derive(Clone, Subcommand)]
enum Name {
    /// From the request to a ready agent, to the first echo, to the first python; and the end
    Create(create::Plan),
    /// Live forks of a running sandbox: how long it stands still, and when its children answer
    Fork(fork::Plan),
    /// The kvm engine's monitor in stages, beside another one's if given
    Kvm(kvm::Plan),
    /// Create, fork, pause, resume, hibernate, wake and delete; one client, eight, fifty at once
    Lifecycle(lifecycle::Plan),
    /// Bytes through the gateway, their cost, and a neighbour beside a thousand connections
    Net(net::Plan),
    /// HTTP/2 in PID 1 against our own frames
    Transport(transport::Plan),
}

/// Runs one benchmark, or all of them.
pub fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.name {
        Some(Name::Create(plan)) => with_server(|| create::run(plan)),
        Some(Name::Fork(plan)) => with_server(|| fork::run(plan)),
        Some(Name::Kvm(plan)) => kvm::run(plan),
        Some(Name::Lifecycle(plan)) => with_server(|| lifecycle::run(plan)),
        Some(Name::Net(plan)) => with_server(|| net::run(plan)),
        Some(Name::Transport(plan)) => transport::run(plan),
        None => {
            with_server(|| create::run(&create::Plan::default()))?;
            with_server(|| fork::run(&fork::Plan::default()))?;
            with_server(|| lifecycle::run(&lifecycle::Plan::default()))?;
            with_server(|| net::run(&net::Plan::default()))?;
            kvm::run(&kvm::Plan::default())?;
            transport::run(&transport::Plan::default())
        }
    }
}

/// Makes sure of everything that a server of ours needs first.
fn with_server(bench: impl Fn() -> Result<()>) -> Result<()> {
    prepare::packages(false)?;
    let program = prepare::program()?;
    prepare::templates(&program)?;
    bench()
}

/// Prints a report and keeps it: tables for people and figures for programs.
fn publish(name: &str, table: &str, mut figures: Value, into_docs: bool) -> Result<()> {
    figures["host"] = host().into();
    println!("{table}");
    let folder = workspace().join(if into_docs { "docs/benchmarks" } else { "target/bench" });
    fs::create_dir_all(&folder)?;
    let json = folder.join(format!("{name}.json"));
    fs::write(&json, serde_json::to_string_pretty(&figures)? + "\n")?;
    let text = format!(
        "# Benchmark `{name}`\n\nRegenerate with `cargo xtask bench {name} --docs`. \
         Host: {}.\n\n{table}",
        host()
    );
    fs::write(folder.join(format!("{name}.md")), text)?;
    eprintln!("figures: {}", json.display());
    Ok(())
}

/// Processor and kernel, in one line.
fn host() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or_default();
    let cores = info.lines().filter(|l| l.starts_with("processor")).count();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut qemu = std::process::Command::new("qemu-system-x86_64");
    let qemu = capture(qemu.arg("--version")).map(|(_, text)| text).unwrap_or_default();
    format!(
        "{cores} × {}, Linux {}, {}",
        model.trim_start_matches([' ', '\t', ':']),
        kernel.trim(),
        qemu.lines().next().unwrap_or("no QEMU")
    )
}
