//! Forking a sandbox: children that begin where it stands.
//!
//! ```text
//!   request ─▶ admission of all ─▶ journal of all ─▶ their owners wait ─┐
//!                                                                       ▼
//!              the parent's owner: one copy of its machine, n times ─▶ adopt ─▶ views
//! ```
//!
//! All children are copies of one instant. The parent's owner makes them, so that it neither
//! pauses nor ends meanwhile; all else is done by the children's own owners, as in a create. They
//! are journalled before they exist, all or none; of those that exist, one that does not become
//! ready is removed and reported, and costs the others nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pandastack_engine::EngineError;
use pandastack_types::{SandboxId, SandboxView, State};
use time::OffsetDateTime;
use tokio::sync::oneshot;

use crate::boot::{Copied, Copies, Litter, Source};
use crate::error::{CreateError, ForkError, LifecycleError};
use crate::fault::{self, Point};
use crate::forking::Forking;
use crate::launch::{Draft, Launch, Pending};
use crate::machines::new_name;
use crate::manager::{Core, Manager};
use crate::metadata;
use crate::owner::Order;
use crate::request::{self, ForkRequest};
use crate::sandbox::{Birth, Sandbox};
use crate::stages::Stages;
use crate::sync::lock;
use crate::volumes::{self, Reserved};

/// A parent's label, in a request for a tree: the seconds that its children may live.
const EXPLORE_TTL: &str = "explore_ttl";

/// The children of a sandbox.
#[derive(Debug)]
pub struct Forked {
    /// What they are copies of.
    pub parent: SandboxId,
    /// The tree that they are siblings in, if one was asked for.
    pub tree: Option<String>,
    /// When they were copied.
    pub at: OffsetDateTime,
    /// How long it stood still for that.
    pub pause: Duration,
    /// Those that are ready, in order; never none.
    pub children: Vec<SandboxView>,
    /// Those that are not, by index.
    pub failures: Vec<(usize, CreateError)>,
    /// Where the time of the slowest child went.
    pub stages: Stages,
}

impl Manager {
    /// Forks a running or paused sandbox and waits until its children are ready. Dropping the
    /// future undoes it.
    pub async fn fork(&self, id: SandboxId, request: ForkRequest) -> Result<Forked, ForkError> {
        let stages = Stages::start();
        let _busy = self.core.creating();
        let parent = self.get(id)?;
        parent.needed().await?;
        let tree = request.tree.then(|| SandboxId::random().to_string());
        let inherit = request.egress.is_none();
        let (drafts, machines) = self.draft(&parent, request, tree.as_deref(), stages).await?;
        self.core.open(&drafts)?;
        fault::point(Point::ForkJournalled);
        let children: Vec<_> = drafts.into_iter().map(|draft| draft.begin(&self.core)).collect();

        let (names, waiting): (Vec<_>, Vec<_>) = machines.into_iter().unzip();
        let copied = copy(&parent, names).await;
        let at = OffsetDateTime::now_utc();
        let copied = match copied {
            Ok(Litter { copies: Copies { machines, pause }, egress }) => {
                let inherited = inherit.then_some(egress);
                let copies = machines.into_iter();
                let copies = copies.map(|housed| Copied { housed, inherited: inherited.clone() });
                hand_over(copies, waiting).await;
                fault::point(Point::ForkHandedOver);
                Ok(pause)
            }
            Err(error) => {
                // Tells the children's owners that nothing will come.
                drop(waiting);
                Err(error)
            }
        };
        let (children, failures, stages) = gather(children).await;
        // Only now, when nothing is left of children that will never be.
        let pause = copied?;
        let Some(stages) = stages else {
            let first = failures.into_iter().next().map(|(_, error)| error);
            return Err(first.unwrap_or(CreateError::NotForked).into());
        };
        Ok(Forked { parent: id, tree, at, pause, children, failures, stages })
    }

    /// Lets the children in: everything that can be refused is refused here.
    async fn draft(
        &self,
        parent: &Sandbox,
        request: ForkRequest,
        tree: Option<&str>,
        mut stages: Stages,
    ) -> Result<(Vec<Draft>, Vec<(String, oneshot::Sender<Copied>)>), ForkError> {
        let core = &self.core;
        let count = request::children(request.count.unwrap_or(1))?;
        let ttl = match request.ttl_seconds {
            None if request.tree => explore_ttl(&request)?,
            ttl => ttl.map(request::ttl).transpose()?,
        };
        let egress = request.egress.unwrap_or_else(|| parent.egress());
        let labels = metadata::inherited(&parent.birth.metadata, request.metadata)?;
        if !matches!(parent.state(), State::Running | State::Paused) {
            return Err(parent.unavailable().into());
        }
        core.may_fork(parent).await?;
        let size = parent.birth.size;
        let permits: Result<Vec<_>, _> = (0..count).map(|_| core.admit(size)).collect();
        let permits = permits?;
        stages.mark("admission");

        let limits = lock(&parent.limits).inherited(ttl, Instant::now());
        let created_at = pandastack_store::now();
        let draft = |(index, permit)| {
            let mut metadata = labels.clone();
            metadata::descend(&mut metadata, parent.id(), tree.map(|id| (id, index)));
            let id = SandboxId::random();
            let parent = parent.birth.clone();
            let volumes = volumes::copied(&parent.volumes);
            let birth = Birth { id, metadata, created_at, from_snapshot: None, volumes, ..parent };
            let (sender, machine) = oneshot::channel();
            let name = new_name();
            let source = Source::Child(name.clone(), machine);
            let (egress, stages) = (egress.clone(), stages.clone());
            let reserved = Reserved::default();
            let launch = Launch { birth, limits, egress, source, reserved, stages, permit };
            (Draft::new(core, launch), (name, sender))
        };
        Ok(permits.into_iter().enumerate().map(draft).unzip())
    }
}

impl Core {
    /// Whether machines can be forked here; finds out if nothing has needed it yet, on a machine
    /// of the template: on one of a snapshot, a tenant would have a say in the outcome.
    pub(crate) async fn may_fork(&self, sandbox: &Sandbox) -> Result<(), ForkError> {
        let why = match self.pool.prover.prove(&sandbox.birth.ancestor).await {
            Forking::Proven => return Ok(()),
            Forking::Off => "it was started with --fork off; start it with --fork auto".to_owned(),
            Forking::Refused(reason) => format!("it does not work on this host ({reason})"),
            Forking::Unproven => "it is not known yet whether that works here".to_owned(),
        };
        Err(ForkError::Unsupported(why))
    }
}

fn explore_ttl(request: &ForkRequest) -> Result<Option<u64>, ForkError> {
    let Some(text) = request.metadata.get(EXPLORE_TTL) else { return Ok(None) };
    let refused = || {
        let text = format!("metadata.{EXPLORE_TTL} must be a number of seconds");
        ForkError::Invalid(crate::InvalidRequest::Field(text))
    };
    let seconds: i64 = text.parse().map_err(|_| refused())?;
    Ok(Some(request::ttl(seconds)?))
}

/// Has the parent's owner copy its machine.
async fn copy(parent: &Arc<Sandbox>, names: Vec<String>) -> Result<Litter, ForkError> {
    let (machines, copies) = oneshot::channel();
    match parent.order(Order::Fork { names, machines }).await {
        Ok(()) => {}
        Err(LifecycleError::Unavailable(error)) => return Err(error.into()),
        Err(LifecycleError::NotFound(error)) => return Err(error.into()),
        Err(_) => return Err(CreateError::NotForked.into()),
    }
    let error = match copies.await {
        Ok(Ok(litter)) => return Ok(litter),
        Ok(Err(CreateError::Machine(EngineError::NoFork(reason)))) => {
            return Err(ForkError::Unsupported(reason));
        }
        Ok(Err(CreateError::Machine(error))) => ForkError::Machine(error),
        Ok(Err(error)) => error.into(),
        Err(_) => CreateError::NotForked.into(),
    };
    // A machine that died while it was copied: its owner knows how in a moment.
    match parent.explanation().await {
        Some(ended) => Err(ended.into()),
        None => Err(error),
    }
}

/// Gives every copy to the owner of its child. A child that was deleted meanwhile takes none.
async fn hand_over(copies: impl Iterator<Item = Copied>, waiting: Vec<oneshot::Sender<Copied>>) {
    for (owner, copied) in waiting.into_iter().zip(copies) {
        if let Err(unwanted) = owner.send(copied) {
            unwanted.housed.machine.kill().await;
        }
    }
}

/// Waits for all children: who is ready, who is not, and where the time of the slowest went.
async fn gather(
    children: Vec<Pending>,
) -> (Vec<SandboxView>, Vec<(usize, CreateError)>, Option<Stages>) {
    let (mut views, mut failures) = (Vec::new(), Vec::new());
    let mut slowest: Option<Stages> = None;
    // One after the other is as good as all at once: their owners do the work.
    for (index, child) in children.into_iter().enumerate() {
        match child.ready().await {
            Ok(created) => {
                views.push(created.view);
                slowest = slowest
                    .filter(|slowest| slowest.total() >= created.stages.total())
                    .or(Some(created.stages));
            }
            Err(error) => failures.push((index, error)),
        }
    }
    (views, failures, slowest)
}
