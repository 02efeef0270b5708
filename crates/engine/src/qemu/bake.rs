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

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pandastack_types::Size;
use serde_json::{Value, json};

use super::command::{Start, fd};
use super::machine::console;
use super::memory;
use super::process::{self, Emulator, Files, Host};
use super::qmp::Qmp;
use crate::agent::AgentClient;
use crate::disk::{self, DISK};
use crate::error::file_error;
use crate::files::{MEMORY, STATE, open, open_rw, set_mode};
use crate::rehearsal::{self, rehearse};
use crate::{BakeLog, EngineError, GuestImage};

/// From the start of QEMU to the agent's first answer. About 3 s on an idle host.
const BOOT_DEADLINE: Duration = Duration::from_secs(120);
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
    disk::make_ext4(&disk, job.size.disk_mb).await?;
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
    let mut emulator = process::start(job.host, &name, job.size, how, files, None).await?;
    let baked = boot_and_save(job, &mut emulator, &out.join(STATE), begin).await;
    emulator.process.end().await;
    drop(emulator);
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
    emulator: &mut Emulator,
    state: &Path,
    begin: Instant,
) -> Result<(), EngineError> {
    let stream = emulator.agent.take().ok_or_else(|| EngineError::Ended("no channel".into()))?;
    let agent = AgentClient::connect(stream);
    let process = &emulator.process;
    let booted = tokio::select! {
        booted = agent.hello(BOOT_DEADLINE) => booted.map(drop).map_err(EngineError::from),
        _ = process.ended() => Err(EngineError::Ended(process.complaints().text())),
    };
    if let Err(error) = booted {
        let said = console(&emulator.qmp).await.unwrap_or_default();
        rehearsal::log_console(&said, job.log);
        return Err(error);
    }
    (job.log)(&format!("booted in {} ms", begin.elapsed().as_millis()));
    rehearse(&agent, job.image, job.log).await?;
    freeze(emulator, state).await?;
    (job.log)(&format!("frozen after {} ms", begin.elapsed().as_millis()));
    Ok(())
}

/// Stops the machine, has it write its device state, and ends it.
async fn freeze(emulator: &Emulator, state: &Path) -> Result<(), EngineError> {
    emulator.qmp.execute("stop", Value::Null).await?;
    save_state(&emulator.qmp, state).await?;
    // Ends QEMU in good order, so that the disk file is complete and its caches are written.
    let _ = emulator.qmp.execute("quit", Value::Null).await;
    tokio::time::timeout(SAVE_DEADLINE, emulator.process.ended())
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
pub(super) async fn load_state(emulator: &mut Emulator) -> Result<(), EngineError> {
    let events = json!({ "capabilities": [{ "capability": "events", "state": true }] });
    emulator.qmp.execute("migrate-set-capabilities", events).await?;
    let uri = format!("fd:{}", fd::INITRD_OR_STATE);
    emulator.qmp.execute("migrate-incoming", json!({ "uri": uri })).await?;
    let gone = || EngineError::Ended("its events were taken".into());
    let complaints = emulator.process.complaints().text();
    let events = emulator.events.as_mut().ok_or_else(gone)?;
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

fn protect(path: &Path) -> Result<(), EngineError> {
    set_mode(path, 0o444)?;
    open(path)?.sync_all().map_err(|e| file_error("protect", path, e))
}
