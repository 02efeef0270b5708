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

mod end;
mod orders;

use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pandastack_engine::Exit;
use pandastack_engine::agent::Identity;
use pandastack_policy::Policy;
use pandastack_store::Transition;
use pandastack_types::{EndReason, State};
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

pub(crate) use self::orders::SET_CLOCK;
use crate::boot::{Housed, Litter};
use crate::error::{Chain, CreateError, LifecycleError};
use crate::fault::{self, Point};
use crate::hibernate::Awake;
use crate::limits::Change;
use crate::manager::Core;
use crate::network::Attached;
use crate::sandbox::{Live, Sandbox, Status};
use crate::sync::lock;

/// Time for a machine whose agent went away to say how it ended.
const LAST_WORDS: Duration = Duration::from_secs(1);

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
