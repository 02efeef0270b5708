//! Firecracker, doing the same work: its process starts, restores a snapshot and answers.
//!
//! What it need not wait for is made before the clock starts: its directory, its copy of the disk,
//! and the socket that its guest's connection comes out of. It runs without its jailer and without
//! its filter of system calls, which only makes it faster.
//!
//! ```text
//!   snapshot/  state memory disk          made once
//!   machine-N/ disk  api  vsock           a process that runs in there
//!              vsock_1024                 ours: where the guest's agent comes to
//! ```

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use pandastack_engine::agent::{AgentClient, Identity};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use serde_json::{Value, json};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixListener;
use tokio::process::{Child, Command};
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::footprint::{self, Footprint};
use crate::http::Api;
use crate::laps::Laps;
use crate::{
    DISK_MB, MEMORY_MB, PATIENCE, Plan, TOUCH, WARM_UP, directory, echo, shell, write_to_disk,
};

/// The names of a machine's files in its directory.
const API: &str = "api";
const DISK: &str = "disk";
const VSOCK: &str = "vsock";
/// Where a connection of the guest to this port of the host comes out.
const AGENT: &str = "vsock_1024";

/// A program and a snapshot.
pub struct Firecracker {
    /// What the program says of itself.
    pub version: String,
    program: PathBuf,
    snapshot: PathBuf,
    machines: PathBuf,
    made: AtomicUsize,
    source: Mutex<Option<Restored>>,
}

/// A process with its API and, in time, its guest's agent.
struct Process {
    child: Child,
    dir: PathBuf,
    api: Api,
    /// Kept, because closing it waits for the kernel, and must not do so while the clock runs.
    _watch: AsyncFd<OwnedFd>,
}

/// A machine whose agent answers.
struct Restored {
    process: Process,
    agent: AgentClient,
    /// Where the agent comes to anew when a snapshot was taken, which ends its connection.
    listener: Arc<UnixListener>,
}

impl Firecracker {
    /// Boots a guest, warms it up as our bake does, and takes a snapshot of it.
    pub async fn prepare(plan: &Plan) -> Result<Self> {
        let root = directory(&plan.dir, "firecracker")?;
        let program = plan.programs.join("firecracker");
        let said = Command::new(&program).arg("--version").output().await?;
        let said = String::from_utf8_lossy(&said.stdout).lines().next().unwrap_or("").to_owned();
        let this = Self {
            version: said,
            program,
            snapshot: directory(&root, "snapshot")?,
            machines: directory(&root, "machines")?,
            made: AtomicUsize::new(0),
            source: Mutex::new(None),
        };
        make_disk(&this.snapshot.join(DISK)).await?;
        let (dir, agent) = this.make_room().await?;
        let mut process = this.start(dir, &mut Laps::begin()).await?;
        configure(plan, &mut process.api).await?;
        let agent = connect(&agent).await?;
        agent.hello(PATIENCE).await.context("the agent of the booted guest")?;
        shell(&agent, WARM_UP).await?;
        agent.quiesce().await?;
        process.set_state("Paused").await?;
        process.save(&this.snapshot).await?;
        // The memory and the disk of one instant.
        copy(&process.dir.join(DISK), &this.snapshot.join(DISK)).await?;
        process.end().await?;
        Ok(this)
    }

    /// From the request for a sandbox to the answer of its first command.
    pub async fn create(&self) -> Result<Laps> {
        let room = self.make_room().await?;
        let mut laps = Laps::begin();
        let restored = self.restore(room, &mut laps).await?;
        echo(&restored.agent).await?;
        laps.lap("first exec");
        laps.moment("first exec");
        let warm = Instant::now();
        echo(&restored.agent).await?;
        laps.note("another exec", warm.elapsed());
        restored.process.end().await?;
        Ok(laps)
    }

    /// Makes a machine that runs and has touched memory.
    pub async fn make_source(&self) -> Result<()> {
        let restored = self.restore(self.make_room().await?, &mut Laps::begin()).await?;
        shell(&restored.agent, TOUCH).await?;
        *self.source.lock().await = Some(restored);
        Ok(())
    }

    /// What it takes to copy the source while it runs.
    pub async fn stall(&self, round: usize) -> Result<Laps> {
        let mut source = self.source.lock().await;
        let Restored { process, agent, listener } = source.as_mut().context("no source")?;
        write_to_disk(agent, round).await?;
        let copy = directory(&self.machines, "copy")?;
        let mut laps = Laps::begin();
        process.set_state("Paused").await?;
        laps.lap("pause");
        process.save(&copy).await?;
        laps.lap("full snapshot");
        laps.moment("stall");
        process.set_state("Resumed").await?;
        laps.lap("resume");
        *agent = reconnect(listener, agent).await?;
        echo(agent).await?;
        fs::remove_dir_all(copy)?;
        Ok(laps)
    }

    /// Memory of `count` restored machines that are alive together, after a first command.
    pub async fn footprint(&self, count: usize) -> Result<Value> {
        *self.source.lock().await = None;
        let mut alive = Vec::new();
        for _ in 0..count {
            let restored = self.restore(self.make_room().await?, &mut Laps::begin()).await?;
            echo(&restored.agent).await?;
            alive.push(restored);
        }
        let pids = alive.iter().filter_map(|it| it.process.child.id());
        let weight = footprint::mean(&pids.map(Footprint::of).collect::<Result<Vec<_>>>()?);
        for restored in alive {
            restored.process.end().await?;
        }
        Ok(json!({ "after the first exec": weight }))
    }

    /// Starts a process, restores the snapshot in it, and makes the machine somebody's.
    async fn restore(
        &self,
        (dir, agent): (PathBuf, UnixListener),
        laps: &mut Laps,
    ) -> Result<Restored> {
        // Greets the agent at once, also before the answer to the request is there.
        let listener = Arc::new(agent);
        let door = listener.clone();
        let agent = tokio::spawn(async move { connect(&door).await });
        let mut process = self.start(dir, laps).await?;
        let load = json!({
            "snapshot_path": self.snapshot.join("state"),
            "mem_backend": { "backend_type": "File", "backend_path": self.snapshot.join("memory") },
            "resume_vm": true,
        });
        process.api.ask("PUT", "/snapshot/load", &load).await?;
        laps.lap("load and resume");
        laps.moment("guest running");
        let agent = agent.await??;
        laps.lap("agent connected");
        agent.resume(&Identity::random("firecracker")?, PATIENCE).await?;
        laps.lap("identity acknowledged");
        laps.moment("first answer");
        Ok(Restored { process, agent, listener })
    }

    /// A directory for a machine with what it finds there.
    async fn make_room(&self) -> Result<(PathBuf, UnixListener)> {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let dir = directory(&self.machines, &format!("machine-{number}"))?;
        copy(&self.snapshot.join(DISK), &dir.join(DISK)).await?;
        let agent = UnixListener::bind(dir.join(AGENT))?;
        Ok((dir, agent))
    }

    /// Starts a process and waits until it can be spoken to.
    async fn start(&self, dir: PathBuf, laps: &mut Laps) -> Result<Process> {
        let said = File::create(dir.join("log"))?;
        let watch = watch(&dir)?;
        let child = Command::new(&self.program)
            .args(["--api-sock", API, "--no-seccomp", "--level", "Error"])
            .current_dir(&dir)
            .stdin(Stdio::null())
            .stdout(said.try_clone()?)
            .stderr(said)
            .kill_on_drop(true)
            .spawn()?;
        laps.lap("process");
        let api = timeout(PATIENCE, first_connection(&watch, &dir.join(API))).await;
        let api = api.context("no API socket in time")??;
        laps.lap("API");
        Ok(Process { child, dir, api, _watch: watch })
    }
}

impl Process {
    async fn set_state(&mut self, state: &str) -> Result<()> {
        self.api.ask("PATCH", "/vm", &json!({ "state": state })).await
    }

    /// Writes a full snapshot into `dir`.
    async fn save(&mut self, dir: &Path) -> Result<()> {
        let files = json!({
            "snapshot_type": "Full",
            "snapshot_path": dir.join("state"), "mem_file_path": dir.join("memory"),
        });
        self.api.ask("PUT", "/snapshot/create", &files).await
    }

    /// Ends it, waits until it is gone and removes its files.
    async fn end(mut self) -> Result<()> {
        self.child.kill().await?;
        Ok(fs::remove_dir_all(&self.dir)?)
    }
}

/// The guest of our bake, described to Firecracker, and booted.
async fn configure(plan: &Plan, api: &mut Api) -> Result<()> {
    let machine = json!({ "vcpu_count": 1, "mem_size_mib": MEMORY_MB });
    api.ask("PUT", "/machine-config", &machine).await?;
    let boot = json!({
        "kernel_image_path": plan.programs.join("vmlinux"),
        "initrd_path": plan.image.join("initrd.cpio"),
        "boot_args": pandastack_vmm::boot::command_line(true),
    });
    api.ask("PUT", "/boot-source", &boot).await?;
    // The agent knows disks without our serial numbers by their order.
    let disks = [("root", plan.image.join("root.erofs"), true), ("disk", DISK.into(), false)];
    for (name, path, read_only) in disks {
        let disk = json!({
            "drive_id": name, "path_on_host": path, "is_read_only": read_only,
            "is_root_device": false,
        });
        api.ask("PUT", &format!("/drives/{name}"), &disk).await?;
    }
    api.ask("PUT", "/vsock", &json!({ "guest_cid": 3, "uds_path": VSOCK })).await?;
    api.ask("PUT", "/actions", &json!({ "action_type": "InstanceStart" })).await
}

/// Speaks to the agent that comes to a socket.
async fn connect(listener: &UnixListener) -> Result<AgentClient> {
    let accepted = timeout(PATIENCE, listener.accept()).await;
    let (stream, _) = accepted.context("no agent came in time")??;
    Ok(AgentClient::connect(stream))
}

/// The same agent on its next connection.
async fn reconnect(listener: &UnixListener, before: &AgentClient) -> Result<AgentClient> {
    let accepted = timeout(PATIENCE, listener.accept()).await;
    let (stream, _) = accepted.context("the agent did not come again in time")??;
    Ok(AgentClient::connect_copy(stream, before))
}

/// Tells when something new is in a directory: no waiting in steps, which would be measured.
fn watch(dir: &Path) -> Result<AsyncFd<OwnedFd>> {
    let watch = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    inotify::add_watch(&watch, dir, WatchFlags::CREATE)?;
    #[expect(deprecated, reason = "an OwnedFd stays open as long as the AsyncFd that owns it")]
    Ok(AsyncFd::with_interest(watch, Interest::READABLE)?)
}

async fn first_connection(watch: &AsyncFd<OwnedFd>, socket: &Path) -> Result<Api> {
    while !socket.exists() {
        let mut ready = watch.readable().await?;
        let mut events = [0; 1024];
        let _ = ready.try_io(|fd| Ok(rustix::io::read(fd, &mut events)?));
    }
    loop {
        match Api::connect(socket).await {
            // It has its name a moment before somebody listens: whoever that is gets the processor.
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => {
                rustix::thread::sched_yield();
            }
            other => return Ok(other?),
        }
    }
}

/// The file system that our bake makes as well.
async fn make_disk(path: &Path) -> Result<()> {
    File::create(path)?.set_len(u64::from(DISK_MB) << 20)?;
    let options = ["-q", "-F", "-m", "0", "-O", "^has_journal"];
    run(Command::new("mkfs.ext4").args(options).arg(path)).await
}

async fn copy(from: &Path, to: &Path) -> Result<()> {
    run(Command::new("cp").arg("--sparse=always").args([from, to])).await
}

async fn run(command: &mut Command) -> Result<()> {
    let output = command.kill_on_drop(true).output().await?;
    let said = || String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{:?}: {}", command.as_std(), said());
    Ok(())
}
