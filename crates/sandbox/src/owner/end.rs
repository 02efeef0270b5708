//! How a sandbox ends, or is left to the next server.
//!
//! The invariant: **whatever fails on the way, afterwards nothing of it is left** but an
//! explanation, and whoever waits for the end is answered.

use std::future::pending;

use pandastack_types::{EndReason, State};
use tokio::time::timeout;

use super::{Message, Order, Owner, answer};
use crate::boot::Housed;
use crate::error::NotFound;
use crate::fault::{self, Point};
use crate::sync::lock;
use crate::volumes;

impl Owner {
    /// The server stops, and the sandbox is files that the next one finds.
    pub(super) fn leave(mut self, message: Message) {
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

    /// The machine ended by itself: frees what it used and keeps the explanation.
    pub(super) async fn fail(&mut self, housed: Housed, reason: EndReason) {
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
    pub(super) async fn linger(&mut self) -> Option<Message> {
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
    pub(super) async fn part(&mut self, housed: Option<Housed>) {
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
}
