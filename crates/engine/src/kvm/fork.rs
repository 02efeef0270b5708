//! Copies of a machine.
//!
//! ```text
//!  source      halt ─ freeze disk ─ clone ─ go on          running on
//!                                    │
//!  first copy                        └─ stands still ─ clone ─ clone ─ …
//!                                                        │       │
//!  other copies                                          ▼       ▼
//! ```
//!
//! The monitor does all of it in one request. However many copies are made, the source stands
//! still for one: the others are copies of the first, which has not run yet. So all are of one
//! instant.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pandastack_jail::{Cgroup, Child};
use pandastack_vmm::VOLUME_SLOTS;
use pandastack_vmm::control::{DiskFork, Fork, Reply, Request, Role, Stages};

use super::channels::{self, Theirs};
use super::client::{Attached, Awaited, Client, FORK, attach, unexpected};
use super::files::Files;
use super::laps::Laps;
use super::monitor::{Host, Monitor, Ways};
use super::snapshot::blocking;
use super::volume::OwnDisk;
use crate::disk::Disk;
use crate::process::{Complaints, Process};
use crate::{After, Bake, EngineError, VolumeSource, files};

/// What the machines of one bake have in common.
pub(super) struct Family {
    pub host: Arc<Host>,
    pub bake: Bake,
    /// What the first of them was made of. Stays open for as long as one of them is there.
    pub files: Files,
}

/// What a machine that is to be copied consists of, besides its process.
pub(super) struct Body {
    /// Its own directory.
    dir: PathBuf,
    /// The one that it always has, and its volumes.
    pub disks: Vec<OwnDisk>,
    child: Arc<Child>,
    /// Its user namespace has ids, without which it cannot make another one for a copy.
    has_ids: bool,
    /// Whether its vCPUs may be running.
    running: bool,
    /// Whether they may have run since its top layers were made.
    has_run: bool,
    /// Why it cannot be copied any more.
    broken: Option<&'static str>,
    /// How many forks it is away from a machine that was restored.
    pub generation: u32,
}

/// Why a machine whose disk may be in one of two states is not copied.
const HALF_WAY: &str = "an earlier fork of it failed half-way";

impl Body {
    /// That of a machine that has just been restored.
    pub fn new(dir: &Path, disk: Disk, child: Arc<Child>) -> Self {
        Self {
            dir: dir.to_owned(),
            disks: vec![OwnDisk::root(disk)],
            child,
            has_ids: true,
            running: false,
            has_run: false,
            broken: None,
            generation: 0,
        }
    }

    /// That of a copy, which gets its ids when it is to be copied itself: most never are.
    fn of_copy(dir: PathBuf, disks: Vec<OwnDisk>, child: Arc<Child>, generation: u32) -> Self {
        let (has_ids, running, has_run) = (false, false, false);
        Self { dir, disks, child, has_ids, running, has_run, broken: None, generation }
    }

    /// It is about to run.
    pub fn runs(&mut self) {
        (self.running, self.has_run) = (true, true);
    }

    /// It stands still.
    pub fn stands(&mut self) {
        self.running = false;
    }

    /// Puts a volume into an empty slot, and says how many bytes it has.
    pub async fn attach(
        &mut self,
        client: &Client,
        slot: usize,
        source: VolumeSource,
    ) -> Result<u64, EngineError> {
        let free = u8::try_from(slot).ok().filter(|slot| {
            usize::from(*slot) < VOLUME_SLOTS
                && self.disks.iter().all(|disk| disk.slot != Some(*slot))
        });
        let Some(slot) = free.filter(|_| !self.running) else {
            return Err(EngineError::Monitor(format!("slot {slot} does not take a volume")));
        };
        let disk = OwnDisk::attach(client, slot, &self.dir, source).await?;
        let bytes = disk.layers.bytes();
        self.disks.push(disk);
        Ok(bytes)
    }

    /// Copies the machine into `cradle`, and says how long it stood still. A running one runs on
    /// afterwards, and in any case. The steps go into `laps`.
    pub async fn fork(
        &mut self,
        client: &Client,
        cradle: Cradle,
        then: After,
        laps: &mut Laps,
    ) -> Result<(Copy, Duration), EngineError> {
        if let Some(why) = self.broken {
            return Err(EngineError::NoFork(why.into()));
        }
        self.get_ids().await?;
        let freezing = self.disks.iter().map(|disk| disk.freezing(self.has_run, then));
        let freezing = freezing.collect::<Result<Vec<_>, _>>()?;
        let mut attached = cradle.attached();
        for (frozen, top) in freezing.iter().flatten() {
            attach(&mut attached, Role::Frozen, [frozen]);
            attach(&mut attached, Role::NewTop, [top]);
        }
        let of_disk = |(disk, layers): (&OwnDisk, &Option<_>)| DiskFork {
            slot: disk.slot,
            freezes: layers.is_some(),
        };
        let disks = self.disks.iter().zip(&freezing).map(of_disk).collect();
        let request = Request::Fork(Fork { readable: cradle.readable, disks });
        let freezes = freezing.iter().any(Option::is_some);
        laps.lap("layers");
        let begin = Instant::now();
        let answer = client.ask(request, attached, FORK).await;
        let took = begin.elapsed();
        let mut answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                // The new layer may be on top already, or not: nobody can tell from here.
                self.broken = freezes.then_some(HALF_WAY);
                return Err(error);
            }
        };
        let Reply::Forked(stages) = &answer.body else { return Err(unexpected(&answer.body)) };
        let pause = total(stages).map_or(took, |pause| pause.min(took));
        laps.lap_of(stages, "answer");
        let pidfd = answer.take(Role::Process);
        if freezes {
            self.broken = Some(HALF_WAY);
            for (disk, _) in self.disks.iter_mut().zip(&freezing).filter(|(_, it)| it.is_some()) {
                disk.layers.freeze()?;
            }
            self.broken = None;
            self.has_run = self.running;
        }
        drop(freezing);
        let pidfd = pidfd.ok_or_else(|| EngineError::Monitor("a fork without a process".into()))?;
        let disks =
            self.disks.iter().map(|disk| disk.fork(&cradle.dir)).collect::<Result<_, _>>()?;
        Ok((cradle.born(pidfd, disks, self.generation + 1, laps).await?, pause))
    }

    async fn get_ids(&mut self) -> Result<(), EngineError> {
        if !self.has_ids {
            let child = self.child.clone();
            blocking(move || pandastack_jail::give_ids(&child).map_err(EngineError::Spawn)).await?;
            self.has_ids = true;
        }
        Ok(())
    }
}

/// Everything that a new process needs and that can be made before its source stands still.
pub(super) struct Cradle {
    dir: PathBuf,
    complaints: Complaints,
    client: Client,
    /// What the copy says first.
    birth: Awaited,
    ways: Ways,
    theirs: Theirs,
    /// Top layers of its disks.
    tops: Vec<File>,
    group: Option<Arc<Cgroup>>,
    /// What the process joins the group through.
    joins: Vec<OwnedFd>,
    /// What its keeper leaves the group of its parent through.
    leaves: Vec<OwnedFd>,
    /// Whether the server looks into the process.
    readable: bool,
}

impl Cradle {
    /// Makes ready for a copy of a machine in the existing empty directory `dir`.
    pub fn make(family: &Family, dir: &Path, of: &Body) -> Result<Self, EngineError> {
        let host = &family.host;
        let (ours, theirs) = channels::open().map_err(EngineError::Spawn)?;
        let client = Client::new(ours.control).map_err(EngineError::Spawn)?;
        let group = host.group(&files::name_of(dir), family.bake.size)?;
        let joins = match &group {
            Some(group) => group.join_files().map_err(EngineError::Spawn)?,
            None => Vec::new(),
        };
        Ok(Self {
            dir: dir.to_owned(),
            complaints: Complaints::collect(ours.complaints)?,
            birth: client.expect(),
            client,
            ways: Ways::new(ours.agent, ours.net)?,
            theirs,
            tops: of.disks.iter().map(|disk| disk.new_top(dir)).collect::<Result<_, _>>()?,
            group,
            joins,
            leaves: host.cgroups.keeper_files().map_err(EngineError::Spawn)?,
            readable: false,
        })
    }

    /// For a copy that never runs and is written to disk.
    pub fn readable(self) -> Self {
        Self { readable: true, ..self }
    }

    fn attached(&self) -> Attached<'_> {
        let mut to: Attached<'_> = vec![
            (Role::Control, self.theirs.control.as_fd()),
            (Role::Complaints, self.theirs.complaints.as_fd()),
            (Role::Agent, self.theirs.agent.as_fd()),
            (Role::Net, self.theirs.net.as_fd()),
        ];
        attach(&mut to, Role::Top, &self.tops);
        attach(&mut to, Role::Group, &self.joins);
        attach(&mut to, Role::KeeperGroup, &self.leaves);
        to
    }

    /// Takes over the process that was born into it, once it has its descriptors.
    async fn born(
        self,
        pidfd: OwnedFd,
        disks: Vec<OwnDisk>,
        generation: u32,
        laps: &mut Laps,
    ) -> Result<Copy, EngineError> {
        let child = Child::from_pidfd(pidfd).map_err(EngineError::Spawn)?;
        // From here on dropping it kills the process.
        let child = Arc::new(child);
        let process = Process::new(child.clone(), self.complaints, self.group);
        files::note_pid(&self.dir, process.pid())?;
        // The copy has its own; with ours open nobody would notice its end.
        drop(self.theirs);
        let monitor = Monitor { process, client: self.client };
        match monitor.client.answer(self.birth, FORK).await.map(|said| said.body) {
            Ok(Reply::Born(stages)) => {
                laps.lap_of(&stages, "birth");
                let body = Body::of_copy(self.dir, disks, child, generation);
                Ok(Copy { monitor, ways: self.ways, body })
            }
            Ok(other) => Err(monitor.explain(unexpected(&other)).await),
            Err(error) => Err(monitor.explain(error).await),
        }
    }
}

/// A new process that stands where its source stood, with what makes it a machine.
pub(super) struct Copy {
    pub monitor: Monitor,
    /// The ways into its guest.
    pub ways: Ways,
    pub body: Body,
}

impl Copy {
    /// Copies a copy that has not run yet.
    pub async fn again(&mut self, cradle: Cradle) -> Result<Self, EngineError> {
        Ok(self.body.fork(&self.monitor.client, cradle, After::GoesOn, &mut Laps::new()).await?.0)
    }
}

/// What the steps add up to, if there are any.
fn total(stages: &Stages) -> Option<Duration> {
    let micros = stages.iter().map(|(_, micros)| u64::from(*micros)).sum();
    (!stages.is_empty()).then(|| Duration::from_micros(micros))
}

#[cfg(test)]
mod tests;
