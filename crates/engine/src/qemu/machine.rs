//! A machine and its end.
//!
//! One task per machine watches for its end, whatever the cause, and is the only place where the
//! process is reaped:
//!
//! ```text
//!  parked ──run──▶ running ⇄ paused          process ends by itself ─┐
//!     └───────────────┴────────┴── kill ─────────────────────────────┼─▶ reaped, group removed,
//!                                   guest shuts down (SHUTDOWN event)┘    Exit published
//! ```
//!
//! What changes it meanwhile is in [`Controls`].

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use async_trait::async_trait;
use pandastack_jail::{Cgroup, Child};
use serde_json::json;
use tokio::sync::{Mutex, watch};

use super::controls::Controls;
use super::fork::{Copy, Family};
use super::process::{self, Process};
use super::qmp::{Events, Qmp};
use super::usage;
use crate::agent::AgentClient;
use crate::{EngineError, Exit, Forked, Machine, Usage};

/// Share of the processors of a machine that nobody waits for, where others have 100.
const BACKGROUND_WEIGHT: u32 = 5;

/// A machine of the qemu engine.
pub(super) struct QemuMachine {
    controls: Arc<Controls>,
    child: Arc<Child>,
    exit: watch::Receiver<Option<Exit>>,
    killed: Arc<AtomicBool>,
    /// Owned by the task that watches over the machine.
    cgroup: Weak<Cgroup>,
}

impl QemuMachine {
    /// Takes over a started process and watches it from now on. `original` is the agent of the
    /// machine that it was copied from.
    pub fn adopt(
        family: Arc<Family>,
        copy: Copy,
        original: Option<&AgentClient>,
    ) -> Result<Self, EngineError> {
        let Copy { mut process, body } = copy;
        let missing = || EngineError::Ended("its channels were taken twice".into());
        let stream = process.agent.take().ok_or_else(missing)?;
        let agent = match original {
            Some(original) => AgentClient::connect_copy(stream, original),
            None => AgentClient::connect(stream),
        };
        let events = process.events.take().ok_or_else(missing)?;
        let (child, qmp) = (process.child().clone(), process.qmp.clone());
        let cgroup = process.cgroup();
        let killed = Arc::new(AtomicBool::new(false));
        let (publish, exit) = watch::channel(None);
        tokio::spawn(watch_over(process, events, killed.clone(), publish));
        let controls = Controls { family, qmp, agent, body: Mutex::new(body) };
        Ok(Self { controls: Arc::new(controls), child, exit, killed, cgroup })
    }
}

#[async_trait]
impl Machine for QemuMachine {
    fn agent(&self) -> &AgentClient {
        &self.controls.agent
    }

    fn pid(&self) -> u32 {
        self.child.pid()
    }

    fn set_background(&self, background: bool) {
        if let Some(cgroup) = self.cgroup.upgrade() {
            let weight = if background { BACKGROUND_WEIGHT } else { process::CPU_WEIGHT };
            cgroup.set_cpu_weight(weight);
        }
    }

    async fn run(&self) -> Result<(), EngineError> {
        self.controls.clone().set_running(true).await
    }

    async fn pause(&self) -> Result<(), EngineError> {
        self.controls.clone().set_running(false).await
    }

    async fn fork(&self, dirs: &[&Path]) -> Result<Forked, EngineError> {
        let dirs = dirs.iter().map(|dir| (*dir).to_owned()).collect();
        self.controls.clone().fork(dirs).await
    }

    async fn snapshot(&self, scratch: &Path, out: &Path) -> Result<(), EngineError> {
        self.controls.clone().snapshot(scratch.to_owned(), out.to_owned()).await
    }

    async fn kill(&self) {
        if self.exit.borrow().is_none() {
            self.killed.store(true, Ordering::SeqCst);
            self.child.kill();
        }
        self.exited().await;
    }

    async fn exited(&self) -> Exit {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await {
            Ok(exit) => exit.unwrap_or(Exit::Died),
            Err(_) => Exit::Died, // the watcher is gone: the runtime is shutting down
        }
    }

    fn usage(&self) -> Option<Usage> {
        if self.exit.borrow().is_some() {
            return None; // the id may belong to somebody else by now
        }
        usage::of(self.child.pid())
    }
}

impl Drop for QemuMachine {
    fn drop(&mut self) {
        if self.exit.borrow().is_none() {
            self.killed.store(true, Ordering::SeqCst);
            self.child.kill();
        }
    }
}

/// Waits for the end, reaps, removes the group, and tells how it ended.
async fn watch_over(
    mut process: Process,
    events: Events,
    killed: Arc<AtomicBool>,
    publish: watch::Sender<Option<Exit>>,
) {
    let child = process.child().clone();
    let gone = process::ended(&child);
    tokio::pin!(gone);
    let last_words = tokio::select! {
        _ = &mut gone => None,
        exit = guest_end(&process.qmp, events) => {
            child.kill();
            let _ = gone.await;
            Some(exit)
        }
    };
    let exit = match last_words {
        _ if killed.load(Ordering::SeqCst) => Exit::Killed,
        Some(exit) => exit,
        None => {
            tracing::warn!(pid = child.pid(), said = process.complaints(), "a machine died");
            Exit::Died
        }
    };
    let group = process.take_cgroup();
    drop(process);
    // Removing a group may wait a moment for the kernel.
    let _ = tokio::task::spawn_blocking(move || drop(group)).await;
    let _ = publish.send(Some(exit));
}

/// Resolves when the guest ended itself, with the reason. Never resolves when the monitor closes:
/// then the process is ending too, and its end is what counts.
async fn guest_end(qmp: &Qmp, mut events: Events) -> Exit {
    while let Some(event) = events.recv().await {
        if event.name == "SHUTDOWN" && event.data["guest"] == json!(true) {
            // A kernel panic is a reset like any other to QEMU; the console tells them apart.
            let console = console(qmp).await.unwrap_or_default();
            return if console.contains("Kernel panic") {
                Exit::GuestPanic
            } else {
                Exit::GuestShutdown
            };
        }
    }
    std::future::pending().await
}

/// What the guest's kernel wrote to its console: the last 64 KiB.
pub(super) async fn console(qmp: &Qmp) -> Result<String, EngineError> {
    let arguments = json!({ "device": "console", "size": 65536 });
    let text = qmp.execute("ringbuf-read", arguments).await?;
    Ok(text.as_str().unwrap_or_default().to_owned())
}
