//! The engine of the program under test, in this very process: the only way to hold the end of a
//! machine's wire that is a gateway's otherwise.
//!
//! A server is started and makes one machine; what it laid down for that says everything: its
//! runtime directory has the programs of a machine, and the machine's disk is a file of the bake.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use pandastack_engine::agent::{ExecSession, ExecSpec, Identity};
use pandastack_engine::kvm::{self, KvmEngine};
use pandastack_engine::qemu::{self, QemuEngine};
use pandastack_engine::{Bake, Engine, GuestImage, Machine};
use pandastack_tests::{Options, Server, deadline, engine, shared_data};
use pandastack_types::Size;
use serde_json::Value;

/// Longest wait for a guest.
const PATIENCE: Duration = Duration::from_secs(60);

/// The engine and a bake of the base template. Everything that it made goes with it.
pub struct Bench {
    engine: Arc<dyn Engine>,
    bake: Bake,
    dir: tempfile::TempDir,
}

impl Bench {
    /// Must be called inside a Tokio runtime, which it blocks.
    pub fn open() -> Result<Self> {
        // On the file system of the templates, so that their files are linked and not copied.
        let dir = tempfile::tempdir_in(shared_data())?;
        let data = dir.path().join("data");
        let runtime = data.join("runtime");
        fs::create_dir_all(&runtime)?;
        // Bakes are good for one frequency, which two measurements would not agree on.
        if let Ok(khz) = fs::read(shared_data().join("runtime/tsc-khz")) {
            fs::write(runtime.join("tsc-khz"), khz)?;
        }
        let server = Server::start(Options { data: Some(data.clone()), ..Options::default() })?;
        let sandbox = server.client().base()?;
        let [machine] = &server.machine_names()[..] else { bail!("one sandbox, one machine") };
        let baked = baked(&data.join("machines").join(machine))?;
        sandbox.delete()?;
        server.stop()?;

        let engine = open_engine(&runtime)?;
        let bake = describe(&baked)?;
        ensure!(
            engine.bake_key(&bake.image, bake.size) == bake.key,
            "the program has another engine than this test: build it anew"
        );
        Ok(Self { engine, bake, dir })
    }

    /// A running machine, restored.
    pub async fn restore(&self, name: &str) -> Result<Box<dyn Machine>> {
        let machine = self.engine.restore(&self.bake, &self.directory(name)?).await?;
        run(&*machine, name).await?;
        Ok(machine)
    }

    /// Running copies of a machine.
    pub async fn fork(
        &self,
        source: &dyn Machine,
        names: &[&str],
    ) -> Result<Vec<Box<dyn Machine>>> {
        let dirs = names.iter().map(|name| self.directory(name)).collect::<Result<Vec<_>>>()?;
        let dirs: Vec<&Path> = dirs.iter().map(PathBuf::as_path).collect();
        let copies = source.fork(&dirs).await?.machines;
        for (copy, name) in copies.iter().zip(names) {
            run(&**copy, name).await?;
        }
        Ok(copies)
    }

    /// An empty directory.
    pub fn directory(&self, name: &str) -> Result<PathBuf> {
        // The name is that of a control group as well.
        let path = self.dir.path().join(format!("{name}-{}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(path)
    }
}

/// Lets a new machine run, as somebody.
async fn run(machine: &dyn Machine, name: &str) -> Result<()> {
    machine.run().await?;
    machine.agent().resume(&Identity::random(name)?, deadline(PATIENCE)).await?;
    Ok(())
}

fn shell(line: &str) -> ExecSpec {
    let timeout_ms = Some(deadline(PATIENCE).as_millis() as u64);
    ExecSpec { shell: Some(line.to_owned()), timeout_ms, ..ExecSpec::default() }
}

/// Starts a shell line, which ends when the session is dropped.
pub async fn start(machine: &dyn Machine, line: &str) -> Result<ExecSession> {
    Ok(machine.agent().exec(shell(line)).await?)
}

/// The standard output of a shell line, which must end with 0.
pub async fn output(machine: &dyn Machine, line: &str) -> Result<String> {
    let output = machine.agent().run(shell(line)).await?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code == 0, "{line:?} ended with {}: {said}", output.status.code);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The directory of the bake that a machine was made of: they have a file in common.
fn baked(machine: &Path) -> Result<PathBuf> {
    let inode = |dir: &Path| Some(fs::metadata(dir.join("disk")).ok()?.ino());
    let wanted = inode(machine).context("a machine has a disk")?;
    let bakes = fs::read_dir(shared_data().join("templates/bakes"))?.flatten();
    let mut bakes = bakes.map(|entry| entry.path());
    bakes.find(|bake| inode(bake) == Some(wanted)).context("no template has the machine's disk")
}

/// A bake by its directory.
fn describe(dir: &Path) -> Result<Bake> {
    let templates = shared_data().join("templates");
    let manifest = |dir: &Path| -> Result<Value> {
        Ok(serde_json::from_slice(&fs::read(dir.join("manifest.json"))?)?)
    };
    let word = |value: &Value| value.as_str().map(str::to_owned).context("a manifest has words");
    let bake = manifest(dir)?;
    let digest = word(&bake["image"])?;
    let image = templates.join("images").join(&digest);
    let root = templates.join("roots").join(word(&manifest(&image)?["root"])?);
    let image = GuestImage {
        kernel: root.join("vmlinuz"),
        initrd: image.join("initrd.cpio"),
        root: root.join("root.erofs"),
        preload: Vec::new(),
        warm_up: Vec::new(),
        digest,
    };
    let number = |value: &Value| value.as_i64().context("a size has numbers");
    let part = |name: &str| number(&bake["size"][name]);
    let size = Size::new(part("cpu")?, part("memory_mb")?, part("disk_mb")?)?;
    let key = dir.file_name().context("a bake has a name")?.to_string_lossy().into_owned();
    Ok(Bake { dir: dir.to_owned(), image, size, key })
}

/// Opens the engine with the programs that the server laid down in its `runtime` directory.
fn open_engine(runtime: &Path) -> Result<Arc<dyn Engine>> {
    let keeper = program(runtime, "panda-keeper")?;
    Ok(if engine() == "kvm" {
        let parts = kvm::Parts { keeper, monitor: program(runtime, "panda-vmm")? };
        Arc::new(KvmEngine::open(runtime, &parts)?)
    } else {
        let fork_library = program(runtime, "panda-qemu-fork.so")?;
        Arc::new(QemuEngine::open(runtime, &qemu::Parts { keeper, fork_library })?)
    })
}

/// A program in the one root that has it, for as long as this process lives.
fn program(runtime: &Path, name: &str) -> Result<&'static [u8]> {
    let roots = fs::read_dir(runtime)?.flatten().map(|entry| entry.path().join(name));
    let path = roots.into_iter().find(|path| path.is_file());
    let path = path.with_context(|| format!("the server has no {name}"))?;
    let mode = fs::metadata(&path)?.permissions();
    // The keeper is for running only, also for its owner.
    fs::set_permissions(&path, Permissions::from_mode(0o755))?;
    let program = fs::read(&path);
    fs::set_permissions(&path, mode)?;
    Ok(program?.leak())
}
