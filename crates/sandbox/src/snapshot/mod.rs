//! Snapshots: sandboxes of one instant, kept on disk to be made again any number of times.
//!
//! ```text
//!   sandbox ── copied by its engine ──▶ files, staged ── rename ──▶ snapshot ── restore ──▶ sandboxes
//!      │ milliseconds                    │ as long as it takes
//!      ▼                                 ▼
//!   goes on, takes orders              a crash, a failure or a requester that left removes them
//! ```
//!
//! The owner is not asked: a machine does what changes it one after the other, so a pause waits
//! for the copy, and then nothing of the sandbox is needed any more, not even its life.

mod seal;
mod shelf;
mod uses;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use pandastack_engine::agent::Identity;
use pandastack_engine::{After, Bake, EngineError};
use pandastack_policy::Policy;
use pandastack_proto::Token;
use pandastack_types::{
    SandboxId, Size, SnapshotId, SnapshotView, State, TemplateName, VolumeMount,
};
use serde_json::json;
use time::OffsetDateTime;
use tokio::time::timeout;

use crate::error::{CreateError, DeleteSnapshotError, ForkError, NoSnapshot, SnapshotError};
use crate::fault::{self, Point};
use crate::host;
use crate::machines::{MachineDir, new_name};
use crate::manager::{Core, Manager};
use crate::sandbox::Sandbox;
use crate::sync::lock;

use shelf::Manifest;
pub(crate) use shelf::Names;
pub(crate) use shelf::SnapshotShelf;
pub(crate) use uses::Lease;

/// Time to write a snapshot. One that takes longer has met a disk in trouble.
const WRITING: Duration = Duration::from_secs(600);
/// Host disk in MiB that a snapshot must leave: the server's records need some.
const DISK_RESERVE_MB: u64 = 256;

impl Manager {
    /// Takes a snapshot of a running or paused sandbox and waits until it is on disk. Dropping
    /// the future undoes it.
    pub async fn snapshot(&self, id: SandboxId) -> Result<SnapshotView, SnapshotError> {
        let sandbox = self.get(id).map_err(ForkError::from)?;
        sandbox.needed().await.map_err(ForkError::from)?;
        if !matches!(sandbox.state(), State::Running | State::Paused) {
            return Err(ForkError::from(sandbox.unavailable()).into());
        }
        let core = &self.core;
        // A server that stops waits until nothing of this is left, and need not wait long.
        let writing = core.keep(&sandbox, &core.snapshots, SnapshotId::random(), After::GoesOn);
        let writing = core.pool.closed.run_until_cancelled(writing);
        let written = core.tasks.track_future(writing).await;
        let view = written.unwrap_or(Err(SnapshotError::ShuttingDown))?;
        sandbox.history.push("sandbox.snapshot", json!({ "snapshot_id": view.id }));
        Ok(view)
    }

    /// Every snapshot, newest first; those of one sandbox, if it is named.
    pub async fn snapshots(&self, sandbox: Option<SandboxId>) -> Vec<SnapshotView> {
        let shelf = self.core.snapshots.clone();
        let listing = tokio::task::spawn_blocking(move || shelf.list(sandbox));
        let mut views = listing.await.unwrap_or_default();
        let mut made = HashMap::<_, u32>::new();
        for id in self.core.all().iter().filter_map(|sandbox| sandbox.stems_from()) {
            *made.entry(id).or_default() += 1;
        }
        for view in &mut views {
            view.references = made.get(&view.id).copied().unwrap_or_default();
        }
        views
    }

    /// One snapshot.
    pub fn find_snapshot(&self, id: SnapshotId) -> Result<SnapshotView, NoSnapshot> {
        let view = self.core.snapshots.get(id)?.view;
        let all = self.core.all();
        let made = all.iter().filter(|sandbox| sandbox.stems_from() == Some(id));
        Ok(SnapshotView { references: made.count() as u32, ..view })
    }

    /// Deletes a snapshot. Sandboxes that were made of it go on, and those that are being made of it
    /// are finished first.
    pub async fn delete_snapshot(&self, id: SnapshotId) -> Result<(), DeleteSnapshotError> {
        self.core.snapshots.delete(id).await
    }
}

impl Core {
    /// Copies a running or paused sandbox and writes the copy to a shelf under `id`; `then` says
    /// what becomes of the sandbox's machine.
    pub(crate) async fn keep(
        &self,
        sandbox: &Sandbox,
        shelf: &SnapshotShelf,
        id: SnapshotId,
        then: After,
    ) -> Result<SnapshotView, SnapshotError> {
        self.may_fork(sandbox).await?;
        // One after the other: a second one would only make the first one late, and the room on
        // the disk is checked for one. The semaphore is never closed.
        let _turn = self.writing.acquire().await;
        let birth = &sandbox.birth;
        let needed_mb = u64::from(birth.size.memory_mb) + DISK_RESERVE_MB;
        let free_mb = host::free_disk_mb(&self.machines).map_err(SnapshotError::Write)?;
        if free_mb < needed_mb {
            return Err(SnapshotError::Disk { needed_mb, free_mb });
        }
        let dir = || MachineDir::create(&self.machines, new_name()).map_err(SnapshotError::Write);
        let (scratch, out) = (dir()?, dir()?);
        fault::point(Point::FilesBegun);
        let created_at = OffsetDateTime::now_utc();
        let Identity { token, machine_id, boot_id, .. } =
            write(sandbox, &scratch, &out, then).await?;
        fault::point(Point::FilesWritten);
        let names = Some(Names { machine_id, boot_id });

        let template = self.templates.find(&birth.template);
        let view = SnapshotView {
            id,
            sandbox_id: birth.id,
            // An alias may lead elsewhere tomorrow.
            template: template.map_or_else(|| birth.template.clone(), |found| found.name),
            cpu: birth.size.cpu,
            memory_mb: birth.size.memory_mb,
            disk_mb: birth.size.disk_mb,
            engine: self.engine.name().to_owned(),
            size_bytes: 0,
            created_at,
            egress: None,
            references: 0,
        };
        // As it is now: who has been told that it is tighter must not find it open in a copy.
        let policy = Manifest::keep(&sandbox.egress()).map_err(SnapshotError::Write)?;
        let origin = self.engine.bake_key(&birth.ancestor.image, birth.size);
        let (shelf, volumes) = (shelf.clone(), birth.volumes.clone());
        let publishing = tokio::task::spawn_blocking(move || {
            let files = BTreeMap::new();
            shelf.publish(out, Manifest { origin, token, names, policy, files, volumes, view })
        });
        let published = publishing.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        published.map_err(SnapshotError::Write)
    }

    /// What a sandbox made of a snapshot starts from.
    pub(crate) fn thaw(
        &self,
        shelf: &SnapshotShelf,
        id: SnapshotId,
    ) -> Result<Thawed, CreateError> {
        let (manifest, lease) = shelf.lend(id)?;
        let changed = shelf.changed(id, &manifest);
        let Manifest { origin, token, names, volumes, view, .. } = manifest;
        let size = Size { cpu: view.cpu, memory_mb: view.memory_mb, disk_mb: view.disk_mb };
        let stale = |why| CreateError::StaleSnapshot { id, why };
        let ancestor =
            self.ancestor(&view, size).ok_or_else(|| stale("its template is not here"))?;
        let image = ancestor.image.clone();
        if self.engine.bake_key(&image, size) != origin {
            return Err(stale(
                "it was taken with another version of its template, of the engine or of the host",
            ));
        }
        if let Some(file) = changed {
            tracing::warn!(snapshot = %id, file, "a file of a snapshot is not what it was");
            return Err(stale("a file of it is missing or damaged"));
        }
        let dir = shelf.path(id);
        // A sandbox is hibernated again and again under its one id, while copies of what it was at an
        // earlier time may live: engines must not take the memory of one time for that of another.
        let key = format!("snapshot-{id}-{}", view.created_at.unix_timestamp_nanos());
        let bake = Arc::new(Bake { dir, image, size, key });
        let egress = view.egress;
        let template = view.template;
        Ok(Thawed { template, bake, token, lease, names, ancestor, egress, volumes })
    }

    /// A bake of the template that a snapshot is of, in the snapshot's size if there is one.
    pub(crate) fn ancestor(&self, view: &SnapshotView, size: Size) -> Option<Arc<Bake>> {
        self.ancestor_of(&view.template, size)
    }

    /// A bake of a template, in a size if there is one.
    pub(crate) fn ancestor_of(&self, template: &TemplateName, size: Size) -> Option<Arc<Bake>> {
        let templates = &self.templates;
        let template = templates.find(template)?;
        let baked = |size| templates.baked(&template.name, size);
        baked(size).or_else(|| baked(template.size))
    }
}

/// A snapshot that can be made a sandbox of.
pub(crate) struct Thawed {
    pub(crate) template: TemplateName,
    /// The snapshot, as what it is to the engine.
    pub(crate) bake: Arc<Bake>,
    /// What its guest obeys until it gets an identity of its own.
    pub(crate) token: Token,
    /// Until its files are read.
    pub(crate) lease: Lease,
    /// What its guest calls itself until then, if that was written down.
    pub(crate) names: Option<Names>,
    /// The template's own.
    pub(crate) ancestor: Arc<Bake>,
    /// What its sandbox was allowed to reach; nothing that can be read if that is damaged.
    pub(crate) egress: Option<Policy>,
    /// The volumes that its guest has.
    pub(crate) volumes: Vec<VolumeMount>,
}

/// Writes the files, and says what the guest in them calls itself and obeys.
async fn write(
    sandbox: &Sandbox,
    scratch: &MachineDir,
    out: &MachineDir,
    then: After,
) -> Result<Identity, SnapshotError> {
    let live = lock(&sandbox.live).clone();
    let live = live.ok_or_else(|| ForkError::from(sandbox.unavailable()))?;
    let writing = live.machine.snapshot(scratch.path(), out.path(), then);
    let written = timeout(WRITING, writing).await;
    let error = match written.unwrap_or(Err(EngineError::Deadline("writing the snapshot"))) {
        Ok(()) => return Ok(live.identity),
        Err(EngineError::NoFork(why)) => return Err(ForkError::Unsupported(why).into()),
        Err(error) => error,
    };
    // A machine that died while it was copied: its owner knows how in a moment.
    match sandbox.explanation().await {
        Some(ended) => Err(ForkError::from(ended).into()),
        None => Err(SnapshotError::Engine(error)),
    }
}
