//! What HTTP/2 would cost in PID 1, against our own frames.
//!
//! The least possible HTTP/2 server and the whole agent run under QEMU's translator, which is what
//! both would run on in a guest of the qemu engine, in turns within one run.

use anyhow::{Context, Result};
use clap::Args;
use serde_json::Value;

use super::publish;
use crate::prepare;
use crate::run::{capture, cargo, must, step, workspace};

/// Where the report goes.
#[derive(Args, Clone, Default)]
pub struct Plan {
    /// Write the report to docs/benchmarks
    #[arg(long)]
    docs: bool,
}

/// Builds both sides statically, as the guest's agent is, and compares them.
pub fn run(plan: &Plan) -> Result<()> {
    prepare::transport_packages()?;
    step("building both sides");
    let platform = "x86_64-unknown-linux-gnu";
    let target = workspace().join("target/transport");
    let build = |arguments: &[&str]| {
        let mut command = cargo(&["build", "--target", platform, "--target-dir"]);
        command.arg(&target).args(arguments);
        must(command.env("RUSTFLAGS", "-Ctarget-feature=+crt-static"))
    };
    build(&["--release", "--manifest-path", "bench/transport/Cargo.toml"])?;
    build(&["--profile", "agent", "-p", "panda-agent"])?;
    let release = target.join(platform).join("release");
    let mut command = std::process::Command::new(release.join("transport-bench"));
    command.arg(release.join("h2-server"));
    command.arg(target.join(platform).join("agent/panda-agent"));
    let (_, text) = capture(&mut command)?;
    let figures: Value = serde_json::from_str(text.trim()).context("the benchmark's report")?;
    publish("transport", &table(&figures), figures, plan.docs)
}

fn table(figures: &Value) -> String {
    let mut text = String::from(
        "Median of 11 runs each, in turns. The HTTP/2 side is only a server that answers; the \
         other is the whole agent.\n\n| | HTTP/2 (h2, tokio) | own frames (the agent) |\n|---|---:|---:|\n",
    );
    for (name, key) in [
        ("start to first answer, ms", "first_answer_ms"),
        ("request, warm, ms", "warm_request_ms"),
        ("program, KiB", "binary_kib"),
        ("resident with its translator, KiB", "resident_kib"),
    ] {
        let of = |side: &str| figures[side][key].as_f64().unwrap_or(f64::NAN);
        let digits = if key.ends_with("_ms") { 3 } else { 0 };
        text += &format!("| {name} | {:.digits$} | {:.digits$} |\n", of("http2"), of("frames"));
    }
    text
}
