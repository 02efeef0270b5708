//! The task that owns a sandbox: the only place where its state changes.
//!
//! ```text
//!                  ┌─hibernated─▶ sleep ──the server stops──▶ (found by the next one)
//!                  │ ◀──woken─────┘ │ deleted, expired
//!   boot ──ok──▶ serve ──machine died┼─▶ linger (answers why, for a while)
//!     │            │                 │      │
//!     │ failed     │ deleted, expired│      │ deleted, forgotten
//!     ▼            ▼                 ▼      ▼
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
use pandastack_engine::agent::Identity;
use pandastack_policy::Policy;
use pandastack_store::Transition;
use pandastack_types::{EndReason, State};
use serde_json::json;
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use crate::boot::{self, Housed, Litter};
use crate::egress;
use crate::error::{Chain, CreateError, LifecycleError, NotFound};
use crate::fault::{self, Point};
use crate::hibernate::Awake;
use crate::limits::Change;
use crate::manager::Core;
use crate::network::Attached;
use crate::sandbox::{Live, Sandbox, Status};
use crate::sync::lock;
use crate::volumes;

/// Time for a machine whose agent went away to say how it ended.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Time for a resumed guest to set its clock.
pub(crate) const SET_CLOCK: Duration = Duration::from_secs(5);

/// Something that the owner is asked to do.
pub(crate) enum Order {
    Pause,
    Resume,
    Limit(Change),
    /// Makes files of it, and ends its machine.
    Hibernate,
    /// Makes a machine of its files, or lets it run on.
    Wake,
    /// The same if it has none: somebody needs its guest.
    Use,
    /// The server stops: hibernates it, if it is to be kept, or ends it.
    Rest,
    /// Makes a copy of the machine per name. Whoever waits for them makes them sandboxes.
    Fork {
        names: Vec<String>,
        machines: oneshot::Sender<Result<Litter, CreateError>>,
    },
    /// Changes what it may reach.
    Egress(Box<Policy>),
    End(EndReason),
}

/// An order, and whom to tell when it is carried out.
pub(crate) struct Message {
    pub(crate) order: Order,
    pub(crate) done: Done,
}

/// Whom to tell how an order went.
type Done = Option<oneshot::Sender<Result<(), LifecycleError>>>;

pub(crate) fn answer(done: Done, result: Result<(), LifecycleError>) {
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
    /// Its machine's network: there from before the machine runs until it ends, unless it had to
    /// be cut off.
    pub(crate) link: Option<Box<dyn Attached>>,
}

/// Why serving stopped.
enum Stop {
    /// Somebody or something wants it gone.
    End(EndReason, Option<Message>),
    /// Its machine ended by itself.
    Died(EndReason),
    /// It is files; its machine stands still for good.
    Hibernated(Message),
}

impl Owner {
    /// Owns a sandbox with a machine that is ready, or one that is files, until nothing of it is
    /// left or the server stops.
    pub(crate) async fn run(mut self, mut awake: Option<Housed>) {
        loop {
            let housed = match awake.take() {
                Some(housed) => housed,
                None => match self.sleep().await {
                    Awake::Woken(housed) => housed,
                    Awake::End(reason, message) => return self.end(None, reason, message).await,
                    Awake::Left(message) => return self.leave(message),
                },
            };
            match self.serve(&housed).await {
                Stop::End(reason, message) => return self.end(Some(housed), reason, message).await,
                Stop::Died(reason) => {
                    self.fail(housed, reason).await;
                    let message = self.linger().await;
                    return self.end(None, reason, message).await;
                }
                Stop::Hibernated(message) => {
                    self.part(Some(housed)).await;
                    fault::point(Point::HibernateParted);
                    if matches!(message.order, Order::Rest) {
                        return self.leave(message);
                    }
                    answer(message.done, Ok(()));
                }
            }
        }
    }

    /// The server stops, and the sandbox is files that the next one finds.
    fn leave(mut self, message: Message) {
        self.sandbox.logs.close();
        self.sandbox.history.close();
        self.sandbox.egress_log.close();
        answer(message.done, Ok(()));
        self.answer_late_orders();
    }

    /// Waits for an order to end, refusing all others. For the time before there is a machine.
    pub(crate) async fn ended_early(&mut self) -> Message {
        loop {
            match self.mailbox.recv().await {
                Some(message) if matches!(message.order, Order::End(_) | Order::Rest) => {
                    return message;
                }
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
            let deadline = self.sandbox.ends_at();
            let idle = self.sandbox.hibernates_at();
            tokio::select! {
                exit = machine.exited() => return Stop::Died(reason_of(exit)),
                () = machine.agent().closed() => {
                    // The machine usually follows at once and knows the reason better.
                    let exit = timeout(LAST_WORDS, machine.exited()).await;
                    return Stop::Died(exit.map_or(EndReason::MachineDied, reason_of));
                }
                () = until(deadline) => {
                    if self.sandbox.is_over(Instant::now()) {
                        return Stop::End(EndReason::Ttl, None);
                    }
                }
                () = until(idle) => {
                    if self.sandbox.is_idle(Instant::now()) {
                        let message = Message { order: Order::Hibernate, done: None };
                        if let Some(stop) = self.retire(message, housed).await {
                            return stop;
                        }
                    }
                }
                message = self.mailbox.recv() => {
                    let Some(message) = message else { continue };
                    match message.order {
                        Order::End(reason) => return Stop::End(reason, Some(message)),
                        Order::Hibernate | Order::Rest => {
                            if let Some(stop) = self.retire(message, housed).await {
                                return stop;
                            }
                        }
                        order => {
                            let result = self.obey(order, housed).await;
                            answer(message.done, result);
                        }
                    }
                }
            }
        }
    }

    /// Hibernates, for whatever reason; `None` if that failed and the machine goes on.
    async fn retire(&mut self, message: Message, housed: &Housed) -> Option<Stop> {
        let rests = matches!(message.order, Order::Rest);
        if rests && !lock(&self.sandbox.limits).persistent {
            return Some(Stop::End(EndReason::ServerStopped, Some(message)));
        }
        let error = match self.hibernate(housed).await {
            Ok(()) => return Some(Stop::Hibernated(message)),
            Err(error) => error,
        };
        self.warn("did not hibernate", &error);
        if rests {
            return Some(Stop::End(EndReason::ServerStopped, Some(message)));
        }
        // It tries again after another while.
        self.sandbox.touch();
        answer(message.done, Err(error));
        None
    }

    async fn obey(&mut self, order: Order, housed: &Housed) -> Result<(), LifecycleError> {
        match (order, self.sandbox.state()) {
            (Order::Use, _)
            | (Order::Pause, State::Paused)
            | (Order::Resume | Order::Wake, State::Running) => Ok(()),
            (Order::Pause, _) => self.pause(housed).await,
            (Order::Resume | Order::Wake, _) => self.resume(housed).await,
            (Order::Limit(change), _) => self.limit(change),
            (Order::Fork { names, machines }, _) => {
                self.fork(housed, names, machines).await;
                Ok(())
            }
            (Order::Egress(policy), _) => {
                let Self { core, sandbox, link, .. } = self;
                egress::set(core, sandbox, &*housed.machine, link, *policy).await
            }
            // Handled by the caller, which owns the machine.
            (Order::End(_) | Order::Hibernate | Order::Rest, _) => Ok(()),
        }
    }

    async fn pause(&mut self, housed: &Housed) -> Result<(), LifecycleError> {
        self.journal(State::Paused, None)?;
        fault::point(Point::PauseJournalled);
        // Shown first, so that no command starts in a guest that is about to stand still.
        self.show(State::Paused, None);
        if let Err(error) = housed.machine.pause().await {
            self.journal(State::Running, None)?;
            self.show(State::Running, None);
            return Err(LifecycleError::Machine(error));
        }
        fault::point(Point::PauseDone);
        self.sandbox.clock.pause(Instant::now());
        Ok(())
    }

    async fn resume(&mut self, housed: &Housed) -> Result<(), LifecycleError> {
        self.journal(State::Running, None)?;
        fault::point(Point::ResumeJournalled);
        if let Err(error) = housed.machine.run().await {
            self.step_back();
            return Err(LifecycleError::Machine(error));
        }
        fault::point(Point::ResumeDone);
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
        machines: oneshot::Sender<Result<Litter, CreateError>>,
    ) {
        if machines.is_closed() {
            return;
        }
        let children = names.len();
        let deadline = self.core.config.ready_deadline;
        let forked = boot::fork(&*housed.machine, &self.core.machines, names, deadline).await;
        fault::point(Point::ForkCopied);
        if forked.is_ok() {
            self.sandbox.history.push("sandbox.forked", json!({ "children": children }));
        }
        // No order to change it comes between the copy and this.
        let litter = forked.map(|copies| Litter { copies, egress: self.sandbox.egress() });
        if let Err(Ok(unwanted)) = machines.send(litter) {
            for housed in unwanted.copies.machines {
                housed.machine.kill().await;
            }
        }
    }

    /// Journals that a resume did not happen: the sandbox was shown as paused all along.
    fn step_back(&self) {
        if let Err(error) = self.write(State::Running, State::Paused, None) {
            self.warn("could not be journalled", &error);
        }
    }

    pub(crate) fn limit(&mut self, change: Change) -> Result<(), LifecycleError> {
        let old = *lock(&self.sandbox.limits);
        let now = Instant::now();
        let new = old.changed(change, now);
        let at = OffsetDateTime::now_utc();
        let written = self.core.store.set_lifecycle(self.sandbox.id(), &new.lifetime(at, now), at);
        written.map_err(LifecycleError::Journal)?;
        fault::point(Point::LimitJournalled);
        *lock(&self.sandbox.limits) = new;
        self.core.hold_until(&self.sandbox);
        let payload = json!({
            "ttl_seconds": new.ttl_seconds, "persistent": new.persistent,
            "idle_timeout": new.idle_timeout,
        });
        self.sandbox.history.push("sandbox.lifecycle", payload);
        Ok(())
    }

    /// The machine ended by itself: frees what it used and keeps the explanation.
    async fn fail(&mut self, housed: Housed, reason: EndReason) {
        tracing::info!(sandbox = %self.sandbox.id(), %reason, "ended by itself");
        self.journal_end(State::Failed, Some(reason));
        fault::point(Point::FailJournalled);
        if !self.sandbox.birth.volumes.is_empty() {
            // Before anybody hears of it: whoever does may want them next.
            housed.machine.kill().await;
            self.core.detach(&self.sandbox);
        }
        self.show(State::Failed, Some(reason));
        self.release(Some(housed)).await;
        fault::point(Point::FailReleased);
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
            Some(Order::Rest) if self.sandbox.state() != State::Failed => EndReason::ServerStopped,
            _ => reason,
        };
        let before = self.sandbox.state();
        self.journal_end(State::Stopping, Some(reason));
        fault::point(Point::EndJournalled);
        self.show(State::Stopping, Some(reason));
        if let Some(housed) = &housed {
            self.give_up_volumes(housed, before).await;
        }
        self.release(housed).await;
        fault::point(Point::EndReleased);
        self.core.clear_files(self.sandbox.id()).await;
        self.core.detach(&self.sandbox);
        fault::point(Point::EndCleared);
        self.journal_end(State::Deleted, Some(reason));
        fault::point(Point::EndDeleted);
        self.show(State::Deleted, Some(reason));
        self.core.forget(self.sandbox.id());
        self.sandbox.logs.close();
        self.sandbox.history.close();
        if let Some(message) = message {
            answer(message.done, Ok(()));
        }
        self.answer_late_orders();
    }

    /// Lets a guest that is about to end write to its volumes what it has not written yet. One
    /// that was paused runs for that, without a network.
    async fn give_up_volumes(&mut self, housed: &Housed, before: State) {
        if self.sandbox.birth.volumes.is_empty() {
            return;
        }
        lock(&self.sandbox.live).take();
        self.link = None;
        let runs = match before {
            State::Running => true,
            State::Paused => housed.machine.run().await.is_ok(),
            _ => false,
        };
        if runs {
            volumes::flush(&self.sandbox, &*housed.machine, true).await;
        }
    }

    async fn release(&mut self, housed: Option<Housed>) {
        self.part(housed).await;
        self.sandbox.egress_log.close();
    }

    /// Ends the machine.
    async fn part(&mut self, housed: Option<Housed>) {
        lock(&self.sandbox.live).take();
        // The network first: a machine that takes its time to die reaches nothing meanwhile.
        self.link = None;
        if let Some(housed) = housed {
            housed.machine.kill().await;
        }
        // Whoever holds it need not end it any more.
        lock(&self.sandbox.hold).take();
    }

    /// Orders that came while the sandbox was ending: another end has what it wants.
    fn answer_late_orders(&mut self) {
        self.mailbox.close();
        while let Ok(message) = self.mailbox.try_recv() {
            let result = match message.order {
                Order::End(_) | Order::Rest => Ok(()),
                _ => Err(NotFound(self.sandbox.id()).into()),
            };
            answer(message.done, result);
        }
    }

    /// Shows a machine that is ready: the last step of a create.
    pub(crate) fn ready(
        &mut self,
        housed: &Housed,
        identity: Identity,
    ) -> Result<(), LifecycleError> {
        self.journal(State::Running, None)?;
        fault::point(Point::ReadyJournalled);
        let live = Live { machine: housed.machine.clone(), identity, since: Instant::now() };
        *lock(&self.sandbox.live) = Some(live);
        self.show(State::Running, None);
        fault::point(Point::ReadyShown);
        Ok(())
    }

    pub(crate) fn show(&self, state: State, reason: Option<EndReason>) {
        self.sandbox.publish(Status { state, reason });
    }

    fn journal(&self, to: State, reason: Option<EndReason>) -> Result<(), LifecycleError> {
        let from = self.sandbox.state();
        // The owner asks only for steps of the diagram; were it wrong, nothing would be done.
        if let Err(illegal) = from.step(to) {
            tracing::error!(sandbox = %self.sandbox.id(), %illegal, "refused");
            return Err(self.sandbox.unavailable().into());
        }
        self.write(from, to, reason)
    }

    /// Journals a step from a state that is not the one that is shown.
    pub(crate) fn write(
        &self,
        from: State,
        to: State,
        reason: Option<EndReason>,
    ) -> Result<(), LifecycleError> {
        let at = OffsetDateTime::now_utc();
        let change = Transition { id: self.sandbox.id(), from, to, reason, at };
        self.core.store.transition(&change).map_err(LifecycleError::Journal)
    }

    fn journal_end(&self, to: State, reason: Option<EndReason>) {
        if let Err(error) = self.journal(to, reason) {
            self.warn("could not be journalled", &error);
        }
    }

    pub(crate) fn warn(&self, what: &str, error: &dyn std::error::Error) {
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

pub(crate) async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => pending().await,
    }
}
