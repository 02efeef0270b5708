//! Our side: a bake, a zygote of it, and what a server does with that.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result};
use pandastack_engine::agent::Identity;
use pandastack_engine::kvm::{KvmEngine, Parts};
use pandastack_engine::{Bake, Engine, GuestImage, Machine};
use pandastack_types::Size;
use serde_json::{Value, json};

use crate::footprint::{self, Footprint};
use crate::laps::Laps;
use crate::{PATIENCE, Plan, TOUCH, WARM_UP, directory, echo, shell, write_to_disk};

/// The engine with a zygote.
pub struct Ours {
    engine: KvmEngine,
    zygote: Box<dyn Machine>,
    machines: PathBuf,
    made: AtomicUsize,
}

impl Ours {
    /// Bakes, and makes a zygote of the bake as a server does.
    pub async fn prepare(plan: &Plan, size: Size) -> Result<Self> {
        let parts = Parts {
            keeper: program(&plan.programs.join("panda-keeper"))?,
            monitor: program(&plan.programs.join("panda-vmm"))?,
        };
        let engine = KvmEngine::open(&plan.dir.join("runtime"), &parts)?;
        engine.prove().await?;
        let image = GuestImage {
            kernel: plan.image.join("vmlinuz"),
            initrd: plan.image.join("initrd.cpio"),
            root: plan.image.join("root.erofs"),
            preload: Vec::new(),
            warm_up: vec![WARM_UP.to_owned()],
            digest: String::new(),
        };
        let dir = directory(&plan.dir, "bake")?;
        engine.bake(&image, size, &dir, &|line| eprintln!("  bake: {line}")).await?;
        let bake = Bake { dir, image, size, key: String::new() };
        let machines = directory(&plan.dir, "machines")?;
        let zygote = engine.restore(&bake, &directory(&machines, "zygote")?).await?;
        Ok(Self { engine, zygote, machines, made: AtomicUsize::new(0) })
    }

    /// What was measured.
    pub fn version(&self) -> String {
        self.engine.version()
    }

    /// A create as a server does it when it is not asked faster than its pool fills: the machine
    /// stands ready, made while nobody waited.
    pub async fn create_parked(&self) -> Result<Laps> {
        let name = self.name();
        let dir = directory(&self.machines, &name)?;
        let ahead = Instant::now();
        let machine = self.fork_zygote_into(&dir).await?;
        machine.make_ready().await?;
        let ahead = ahead.elapsed();
        let mut laps = Laps::begin();
        first_steps(&*machine, &name, &mut laps).await?;
        laps.note("made ahead", ahead);
        discard(&*machine, &dir).await?;
        Ok(laps)
    }

    /// A create when the pool is empty: everything happens while the request waits.
    pub async fn create_forked(&self) -> Result<Laps> {
        let name = self.name();
        let mut laps = Laps::begin();
        let dir = directory(&self.machines, &name)?;
        laps.lap("directory");
        let mut forked = self.zygote.fork(&[&dir]).await?;
        laps.lap_of("fork", &forked.stages);
        let machine = forked.machines.pop().context("a fork without a machine")?;
        first_steps(&*machine, &name, &mut laps).await?;
        discard(&*machine, &dir).await?;
        Ok(laps)
    }

    /// A sandbox that runs and has touched memory.
    pub async fn source(&self) -> Result<Box<dyn Machine>> {
        let machine = self.fork_zygote().await?;
        adopt(&*machine, "source").await?;
        shell(machine.agent(), TOUCH).await?;
        Ok(machine)
    }

    /// A live fork, whose child must answer.
    pub async fn stall(&self, source: &dyn Machine, round: usize) -> Result<Laps> {
        write_to_disk(source.agent(), round).await?;
        let name = self.name();
        let dir = directory(&self.machines, &name)?;
        let mut laps = Laps::begin();
        let mut forked = source.fork(&[&dir]).await?;
        laps.lap_of("live fork", &forked.stages);
        laps.note("stall", forked.pause);
        let child = forked.machines.pop().context("a fork without a machine")?;
        adopt(&*child, &name).await?;
        echo(source.agent()).await?;
        discard(&*child, &dir).await?;
        Ok(laps)
    }

    /// Memory of `count` sandboxes that are alive together: just forked, ready, and after a first
    /// command.
    pub async fn footprint(&self, count: usize) -> Result<Value> {
        let mut machines = Vec::new();
        for _ in 0..count {
            machines.push(self.fork_zygote().await?);
        }
        let forked = weigh(&machines)?;
        for machine in &machines {
            machine.make_ready().await?;
        }
        let ready = weigh(&machines)?;
        for (number, machine) in machines.iter().enumerate() {
            adopt(&**machine, &format!("sandbox-{number}")).await?;
        }
        let idle = weigh(&machines)?;
        for machine in &machines {
            machine.kill().await;
        }
        Ok(
            json!({ "just forked": forked, "ready, in the pool": ready, "after the first exec": idle }),
        )
    }

    async fn fork_zygote(&self) -> Result<Box<dyn Machine>> {
        self.fork_zygote_into(&directory(&self.machines, &self.name())?).await
    }

    async fn fork_zygote_into(&self, dir: &Path) -> Result<Box<dyn Machine>> {
        let mut forked = self.zygote.fork(&[dir]).await?;
        forked.machines.pop().context("a fork without a machine")
    }

    fn name(&self) -> String {
        format!("machine-{}", self.made.fetch_add(1, Ordering::Relaxed))
    }
}

/// From a machine that stands still to the answer of its first command.
async fn first_steps(machine: &dyn Machine, name: &str, laps: &mut Laps) -> Result<()> {
    let stages = machine.run().await?;
    laps.lap_of("run", &stages);
    laps.moment("guest running");
    machine.agent().resume(&Identity::random(name)?, PATIENCE).await?;
    laps.lap("identity acknowledged");
    laps.moment("first answer");
    echo(machine.agent()).await?;
    laps.lap("first exec");
    laps.moment("first exec");
    let warm = Instant::now();
    echo(machine.agent()).await?;
    laps.note("another exec", warm.elapsed());
    Ok(())
}

/// Makes a machine somebody's, and has it answer.
async fn adopt(machine: &dyn Machine, name: &str) -> Result<()> {
    machine.run().await?;
    machine.agent().resume(&Identity::random(name)?, PATIENCE).await?;
    echo(machine.agent()).await
}

async fn discard(machine: &dyn Machine, dir: &Path) -> Result<()> {
    machine.kill().await;
    Ok(fs::remove_dir_all(dir)?)
}

fn weigh(machines: &[Box<dyn Machine>]) -> Result<Value> {
    let pids = || machines.iter().map(|machine| machine.pid());
    let monitors = pids().map(Footprint::of).collect::<Result<Vec<_>>>()?;
    let mut weight = footprint::mean(&monitors);
    // Process 1 of each machine's namespaces.
    let keepers = pids().filter_map(footprint::parent).map(Footprint::of);
    weight["keeper"] = footprint::mean(&keepers.collect::<Result<Vec<_>>>()?);
    let charged: Vec<f64> = pids().filter_map(footprint::charged).collect();
    if !charged.is_empty() {
        weight["charged"] = (charged.iter().sum::<f64>() / charged.len() as f64).into();
    }
    Ok(weight)
}

/// A program for jails, which keep it for as long as this process lives.
fn program(path: &Path) -> Result<&'static [u8]> {
    let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    Ok(Box::leak(bytes.into_boxed_slice()))
}
