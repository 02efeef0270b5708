//! From an admitted sandbox to one that is ready.
//!
//! ```text
//!   Launch ─▶ Draft ── open ──▶ begin ─▶ owner task: boot ─▶ answer ─▶ Pending
//!             nothing of it      │ everything after this line is
//!             exists yet         │ undone by the owner
//! ```
//!
//! From the journal on, the owner task does the work, so a requester that goes away cannot leave
//! half a sandbox: the [`Pending`] that it drops orders the owner to end it.

use std::sync::Arc;
use std::time::Instant;

use pandastack_engine::agent::Identity;
use pandastack_engine::{Bake, Machine};
use pandastack_policy::Policy;
use pandastack_store::SandboxRecord;
use pandastack_types::{EndReason, SandboxId, SandboxView, State};
use serde_json::json;
use tokio::sync::{mpsc, oneshot};

use crate::admission::Permit;
use crate::boot::{self, Copied, Housed, Source};
use crate::egress;
use crate::error::{Chain, CreateError, LifecycleError};
use crate::fault::{self, Point};
use crate::limits::Limits;
use crate::manager::Core;
use crate::network::{self, Attached};
use crate::owner::{Message, Order, Owner};
use crate::sandbox::{Birth, Sandbox};
use crate::stages::Stages;
use crate::sync::lock;
use crate::volumes::{self, Fitting, Reserved};

/// Orders that may wait for an owner. Senders wait beyond that.
pub(crate) const MAILBOX: usize = 16;

/// A sandbox that is ready.
#[derive(Clone, Debug)]
pub struct Created {
    /// The sandbox as the API shows it.
    pub view: SandboxView,
    /// Where the time went.
    pub stages: Stages,
}

type Answer = oneshot::Sender<Result<Created, CreateError>>;

/// A sandbox that was let in.
pub(crate) struct Launch {
    pub(crate) birth: Birth,
    pub(crate) limits: Limits,
    pub(crate) egress: Policy,
    pub(crate) source: Source,
    pub(crate) reserved: Reserved,
    pub(crate) stages: Stages,
    /// Given back once the sandbox counts by itself.
    pub(crate) permit: Permit,
}

/// A sandbox with everything it needs, of which nobody knows yet.
pub(crate) struct Draft {
    sandbox: Arc<Sandbox>,
    mailbox: mpsc::Receiver<Message>,
    record: SandboxRecord,
    source: Source,
    reserved: Reserved,
    stages: Stages,
    permit: Permit,
}

impl Draft {
    pub(crate) fn new(core: &Core, launch: Launch) -> Self {
        let Launch { birth, limits, egress, source, reserved, stages, permit } = launch;
        let record = record(&birth, &limits, &egress, source.name());
        let (sender, mailbox) = mpsc::channel(MAILBOX);
        let boot_mode = source.boot_mode();
        let log_bytes = core.config.log_bytes;
        let sandbox = Sandbox::new(birth, limits, egress, boot_mode, log_bytes, sender);
        Self { sandbox: Arc::new(sandbox), mailbox, record, source, reserved, stages, permit }
    }

    /// Starts the owner. The draft must be open.
    pub(crate) fn begin(mut self, core: &Arc<Core>) -> Pending {
        self.stages.mark("journal");
        self.sandbox.history.push("sandbox.creating", json!({}));
        let id = self.sandbox.id();
        let (answer, created) = oneshot::channel();
        let Self { sandbox, mailbox, .. } = self;
        let owner = Owner { core: core.clone(), sandbox, mailbox, link: None };
        let parts = Parts { source: self.source, volumes: self.reserved.keep() };
        core.tasks.spawn(owner.start(parts, self.stages, self.permit, answer));
        Pending { core: core.clone(), id: Some(id), created }
    }
}

impl Core {
    /// Registers and journals sandboxes: all or none.
    pub(crate) fn open(&self, drafts: &[Draft]) -> Result<(), CreateError> {
        let opened = self.register_and_journal(drafts);
        if opened.is_err() {
            drafts.iter().for_each(|draft| self.forget(draft.sandbox.id()));
        }
        opened
    }

    fn register_and_journal(&self, drafts: &[Draft]) -> Result<(), CreateError> {
        drafts.iter().try_for_each(|draft| self.register(draft.sandbox.clone()))?;
        let records: Vec<_> = drafts.iter().map(|draft| draft.record.clone()).collect();
        self.store.create_all(&records).map_err(CreateError::Journal)
    }
}

/// A sandbox that is on its way, as its requester holds it. Dropping it ends the sandbox.
pub(crate) struct Pending {
    core: Arc<Core>,
    id: Option<SandboxId>,
    created: oneshot::Receiver<Result<Created, CreateError>>,
}

impl Pending {
    /// Waits until the sandbox is ready, or until nothing of it is left.
    pub(crate) async fn ready(mut self) -> Result<Created, CreateError> {
        let created = (&mut self.created).await.unwrap_or(Err(CreateError::Deleted));
        self.id = None;
        created
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let Some(sandbox) = self.id.and_then(|id| self.core.find(id)) else { return };
        // Without a runtime the owners are gone as well.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let ordering = async move {
            let end = Message { order: Order::End(EndReason::Deleted), done: None };
            let _ = sandbox.mailbox.send(end).await;
        };
        self.core.tasks.spawn_on(ordering, &runtime);
    }
}

impl Owner {
    /// Boots the sandbox, answers its requester and owns it to its end.
    async fn start(mut self, parts: Parts, mut stages: Stages, permit: Permit, answer: Answer) {
        let core = self.core.clone();
        let sandbox = self.sandbox.clone();
        let booted = tokio::select! {
            booted = first_boot(&core, &sandbox, parts, &mut stages) => booted,
            message = self.ended_early() => {
                let _ = answer.send(Err(CreateError::Deleted));
                return self.end(None, EndReason::Deleted, Some(message)).await;
            }
        };
        let Booted { housed, identity, link } = match booted {
            Ok(booted) => booted,
            Err(error) => return self.give_up(None, error, answer).await,
        };
        self.link = Some(link);
        if let Err(error) = self.ready(&housed, identity) {
            let error = match error {
                LifecycleError::Journal(source) => CreateError::Journal(source),
                _ => CreateError::Deleted,
            };
            return self.give_up(Some(housed), error, answer).await;
        }
        // From here on it counts by itself, and its memory shows in the host's own numbers.
        drop(permit);
        stages.mark("commit");
        lock(&sandbox.boot).took = stages.total();
        core.hold(&sandbox, &housed);
        sandbox.history.push("sandbox.stages", stages.to_json());
        match answer.send(Ok(Created { view: sandbox.view(), stages })) {
            Ok(()) => self.run(Some(housed)).await,
            // The requester is gone and nobody knows the id.
            Err(_) => self.end(Some(housed), EndReason::Deleted, None).await,
        }
    }

    /// Removes what was made and then says why: the requester may rely on nothing being left.
    async fn give_up(self, housed: Option<Housed>, error: CreateError, answer: Answer) {
        let id = self.sandbox.id();
        // Why a parent was not forked is said once, and not by each of its children.
        if !matches!(error, CreateError::NotForked) {
            tracing::warn!(sandbox = %id, error = %Chain(&error), "create failed");
        }
        self.end(housed, EndReason::CreateFailed, None).await;
        let _ = answer.send(Err(error));
    }
}

/// What a sandbox is made of.
pub(crate) struct Parts {
    pub(crate) source: Source,
    pub(crate) volumes: Vec<Fitting>,
}

/// A machine that is somebody's.
pub(crate) struct Booted {
    pub(crate) housed: Housed,
    /// The names that it has, and what its guest obeys.
    pub(crate) identity: Identity,
    pub(crate) link: Box<dyn Attached>,
}

async fn first_boot(
    core: &Core,
    sandbox: &Sandbox,
    parts: Parts,
    stages: &mut Stages,
) -> Result<Booted, CreateError> {
    let identity = Identity::random(&sandbox.hostname())
        .map_err(|error| CreateError::Machine(error.into()))?;
    boot(core, sandbox, parts, identity, stages).await
}

/// Makes a machine that is the sandbox's and answers to `identity`.
pub(crate) async fn boot(
    core: &Core,
    sandbox: &Sandbox,
    parts: Parts,
    identity: Identity,
    stages: &mut Stages,
) -> Result<Booted, CreateError> {
    let Parts { source, volumes } = parts;
    let housed = obtain(core, sandbox, source, stages).await?;
    fault::point(Point::MachineObtained);
    match settle(core, sandbox, &*housed.machine, &identity, &volumes, stages).await {
        Ok(link) => Ok(Booted { housed, identity, link }),
        Err(error) => {
            housed.machine.kill().await;
            Err(error)
        }
    }
}

/// A machine that stands still, whatever it comes from.
async fn obtain(
    core: &Core,
    sandbox: &Sandbox,
    source: Source,
    stages: &mut Stages,
) -> Result<Housed, CreateError> {
    match source {
        Source::Parked(housed) => Ok(housed),
        Source::Zygote(zygote, bake, name) => {
            match fork(core, &zygote, &bake, name.clone(), stages).await? {
                Some(housed) => Ok(housed),
                None => {
                    lock(&sandbox.boot).mode = boot::RESTORED;
                    restore(core, &bake, name, stages).await
                }
            }
        }
        Source::Bake(bake, name) => restore(core, &bake, name, stages).await,
        Source::Snapshot(bake, lease, token, name) => {
            let housed = restore(core, &bake, name, stages).await?;
            drop(lease);
            housed.machine.agent().set_token(token);
            Ok(housed)
        }
        Source::Child(_, machine) => {
            let Copied { housed, inherited } = machine.await.map_err(|_| CreateError::NotForked)?;
            stages.mark("fork");
            if let Some(policy) = inherited {
                egress::inherit(core, sandbox, policy)?;
            }
            Ok(housed)
        }
    }
}

/// Makes a machine this sandbox's. The network comes first, so that no frame of it is without a
/// policy.
async fn settle(
    core: &Core,
    sandbox: &Sandbox,
    machine: &dyn Machine,
    identity: &Identity,
    volumes: &[Fitting],
    stages: &mut Stages,
) -> Result<Box<dyn Attached>, CreateError> {
    let sizes = volumes::fit(machine, volumes).await?;
    let link = network::attach(core, sandbox, machine, sandbox.egress()).await?;
    stages.mark("attach");
    fault::point(Point::MachineAttached);
    boot::adopt(machine, identity, core.config.ready_deadline, stages).await?;
    fault::point(Point::MachineAdopted);
    if !volumes.is_empty() {
        volumes::mount(machine, volumes, &sizes, core.config.ready_deadline).await?;
        stages.mark("volumes");
    }
    Ok(link)
}

/// Forks a zygote; `None` when it is no good any more and a restore has to do.
///
/// Takes no turn: turns keep restores, which are long and busy, from starving each other. A fork
/// takes milliseconds, and those of one zygote queue up in it anyway.
async fn fork(
    core: &Core,
    zygote: &Housed,
    bake: &Bake,
    name: String,
    stages: &mut Stages,
) -> Result<Option<Housed>, CreateError> {
    // Half of the time, so that enough is left to restore instead.
    let deadline = core.config.ready_deadline / 2;
    let forked = boot::fork_one(zygote, &core.machines, name, deadline).await;
    stages.mark("fork");
    match forked {
        Ok(housed) => {
            core.pool.worked(&bake.key);
            Ok(Some(housed))
        }
        Err(CreateError::Machine(error)) => {
            core.pool.condemn(&bake.key, zygote, &error).await;
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

async fn restore(
    core: &Core,
    bake: &Bake,
    name: String,
    stages: &mut Stages,
) -> Result<Housed, CreateError> {
    let deadline = core.config.ready_deadline;
    // The semaphore is never closed.
    let _slot = core.boots.acquire().await;
    stages.mark("queue");
    let restoring = boot::restore(&*core.engine, &core.machines, bake, name);
    let restored = tokio::time::timeout(deadline, restoring).await;
    let housed = restored.map_err(|_| CreateError::NotReady(deadline))??;
    stages.mark("restore");
    Ok(housed)
}

fn record(birth: &Birth, limits: &Limits, egress: &Policy, machine: &str) -> SandboxRecord {
    SandboxRecord {
        id: birth.id,
        template: birth.template.clone(),
        size: birth.size,
        metadata: birth.metadata.clone(),
        lifetime: limits.lifetime(birth.created_at, Instant::now()),
        from_snapshot: birth.from_snapshot,
        machine: machine.to_owned(),
        egress: egress.clone(),
        state: State::Creating,
        reason: None,
        created_at: birth.created_at,
        updated_at: birth.created_at,
        ended_at: None,
    }
}
