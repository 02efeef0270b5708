//! Copies of a machine: forks and snapshots.
//!
//! ```text
//!  source      stop ─ freeze disk ─ fork ─ cont            running on
//!                                    │
//!  first copy                        └─ stands still ─ fork ─ fork ─ …
//!                                                       │      │
//!  other copies                                         ▼      ▼
//! ```
//!
//! However many copies are made, the source stands still for one fork of its process: the others
//! are forks of the first copy, which has not run yet. So all are of one instant.
//!
//! A snapshot is a copy that never runs: it holds memory and devices of its instant still while
//! they are written out.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pandastack_fork::{FileId, MAX_DESCRIPTORS, Request};
use pandastack_jail::{Cgroup, Child};
use serde_json::Value;

use super::channels::{self, Identities, identity};
use super::control::Control;
use super::disk::QemuDisk;
use super::process::{Channels, Emulator, Host};
use super::qmp::Qmp;
use super::{bake, memory};
use crate::disk::flatten;
use crate::error::file_error;
use crate::files::{self, DIFF, MEMORY, STATE};
use crate::{After, Bake, EngineError, sparse};

/// The mark's name.
pub(super) const COPYING: &str = "copying";

/// What the machines of one bake have in common.
pub(super) struct Family {
    pub host: Arc<Host>,
    pub bake: Bake,
    /// Files that every process of the family has open: guest memory and the root file system.
    pub common: Vec<FileId>,
    /// What their memory was when they were made. Stays loaded for as long as one of them is there.
    pub memory: Arc<OwnedFd>,
    /// What the family lives on: it ends when nobody holds this any more.
    pub lifeline: OwnedFd,
}

/// What a machine that is to be copied consists of, besides its process.
pub(super) struct Body {
    pub control: Control,
    pub identities: Identities,
    /// Its disks, that which every machine has first: at least one.
    pub disks: Vec<QemuDisk>,
    /// Where its files are.
    pub dir: PathBuf,
    /// Whether its vCPUs run.
    pub running: bool,
    /// How many forks it is away from a machine that was started.
    pub generation: u32,
}

impl Body {
    /// Forks the machine into `cradle`, standing still meanwhile, and lets it go on in any case.
    /// Also says how long it stood still.
    pub async fn fork(
        &mut self,
        family: &Family,
        qmp: &Qmp,
        cradle: Cradle,
        then: After,
    ) -> Result<(Copy, Duration), EngineError> {
        let copying = Copying::begin(&self.dir)?;
        for disk in &mut self.disks {
            disk.prepare(qmp, then).await?;
        }
        let begin = Instant::now();
        if self.running {
            qmp.execute("stop", Value::Null).await?;
        }
        let copied = match self.freeze(qmp, then).await {
            Ok(()) => self.fork_at_rest(family, cradle).await,
            Err(error) => Err(error),
        };
        if self.running {
            qmp.execute("cont", Value::Null).await?;
        }
        let pause = begin.elapsed();
        let copied = copied?;
        // After a copy that failed nobody knows what the process has open.
        copying.end();
        Ok((copied.born().await?, pause))
    }

    async fn freeze(&mut self, qmp: &Qmp, then: After) -> Result<(), EngineError> {
        for disk in &mut self.disks {
            disk.freeze(qmp, then).await?;
        }
        Ok(())
    }

    /// Forks the process of a machine that stands still, its disks frozen.
    pub async fn fork_at_rest(
        &mut self,
        family: &Family,
        cradle: Cradle,
    ) -> Result<Copy, EngineError> {
        let mut attached: Vec<BorrowedFd<'_>> = cradle.own.iter().map(AsFd::as_fd).collect();
        attached.extend(cradle.tops.iter().map(|(_, file)| file.as_fd()));
        let mut request = Request::new();
        let mut fits = true;
        let tops = self.disks.iter().map(QemuDisk::top);
        for (file, with) in self.identities.into_iter().chain(tops).zip(0..) {
            fits &= request.add_replace(file, with);
        }
        for file in self.disks.iter().flat_map(QemuDisk::fresh) {
            let id = identity(file).map_err(EngineError::Spawn)?;
            fits &= request.add_freeze(id, attached.len() as u8);
            attached.push(file.as_fd());
        }
        let below = identities(self.disks.iter().flat_map(QemuDisk::below))?;
        for file in family.common.iter().copied().chain(below) {
            fits &= request.add_keep(file);
        }
        request.keeper_groups_from = attached.len() as u8;
        attached.extend(cradle.leaves.iter().map(AsFd::as_fd));
        request.readable = cradle.readable;
        request.groups_from = attached.len() as u8;
        attached.extend(cradle.joins.iter().map(AsFd::as_fd));
        if !fits || attached.len() > MAX_DESCRIPTORS {
            return Err(EngineError::NoFork("it has too many files".into()));
        }
        let forked = self.control.fork(&request, &attached).await;
        let (pidfd, steps) = forked.map_err(|error| match error {
            EngineError::NoFork(_) => family.host.generations.refused(self.generation),
            error => error,
        })?;
        drop(attached);
        self.disks.iter_mut().for_each(QemuDisk::set_frozen);
        tracing::debug!(dir = %cradle.dir.display(), ?steps, "forked");
        let child = Child::from_pidfd(pidfd).map_err(EngineError::Spawn)?;
        // From here on dropping it kills the child.
        let mut emulator =
            Emulator::forked(child, cradle.channels, cradle.identities, cradle.group);
        let gone = || EngineError::Ended("its control socket was taken".into());
        let control = emulator.control.take().ok_or_else(gone)?;
        let forked = |(disk, top): (&QemuDisk, &(FileId, File))| disk.fork(&cradle.dir, top.0);
        let disks = self.disks.iter().zip(&cradle.tops).map(forked).collect::<Result<_, _>>()?;
        files::note_pid(&cradle.dir, emulator.process.pid())?;
        let (dir, identities) = (cradle.dir, cradle.identities);
        let generation = self.generation + 1;
        let body = Body { control, identities, disks, dir, running: false, generation };
        Ok(Copy { emulator, body })
    }
}

/// A mark in a machine's directory while it is copied: a server that takes over the machine of one
/// that died meanwhile would not know how far it came.
struct Copying(PathBuf);

impl Copying {
    fn begin(dir: &Path) -> Result<Self, EngineError> {
        let mark = dir.join(COPYING);
        File::create(&mark).map_err(|e| file_error("create", &mark, e))?;
        Ok(Self(mark))
    }

    fn end(self) {
        // One that stays costs the machine no more than being taken over.
        let _ = std::fs::remove_file(self.0);
    }
}

/// Everything that a new process needs and that can be made before its parent stands still.
pub(super) struct Cradle {
    dir: PathBuf,
    channels: Channels,
    /// The machine's ends, in the order of [`Theirs::in_order`](channels::Theirs::in_order).
    own: [OwnedFd; 5],
    identities: Identities,
    /// Top layers of its disks.
    tops: Vec<(FileId, File)>,
    group: Option<Arc<Cgroup>>,
    /// What the process joins the group through.
    joins: Vec<OwnedFd>,
    /// What its keeper leaves the group of its parent through.
    leaves: Vec<OwnedFd>,
    /// Whether the server reads the process's memory, which it may not if it is not root.
    readable: bool,
}

impl Cradle {
    /// Makes ready for a copy of a machine in the existing empty directory `dir`.
    pub fn make(family: &Family, dir: &Path, of: &Body) -> Result<Self, EngineError> {
        let (ours, theirs) = channels::open().map_err(EngineError::Spawn)?;
        let identities = theirs.identities().map_err(EngineError::Spawn)?;
        let group = family.host.group(&files::name_of(dir), family.bake.size)?;
        let joins = match &group {
            Some(group) => group.join_files().map_err(EngineError::Spawn)?,
            None => Vec::new(),
        };
        Ok(Self {
            dir: dir.to_owned(),
            channels: Channels::new(ours)?,
            own: theirs.in_order(),
            identities,
            tops: of.disks.iter().map(|disk| disk.new_top(dir)).collect::<Result<_, _>>()?,
            group,
            joins,
            leaves: family.host.cgroups.keeper_files().map_err(EngineError::Spawn)?,
            readable: false,
        })
    }

    /// For a copy that never runs and is written to disk.
    pub fn readable(self) -> Self {
        Self { readable: true, ..self }
    }
}

/// A new process that stands where its parent stood, with what makes it a machine.
pub(super) struct Copy {
    pub emulator: Emulator,
    pub body: Body,
}

impl Copy {
    /// Waits until the process has its descriptors and threads.
    async fn born(mut self) -> Result<Self, EngineError> {
        self.body.control.born().await?;
        Ok(self)
    }

    /// Forks a copy that has not run yet.
    pub async fn again(&mut self, family: &Family, cradle: Cradle) -> Result<Self, EngineError> {
        self.body.fork_at_rest(family, cradle).await?.born().await
    }
}

/// Writes a copy that stands still into the existing empty directory `out`, as a bake.
pub(super) async fn save(family: &Family, copy: &Copy, out: &Path) -> Result<(), EngineError> {
    bake::save_state(&copy.emulator.qmp, &out.join(STATE)).await?;
    for disk in &copy.body.disks {
        let (to, bytes) = (disk.place(out), disk.layers().bytes());
        disk.layers().link_into(&to)?;
        blocking(out, move || flatten(&to, bytes).map_err(io::Error::other)).await?;
    }
    let previous = share_memory(family, out).await?;
    let (pid, bytes, diff) =
        (copy.emulator.process.pid(), family.bake.size.memory_bytes(), out.join(DIFF));
    blocking(&diff.clone(), move || memory::diff::save(pid, bytes, previous.as_deref(), &diff))
        .await
        .map(drop)
}

/// Puts the memory that the family's machines began with into `out`, and says which diff is to be
/// counted in: that of the snapshot that they were made of, if there is one.
async fn share_memory(family: &Family, out: &Path) -> Result<Option<PathBuf>, EngineError> {
    let (base, target) = (family.bake.dir.join(MEMORY), out.join(MEMORY));
    let previous = Some(family.bake.dir.join(DIFF)).filter(|previous| previous.exists());
    match sparse::share(&base, &target) {
        Ok(()) => Ok(previous),
        // The snapshot was deleted meanwhile; what it held, diff included, is loaded still.
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let loaded = family.memory.clone();
            blocking(&target.clone(), move || memory::save(loaded.try_clone()?, &target)).await?;
            Ok(None)
        }
        Err(e) => Err(file_error("link", &target, e)),
    }
}

/// Writes a large file where it does not hold up others.
async fn blocking<T: Send + 'static>(
    path: &Path,
    write: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, EngineError> {
    let written = tokio::task::spawn_blocking(write).await.map_err(io::Error::other);
    written.and_then(|written| written).map_err(|e| file_error("write", path, e))
}

/// Identities of files.
pub(super) fn identities<'a>(
    files: impl IntoIterator<Item = BorrowedFd<'a>>,
) -> Result<Vec<FileId>, EngineError> {
    files.into_iter().map(|file| identity(file).map_err(EngineError::Spawn)).collect()
}
