//! `pandastack doctor --repair`: what a killed server has left in its data directory.

use std::path::Path;

use anyhow::Context as _;
use pandastack_sandbox::{Repairs, repair};
use pandastack_store::Store;
use pandastack_types::{SandboxId, SnapshotId, VolumeName};
use serde::Serialize;

use crate::engines::{self, MachineArgs};
use crate::output;

/// What was found and done, for programs.
#[derive(Serialize)]
pub struct Repaired {
    ended: Vec<SandboxId>,
    machines_removed: usize,
    files_removed: usize,
    running: Vec<SandboxId>,
    hibernated: Vec<SandboxId>,
    snapshots: usize,
    damaged_snapshots: Vec<SnapshotId>,
    volumes: usize,
    volumes_freed: usize,
    damaged_volumes: Vec<VolumeName>,
}

/// Brings a data directory in order that no server runs in.
pub async fn run(data_dir: &Path, machines: MachineArgs) -> anyhow::Result<Repaired> {
    let records = data_dir.join("records.sqlite");
    if !records.exists() {
        anyhow::bail!("there is nothing to repair: no server has run in {}", data_dir.display());
    }
    let engine = engines::choose(machines.engine, &data_dir.join("runtime")).await?.engine;
    let store = Store::open(&records).context("cannot open the records")?;
    let instance = data_dir.to_owned();
    let repairing = tokio::task::spawn_blocking(move || repair(&instance, &store, &*engine));
    let repairs = repairing.await?.context(
        "nothing was repaired; a server does the same for its own directory whenever it starts",
    )?;
    Ok(repairs.into())
}

impl From<Repairs> for Repaired {
    fn from(repairs: Repairs) -> Self {
        let Repairs { ended, machines_removed, files_removed, running, hibernated, .. } = repairs;
        let Repairs { snapshots, damaged, volumes, volumes_freed, damaged_volumes, .. } = repairs;
        Self {
            ended,
            machines_removed,
            files_removed,
            running,
            hibernated,
            snapshots,
            damaged_snapshots: damaged,
            volumes,
            volumes_freed,
            damaged_volumes,
        }
    }
}

/// Says it to people, before what the host offers.
pub fn print(repaired: &Repaired) -> anyhow::Result<()> {
    for id in &repaired.ended {
        output::line(&format!("ended    {id}: its machine died with its server"))?;
    }
    for (count, what) in [
        (repaired.machines_removed, "directories of machines that are gone"),
        (repaired.files_removed, "sets of files of sandboxes that have ended"),
    ] {
        if count > 0 {
            output::line(&format!("removed  {count} {what}"))?;
        }
    }
    if repaired.volumes_freed > 0 {
        let freed = repaired.volumes_freed;
        output::line(&format!("detached {freed} volumes from sandboxes that have ended"))?;
    }
    output::line(&format!(
        "kept     {} running and {} hibernated sandboxes, {} snapshots, {} volumes",
        repaired.running.len(),
        repaired.hibernated.len(),
        repaired.snapshots,
        repaired.volumes
    ))?;
    for name in &repaired.damaged_volumes {
        output::line(&format!("damaged  volume {name}: its manifest cannot be read"))?;
        output::line(&format!("{:9}-> remove volumes/{name} if nobody misses it", ""))?;
    }
    for id in &repaired.damaged_snapshots {
        output::line(&format!("damaged  snapshot {id}: its manifest cannot be read"))?;
        output::line(&format!("{:9}-> remove snapshots/{id} if nobody misses it", ""))?;
    }
    output::line("")
}
