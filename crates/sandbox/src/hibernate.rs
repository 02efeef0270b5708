//! Hibernation: a sandbox that is files until somebody needs it.
//!
//! ```text
//!   running, paused ─▶ stands still ─▶ files on the shelf ─▶ journal ─▶ no machine     asleep
//!   asleep ─▶ admission ─▶ restore ─▶ network ─▶ identity ─▶ journal ─▶ files away    running
//! ```
//!
//! **The files decide.** They appear and vanish by a rename, so a sandbox whose files are on the
//! shelf is hibernated, whatever a crash left in its record: before they are there the machine is,
//! and when they are taken away it is again. A wake that fails leaves them, and the sandbox sleeps
//! on. What is written is what differs from the template, as in a snapshot.
//!
//! A woken sandbox is the same machine, with its names, and not a copy: nobody else is ever made of
//! its files. Its connections and the commands that clients waited for are broken all the same.

use std::fmt::Display;
use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime};

use pandastack_engine::After;
use pandastack_engine::agent::Identity;
use pandastack_types::{EndReason, SandboxId, SnapshotId, State};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::boot::{Housed, Source, WOKEN};
use crate::egress;
use crate::error::{Chain, CreateError, DeleteSnapshotError, LifecycleError};
use crate::fault::{self, Point};
use crate::launch::{self, Booted, Parts};
use crate::manager::Core;
use crate::owner::{Message, Order, Owner, SET_CLOCK, answer, until};
use crate::sandbox::Live;
use crate::snapshot::Thawed;
use crate::stages::Stages;
use crate::sync::lock;
use crate::volumes;

/// The place of a sandbox on the shelf of those that are hibernated.
pub(crate) fn place(id: SandboxId) -> SnapshotId {
    id.into()
}

/// How a sleep ended.
pub(crate) enum Awake {
    /// It has a machine again.
    Woken(Housed),
    /// Somebody or something wants it gone.
    End(EndReason, Option<Message>),
    /// The server stops, and the sandbox sleeps on without it.
    Left(Message),
}

impl Owner {
    /// Makes files of a machine that stands still afterwards, for good. If that fails, the machine
    /// goes on as it was.
    pub(crate) async fn hibernate(&mut self, housed: &Housed) -> Result<(), LifecycleError> {
        let before = self.sandbox.state();
        // No command starts in a guest that is about to be files: it waits for the end of this and
        // wakes the sandbox.
        self.sandbox.leaving.store(true, Ordering::SeqCst);
        let filed = self.file(housed, before).await;
        match filed {
            Ok(()) => self.show(State::Hibernated, None),
            Err(_) => self.stay(housed, before).await,
        }
        self.sandbox.leaving.store(false, Ordering::SeqCst);
        filed
    }

    async fn file(&self, housed: &Housed, before: State) -> Result<(), LifecycleError> {
        let mut stages = Stages::start();
        if before == State::Running {
            // So that its volumes are as good as can be if nobody ever wakes it.
            volumes::flush(&self.sandbox, &*housed.machine, false).await;
        }
        housed.machine.pause().await.map_err(LifecycleError::Machine)?;
        stages.mark("pause");
        self.sandbox.clock.pause(Instant::now());
        fault::point(Point::HibernatePaused);
        let (core, shelf) = (&self.core, &self.core.hibernated);
        core.keep(&self.sandbox, shelf, place(self.sandbox.id()), After::Ends)
            .await
            .map_err(|error| LifecycleError::NotHibernated(Box::new(error)))?;
        stages.mark("files");
        let written = self.write(before, State::Hibernated, None);
        fault::point(Point::HibernateJournalled);
        if written.is_err() {
            core.clear_files(self.sandbox.id()).await;
        }
        stages.mark("commit");
        self.sandbox.history.push("sandbox.stages", stages.to_json());
        written
    }

    /// Undoes what a hibernation did that failed.
    async fn stay(&self, housed: &Housed, before: State) {
        if before == State::Running {
            match housed.machine.run().await {
                Ok(_) => {
                    let set = housed.machine.agent().set_clock(SystemTime::now());
                    if let Err(late) = timeout(SET_CLOCK, set).await {
                        self.warn("did not set its clock in time", &late);
                    }
                }
                // It is about to be found dead, or can still be deleted.
                Err(error) => self.warn("does not run on", &error),
            }
            self.sandbox.clock.resume(Instant::now());
        }
    }

    /// Owns a sandbox that is files, until it has a machine again or is over.
    pub(crate) async fn sleep(&mut self) -> Awake {
        loop {
            let deadline = self.sandbox.ends_at();
            let message = tokio::select! {
                () = until(deadline) => {
                    if self.sandbox.is_over(Instant::now()) {
                        return Awake::End(EndReason::Ttl, None);
                    }
                    continue;
                }
                message = self.mailbox.recv() => message,
            };
            let Some(Message { order, done }) = message else { continue };
            let result = match order {
                Order::End(reason) => {
                    return Awake::End(reason, Some(Message { order, done }));
                }
                Order::Rest => return Awake::Left(Message { order, done }),
                Order::Wake | Order::Use | Order::Resume => match self.wake().await {
                    Ok(housed) => {
                        answer(done, Ok(()));
                        return Awake::Woken(housed);
                    }
                    Err(error) => Err(LifecycleError::NotWoken(self.sandbox.id(), Box::new(error))),
                },
                Order::Hibernate => Ok(()),
                Order::Limit(change) => self.limit(change),
                Order::Egress(policy) => egress::set_unattached(&self.core, &self.sandbox, *policy),
                Order::Pause | Order::Fork { .. } => Err(self.sandbox.unavailable().into()),
            };
            answer(done, result);
        }
    }

    /// Makes a machine of the files. They stay until it is this sandbox's.
    async fn wake(&mut self) -> Result<Housed, CreateError> {
        let (core, sandbox) = (self.core.clone(), self.sandbox.clone());
        let mut stages = Stages::start();
        let permit = core.admit(sandbox.birth.size)?;
        stages.mark("admission");
        let Thawed { bake, token, lease, names, .. } =
            core.thaw(&core.hibernated, place(sandbox.id()))?;
        let mut identity = Identity::random(&sandbox.hostname())
            .map_err(|error| CreateError::Machine(error.into()))?;
        if let Some(names) = names {
            identity =
                Identity { machine_id: names.machine_id, boot_id: names.boot_id, ..identity };
        }
        let volumes = core.refit(&sandbox, &bake.dir);
        let parts = Parts { source: Source::thaw(bake, token, lease), volumes };
        let Booted { housed, identity, link } =
            launch::boot(&core, &sandbox, parts, identity, &mut stages).await?;
        if let Err(error) = self.write(State::Hibernated, State::Running, None) {
            housed.machine.kill().await;
            return Err(match error {
                LifecycleError::Journal(source) => CreateError::Journal(source),
                _ => CreateError::Deleted,
            });
        }
        fault::point(Point::WakeJournalled);
        stages.mark("commit");
        self.link = Some(link);
        let machine = housed.machine.clone();
        *lock(&sandbox.live) = Some(Live { machine, identity, since: Instant::now() });
        let waking = |stages: &Stages| {
            let mut boot = lock(&sandbox.boot);
            boot.mode = WOKEN;
            boot.took = stages.total();
        };
        waking(&stages);
        // Before the files go, so that the next server finds the one or the other.
        core.hold(&sandbox, &housed);
        // Before anybody hears of it: from now on the files are the past.
        core.take_files_away(sandbox.id()).await;
        fault::point(Point::WakeCleared);
        stages.mark("files");
        waking(&stages);
        sandbox.clock.resume(Instant::now());
        sandbox.touch();
        self.show(State::Running, None);
        drop(permit);
        sandbox.history.push("sandbox.stages", stages.to_json());
        Ok(housed)
    }
}

impl Core {
    /// Removes the files of a sandbox that is over.
    pub(crate) async fn clear_files(&self, id: SandboxId) {
        if let Some(removing) = self.take_files_away(id).await {
            // What can go wrong is said there.
            let _ = removing.await;
        }
    }

    /// Takes the files of a sandbox off the shelf, at once, and begins to remove them, which can
    /// take long. Those that cannot be removed are found at the next start.
    async fn take_files_away(&self, id: SandboxId) -> Option<JoinHandle<()>> {
        let shelf = self.hibernated.clone();
        if !shelf.path(place(id)).exists() {
            return None;
        }
        let taking = tokio::task::spawn_blocking(move || shelf.take_away(place(id)));
        let left = move |error: &dyn Display| {
            tracing::error!(sandbox = %id, %error, "its files are left");
        };
        match taking.await {
            Ok(Ok(away)) => Some(self.tasks.spawn_blocking(move || {
                std::fs::remove_dir_all(away).unwrap_or_else(|error| left(&error));
            })),
            Ok(Err(DeleteSnapshotError::NotFound(_))) => None,
            Ok(Err(error)) => {
                left(&Chain(&error));
                None
            }
            Err(error) => {
                left(&error);
                None
            }
        }
    }
}
