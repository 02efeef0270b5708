//! An engine whose machines are tasks of the test, and a server's worth of things around it.
#![allow(dead_code, reason = "each test file uses its part")]

mod guest;
pub mod network;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::task::Poll;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pandastack_engine::agent::AgentClient;
use pandastack_engine::{
    After, Bake, Engine, EngineError, Exit, Forked, GuestImage, Machine, Stages, Usage,
    VolumeSource,
};
use pandastack_image::{Progress, Stage, Step};
use pandastack_proto::Token;
use pandastack_sandbox::{BakeError, Command, Config, Manager, NewSandbox, Template, Templates};
use pandastack_store::Store;
use pandastack_types::{
    ExecRequest, Isolation, SandboxId, Size, TemplateName, TemplateView, TtlMode,
};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, socketpair};
use tokio::net::UnixStream;
use tokio::sync::watch;

use network::FakeNetwork;

/// How the machines of a test behave.
#[derive(Default)]
pub struct Knobs {
    /// Agents never acknowledge an identity.
    pub deaf: AtomicBool,
    /// Restores fail.
    pub broken: AtomicBool,
    /// Milliseconds that a restore takes.
    pub slow_ms: AtomicUsize,
    /// Restores so far.
    pub restores: AtomicUsize,
    /// The proof that machines can be forked fails.
    pub unforkable: AtomicBool,
    /// Proofs so far.
    pub proofs: AtomicUsize,
    /// Forks fail.
    pub fork_broken: AtomicBool,
    /// Milliseconds that a fork takes.
    pub fork_ms: AtomicUsize,
    /// Calls of fork so far, each for any number of copies.
    pub forks: AtomicUsize,
    /// The agent of a fork's first copy never acknowledges an identity.
    pub first_fork_deaf: AtomicBool,
    /// Bakes are of another host.
    pub other_host: AtomicBool,
    /// Snapshots fail after they have begun.
    pub snapshot_broken: AtomicBool,
    /// Milliseconds that writing a snapshot takes.
    pub snapshot_ms: AtomicUsize,
    /// What listens on the ports of every guest: servers of the test.
    pub servers: Mutex<HashMap<u16, SocketAddr>>,
    /// Machines have no network device.
    pub no_device: AtomicBool,
    /// The engine has no volumes.
    pub no_volumes: AtomicBool,
    /// What was done to which machine, in order.
    notes: Mutex<Vec<(String, String)>>,
}

impl Knobs {
    /// Notes that something was done to a machine.
    pub fn note(&self, machine: &str, what: String) {
        self.notes.lock().unwrap().push((machine.to_owned(), what));
    }

    /// What was done to a machine so far.
    pub fn notes(&self, machine: &str) -> Vec<String> {
        let notes = self.notes.lock().unwrap();
        notes.iter().filter(|(of, _)| of == machine).map(|(_, what)| what.clone()).collect()
    }

    async fn pause(milliseconds: &AtomicUsize) {
        let milliseconds = milliseconds.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(milliseconds as u64)).await;
    }
}

/// The files of a guest.
pub type Files = BTreeMap<String, Vec<u8>>;

/// What a guest has in its memory.
#[derive(Clone, Default, serde::Serialize, serde::Deserialize)]
pub struct Memory {
    pub files: Files,
    /// What it obeys.
    pub token: Token,
    /// Commands run so far, also before it was forked.
    pub commands: usize,
}

/// What a machine and its guest share.
pub struct Shared {
    pub name: String,
    pub knobs: Arc<Knobs>,
    /// Its agent never acknowledges an identity.
    pub deaf: bool,
    /// Commands that hang now.
    pub hanging: AtomicUsize,
    pub memory: Mutex<Memory>,
    /// Its network device: what is sent here comes out of the machine's network.
    pub net: OwnedFd,
    running: watch::Sender<bool>,
    exit: watch::Sender<Option<Exit>>,
}

impl Shared {
    pub async fn running(&self) {
        let _ = self.running.subscribe().wait_for(|running| *running).await;
    }

    pub fn end(&self, exit: Exit) {
        self.exit.send_if_modified(|current| {
            let first = current.is_none();
            current.get_or_insert(exit);
            first
        });
    }

    pub fn ended(&self) -> bool {
        self.exit.borrow().is_some()
    }
}

pub struct FakeEngine {
    pub knobs: Arc<Knobs>,
    machines: Machines,
}

type Machines = Arc<Mutex<Vec<Weak<Shared>>>>;

impl FakeEngine {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { knobs: Arc::default(), machines: Arc::default() })
    }

    /// The machines that have not ended.
    pub fn alive(&self) -> Vec<Arc<Shared>> {
        let machines = self.machines.lock().unwrap();
        machines.iter().filter_map(Weak::upgrade).filter(|machine| !machine.ended()).collect()
    }

    /// The machine in the directory of this name.
    pub fn machine(&self, name: &str) -> Option<Arc<Shared>> {
        self.alive().into_iter().find(|machine| machine.name == name)
    }
}

#[async_trait]
impl Engine for FakeEngine {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn version(&self) -> String {
        "none".to_owned()
    }

    fn warms_by_running(&self) -> bool {
        true
    }

    fn isolation(&self) -> Isolation {
        Isolation::Emulated
    }

    fn bake_key(&self, image: &GuestImage, size: Size) -> String {
        let other = self.knobs.other_host.load(Ordering::SeqCst);
        format!("{other} {} {size:?}", image.digest)
    }

    async fn bake(
        &self,
        _: &GuestImage,
        _: Size,
        _: &Path,
        _: &(dyn Fn(&str) + Send + Sync),
    ) -> Result<(), EngineError> {
        Ok(())
    }

    fn volume_slots(&self) -> usize {
        if self.knobs.no_volumes.load(Ordering::SeqCst) { 0 } else { 8 }
    }

    async fn restore(&self, bake: &Bake, dir: &Path) -> Result<Box<dyn Machine>, EngineError> {
        self.knobs.restores.fetch_add(1, Ordering::SeqCst);
        Knobs::pause(&self.knobs.slow_ms).await;
        if self.knobs.broken.load(Ordering::SeqCst) {
            return Err(EngineError::Monitor("broken by the test".to_owned()));
        }
        let kept = std::fs::read(bake.dir.join("memory"));
        let memory =
            kept.map_or_else(|_| Memory::default(), |b| serde_json::from_slice(&b).unwrap());
        Ok(Box::new(FakeMachine::start(&self.knobs, &self.machines, dir, memory, false)))
    }

    async fn prove_fork(&self, bake: &Bake, scratch: &Path) -> Result<(), EngineError> {
        assert_eq!(bake.dir, Path::new("bake"), "proved on what no tenant has touched");
        self.knobs.proofs.fetch_add(1, Ordering::SeqCst);
        std::fs::write(scratch.join("proof"), b"x").unwrap();
        if self.knobs.unforkable.load(Ordering::SeqCst) {
            return Err(EngineError::NoFork("refused by the test".to_owned()));
        }
        Ok(())
    }
}

struct FakeMachine {
    agent: AgentClient,
    /// The gateway's end of the wire; the guest's is in [`Shared`].
    net: OwnedFd,
    shared: Arc<Shared>,
    machines: Machines,
    task: tokio::task::JoinHandle<()>,
}

impl FakeMachine {
    fn start(
        knobs: &Arc<Knobs>,
        machines: &Machines,
        dir: &Path,
        memory: Memory,
        deaf: bool,
    ) -> Self {
        std::fs::write(dir.join("disk"), b"x").unwrap();
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let wire = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
        let (net, guest_net) = wire.unwrap();
        let name = dir.file_name().unwrap().to_str().unwrap().to_owned();
        rustix::net::send(&guest_net, name.as_bytes(), SendFlags::empty()).unwrap();
        let shared = Arc::new(Shared {
            name,
            knobs: knobs.clone(),
            deaf,
            hanging: AtomicUsize::new(0),
            memory: Mutex::new(memory),
            net: guest_net,
            running: watch::Sender::new(false),
            exit: watch::Sender::new(None),
        });
        machines.lock().unwrap().push(Arc::downgrade(&shared));
        let (host, guest) = UnixStream::pair().unwrap();
        let task = tokio::spawn({
            let shared = shared.clone();
            async move {
                let mut exit = shared.exit.subscribe();
                tokio::select! {
                    () = guest::serve(guest, shared.clone()) => {}
                    _ = exit.wait_for(Option::is_some) => {}
                }
            }
        });
        let agent = AgentClient::connect(host);
        Self { agent, net, shared, machines: machines.clone(), task }
    }
}

impl Drop for FakeMachine {
    fn drop(&mut self) {
        self.shared.end(Exit::Killed);
        self.task.abort();
    }
}

#[async_trait]
impl Machine for FakeMachine {
    fn agent(&self) -> &AgentClient {
        &self.agent
    }

    fn pid(&self) -> u32 {
        std::process::id()
    }

    fn network(&self) -> std::io::Result<OwnedFd> {
        if self.shared.knobs.no_device.load(Ordering::SeqCst) {
            return Err(std::io::ErrorKind::NotConnected.into());
        }
        self.net.try_clone()
    }

    fn set_background(&self, _background: bool) {}

    async fn attach(&self, slot: usize, volume: VolumeSource) -> Result<u64, EngineError> {
        let what = match volume {
            VolumeSource::Write { rewind: false, .. } => "write",
            VolumeSource::Write { rewind: true, .. } => "rewind",
            VolumeSource::Read(_) => "read",
            VolumeSource::Copy(_) => "copy",
        };
        self.shared.knobs.note(&self.shared.name, format!("attach {slot} {what}"));
        Ok(1 << 24)
    }

    async fn run(&self) -> Result<Stages, EngineError> {
        self.shared.knobs.note(&self.shared.name, "run".to_owned());
        self.shared.running.send_replace(true);
        Ok(Stages::new())
    }

    async fn pause(&self) -> Result<(), EngineError> {
        self.shared.knobs.note(&self.shared.name, "pause".to_owned());
        self.shared.running.send_replace(false);
        Ok(())
    }

    async fn fork(&self, dirs: &[&Path]) -> Result<Forked, EngineError> {
        let knobs = &self.shared.knobs;
        knobs.forks.fetch_add(1, Ordering::SeqCst);
        Knobs::pause(&knobs.fork_ms).await;
        if knobs.fork_broken.load(Ordering::SeqCst) {
            return Err(EngineError::Monitor("broken by the test".to_owned()));
        }
        if self.shared.ended() {
            return Err(EngineError::Ended("by the test".to_owned()));
        }
        let memory = self.shared.memory.lock().unwrap().clone();
        let deaf = knobs.first_fork_deaf.load(Ordering::SeqCst);
        let copy = |(index, dir): (usize, &&Path)| {
            let deaf = deaf && index == 0;
            let copy = Self::start(knobs, &self.machines, dir, memory.clone(), deaf);
            copy.agent.set_token(memory.token);
            Box::new(copy) as Box<dyn Machine>
        };
        let machines = dirs.iter().enumerate().map(copy).collect();
        Ok(Forked { machines, pause: Duration::from_millis(2), ..Forked::default() })
    }

    async fn snapshot(&self, scratch: &Path, out: &Path, _then: After) -> Result<(), EngineError> {
        let memory = self.shared.memory.lock().unwrap().clone();
        std::fs::write(scratch.join("scratch"), b"x").unwrap();
        std::fs::write(out.join("memory"), serde_json::to_vec(&memory).unwrap()).unwrap();
        Knobs::pause(&self.shared.knobs.snapshot_ms).await;
        if self.shared.knobs.snapshot_broken.load(Ordering::SeqCst) {
            return Err(EngineError::Monitor("broken by the test".to_owned()));
        }
        Ok(())
    }

    async fn kill(&self) {
        self.shared.knobs.note(&self.shared.name, "kill".to_owned());
        self.shared.end(Exit::Killed);
    }

    async fn exited(&self) -> Exit {
        let mut exit = self.shared.exit.subscribe();
        exit.wait_for(Option::is_some).await.unwrap().unwrap()
    }

    fn usage(&self) -> Option<Usage> {
        Some(Usage { rss_bytes: 1 << 20, threads: 3, ..Usage::default() })
    }
}

/// `base`, which is built, and `later`, which is not. Other sizes are baked on first use.
#[derive(Default)]
pub struct FakeTemplates {
    baked: Mutex<Vec<Size>>,
    /// Bakes that were begun.
    pub bakes: AtomicUsize,
    /// What each takes longer.
    pub slowness_ms: AtomicU64,
    /// Whether they fail.
    pub fails: AtomicBool,
}

pub const DEFAULT: Size = Size { cpu: 1, memory_mb: 512, disk_mb: 2048 };

#[async_trait]
impl Templates for FakeTemplates {
    fn find(&self, name: &TemplateName) -> Option<Template> {
        let (name, built) = match name.as_str() {
            "base" | "code-interpreter" | "ubuntu-24.04" => ("base", true),
            "later" => ("later", false),
            _ => return None,
        };
        Some(Template { name: name.parse().unwrap(), size: DEFAULT, built })
    }

    fn list(&self) -> Vec<TemplateView> {
        vec![TemplateView {
            name: "base".parse().unwrap(),
            aliases: vec!["code-interpreter".parse().unwrap(), "ubuntu-24.04".parse().unwrap()],
            digest: "d".to_owned(),
            built: true,
            rootfs_path: String::new(),
            size_bytes: 1,
            cpu: DEFAULT.cpu,
            memory_mb: DEFAULT.memory_mb,
            disk_mb: DEFAULT.disk_mb,
            sizes: Vec::new(),
            is_global: true,
            description: String::new(),
            tools: Vec::new(),
        }]
    }

    fn baked(&self, template: &TemplateName, size: Size) -> Option<Arc<Bake>> {
        let known = size == DEFAULT || self.baked.lock().unwrap().contains(&size);
        (known && template.as_str() == "base").then(|| Arc::new(bake(size)))
    }

    async fn bake(
        &self,
        template: &TemplateName,
        size: Size,
        progress: Arc<dyn Progress>,
    ) -> Result<Arc<Bake>, BakeError> {
        self.bakes.fetch_add(1, Ordering::SeqCst);
        let (template, detail) = (template.clone(), "of a fake".to_owned());
        progress.step(&Step { template, stage: Stage::Boot, detail, fraction: None });
        let took = Duration::from_millis(20 + self.slowness_ms.load(Ordering::SeqCst));
        tokio::time::sleep(took).await;
        if self.fails.load(Ordering::SeqCst) {
            return Err(BakeError::Unknown);
        }
        self.baked.lock().unwrap().push(size);
        Ok(Arc::new(bake(size)))
    }

    fn evict(&self, keep: usize) -> Result<usize, BakeError> {
        let mut baked = self.baked.lock().unwrap();
        let surplus = baked.len().saturating_sub(keep);
        Ok(baked.drain(..surplus).count())
    }
}

fn bake(size: Size) -> Bake {
    let image = GuestImage {
        kernel: "kernel".into(),
        initrd: "initrd".into(),
        root: "root".into(),
        preload: vec![],
        warm_up: vec!["echo warm".to_owned()],
        digest: "d".to_owned(),
    };
    Bake { dir: "bake".into(), image, size, key: format!("{size:?}") }
}

/// A server's domain in a directory of its own.
pub struct World {
    pub dir: tempfile::TempDir,
    pub engine: Arc<FakeEngine>,
    pub network: Arc<FakeNetwork>,
    pub templates: Arc<FakeTemplates>,
    pub manager: Arc<Manager>,
    pub store: Store,
}

impl World {
    /// A server without a pool, without forks and without limits of memory.
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("records.sqlite")).unwrap();
        let mut config = Config::new(dir.path().join("instance"));
        config.pool_size = 0;
        config.forking = false;
        config.memory_reserve_mb = 0;
        config.memory_estimate_percent = 0;
        config.disk_reserve_mb = 0;
        config.disk_estimate_percent = 0;
        change(&mut config);
        let engine = FakeEngine::new();
        let network = FakeNetwork::of(&engine);
        Self::start(dir, config, engine, network, store)
    }

    fn start(
        dir: tempfile::TempDir,
        config: Config,
        engine: Arc<FakeEngine>,
        network: Arc<FakeNetwork>,
        store: Store,
    ) -> Self {
        let templates = Arc::new(FakeTemplates::default());
        let start = Manager::start(
            config,
            engine.clone(),
            network.clone(),
            templates.clone(),
            store.clone(),
        );
        // There are no machines to be taken over, and all else of a start waits for nothing.
        let mut now = std::task::Context::from_waker(std::task::Waker::noop());
        let Poll::Ready(manager) = std::pin::pin!(start).poll(&mut now) else {
            panic!("a start that waits");
        };
        Self { dir, engine, network, templates, manager: manager.unwrap(), store }
    }

    /// The same directory under a server that starts anew, after the end of this one.
    pub async fn restarted(self) -> Self {
        self.restarted_after(|_| {}).await
    }

    /// The same, with something done to the records while no server runs.
    pub async fn restarted_after(self, meanwhile: impl FnOnce(&Store)) -> Self {
        self.manager.shutdown().await;
        meanwhile(&self.store);
        let Self { dir, engine, network, manager, store, .. } = self;
        let mut config = manager.config().clone();
        config.pool_size = 0;
        drop(manager);
        Self::start(dir, config, engine, network, store)
    }

    /// The name of a sandbox's machine.
    pub fn machine_of(&self, id: SandboxId) -> String {
        self.store.sandbox(id).unwrap().unwrap().machine
    }

    /// A server that forks and has its zygote.
    pub async fn forking(change: impl FnOnce(&mut Config)) -> Self {
        let world = Self::with(|config| {
            config.forking = true;
            change(config);
        });
        world.manager.prime();
        eventually("there is a zygote", || world.manager.parking().zygotes == 1).await;
        world
    }

    /// Directories of machines on disk.
    pub fn machine_dirs(&self) -> usize {
        std::fs::read_dir(self.dir.path().join("instance/machines")).unwrap().count()
    }

    /// Waits until no machine, directory or record of a live sandbox is left.
    pub async fn nothing_left(&self) {
        eventually("nothing is left", || {
            self.engine.alive().is_empty()
                && self.machine_dirs() == 0
                && self.manager.list().is_empty()
                && self.store.unfinished().unwrap().is_empty()
        })
        .await;
    }
}

/// A request for the default template.
pub fn base() -> NewSandbox {
    NewSandbox {
        volumes: Vec::new(),
        template: "base".parse().unwrap(),
        cpu: None,
        memory_mb: None,
        disk_mb: None,
        metadata: Default::default(),
        ttl_seconds: None,
        ttl_mode: TtlMode::Wall,
        persistent: false,
        idle_timeout: None,
        from_snapshot: None,
        egress: None,
    }
}

/// Waits for something that happens soon by itself.
pub async fn eventually(what: &str, mut happened: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !happened() {
        assert!(Instant::now() < until, "it did not happen that {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A command line.
pub fn command(line: &str) -> Command {
    let request = ExecRequest { cmd: Some(line.to_owned()), ..ExecRequest::default() };
    Command::try_from(request).unwrap()
}
