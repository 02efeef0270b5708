//! What a server does when it starts, without starting one: for a data directory that nobody
//! serves at the moment, and for whoever wants to know what is in it.
//!
//! The invariant: **nothing that somebody could still want is removed.** Hibernated sandboxes,
//! snapshots and volumes stay, also those whose files cannot be read, which are only named.

use std::path::Path;

use pandastack_engine::Engine;
use pandastack_store::Store;
use pandastack_types::{SandboxId, SnapshotId, VolumeName};

use crate::custody::Remains;
use crate::error::StartError;
use crate::recovery::{self, Left};
use crate::snapshot::SnapshotShelf;
use crate::volumes::VolumeShelf;

/// What was done and what there is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Repairs {
    /// Sandboxes whose machines died with their server: they are recorded as ended now.
    pub ended: Vec<SandboxId>,
    /// Directories of machines that were removed, with what was left of their processes.
    pub machines_removed: usize,
    /// Files of sandboxes that had ended, which were removed.
    pub files_removed: usize,
    /// Sandboxes that run on without a server, until the next one takes them over or their time is
    /// over. They were left alone.
    pub running: Vec<SandboxId>,
    /// Sandboxes that are hibernated and can be woken.
    pub hibernated: Vec<SandboxId>,
    /// Snapshots that can be used.
    pub snapshots: usize,
    /// Volumes that can be used.
    pub volumes: usize,
    /// Volumes that sandboxes had which have ended, counted once for each: they are free now.
    pub volumes_freed: usize,
    /// Volumes that cannot be read. They were left alone.
    pub damaged_volumes: Vec<VolumeName>,
    /// Snapshots whose manifest cannot be read. They were left alone.
    pub damaged: Vec<SnapshotId>,
}

/// Brings the data directory `instance` in order.
///
/// # Errors
/// [`StartError::InUse`] while a server has it; one that runs has done all of this.
pub fn repair(instance: &Path, store: &Store, engine: &dyn Engine) -> Result<Repairs, StartError> {
    let _lock = recovery::take_instance(instance)?;
    let machines = instance.join("machines");
    let hibernated = SnapshotShelf::of(instance, "hibernated")?;
    let snapshots = SnapshotShelf::of(instance, "snapshots")?;
    let held = pandastack_holder::look(instance);
    let held =
        held.map_err(|source| StartError::Directory { path: instance.to_owned(), source })?;
    let left = recovery::clean(&machines, &hibernated, store, engine, &Remains::of(held))?;
    let Left { asleep, alive, ended, machines: machines_removed, .. } = left;
    let (files_removed, volumes) = (left.files, left.volumes);
    let (whole, damaged): (Vec<_>, Vec<_>) =
        snapshots.ids().into_iter().partition(|id| snapshots.get(*id).is_ok());
    let shelf = VolumeShelf::of(instance)?;
    let (usable, damaged_volumes): (Vec<_>, Vec<_>) =
        shelf.names().into_iter().partition(|name| shelf.get(name).is_ok());
    Ok(Repairs {
        ended,
        machines_removed,
        files_removed,
        running: alive.into_iter().map(|record| record.id).collect(),
        hibernated: asleep.into_iter().map(|record| record.id).collect(),
        snapshots: whole.len(),
        volumes: usable.len(),
        volumes_freed: volumes,
        damaged_volumes,
        damaged,
    })
}
