//! The server's sandboxes as a whole: registry, start and end.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pandastack_engine::Engine;
use pandastack_store::{Retention, Store};
use pandastack_types::{SandboxId, SandboxView, Size, State, TemplateView};
use time::OffsetDateTime;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use crate::Config;
use crate::admission::{Admission, Permit};
use crate::classes::Classes;
use crate::custody::{Custody, Remains};
use crate::error::{Chain, CreateError, NotFound, StartError, VolumeError};
use crate::fault::{self, Point};
use crate::forking::{Forking, Prover};
use crate::keeper::{self, Workshop};
use crate::network::Network;
use crate::owner::Order;
use crate::pool::{Parking, Pool};
use crate::recovery;
use crate::sandbox::Sandbox;
use crate::snapshot::SnapshotShelf;
use crate::sync::lock;
use crate::templates::Templates;
use crate::volumes::VolumeShelf;

/// Time for machines that were dropped to end.
const SETTLE: Duration = Duration::from_secs(10);
/// How often old history is removed.
const UPKEEP: Duration = Duration::from_secs(60);

/// All sandboxes of a server.
pub struct Manager {
    pub(crate) core: Arc<Core>,
}

/// What the owners and the requesters share.
pub(crate) struct Core {
    pub(crate) config: Config,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) network: Arc<dyn Network>,
    pub(crate) templates: Arc<dyn Templates>,
    pub(crate) store: Store,
    pub(crate) pool: Arc<Pool>,
    /// Where machines live.
    pub(crate) machines: PathBuf,
    /// Turns to restore a machine.
    pub(crate) boots: Semaphore,
    pub(crate) classes: Classes,
    pub(crate) snapshots: SnapshotShelf,
    /// Sandboxes that are files for the time being, by their own ids.
    pub(crate) hibernated: SnapshotShelf,
    pub(crate) volumes: VolumeShelf,
    /// The turn to change which volumes there are, or who has them.
    pub(crate) volume_turn: tokio::sync::Mutex<()>,
    /// Held while one of a tree is promoted.
    pub(crate) promotions: tokio::sync::Mutex<()>,
    /// Turns to write a snapshot.
    pub(crate) writing: Semaphore,
    /// Owners and their helpers; empty means that nothing is left.
    pub(crate) tasks: TaskTracker,
    /// What holds the machines in case that this server is killed.
    pub(crate) custody: Option<Custody>,
    admission: Arc<Admission>,
    registry: Mutex<Registry>,
    creating: Arc<AtomicUsize>,
    /// Keeps other servers out of the instance directory.
    _lock: File,
}

#[derive(Default)]
struct Registry {
    sandboxes: HashMap<SandboxId, Arc<Sandbox>>,
    /// Those that ended by themselves, oldest first. May name some that are gone.
    ended: VecDeque<SandboxId>,
    /// Set once, by the shutdown: nothing is registered any more.
    closed: bool,
}

impl Manager {
    /// Takes the instance directory, goes on with the sandboxes that a server left running that was
    /// killed, cleans up after it, and starts the background tasks.
    pub async fn start(
        config: Config,
        engine: Arc<dyn Engine>,
        network: Arc<dyn Network>,
        templates: Arc<dyn Templates>,
        store: Store,
    ) -> Result<Arc<Self>, StartError> {
        let lock = recovery::take_instance(&config.instance_dir)?;
        #[cfg(feature = "fault-points")]
        fault::instance(&config.instance_dir);
        let machines = config.instance_dir.join("machines");
        let snapshots = SnapshotShelf::of(&config.instance_dir, "snapshots")?;
        let hibernated = SnapshotShelf::of(&config.instance_dir, "hibernated")?;
        let volumes = VolumeShelf::of(&config.instance_dir)?;
        let (custody, held) = match config.outliving {
            Some(outliving) => Custody::open(&config.instance_dir, outliving),
            None => (None, Vec::new()),
        };
        let names: Vec<String> = held.iter().map(|held| held.name.clone()).collect();
        let mut remains = Remains::of(held);
        let left = recovery::clean(&machines, &hibernated, &store, &*engine, &remains)?;
        let prover = Prover::new(engine.clone(), machines.clone(), config.forking);
        let core = Arc::new(Core {
            pool: Pool::new(config.pool_size, config.pool_idle, Arc::new(prover)),
            boots: Semaphore::new(config.boots_at_once.max(1)),
            classes: Classes::new(),
            snapshots,
            hibernated,
            volumes,
            volume_turn: tokio::sync::Mutex::default(),
            promotions: tokio::sync::Mutex::default(),
            writing: Semaphore::new(1),
            admission: Arc::new(Admission::new(&config, machines.clone())),
            registry: Mutex::default(),
            creating: Arc::default(),
            tasks: TaskTracker::new(),
            config,
            engine,
            network,
            templates,
            store,
            machines,
            custody,
            _lock: lock,
        });
        for record in left.asleep {
            core.take_over(record);
        }
        let mut adopting = tokio::task::JoinSet::new();
        let mut adopted = Vec::new();
        for record in left.alive {
            let Some(remains) = remains.remove(&record.id) else { continue };
            adopted.push(remains.name().to_owned());
            let core = core.clone();
            adopting.spawn(async move { core.go_on(record, remains).await });
        }
        if let Some(custody) = &core.custody {
            let over = names.iter().filter(|name| !adopted.contains(name));
            over.for_each(|name| custody.release(name));
        }
        // Its ways to those that are over.
        drop(remains);
        while adopting.join_next().await.is_some() {}
        core.tasks.spawn(keeper::keep(core.pool.clone(), core.workshop()));
        tokio::spawn(upkeep(Arc::downgrade(&core)));
        Ok(Arc::new(Self { core }))
    }

    /// The templates.
    pub fn templates(&self) -> &dyn Templates {
        &*self.core.templates
    }

    /// Every template as it is now, size classes that are being baked included.
    pub fn template_views(&self) -> Vec<TemplateView> {
        self.core.template_views()
    }

    /// The settings.
    pub fn config(&self) -> &Config {
        &self.core.config
    }

    /// Every sandbox, oldest first.
    pub fn list(&self) -> Vec<SandboxView> {
        let mut views: Vec<SandboxView> =
            self.core.all().iter().map(|sandbox| sandbox.view()).collect();
        views.sort_by_key(|view| (view.created_at, view.id));
        views
    }

    /// One sandbox. One that ended by itself is still found, for a while.
    pub fn get(&self, id: SandboxId) -> Result<Arc<Sandbox>, NotFound> {
        self.core.find(id).ok_or(NotFound(id))
    }

    /// Machines that are made ahead for the next creates.
    pub fn parking(&self) -> Parking {
        self.core.pool.parking()
    }

    /// Whether machines are forked here.
    pub fn forking(&self) -> Forking {
        self.core.pool.prover.state()
    }

    /// Makes machines ahead, of the default size of every template that has a bake. For the server's
    /// start and after a template was built.
    pub fn prime(&self) {
        for view in self.core.templates.list() {
            let Some(template) = self.core.templates.find(&view.name) else { continue };
            if let Some(bake) = self.core.templates.baked(&template.name, template.size) {
                self.core.pool.want(&bake, true);
            }
        }
    }

    /// Ends every sandbox but those that are kept, which hibernate, and waits until no machine is
    /// left. Creates are refused from now on.
    pub async fn shutdown(&self) {
        let core = &self.core;
        // Under the registry's lock, so that a create on its way is either ended below or refused.
        lock(&core.registry).closed = true;
        core.pool.close().await;
        fault::point(Point::StopClosed);
        let mut ending = tokio::task::JoinSet::new();
        for sandbox in core.all() {
            ending.spawn(async move { sandbox.order(Order::Rest).await });
        }
        while ending.join_next().await.is_some() {}
        fault::point(Point::StopRested);
        core.tasks.close();
        core.tasks.wait().await;
        // What was under way for nobody, such as a zygote, was dropped and not waited for.
        if tokio::time::timeout(SETTLE, core.engine.settled()).await.is_err() {
            tracing::warn!("machines are still ending");
        }
        maintain(core).await;
    }
}

impl Core {
    pub(crate) fn find(&self, id: SandboxId) -> Option<Arc<Sandbox>> {
        lock(&self.registry).sandboxes.get(&id).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Sandbox>> {
        lock(&self.registry).sandboxes.values().cloned().collect()
    }

    /// Makes a sandbox known, unless the server is shutting down.
    pub(crate) fn register(&self, sandbox: Arc<Sandbox>) -> Result<(), CreateError> {
        let mut registry = lock(&self.registry);
        if registry.closed {
            return Err(CreateError::ShuttingDown);
        }
        registry.sandboxes.insert(sandbox.id(), sandbox);
        Ok(())
    }

    /// The sandbox is gone for good.
    pub(crate) fn forget(&self, id: SandboxId) {
        lock(&self.registry).sandboxes.remove(&id);
    }

    /// The sandbox ended by itself. Forgets the oldest of those when there are too many.
    pub(crate) fn note_ended(&self, id: SandboxId) {
        let surplus: Vec<Arc<Sandbox>> = {
            let mut registry = lock(&self.registry);
            let Registry { sandboxes, ended, .. } = &mut *registry;
            ended.retain(|id| sandboxes.contains_key(id));
            ended.push_back(id);
            let surplus = ended.len().saturating_sub(self.config.ended_max);
            ended.drain(..surplus).filter_map(|id| sandboxes.get(&id).cloned()).collect()
        };
        for sandbox in surplus {
            self.tasks.spawn(async move { sandbox.delete().await });
        }
    }

    /// Lets a create in, or says why not.
    pub(crate) fn admit(&self, size: Size) -> Result<Permit, CreateError> {
        // Those that are being created have a permit, and those that ended have no machine.
        let counted = |sandbox: &&Arc<Sandbox>| {
            matches!(sandbox.state(), State::Running | State::Paused | State::Stopping)
        };
        let registered = {
            let registry = lock(&self.registry);
            if registry.closed {
                return Err(CreateError::ShuttingDown);
            }
            registry.sandboxes.values().filter(counted).count()
        };
        self.admission.admit(size, registered)
    }

    /// Lets a volume in, or says why not.
    pub(crate) fn room_for_volume(&self, size_mb: u32) -> Result<(), VolumeError> {
        self.admission
            .admit_volume(size_mb)
            .map_err(|(needed_mb, free_mb)| VolumeError::Disk { needed_mb, free_mb })
    }

    /// Marks a create as being on its way, for as long as the mark is held.
    pub(crate) fn creating(&self) -> Creating {
        self.creating.fetch_add(1, Ordering::SeqCst);
        Creating(self.creating.clone())
    }

    fn workshop(&self) -> Workshop {
        let creating = self.creating.clone();
        Workshop {
            engine: self.engine.clone(),
            machines: self.machines.clone(),
            admission: self.admission.clone(),
            deadline: self.config.ready_deadline,
            quiet: Box::new(move || creating.load(Ordering::SeqCst) == 0),
        }
    }
}

/// A create that is on its way.
pub(crate) struct Creating(Arc<AtomicUsize>);

impl Drop for Creating {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn upkeep(core: std::sync::Weak<Core>) {
    loop {
        tokio::time::sleep(UPKEEP).await;
        let Some(core) = core.upgrade() else { return };
        maintain(&core).await;
    }
}

async fn maintain(core: &Core) {
    let store = core.store.clone();
    let now = OffsetDateTime::now_utc();
    let done = tokio::task::spawn_blocking(move || store.maintain(Retention::default(), now));
    if let Ok(Err(error)) = done.await {
        tracing::warn!(error = %Chain(&error), "cannot tidy the records");
    }
}
