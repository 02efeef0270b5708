//! What the kvm engine's monitor costs, and another monitor doing the same work in turns with it.
//!
//! Runs on a host with KVM, or in `cargo xtask nested`; `cargo xtask bench kvm` does that and turns
//! the report into a table.
//!
//! ```text
//!   create   parked  [fork of a zygote, made ready] ───┐
//!            forked  fork of a zygote ─────────────────┤
//!            theirs  process ─ API ─ load, resume ─────┴─▶ running ─▶ identity ─▶ first exec
//!   stall    ours    live fork of a running machine
//!            theirs  pause ─ full snapshot of a running machine
//! ```
//!
//! Both sides run the same kernel, initramfs, root, memory and commands, and their guests' agents
//! are spoken to by the same client. A round is one of each, and who begins alternates.

mod firecracker;
mod footprint;
mod http;
mod laps;
mod ours;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use pandastack_engine::agent::{AgentClient, ExecSpec};
use pandastack_types::Size;
use serde_json::{Value, json};

use crate::firecracker::Firecracker;
use crate::laps::{Laps, Samples};
use crate::ours::Ours;

/// Guest memory of every machine, MiB.
const MEMORY_MB: i64 = 256;
/// Size of a machine's own disk, MiB.
const DISK_MB: u32 = 256;
/// What is run first in the machine that all others are made of.
const WARM_UP: &str = "echo ready";
/// The guest's page cache and memory of a machine that is copied while it runs.
const TOUCH: &str = "head -c 80M /dev/urandom > /dev/shm/touched; sync";
/// Machines that are alive together when their memory is looked at.
const ALIVE: usize = 10;
/// For anything that a guest or a monitor is waited for.
const PATIENCE: Duration = Duration::from_secs(120);

/// What to measure, and with what.
#[derive(Parser)]
struct Plan {
    /// Directory with `panda-vmm` and `panda-keeper`, and for the comparison `firecracker` and
    /// `vmlinux`
    #[arg(long)]
    programs: PathBuf,
    /// Directory with `vmlinuz`, `initrd.cpio` and `root.erofs`
    #[arg(long)]
    image: PathBuf,
    /// Where machines live: best in memory, so that nobody waits for a disk
    #[arg(long)]
    dir: PathBuf,
    /// Rounds of each kind
    #[arg(short, default_value_t = 30)]
    n: usize,
    /// Where to write the report
    #[arg(long)]
    report: PathBuf,
}

#[tokio::main]
async fn main() -> Result<()> {
    let plan = Plan::parse();
    // As a task, which is what requests are in a server: the main thread is none of its workers.
    let report = tokio::spawn(async move {
        fs::create_dir_all(&plan.dir)?;
        let measured = measure(&plan).await;
        fs::remove_dir_all(&plan.dir)?;
        fs::write(&plan.report, serde_json::to_string_pretty(&measured?)?)?;
        anyhow::Ok(())
    });
    report.await?
}

async fn measure(plan: &Plan) -> Result<Value> {
    let size = Size::new(1, MEMORY_MB, DISK_MB.into())?;
    let ours = Ours::prepare(plan, size).await.context("our bake")?;
    let theirs = if plan.programs.join("firecracker").exists() {
        Some(Firecracker::prepare(plan).await.context("Firecracker's snapshot")?)
    } else {
        None
    };
    let theirs = theirs.as_ref();
    let create = creates(plan.n, &ours, theirs).await?;
    eprintln!();
    let stall = stalls(plan.n, &ours, theirs).await?;
    eprintln!();
    let mut footprint = json!({ "ours": ours.footprint(ALIVE).await? });
    if let Some(theirs) = theirs {
        footprint["theirs"] = theirs.footprint(ALIVE).await?;
    }
    Ok(json!({
        "n": plan.n, "memory_mb": MEMORY_MB, "alive": ALIVE,
        "monitor": ours.version(), "firecracker": theirs.map(|it| &it.version),
        "create": create, "stall": stall, "footprint": footprint,
    }))
}

/// What is measured in turns, by its name in the report.
struct Sides<const N: usize>([(&'static str, Samples); N]);

impl<const N: usize> Sides<N> {
    fn new(names: [&'static str; N]) -> Self {
        Self(names.map(|name| (name, Samples::default())))
    }

    /// Who is next: everybody once a round, beginning with another one each time.
    fn turns(rounds: usize) -> impl Iterator<Item = (usize, usize)> {
        (0..rounds).flat_map(|round| (0..N).map(move |turn| (round, (round + turn) % N)))
    }

    fn add(&mut self, side: usize, laps: Option<Laps>) {
        laps.into_iter().for_each(|laps| self.0[side].1.add(laps));
    }

    fn json(&self) -> Value {
        self.0.iter().map(|(name, samples)| ((*name).to_owned(), samples.json())).collect()
    }
}

/// Says how far it is, where a terminal shows it.
fn tell(what: &str, round: usize, n: usize) {
    eprint!("\r{what}: round {} of {n}", round + 1);
}

/// Creates.
async fn creates(n: usize, ours: &Ours, theirs: Option<&Firecracker>) -> Result<Value> {
    let mut sides = Sides::new(["parked", "forked", "theirs"]);
    for (round, side) in Sides::<3>::turns(n) {
        tell("creates", round, n);
        let laps = match (side, theirs) {
            (0, _) => Some(ours.create_parked().await?),
            (1, _) => Some(ours.create_forked().await?),
            (_, Some(theirs)) => Some(theirs.create().await?),
            (_, None) => None,
        };
        sides.add(side, laps);
    }
    Ok(sides.json())
}

/// Copies of machines that run.
async fn stalls(n: usize, ours: &Ours, theirs: Option<&Firecracker>) -> Result<Value> {
    let source = ours.source().await?;
    if let Some(theirs) = theirs {
        theirs.make_source().await?;
    }
    let mut sides = Sides::new(["ours", "theirs"]);
    for (round, side) in Sides::<2>::turns(n) {
        tell("stalls", round, n);
        let laps = match (side, theirs) {
            (0, _) => Some(ours.stall(&*source, round).await?),
            (_, Some(theirs)) => Some(theirs.stall(round).await?),
            (_, None) => None,
        };
        sides.add(side, laps);
    }
    source.kill().await;
    Ok(sides.json())
}

/// Runs a line in a guest; it must succeed.
async fn shell(agent: &AgentClient, line: &str) -> Result<String> {
    let spec = ExecSpec { shell: Some(line.to_owned()), ..ExecSpec::default() };
    let output = agent.run(spec).await?;
    let said = |bytes| String::from_utf8_lossy(bytes).into_owned();
    ensure!(output.status.code == 0, "{line}: {}", said(&output.stderr));
    Ok(said(&output.stdout))
}

/// A command of a sandbox.
async fn echo(agent: &AgentClient) -> Result<()> {
    let said = shell(agent, "echo hi").await?;
    ensure!(said == "hi\n", "a guest said {said:?}");
    Ok(())
}

/// What a source does between two copies, so that there is a disk layer to freeze.
async fn write_to_disk(agent: &AgentClient, round: usize) -> Result<()> {
    shell(agent, &format!("echo {round} >> /root/rounds; sync")).await.map(drop)
}

/// A new directory.
fn directory(parent: &Path, name: &str) -> Result<PathBuf> {
    let dir = parent.join(name);
    fs::create_dir(&dir).with_context(|| format!("create {}", dir.display()))?;
    Ok(dir)
}
