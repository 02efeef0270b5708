//! Making a bake: boot once, warm up, stand still, save.
//!
//! ```text
//!  memfd (shared) ◀── guest memory ── QEMU ── raw disk file
//!        │                              │
//!        ▼ memory (sparse file)         ▼ state: devices only
//! ```
//!
//! Files of a bake: `memory`, `state` and `disk`, the writable disk at that instant, which is a
//! read-only layer from now on.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pandastack_types::Size;
use serde_json::{Value, json};
use tokio::process::Command;

use super::command::{Start, fd};
use super::machine::console;
use super::process::{self, Files, Host, Process};
use super::qmp::Qmp;
use super::runtime::file_error;
use super::{DISK, MEMORY, STATE, memory};
use crate::agent::{AgentClient, ExecSpec};
use crate::{BakeLog, EngineError, GuestImage};

/// From the start of QEMU to the agent's first answer. About 3 s on an idle host.
const BOOT_DEADLINE: Duration = Duration::from_secs(120);
/// For one warm-up line: importing a large library takes tens of seconds when emulated.
const WARM_UP_DEADLINE: Duration = Duration::from_secs(180);
/// For saving the device state, a few milliseconds.
const SAVE_DEADLINE: Duration = Duration::from_secs(30);
/// Reading 50 KiB of device state takes milliseconds; a host in trouble gets this long.
const LOAD_DEADLINE: Duration = Duration::from_secs(20);

/// What a bake is made of and where its log lines go.
pub(super) struct Job<'a> {
    pub host: &'a Host,
    pub image: &'a GuestImage,
    pub size: Size,
    pub tsc_khz: u64,
    pub log: &'a BakeLog<'a>,
}

/// Bakes into the empty directory `out`.
pub(super) async fn bake(job: &Job<'_>, out: &Path) -> Result<(), EngineError> {
    let disk = out.join(DISK);
    make_disk(&disk, job.image.disk_mb).await?;
    let guest_memory = memory::create(job.size.memory_bytes())
        .map_err(|e| file_error("create", Path::new("guest memory"), e))?;
    let guest_memory = Arc::new(guest_memory);

    let begin = Instant::now();
    (job.log)("booting the guest");
    let files = Files {
        memory: guest_memory.clone(),
        root: open(&job.image.root)?,
        disk: open_rw(&disk)?,
        rest: [open(&job.image.kernel)?, open(&job.image.initrd)?],
        layers: Vec::new(),
    };
    let name = format!("bake-{}", std::process::id());
    let how = Start::Boot { tsc_khz: job.tsc_khz };
    let mut process = process::start(job.host, &name, job.size, how, files).await?;
    let child = process.child().clone();
    let baked = boot_and_save(job, &mut process, &out.join(STATE), begin).await;
    child.kill();
    let _ = process::ended(&child).await;
    drop(process);
    baked?;

    (job.log)("writing the memory");
    let path = out.join(MEMORY);
    let saved = path.clone();
    tokio::task::spawn_blocking(move || memory::save(guest_memory.try_clone()?, &saved))
        .await
        .map_err(|e| file_error("write", &path, io::Error::other(e)))?
        .map_err(|e| file_error("write", &path, e))?;
    for name in [MEMORY, STATE, DISK] {
        protect(&out.join(name))?;
    }
    Ok(())
}

/// Everything between the start of QEMU and its end.
async fn boot_and_save(
    job: &Job<'_>,
    process: &mut Process,
    state: &Path,
    begin: Instant,
) -> Result<(), EngineError> {
    let stream = process.agent.take().ok_or_else(|| EngineError::Ended("no channel".into()))?;
    let agent = AgentClient::connect(stream);
    let child = process.child().clone();
    let booted = tokio::select! {
        booted = agent.hello(BOOT_DEADLINE) => booted.map(drop).map_err(EngineError::from),
        _ = process::ended(&child) => Err(EngineError::Ended(process.complaints())),
    };
    if let Err(error) = booted {
        let said = console(&process.qmp).await.unwrap_or_default();
        let tail: Vec<&str> = said.lines().rev().take(20).collect();
        for line in tail.into_iter().rev() {
            (job.log)(&format!("guest console: {line}"));
        }
        return Err(error);
    }
    (job.log)(&format!("booted in {} ms", begin.elapsed().as_millis()));
    for line in job.image.preload.iter().chain(&job.image.warm_up) {
        warm_up(&agent, line, job.log).await?;
    }
    agent.quiesce().await?;
    freeze(process, state).await?;
    (job.log)(&format!("frozen after {} ms", begin.elapsed().as_millis()));
    Ok(())
}

/// Runs one line in the guest; it must succeed, or the template is broken.
async fn warm_up(agent: &AgentClient, line: &str, log: &BakeLog<'_>) -> Result<(), EngineError> {
    let begin = Instant::now();
    let spec = ExecSpec {
        shell: Some(line.to_owned()),
        timeout_ms: Some(WARM_UP_DEADLINE.as_millis() as u64),
        ..ExecSpec::default()
    };
    let output = agent.run(spec).await?;
    log(&format!("warm-up {:>6} ms: {line}", begin.elapsed().as_millis()));
    if output.status.code == 0 {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(EngineError::Ended(format!("warm-up line {line:?} failed: {said}")))
}

/// Stops the machine, has it write its device state, and ends it.
async fn freeze(process: &mut Process, state: &Path) -> Result<(), EngineError> {
    process.qmp.execute("stop", Value::Null).await?;
    save_state(&process.qmp, state).await?;
    // Ends QEMU in good order, so that the disk file is complete and its caches are written.
    let _ = process.qmp.execute("quit", Value::Null).await;
    let child = process.child().clone();
    tokio::time::timeout(SAVE_DEADLINE, process::ended(&child))
        .await
        .map_err(|_| EngineError::Deadline("the end of QEMU"))?
        .map_err(EngineError::Spawn)
}

/// Has a machine that stands still write its device state to a new file. The command is the only
/// one that leaves memory out whatever it is made of; it came to QEMU with Xen, whence its name,
/// and has nothing to do with it.
pub(super) async fn save_state(qmp: &Qmp, path: &Path) -> Result<(), EngineError> {
    // Write-only: QEMU takes a descriptor of a set only if its mode is exactly the wanted one.
    let state = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(|e| file_error("create", path, e))?;
    let set = qmp.add_descriptor(state.as_fd()).await?;
    let arguments = json!({ "filename": format!("/dev/fdset/{set}"), "live": true });
    qmp.execute("xen-save-devices-state", arguments).await.map(drop)
}

/// Has a new machine read its device state.
pub(super) async fn load_state(process: &mut Process) -> Result<(), EngineError> {
    let events = json!({ "capabilities": [{ "capability": "events", "state": true }] });
    process.qmp.execute("migrate-set-capabilities", events).await?;
    let uri = format!("fd:{}", fd::INITRD_OR_STATE);
    process.qmp.execute("migrate-incoming", json!({ "uri": uri })).await?;
    let gone = || EngineError::Ended("its events were taken".into());
    let complaints = process.complaints();
    let events = process.events.as_mut().ok_or_else(gone)?;
    let wait = async {
        while let Some(event) = events.recv().await {
            match event.data["status"].as_str() {
                Some("completed") if event.name == "MIGRATION" => return Ok(()),
                Some("failed") => break,
                _ => {}
            }
        }
        Err(EngineError::Ended(format!("its state could not be read. {complaints}")))
    };
    tokio::time::timeout(LOAD_DEADLINE, wait)
        .await
        .map_err(|_| EngineError::Deadline("reading the device state"))?
}

/// An empty ext4 file system in a sparse file. No journal: its owner lives once.
async fn make_disk(path: &Path, megabytes: u32) -> Result<(), EngineError> {
    create(path)?.set_len(u64::from(megabytes) << 20).map_err(|e| file_error("size", path, e))?;
    tool(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0", "-O", "^has_journal"]).arg(path))
        .await
}

async fn tool(command: &mut Command) -> Result<(), EngineError> {
    let what = command.as_std().get_program().to_string_lossy().into_owned();
    let output = command.kill_on_drop(true).output().await;
    let hint = match output {
        Ok(output) if output.status.success() => return Ok(()),
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    Err(EngineError::Host { what, hint })
}

fn protect(path: &Path) -> Result<(), EngineError> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o444))
        .and_then(|()| File::open(path)?.sync_all())
        .map_err(|e| file_error("protect", path, e))
}

pub(super) fn open(path: &Path) -> Result<File, EngineError> {
    File::open(path).map_err(|e| file_error("open", path, e))
}

pub(super) fn open_rw(path: &Path) -> Result<File, EngineError> {
    File::options().read(true).write(true).open(path).map_err(|e| file_error("open", path, e))
}

fn create(path: &Path) -> Result<File, EngineError> {
    File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .map_err(|e| file_error("create", path, e))
}
