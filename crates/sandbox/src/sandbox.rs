//! A sandbox as everybody may hold it.
//!
//! The handle outlives the machine: it answers why the sandbox ended. Only the owner task
//! changes the status; everybody else reads it or sends the owner a message.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pandastack_engine::agent::{AgentClient, Identity};
use pandastack_engine::{Bake, Machine};
use pandastack_holder::Hold;
use pandastack_policy::Policy;
use pandastack_types::{
    EndReason, Isolation, JailLevel, Lifecycle, Metrics, SandboxId, SandboxView, Size, SnapshotId,
    State, TemplateName, TtlMode, VolumeMount,
};
use serde_json::json;
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot, watch};

use crate::egress::EgressLog;
use crate::error::{Chain, LifecycleError, NoWake, NotFound, Unavailable};
use crate::history::History;
use crate::ingress::Ingress;
use crate::limits::{Change, LifecycleChange, Limits};
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
    /// Its volumes, each in the slot of its index.
    pub(crate) volumes: Vec<VolumeMount>,
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
    /// Its names, and what its guest obeys.
    pub(crate) identity: Identity,
    pub(crate) since: Instant,
}

/// One sandbox.
pub struct Sandbox {
    pub(crate) birth: Birth,
    pub(crate) limits: Mutex<Limits>,
    pub(crate) status: watch::Sender<Status>,
    pub(crate) live: Mutex<Option<Live>>,
    /// What its machine is held by, in case that this server is killed.
    pub(crate) hold: Mutex<Option<Hold>>,
    pub(crate) boot: Mutex<Boot>,
    pub(crate) clock: RunClock,
    /// Whether its machine is being made files.
    pub(crate) leaving: AtomicBool,
    activity: Mutex<Activity>,
    pub(crate) logs: Logs,
    pub(crate) history: History,
    ingress: Ingress,
    /// What it may reach: the policy in force.
    egress: Mutex<Policy>,
    pub(crate) egress_log: EgressLog,
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
        egress: Policy,
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
            hold: Mutex::new(None),
            boot: Mutex::new(Boot { mode: boot_mode, took: Duration::ZERO }),
            clock: RunClock::new(now),
            leaving: AtomicBool::new(false),
            activity: Mutex::new(Activity { running: 0, last: now }),
            logs: Logs::new(log_bytes),
            ingress: Ingress::default(),
            egress: Mutex::new(egress),
            egress_log: EgressLog::new(),
            mailbox,
        }
    }

    /// Its id.
    pub fn id(&self) -> SandboxId {
        self.birth.id
    }

    /// The snapshot that it was made of, as long as it is there itself.
    pub(crate) fn stems_from(&self) -> Option<SnapshotId> {
        let over = matches!(self.state(), State::Failed | State::Deleted);
        self.birth.from_snapshot.filter(|_| !over)
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
            disk_mb: birth.size.disk_mb,
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
            egress: self.egress(),
            volumes: birth.volumes,
            end_reason: status.reason,
        }
    }

    /// Its limits, and how long nobody has used it.
    pub fn lifecycle(&self) -> Lifecycle {
        let limits = *lock(&self.limits);
        let idle = self.idle_since().map_or(Duration::ZERO, |since| since.elapsed());
        Lifecycle {
            ttl_seconds: limits.ttl_seconds,
            ttl_mode: limits.ttl_mode,
            persistent: limits.persistent,
            idle_seconds: idle.as_secs(),
            idle_timeout: limits.idle_timeout,
        }
    }

    /// Since when nobody uses it; `None` while somebody does.
    fn idle_since(&self) -> Option<Instant> {
        let activity = lock(&self.activity);
        (activity.running == 0).then_some(activity.last)
    }

    /// When its time to live is over. If that counts idle time: unless it is used until then.
    pub(crate) fn ends_at(&self) -> Option<Instant> {
        let limits = *lock(&self.limits);
        match limits.ttl_mode {
            TtlMode::Wall => limits.deadline,
            TtlMode::Idle => self.unused_until(limits.ttl_seconds),
        }
    }

    /// Whether its time to live is over.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        let limits = *lock(&self.limits);
        match limits.ttl_mode {
            TtlMode::Wall => limits.deadline.is_some_and(|deadline| now >= deadline),
            TtlMode::Idle => limits.ttl_seconds > 0 && self.is_unused(limits.ttl_seconds, now),
        }
    }

    /// When it is to hibernate if nobody uses it until then. While it is in use: when to look again.
    pub(crate) fn hibernates_at(&self) -> Option<Instant> {
        let timeout = lock(&self.limits).idle_timeout;
        self.unused_until(timeout)
    }

    /// When nobody will have used it for so many seconds, if they are any. While it is in use: when
    /// to look again.
    fn unused_until(&self, seconds: u64) -> Option<Instant> {
        let since = self.idle_since().unwrap_or_else(Instant::now);
        if seconds == 0 { None } else { since.checked_add(Duration::from_secs(seconds)) }
    }

    /// Whether nobody has used it for so many seconds.
    fn is_unused(&self, seconds: u64, now: Instant) -> bool {
        let unused = |since: Instant| now.saturating_duration_since(since).as_secs() >= seconds;
        self.idle_since().is_some_and(unused)
    }

    /// Whether nobody has used it for as long as it takes to hibernate.
    pub(crate) fn is_idle(&self, now: Instant) -> bool {
        let timeout = lock(&self.limits).idle_timeout;
        self.is_unused(timeout, now)
    }

    /// Counts as a use.
    pub(crate) fn touch(&self) {
        self.used_at(Instant::now());
    }

    /// Was used then for the last time.
    pub(crate) fn used_at(&self, last: Instant) {
        lock(&self.activity).last = last;
    }

    /// The name that its guest has.
    pub(crate) fn hostname(&self) -> String {
        format!("panda-{}", &self.id().to_string()[..8])
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

    /// What it may reach: the policy in force.
    pub fn egress(&self) -> Policy {
        lock(&self.egress).clone()
    }

    /// What it tried to reach lately, and what was decided.
    pub fn egress_log(&self) -> &EgressLog {
        &self.egress_log
    }

    /// Changes what it may reach, also while it is paused. When this returns the policy is in
    /// force, and connections that it forbids are closed.
    pub async fn set_egress(&self, policy: Policy) -> Result<Policy, LifecycleError> {
        self.order(Order::Egress(Box::new(policy))).await?;
        Ok(self.egress())
    }

    /// What of it may be reached from outside.
    pub fn ingress(&self) -> &Ingress {
        &self.ingress
    }

    /// Stops its vCPUs. Pausing a paused sandbox succeeds.
    pub async fn pause(&self) -> Result<(), LifecycleError> {
        self.order(Order::Pause).await
    }

    /// Lets its vCPUs go on. Resuming a running sandbox succeeds.
    pub async fn resume(&self) -> Result<(), LifecycleError> {
        self.order(Order::Resume).await
    }

    /// Makes files of it, which cost no memory, and ends its machine. Commands that run in it are
    /// lost to their clients, not to the guest. Hibernating a hibernated sandbox succeeds.
    pub async fn hibernate(&self) -> Result<(), LifecycleError> {
        self.order(Order::Hibernate).await
    }

    /// Makes a machine of its files, in which everything goes on. Waking a running sandbox
    /// succeeds; a paused one goes on too.
    pub async fn wake(&self) -> Result<(), LifecycleError> {
        self.order(Order::Wake).await
    }

    /// Changes how long it may live, and when it hibernates.
    pub async fn change(&self, change: LifecycleChange) -> Result<Lifecycle, LifecycleError> {
        let ttl_seconds = change.ttl_seconds.map(crate::request::ttl).transpose()?;
        let idle_timeout = change.idle_timeout.map(crate::request::idle_timeout).transpose()?;
        let persistent = change.persistent;
        let ttl_mode = change.ttl_mode;
        let change =
            Change { ttl_seconds, persistent, ttl_mode, idle_timeout, ..Change::default() };
        self.order(Order::Limit(change)).await?;
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

    /// The agent, if the guest can be asked for something now; a hibernated one is woken for it.
    /// The returned mark keeps the sandbox from counting as idle.
    pub(crate) async fn guest(self: &Arc<Self>) -> Result<(AgentClient, Busy), Unavailable> {
        let busy = Busy::new(self.clone());
        self.needed().await?;
        if self.state() != State::Running {
            return Err(self.unavailable());
        }
        let live = lock(&self.live);
        let live = live.as_ref().ok_or_else(|| self.unavailable())?;
        Ok((live.machine.agent().clone(), busy))
    }

    /// Wakes it if it is hibernated: somebody needs its guest.
    pub(crate) async fn needed(&self) -> Result<(), Unavailable> {
        if self.state() != State::Hibernated && !self.leaving.load(Ordering::SeqCst) {
            return Ok(());
        }
        match self.order(Order::Use).await {
            Ok(()) => Ok(()),
            Err(LifecycleError::NotWoken(_, error)) => {
                tracing::warn!(sandbox = %self.id(), error = %Chain(&error), "was not woken");
                Err(Unavailable::NotWoken(self.id(), NoWake::from(&*error)))
            }
            Err(_) => Err(self.unavailable()),
        }
    }

    /// Why the guest cannot be asked for anything.
    pub(crate) fn unavailable(&self) -> Unavailable {
        let id = self.id();
        let status = *self.status.borrow();
        match (status.state, status.reason) {
            (State::Creating, _) => Unavailable::Creating(id),
            (State::Paused, _) => Unavailable::Paused(id),
            (State::Hibernated, _) => Unavailable::Hibernated(id),
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
            use State::{Deleted, Failed, Hibernated, Stopping};
            matches!(status.state, Hibernated | Stopping | Failed | Deleted)
        });
        tokio::time::timeout(EXPLANATION, ended).await.ok()?.ok()?;
        Some(self.unavailable())
    }

    pub(crate) fn show_egress(&self, policy: Policy) {
        *lock(&self.egress) = policy;
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

impl Busy {
    pub(crate) fn new(sandbox: Arc<Sandbox>) -> Self {
        lock(&sandbox.activity).running += 1;
        Self(sandbox)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut activity = lock(&self.0.activity);
        activity.running -= 1;
        activity.last = Instant::now();
    }
}
