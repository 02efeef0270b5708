//! A sandbox as everybody may hold it.
//!
//! The handle outlives the machine: it answers why the sandbox ended. Only the owner task
//! changes the status; everybody else reads it or sends the owner a message.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pandastack_engine::agent::AgentClient;
use pandastack_engine::{Bake, Machine};
use pandastack_proto::Token;
use pandastack_types::{
    Egress, EndReason, Isolation, JailLevel, Lifecycle, Metrics, SandboxId, SandboxView, Size,
    SnapshotId, State, TemplateName,
};
use serde_json::json;
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot, watch};

use crate::error::{LifecycleError, NotFound, Unavailable};
use crate::history::History;
use crate::limits::{LifecycleChange, Limits};
use crate::logs::Logs;
use crate::metadata::Metadata;
use crate::owner::{Message, Order};
use crate::runclock::RunClock;
use crate::sync::lock;

/// How long an operation whose guest went away waits for the owner to say why.
const EXPLANATION: Duration = Duration::from_secs(3);

/// What never changes about a sandbox.
#[derive(Clone, Debug)]
pub(crate) struct Birth {
    pub(crate) id: SandboxId,
    /// The template as the client named it.
    pub(crate) template: TemplateName,
    pub(crate) size: Size,
    pub(crate) metadata: Metadata,
    pub(crate) created_at: OffsetDateTime,
    pub(crate) engine: &'static str,
    pub(crate) isolation: Isolation,
    pub(crate) jail: JailLevel,
    /// The template's bake that it goes back to, directly or through parents and snapshots. No
    /// tenant ever had a hand in it.
    pub(crate) ancestor: Arc<Bake>,
    /// The snapshot that it was asked to be made of.
    pub(crate) from_snapshot: Option<SnapshotId>,
}

/// How its machine came to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Boot {
    /// The contract's word for it.
    pub(crate) mode: &'static str,
    /// From the request to the agent's acknowledgement.
    pub(crate) took: Duration,
}

/// Where a sandbox is in its life, and why it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) state: State,
    pub(crate) reason: Option<EndReason>,
}

/// What exists only while there is a machine.
#[derive(Clone)]
pub(crate) struct Live {
    pub(crate) machine: Arc<dyn Machine>,
    /// What its guest obeys.
    pub(crate) token: Token,
    pub(crate) since: Instant,
}

/// One sandbox.
pub struct Sandbox {
    pub(crate) birth: Birth,
    pub(crate) limits: Mutex<Limits>,
    pub(crate) status: watch::Sender<Status>,
    pub(crate) live: Mutex<Option<Live>>,
    pub(crate) boot: Mutex<Boot>,
    pub(crate) clock: RunClock,
    activity: Mutex<Activity>,
    pub(crate) logs: Logs,
    pub(crate) history: History,
    pub(crate) mailbox: mpsc::Sender<Message>,
}

/// When the guest was last used.
#[derive(Debug)]
struct Activity {
    running: usize,
    last: Instant,
}

impl Sandbox {
    pub(crate) fn new(
        birth: Birth,
        limits: Limits,
        boot_mode: &'static str,
        log_bytes: usize,
        mailbox: mpsc::Sender<Message>,
    ) -> Self {
        let now = Instant::now();
        Self {
            history: History::new(birth.id),
            birth,
            limits: Mutex::new(limits),
            status: watch::Sender::new(Status { state: State::Creating, reason: None }),
            live: Mutex::new(None),
            boot: Mutex::new(Boot { mode: boot_mode, took: Duration::ZERO }),
            clock: RunClock::new(now),
            activity: Mutex::new(Activity { running: 0, last: now }),
            logs: Logs::new(log_bytes),
            mailbox,
        }
    }

    /// Its id.
    pub fn id(&self) -> SandboxId {
        self.birth.id
    }

    /// Where it is in its life.
    pub fn state(&self) -> State {
        self.status.borrow().state
    }

    /// The sandbox as the API shows it.
    pub fn view(&self) -> SandboxView {
        let status = *self.status.borrow();
        let limits = *lock(&self.limits);
        let boot = *lock(&self.boot);
        let birth = self.birth.clone();
        SandboxView {
            id: birth.id,
            template: birth.template,
            cpu: birth.size.cpu,
            memory_mb: birth.size.memory_mb,
            status: status.state,
            metadata: birth.metadata,
            boot_ms: boot.took.as_millis() as u64,
            boot_mode: boot.mode.to_owned(),
            from_snapshot: birth.from_snapshot,
            created_at: birth.created_at,
            persistent: limits.persistent,
            ttl_seconds: limits.ttl_seconds,
            engine: birth.engine.to_owned(),
            isolation: birth.isolation,
            jail: birth.jail,
            egress: Egress::None,
            end_reason: status.reason,
        }
    }

    /// Its limits, and how long nobody has used it.
    pub fn lifecycle(&self) -> Lifecycle {
        let limits = *lock(&self.limits);
        let activity = lock(&self.activity);
        let idle = if activity.running > 0 { Duration::ZERO } else { activity.last.elapsed() };
        Lifecycle {
            ttl_seconds: limits.ttl_seconds,
            persistent: limits.persistent,
            idle_seconds: idle.as_secs(),
        }
    }

    /// What it costs the host. Works while it is paused.
    pub fn metrics(&self) -> Result<Metrics, Unavailable> {
        let live = lock(&self.live).clone().ok_or_else(|| self.unavailable())?;
        let usage = live.machine.usage().unwrap_or_default();
        let uptime = live.since.elapsed().as_secs_f64();
        Ok(Metrics {
            pid: live.machine.pid(),
            uptime_seconds: uptime,
            host_cpu_percent: usage.cpu.as_secs_f64() / uptime.max(1e-3) * 100.0,
            host_rss_bytes: usage.rss_bytes,
            host_pss_bytes: usage.pss_bytes,
            host_vsz_bytes: usage.vsz_bytes,
            threads: usage.threads,
        })
    }

    /// What its commands printed lately.
    pub fn logs(&self) -> &Logs {
        &self.logs
    }

    /// What happened to it lately.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Stops its vCPUs. Pausing a paused sandbox succeeds.
    pub async fn pause(&self) -> Result<(), LifecycleError> {
        self.order(Order::Pause).await
    }

    /// Lets its vCPUs go on. Resuming a running sandbox succeeds.
    pub async fn resume(&self) -> Result<(), LifecycleError> {
        self.order(Order::Resume).await
    }

    /// Changes how long it may live.
    pub async fn change(&self, change: LifecycleChange) -> Result<Lifecycle, LifecycleError> {
        let ttl_seconds = change.ttl_seconds.map(crate::request::ttl).transpose()?;
        self.order(Order::Limit { ttl_seconds, persistent: change.persistent }).await?;
        Ok(self.lifecycle())
    }

    /// Ends it and waits until nothing of it is left.
    pub async fn delete(&self) -> Result<(), LifecycleError> {
        self.order(Order::End(EndReason::Deleted)).await
    }

    /// Sends the owner an order and waits until it is carried out.
    pub(crate) async fn order(&self, order: Order) -> Result<(), LifecycleError> {
        let gone = NotFound(self.id());
        let (done, answer) = oneshot::channel();
        self.mailbox.send(Message { order, done: Some(done) }).await.map_err(|_| gone)?;
        answer.await.map_err(|_| gone)?
    }

    /// The agent, if the guest can be asked for something now. The returned mark keeps the
    /// sandbox from counting as idle.
    pub(crate) fn guest(self: &Arc<Self>) -> Result<(AgentClient, Busy), Unavailable> {
        if self.state() != State::Running {
            return Err(self.unavailable());
        }
        let live = lock(&self.live);
        let live = live.as_ref().ok_or_else(|| self.unavailable())?;
        lock(&self.activity).running += 1;
        Ok((live.machine.agent().clone(), Busy(self.clone())))
    }

    /// Why the guest cannot be asked for anything.
    pub(crate) fn unavailable(&self) -> Unavailable {
        let id = self.id();
        let status = *self.status.borrow();
        match (status.state, status.reason) {
            (State::Creating, _) => Unavailable::Creating(id),
            (State::Paused, _) => Unavailable::Paused(id),
            (_, reason) => {
                Unavailable::Ended { id, reason: reason.unwrap_or(EndReason::MachineDied) }
            }
        }
    }

    /// Called when the guest stopped answering: waits for the owner to find out whether the
    /// sandbox has ended. `None` when it has not.
    pub(crate) async fn explanation(&self) -> Option<Unavailable> {
        let mut status = self.status.subscribe();
        let ended = status.wait_for(|status| {
            matches!(status.state, State::Stopping | State::Failed | State::Deleted)
        });
        tokio::time::timeout(EXPLANATION, ended).await.ok()?.ok()?;
        Some(self.unavailable())
    }

    /// Shows a new status to everybody and notes it in the history.
    pub(crate) fn publish(&self, status: Status) {
        self.status.send_replace(status);
        let payload = json!({ "reason": status.reason });
        self.history.push(&format!("sandbox.{}", status.state), payload);
    }
}

/// Keeps a sandbox from counting as idle while it exists.
pub(crate) struct Busy(Arc<Sandbox>);

impl Drop for Busy {
    fn drop(&mut self) {
        let mut activity = lock(&self.0.activity);
        activity.running -= 1;
        activity.last = Instant::now();
    }
}
