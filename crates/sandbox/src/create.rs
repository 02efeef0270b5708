//! Creating a sandbox.
//!
//! ```text
//!   request ─▶ admission ─▶ bake? ─▶ journal ─▶ owner task: boot ─▶ view
//!              nothing of it exists  │ everything after this line is
//!                                    │ undone by the owner
//! ```
//!
//! From the journal on, the owner task does the work, so a requester that goes away cannot leave
//! half a sandbox: its [`Abandoned`] mark orders the owner to end it.

use std::sync::Arc;
use std::time::Instant;

use pandastack_engine::Bake;
use pandastack_engine::agent::Identity;
use pandastack_store::SandboxRecord;
use pandastack_types::{EndReason, SandboxId, SandboxView, Size, State};
use serde_json::json;
use time::OffsetDateTime;
use tokio::sync::{mpsc, oneshot};

use crate::admission::Permit;
use crate::boot::{self, Housed, Source};
use crate::error::{Chain, CreateError, LifecycleError};
use crate::limits::Limits;
use crate::manager::{Core, Manager};
use crate::owner::{Message, Order, Owner};
use crate::request::{self, NewSandbox};
use crate::sandbox::{Birth, Sandbox};
use crate::stages::Stages;
use crate::sync::lock;
use crate::templates::Template;

/// Orders that may wait for an owner. Senders wait beyond that.
const MAILBOX: usize = 16;

/// A sandbox that is ready.
#[derive(Clone, Debug)]
pub struct Created {
    /// The sandbox as the API shows it.
    pub view: SandboxView,
    /// Where the time went.
    pub stages: Stages,
}

type Answer = oneshot::Sender<Result<Created, CreateError>>;

impl Manager {
    /// Creates a sandbox and waits until it is ready. Dropping the future undoes it.
    pub async fn create(&self, request: NewSandbox) -> Result<Created, CreateError> {
        let mut stages = Stages::start();
        let core = &self.core;
        let _busy = core.creating();
        request.check()?;
        let ttl = request.ttl_seconds.map(request::ttl).transpose()?;
        let template = core
            .templates
            .find(&request.template)
            .ok_or_else(|| CreateError::UnknownTemplate(request.template.clone()))?;
        let size = request.size(template.size)?;
        let permit = core.admit(size)?;
        stages.mark("admission");
        let bake = self.bake(&template, size, &mut stages).await?;

        let limits =
            Limits::new(ttl, request.persistent, core.config.default_ttl_seconds, Instant::now());
        core.pool.want(&bake, size == template.size);
        let source = core.pool.take(&bake).map_or_else(|| Source::fresh(bake), Source::Parked);
        stages.mark("take");
        let (answer, created) = oneshot::channel();
        let id = self.launch(request, size, limits, Launch { source, stages, permit, answer })?;
        let mut abandoned = Abandoned { core: core.clone(), id: Some(id) };
        let created = created.await.unwrap_or(Err(CreateError::Deleted));
        abandoned.id = None;
        created
    }

    async fn bake(
        &self,
        template: &Template,
        size: Size,
        stages: &mut Stages,
    ) -> Result<Arc<Bake>, CreateError> {
        if let Some(bake) = self.core.templates.baked(&template.name, size) {
            return Ok(bake);
        }
        if !template.built {
            return Err(CreateError::Building(template.name.clone()));
        }
        // In a task of its own: others may be waiting for the same bake, and it is not wasted
        // when this requester goes away.
        let templates = self.core.templates.clone();
        let name = template.name.clone();
        let baking = tokio::spawn(async move { templates.bake(&name, size).await });
        let baked = baking.await.map_err(|_| CreateError::Building(template.name.clone()))?;
        stages.mark("bake");
        baked.map_err(|source| CreateError::Bake { template: template.name.clone(), source })
    }

    /// Registers and journals the sandbox and starts its owner.
    fn launch(
        &self,
        request: NewSandbox,
        size: Size,
        limits: Limits,
        mut launch: Launch,
    ) -> Result<SandboxId, CreateError> {
        let core = &self.core;
        let birth = Birth {
            id: SandboxId::random(),
            template: request.template,
            size,
            metadata: request.metadata,
            created_at: OffsetDateTime::now_utc(),
            engine: core.engine.name(),
            isolation: core.engine.isolation(),
            boot_mode: launch.source.boot_mode(),
        };
        let id = birth.id;
        let record = record(&birth, &limits, launch.source.name());
        let (sender, mailbox) = mpsc::channel(MAILBOX);
        let sandbox = Arc::new(Sandbox::new(birth, limits, core.config.log_bytes, sender));
        core.register(sandbox.clone())?;
        if let Err(error) = core.store.create(&record) {
            core.forget(id);
            return Err(CreateError::Journal(error));
        }
        launch.stages.mark("journal");
        sandbox.history.push("sandbox.creating", json!({}));
        let owner = Owner { core: core.clone(), sandbox, mailbox };
        core.tasks.spawn(owner.start(launch));
        Ok(id)
    }
}

/// What an owner starts from.
struct Launch {
    source: Source,
    stages: Stages,
    /// Given back once the sandbox counts by itself.
    permit: Permit,
    answer: Answer,
}

impl Owner {
    /// Boots the sandbox, answers its requester and owns it to its end.
    async fn start(mut self, launch: Launch) {
        let Launch { source, mut stages, permit, answer } = launch;
        let core = self.core.clone();
        let sandbox = self.sandbox.clone();
        let booted = tokio::select! {
            booted = boot(&core, &sandbox, source, &mut stages) => booted,
            message = self.ended_early() => {
                let _ = answer.send(Err(CreateError::Deleted));
                return self.end(None, EndReason::Deleted, Some(message)).await;
            }
        };
        let housed = match booted {
            Ok(housed) => housed,
            Err(error) => return self.give_up(None, error, answer).await,
        };
        if let Err(error) = self.ready(&housed) {
            let error = match error {
                LifecycleError::Journal(source) => CreateError::Journal(source),
                _ => CreateError::Deleted,
            };
            return self.give_up(Some(housed), error, answer).await;
        }
        // From here on it counts by itself, and its memory shows in the host's own numbers.
        drop(permit);
        stages.mark("commit");
        *lock(&sandbox.boot) = stages.total();
        sandbox.history.push("sandbox.stages", stages.to_json());
        match answer.send(Ok(Created { view: sandbox.view(), stages })) {
            Ok(()) => self.run(housed).await,
            // The requester is gone and nobody knows the id.
            Err(_) => self.end(Some(housed), EndReason::Deleted, None).await,
        }
    }

    /// Removes what was made and then says why: the requester may rely on nothing being left.
    async fn give_up(self, housed: Option<Housed>, error: CreateError, answer: Answer) {
        let id = self.sandbox.id();
        tracing::warn!(sandbox = %id, error = %Chain(&error), "create failed");
        self.end(housed, EndReason::CreateFailed, None).await;
        let _ = answer.send(Err(error));
    }
}

async fn boot(
    core: &Core,
    sandbox: &Sandbox,
    source: Source,
    stages: &mut Stages,
) -> Result<Housed, CreateError> {
    let deadline = core.config.ready_deadline;
    let housed = match source {
        Source::Parked(housed) => housed,
        Source::Bake(bake, name) => {
            // The semaphore is never closed.
            let _slot = core.boots.acquire().await;
            stages.mark("queue");
            let restoring = boot::restore(&*core.engine, &core.machines, &bake, name);
            let restored = tokio::time::timeout(deadline, restoring).await;
            let housed = restored.map_err(|_| CreateError::NotReady(deadline))??;
            stages.mark("restore");
            housed
        }
    };
    let id = sandbox.id().to_string();
    let identity = Identity::random(&format!("panda-{}", &id[..8]))
        .map_err(|error| CreateError::Machine(error.into()))?;
    match boot::adopt(&*housed.machine, &identity, deadline, stages).await {
        Ok(()) => Ok(housed),
        Err(error) => {
            housed.machine.kill().await;
            Err(error)
        }
    }
}

fn record(birth: &Birth, limits: &Limits, machine: &str) -> SandboxRecord {
    SandboxRecord {
        id: birth.id,
        template: birth.template.clone(),
        size: birth.size,
        metadata: birth.metadata.clone(),
        ttl_seconds: limits.ttl_seconds,
        persistent: limits.persistent,
        machine: machine.to_owned(),
        state: State::Creating,
        reason: None,
        created_at: birth.created_at,
        updated_at: birth.created_at,
        ended_at: None,
    }
}

/// Held by a requester while it waits. Dropped before the answer came, it ends the sandbox.
struct Abandoned {
    core: Arc<Core>,
    id: Option<SandboxId>,
}

impl Drop for Abandoned {
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
