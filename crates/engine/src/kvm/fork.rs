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
use pandastack_vmm::control::{Fork, Reply, Request, Role, Stages};

use super::channels::{self, Theirs};
use super::client::{Attached, Awaited, Client, FORK, attach, unexpected};
use super::files::Files;
use super::laps::Laps;
use super::monitor::{Host, Monitor, Ways};
use super::snapshot::blocking;
use crate::disk::{self, Disk, Place};
use crate::process::{Complaints, Process};
use crate::{After, Bake, EngineError, files};

/// What the machines of one bake have in common.
pub(super) struct Family {
    pub host: Arc<Host>,
    pub bake: Bake,
    /// What the first of them was made of. Stays open for as long as one of them is there.
    pub files: Files,
}

/// What a machine that is to be copied consists of, besides its process.
pub(super) struct Body {
    pub disk: Disk,
    child: Arc<Child>,
    /// Its user namespace has ids, without which it cannot make another one for a copy.
    has_ids: bool,
    /// Whether its vCPUs may be running.
    running: bool,
    /// Whether they may have run since its top layer was made.
    has_run: bool,
    /// Why it cannot be copied any more.
    broken: Option<&'static str>,
}

/// Why a machine whose disk may be in one of two states is not copied.
const HALF_WAY: &str = "an earlier fork of it failed half-way";

impl Body {
    /// That of a machine that has just been restored.
    pub fn new(disk: Disk, child: Arc<Child>) -> Self {
        Self { disk, child, has_ids: true, running: false, has_run: false, broken: None }
    }

    /// That of a copy, which gets its ids when it is to be copied itself: most never are.
    fn of_copy(disk: Disk, child: Arc<Child>) -> Self {
        Self { has_ids: false, ..Self::new(disk, child) }
    }

    /// It is about to run.
    pub fn runs(&mut self) {
        (self.running, self.has_run) = (true, true);
    }

    /// It stands still.
    pub fn stands(&mut self) {
        self.running = false;
    }

    /// Copies the machine into `cradle`, and says how long it stood still. A running one runs on
    /// afterwards, and in any case. The steps go into `laps`.
    pub async fn fork(
        &mut self,
        client: &Client,
        cradle: Cradle,
        laps: &mut Laps,
    ) -> Result<(Copy, Duration), EngineError> {
        if let Some(why) = self.broken {
            return Err(EngineError::NoFork(why.into()));
        }
        self.get_ids().await?;
        let freeze = self.has_run.then(|| self.layers()).transpose()?;
        let mut attached = cradle.attached();
        if let Some((frozen, top)) = &freeze {
            attach(&mut attached, Role::Frozen, [frozen]);
            attach(&mut attached, Role::NewTop, [top]);
        }
        let request = Request::Fork(Fork { readable: cradle.readable });
        laps.lap("layers");
        let begin = Instant::now();
        let answer = client.ask(request, attached, FORK).await;
        let took = begin.elapsed();
        let mut answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                // The new layer may be on top already, or not: nobody can tell from here.
                self.broken = freeze.is_some().then_some(HALF_WAY);
                return Err(error);
            }
        };
        let Reply::Forked(stages) = &answer.body else { return Err(unexpected(&answer.body)) };
        let pause = total(stages).map_or(took, |pause| pause.min(took));
        laps.lap_of(stages, "answer");
        let pidfd = answer.take(Role::Process);
        if freeze.is_some() {
            self.broken = Some(HALF_WAY);
            self.disk.freeze()?;
            self.broken = None;
            self.has_run = self.running;
        }
        let pidfd = pidfd.ok_or_else(|| EngineError::Monitor("a fork without a process".into()))?;
        let disk = self.disk.fork(&Place::root(&cradle.dir))?;
        Ok((cradle.born(pidfd, disk, laps).await?, pause))
    }

    async fn get_ids(&mut self) -> Result<(), EngineError> {
        if !self.has_ids {
            let child = self.child.clone();
            blocking(move || pandastack_jail::give_ids(&child).map_err(EngineError::Spawn)).await?;
            self.has_ids = true;
        }
        Ok(())
    }

    /// The layer that is on top now, for reading only, and the one that will be.
    fn layers(&self) -> Result<(File, File), EngineError> {
        Ok((self.disk.open_top()?, self.disk.spare(After::GoesOn)?))
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
    top: File,
    group: Option<Arc<Cgroup>>,
    /// What the process joins the group through.
    joins: Vec<OwnedFd>,
    /// What its keeper leaves the group of its parent through.
    leaves: Vec<OwnedFd>,
    /// Whether the server looks into the process.
    readable: bool,
}

impl Cradle {
    /// Makes ready for a machine in the existing empty directory `dir`, with a disk of `bytes`.
    pub fn make(family: &Family, dir: &Path, bytes: u64) -> Result<Self, EngineError> {
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
            top: disk::new_top(&Place::root(dir), bytes)?,
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
        attach(&mut to, Role::Top, [&self.top]);
        attach(&mut to, Role::Group, &self.joins);
        attach(&mut to, Role::KeeperGroup, &self.leaves);
        to
    }

    /// Takes over the process that was born into it, once it has its descriptors.
    async fn born(self, pidfd: OwnedFd, disk: Disk, laps: &mut Laps) -> Result<Copy, EngineError> {
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
                Ok(Copy { monitor, ways: self.ways, body: Body::of_copy(disk, child) })
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
        Ok(self.body.fork(&self.monitor.client, cradle, &mut Laps::new()).await?.0)
    }
}

/// What the steps add up to, if there are any.
fn total(stages: &Stages) -> Option<Duration> {
    let micros = stages.iter().map(|(_, micros)| u64::from(*micros)).sum();
    (!stages.is_empty()).then(|| Duration::from_micros(micros))
}

#[cfg(test)]
mod tests;
