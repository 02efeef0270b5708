//! An engine whose machines are tasks of the test, and a server's worth of things around it.
#![allow(dead_code, reason = "each test file uses its part")]

mod guest;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pandastack_engine::agent::AgentClient;
use pandastack_engine::{Bake, Engine, EngineError, Exit, GuestImage, Machine, Usage};
use pandastack_sandbox::{BakeError, Config, Manager, NewSandbox, Template, Templates};
use pandastack_store::Store;
use pandastack_types::{Isolation, Size, TemplateName, TemplateView};
use tokio::net::UnixStream;
use tokio::sync::watch;

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
}

/// What a machine and its guest share.
pub struct Shared {
    pub name: String,
    pub knobs: Arc<Knobs>,
    /// Commands run so far.
    pub commands: AtomicUsize,
    /// Commands that hang now.
    pub hanging: AtomicUsize,
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
    machines: Mutex<Vec<Weak<Shared>>>,
}

impl FakeEngine {
    pub fn new() -> Arc<Self> {
        Arc::new(Self { knobs: Arc::default(), machines: Mutex::default() })
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

    fn isolation(&self) -> Isolation {
        Isolation::Emulated
    }

    fn bake_key(&self, _: &GuestImage, size: Size) -> String {
        format!("{size:?}")
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

    async fn restore(&self, _: &Bake, dir: &Path) -> Result<Box<dyn Machine>, EngineError> {
        self.knobs.restores.fetch_add(1, Ordering::SeqCst);
        let slow = self.knobs.slow_ms.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(slow as u64)).await;
        if self.knobs.broken.load(Ordering::SeqCst) {
            return Err(EngineError::Monitor("broken by the test".to_owned()));
        }
        std::fs::write(dir.join("disk"), b"x").unwrap();
        let shared = Arc::new(Shared {
            name: dir.file_name().unwrap().to_str().unwrap().to_owned(),
            knobs: self.knobs.clone(),
            commands: AtomicUsize::new(0),
            hanging: AtomicUsize::new(0),
            running: watch::Sender::new(false),
            exit: watch::Sender::new(None),
        });
        self.machines.lock().unwrap().push(Arc::downgrade(&shared));
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
        Ok(Box::new(FakeMachine { agent: AgentClient::connect(host), shared, task }))
    }
}

struct FakeMachine {
    agent: AgentClient,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
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

    fn set_background(&self, _background: bool) {}

    async fn run(&self) -> Result<(), EngineError> {
        self.shared.running.send_replace(true);
        Ok(())
    }

    async fn pause(&self) -> Result<(), EngineError> {
        self.shared.running.send_replace(false);
        Ok(())
    }

    async fn kill(&self) {
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
}

pub const DEFAULT: Size = Size { cpu: 1, memory_mb: 512 };

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
            is_global: true,
            description: String::new(),
            tools: Vec::new(),
        }]
    }

    fn baked(&self, template: &TemplateName, size: Size) -> Option<Arc<Bake>> {
        let known = size == DEFAULT || self.baked.lock().unwrap().contains(&size);
        (known && template.as_str() == "base").then(|| Arc::new(bake(size)))
    }

    async fn bake(&self, _: &TemplateName, size: Size) -> Result<Arc<Bake>, BakeError> {
        tokio::time::sleep(Duration::from_millis(20)).await;
        self.baked.lock().unwrap().push(size);
        Ok(Arc::new(bake(size)))
    }
}

fn bake(size: Size) -> Bake {
    let image = GuestImage {
        kernel: "kernel".into(),
        initrd: "initrd".into(),
        root: "root".into(),
        disk_mb: 1,
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
    pub manager: Arc<Manager>,
    pub store: Store,
}

impl World {
    /// A server without a pool and without limits of memory.
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("records.sqlite")).unwrap();
        let mut config = Config::new(dir.path().join("instance"));
        config.pool_size = 0;
        config.memory_reserve_mb = 0;
        config.memory_estimate_percent = 0;
        change(&mut config);
        let engine = FakeEngine::new();
        let templates = Arc::new(FakeTemplates::default());
        let manager = Manager::start(config, engine.clone(), templates, store.clone()).unwrap();
        Self { dir, engine, manager, store }
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
        template: "base".parse().unwrap(),
        cpu: None,
        memory_mb: None,
        metadata: Default::default(),
        ttl_seconds: None,
        persistent: false,
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
