//! The task that owns a sandbox: the only place where its state changes.
//!
//! ```text
//!   boot ──ok──▶ serve ──machine died──▶ linger (answers why, for a while)
//!     │            │                        │
//!     │ failed     │ deleted, expired       │ deleted, forgotten
//!     ▼            ▼                        ▼
//!   ─────────────── end: kill, remove, forget ───────────────
//! ```
//!
//! Each step is checked by [`State::step`], written to the journal, shown to everybody, and only
//! then carried out. A journal that cannot be written stops a create, a pause and a resume; it
//! never stops an end, because a full disk must not keep machines alive (recovery finds them by
//! their directory as well).
//!
//! Orders wait in the mailbox while another one is carried out, so they never overlap.

use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use pandastack_engine::Exit;
use pandastack_proto::Token;
use pandastack_store::Transition;
use pandastack_types::{EndReason, State};
use serde_json::json;
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::boot::{self, Copies, Housed};
use crate::error::{Chain, CreateError, LifecycleError, NotFound};
use crate::manager::Core;
use crate::sandbox::{Live, Sandbox, Status};
use crate::sync::lock;

/// Time for a machine whose agent went away to say how it ended.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Time for a resumed guest to set its clock.
const SET_CLOCK: Duration = Duration::from_secs(5);

/// Something that the owner is asked to do.
pub(crate) enum Order {
    Pause,
    Resume,
    Limit {
        ttl_seconds: Option<u64>,
        persistent: Option<bool>,
    },
    /// Makes a copy of the machine per name. Whoever waits for them makes them sandboxes.
    Fork {
        names: Vec<String>,
        machines: oneshot::Sender<Result<Copies, CreateError>>,
    },
    End(EndReason),
}

/// An order, and whom to tell when it is carried out.
pub(crate) struct Message {
    pub(crate) order: Order,
    pub(crate) done: Done,
}

/// Whom to tell how an order went.
type Done = Option<oneshot::Sender<Result<(), LifecycleError>>>;

fn answer(done: Done, result: Result<(), LifecycleError>) {
    if let Some(done) = done {
        // Nobody waits any more: the requester's loss.
        let _ = done.send(result);
    }
}

/// The owner of one sandbox.
pub(crate) struct Owner {
    pub(crate) core: Arc<Core>,
    pub(crate) sandbox: Arc<Sandbox>,
    pub(crate) mailbox: mpsc::Receiver<Message>,
}

/// Why serving stopped.
enum Stop {
    /// Somebody or something wants it gone.
    End(EndReason, Option<Message>),
    /// Its machine ended by itself.
    Died(EndReason),
}

impl Owner {
    /// Owns a machine that is ready, until nothing of the sandbox is left.
    pub(crate) async fn run(mut self, housed: Housed) {
        match self.serve(&housed).await {
            Stop::End(reason, message) => self.end(Some(housed), reason, message).await,
            Stop::Died(reason) => {
                self.fail(housed, reason).await;
                let message = self.linger().await;
                self.end(None, reason, message).await;
            }
        }
    }

    /// Waits for an order to end, refusing all others. For the time before there is a machine.
    pub(crate) async fn ended_early(&mut self) -> Message {
        loop {
            match self.mailbox.recv().await {
                Some(message) if matches!(message.order, Order::End(_)) => return message,
                Some(message) => {
                    let refusal = self.sandbox.unavailable();
                    answer(message.done, Err(refusal.into()));
                }
                // Cannot be: the sandbox itself holds a sender.
                None => pending().await,
            }
        }
    }

    async fn serve(&mut self, housed: &Housed) -> Stop {
        let machine = housed.machine.clone();
        loop {
            let deadline = lock(&self.sandbox.limits).deadline;
            tokio::select! {
                exit = machine.exited() => return Stop::Died(reason_of(exit)),
                () = machine.agent().closed() => {
                    // The machine usually follows at once and knows the reason better.
                    let exit = timeout(LAST_WORDS, machine.exited()).await;
                    return Stop::Died(exit.map_or(EndReason::MachineDied, reason_of));
                }
                () = until(deadline) => return Stop::End(EndReason::Ttl, None),
                message = self.mailbox.recv() => {
                    let Some(message) = message else { continue };
                    if let Order::End(reason) = message.order {
                        return Stop::End(reason, Some(message));
                    }
                    let Message { order, done } = message;
                    let result = self.obey(order, housed).await;
                    answer(done, result);
                }
            }
        }
    }

    async fn obey(&mut self, order: Order, housed: &Housed) -> Result<(), LifecycleError> {
        match (order, self.sandbox.state()) {
            (Order::Pause, State::Paused) | (Order::Resume, State::Running) => Ok(()),
            (Order::Pause, _) => self.pause(housed).await,
            (Order::Resume, _) => self.resume(housed).await,
            (Order::Limit { ttl_seconds, persistent }, _) => self.limit(ttl_seconds, persistent),
            (Order::Fork { names, machines }, _) => {
                self.fork(housed, names, machines).await;
                Ok(())
            }
            // Handled by the caller, which owns the machine.
            (Order::End(_), _) => Ok(()),
        }
    }

    async fn pause(&mut self, housed: &Housed) -> Result<(), LifecycleError> {
        self.journal(State::Paused, None)?;
        // Shown first, so that no command starts in a guest that is about to stand still.
        self.show(State::Paused, None);
        if let Err(error) = housed.machine.pause().await {
            self.journal(State::Running, None)?;
            self.show(State::Running, None);
            return Err(LifecycleError::Machine(error));
        }
        self.sandbox.clock.pause(Instant::now());
        Ok(())
    }

    async fn resume(&mut self, housed: &Housed) -> Result<(), LifecycleError> {
        self.journal(State::Running, None)?;
        if let Err(error) = housed.machine.run().await {
            self.step_back();
            return Err(LifecycleError::Machine(error));
        }
        self.sandbox.clock.resume(Instant::now());
        // The guest's clock stood still. One that does not take the time is told nothing more:
        // it may be busy, and its owner can still use or delete it.
        match timeout(SET_CLOCK, housed.machine.agent().set_clock(SystemTime::now())).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.warn("did not set its clock", &error),
            Err(late) => self.warn("did not set its clock in time", &late),
        }
        self.show(State::Running, None);
        Ok(())
    }

    /// Copies the machine, which goes on as it was. A requester that has gone meanwhile gets
    /// nothing, and the copies that nobody takes end here.
    async fn fork(
        &self,
        housed: &Housed,
        names: Vec<String>,
        machines: oneshot::Sender<Result<Copies, CreateError>>,
    ) {
        if machines.is_closed() {
            return;
        }
        let children = names.len();
        let deadline = self.core.config.ready_deadline;
        let forked = boot::fork(&*housed.machine, &self.core.machines, names, deadline).await;
        if forked.is_ok() {
            self.sandbox.history.push("sandbox.forked", json!({ "children": children }));
        }
        if let Err(Ok(unwanted)) = machines.send(forked) {
            for housed in unwanted.machines {
                housed.machine.kill().await;
            }
        }
    }

    /// Journals that a resume did not happen: the sandbox was shown as paused all along.
    fn step_back(&self) {
        let back = Transition {
            id: self.sandbox.id(),
            from: State::Running,
            to: State::Paused,
            reason: None,
            at: OffsetDateTime::now_utc(),
        };
        if let Err(error) = self.core.store.transition(&back) {
            self.warn("could not be journalled", &error);
        }
    }

    fn limit(
        &mut self,
        ttl_seconds: Option<u64>,
        persistent: Option<bool>,
    ) -> Result<(), LifecycleError> {
        let old = *lock(&self.sandbox.limits);
        let new = old.changed(ttl_seconds, persistent, Instant::now());
        let id = self.sandbox.id();
        let now = OffsetDateTime::now_utc();
        let written = self.core.store.set_lifecycle(id, new.ttl_seconds, new.persistent, now);
        written.map_err(LifecycleError::Journal)?;
        *lock(&self.sandbox.limits) = new;
        let payload = json!({ "ttl_seconds": new.ttl_seconds, "persistent": new.persistent });
        self.sandbox.history.push("sandbox.lifecycle", payload);
        Ok(())
    }

    /// The machine ended by itself: frees what it used and keeps the explanation.
    async fn fail(&mut self, housed: Housed, reason: EndReason) {
        tracing::info!(sandbox = %self.sandbox.id(), %reason, "ended by itself");
        self.journal_end(State::Failed, Some(reason));
        self.show(State::Failed, Some(reason));
        self.release(Some(housed)).await;
        self.sandbox.logs.shrink();
        self.core.note_ended(self.sandbox.id());
    }

    /// Keeps answering why the sandbox ended, until somebody deletes it or it is forgotten.
    async fn linger(&mut self) -> Option<Message> {
        timeout(self.core.config.ended_kept, self.ended_early()).await.ok()
    }

    /// Ends the sandbox: afterwards nothing of it is left. Never fails.
    pub(crate) async fn end(
        mut self,
        housed: Option<Housed>,
        reason: EndReason,
        message: Option<Message>,
    ) {
        let reason = match message.as_ref().map(|message| &message.order) {
            // A sandbox that has ended already keeps its reason.
            Some(Order::End(wanted)) if self.sandbox.state() != State::Failed => *wanted,
            _ => reason,
        };
        self.journal_end(State::Stopping, Some(reason));
        self.show(State::Stopping, Some(reason));
        self.release(housed).await;
        self.journal_end(State::Deleted, Some(reason));
        self.show(State::Deleted, Some(reason));
        self.core.forget(self.sandbox.id());
        self.sandbox.logs.close();
        self.sandbox.history.close();
        if let Some(message) = message {
            answer(message.done, Ok(()));
        }
        self.answer_late_orders();
    }

    async fn release(&mut self, housed: Option<Housed>) {
        lock(&self.sandbox.live).take();
        if let Some(housed) = housed {
            housed.machine.kill().await;
        }
    }

    /// Orders that came while the sandbox was ending: another end has what it wants.
    fn answer_late_orders(&mut self) {
        self.mailbox.close();
        while let Ok(message) = self.mailbox.try_recv() {
            let result = match message.order {
                Order::End(_) => Ok(()),
                _ => Err(NotFound(self.sandbox.id()).into()),
            };
            answer(message.done, result);
        }
    }

    /// Shows a machine that is ready: the last step of a create.
    pub(crate) fn ready(&mut self, housed: &Housed, token: Token) -> Result<(), LifecycleError> {
        self.journal(State::Running, None)?;
        let live = Live { machine: housed.machine.clone(), token, since: Instant::now() };
        *lock(&self.sandbox.live) = Some(live);
        self.show(State::Running, None);
        Ok(())
    }

    fn show(&self, state: State, reason: Option<EndReason>) {
        self.sandbox.publish(Status { state, reason });
    }

    fn journal(&self, to: State, reason: Option<EndReason>) -> Result<(), LifecycleError> {
        let from = self.sandbox.state();
        // The owner asks only for steps of the diagram; were it wrong, nothing would be done.
        if let Err(illegal) = from.step(to) {
            tracing::error!(sandbox = %self.sandbox.id(), %illegal, "refused");
            return Err(self.sandbox.unavailable().into());
        }
        let at = OffsetDateTime::now_utc();
        let change = Transition { id: self.sandbox.id(), from, to, reason, at };
        self.core.store.transition(&change).map_err(LifecycleError::Journal)
    }

    fn journal_end(&self, to: State, reason: Option<EndReason>) {
        if let Err(error) = self.journal(to, reason) {
            self.warn("could not be journalled", &error);
        }
    }

    fn warn(&self, what: &str, error: &dyn std::error::Error) {
        tracing::warn!(sandbox = %self.sandbox.id(), error = %Chain(error), "{what}");
    }
}

fn reason_of(exit: Exit) -> EndReason {
    match exit {
        Exit::GuestShutdown => EndReason::GuestShutdown,
        Exit::GuestPanic => EndReason::GuestPanic,
        Exit::Died | Exit::Killed => EndReason::MachineDied,
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => pending().await,
    }
}
