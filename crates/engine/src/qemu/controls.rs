//! What is done to a machine as a whole: running, pausing, copying. One thing at a time, each to
//! its end, whether or not anybody keeps waiting for it ([`to_its_end`]).

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;
use tokio::sync::Mutex;

use super::adopt;
use super::command::VOLUME_SLOTS;
use super::disk::QemuDisk;
use super::fork::{self, Body, Cradle, Family};
use super::machine::QemuMachine;
use super::qmp::Qmp;
use crate::agent::AgentClient;
use crate::to_its_end::to_its_end;
use crate::{After, EngineError, Forked, Machine, VolumeSource};

/// One machine, as far as it can be controlled.
pub(super) struct Controls {
    pub family: Arc<Family>,
    pub qmp: Qmp,
    pub agent: AgentClient,
    pub body: Mutex<Body>,
    /// What the next server is told of it. The body may be in use for long.
    note: std::sync::Mutex<String>,
}

impl Controls {
    /// Controls a machine.
    pub fn new(family: Arc<Family>, qmp: Qmp, agent: AgentClient, body: Body) -> Self {
        let note = std::sync::Mutex::new(adopt::note(&family, &body));
        Self { family, qmp, agent, body: Mutex::new(body), note }
    }

    /// What the next server is told of the machine.
    pub fn note(&self) -> String {
        self.note.lock().expect("no panic under this lock").clone()
    }

    /// Lets the vCPUs run, or stops them.
    pub async fn set_running(self: Arc<Self>, running: bool) -> Result<(), EngineError> {
        to_its_end(async move {
            let mut body = self.body.lock().await;
            self.qmp.execute(if running { "cont" } else { "stop" }, Value::Null).await?;
            body.running = running;
            Ok(())
        })
        .await
    }

    /// Puts a volume into a slot.
    pub async fn attach(
        self: Arc<Self>,
        slot: usize,
        source: VolumeSource,
    ) -> Result<u64, EngineError> {
        to_its_end(async move {
            let mut body = self.body.lock().await;
            let taken = body.disks.iter().any(|disk| disk.slot() == Some(slot));
            if taken || slot >= VOLUME_SLOTS || body.running {
                return Err(EngineError::Monitor(format!("slot {slot} does not take a volume")));
            }
            let disk = QemuDisk::attach(&self.qmp, slot, &body.dir, source).await?;
            let bytes = disk.layers().bytes();
            body.disks.push(disk);
            let note = adopt::note(&self.family, &body);
            *self.note.lock().expect("no panic under this lock") = note;
            Ok(bytes)
        })
        .await
    }

    /// Makes one copy per directory.
    pub async fn fork(self: Arc<Self>, dirs: Vec<PathBuf>) -> Result<Forked, EngineError> {
        to_its_end(async move {
            let mut body = self.body.lock().await;
            self.family.host.generations.allow(body.generation, dirs.len())?;
            let cradles = dirs.iter().map(|dir| Cradle::make(&self.family, dir, &body));
            let mut cradles = cradles.collect::<Result<Vec<_>, _>>()?.into_iter();
            let Some(first) = cradles.next() else { return Ok(Forked::default()) };
            let (first, pause) = body.fork(&self.family, &self.qmp, first, After::GoesOn).await?;
            drop(body);
            let mut copies = vec![first];
            for cradle in cradles {
                let copy = copies[0].again(&self.family, cradle).await?;
                copies.push(copy);
            }
            let adopt = |copy| {
                let copy = QemuMachine::adopt(self.family.clone(), copy, Some(&self.agent))?;
                Ok(Box::new(copy) as _)
            };
            let machines = copies.into_iter().map(adopt).collect::<Result<_, EngineError>>()?;
            Ok(Forked { machines, pause, ..Forked::default() })
        })
        .await
    }

    /// Writes a copy into `out`.
    pub async fn snapshot(
        self: Arc<Self>,
        scratch: PathBuf,
        out: PathBuf,
        then: After,
    ) -> Result<(), EngineError> {
        to_its_end(async move {
            let mut body = self.body.lock().await;
            let cradle = Cradle::make(&self.family, &scratch, &body)?.readable();
            let (copy, pause) = body.fork(&self.family, &self.qmp, cradle, then).await?;
            drop(body);
            tracing::debug!(?pause, "copied for a snapshot");
            let saved = fork::save(&self.family, &copy, &out).await;
            QemuMachine::adopt(self.family.clone(), copy, None)?.kill().await;
            saved
        })
        .await
    }
}
