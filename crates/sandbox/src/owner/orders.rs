//! Carrying out what leaves a sandbox its machine: pause, resume, limits, copies, policy.

use std::time::{Duration, Instant, SystemTime};

use pandastack_types::State;
use serde_json::json;
use time::OffsetDateTime;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::{Order, Owner};
use crate::boot::{self, Housed, Litter};
use crate::egress;
use crate::error::{CreateError, LifecycleError};
use crate::fault::{self, Point};
use crate::limits::Change;
use crate::sync::lock;

/// Time for a resumed guest to set its clock.
pub(crate) const SET_CLOCK: Duration = Duration::from_secs(5);

impl Owner {
    pub(super) async fn obey(
        &mut self,
        order: Order,
        housed: &Housed,
    ) -> Result<(), LifecycleError> {
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
}
