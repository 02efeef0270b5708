//! The qemu engine: guests whose instructions are emulated, for hosts without hardware
//! virtualisation.
//!
//! A bake is a memory file and 50 KiB of device state; restoring maps the former privately and
//! reads the latter, which takes some 40 ms, most of it QEMU's own start. Translated code is
//! never part of a bake: what a guest runs first is slow, so machines are better parked warm.
//!
//! QEMU's authors give no security promise for emulation. The jail is the wall: see
//! `pandastack_jail`, and the module `runtime` for the only files such a process can see.

mod bake;
mod command;
mod host;
mod machine;
mod memory;
mod process;
mod qcow2;
mod qmp;
mod runtime;
mod usage;

use std::collections::HashMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use pandastack_jail::{Cgroups, Filter};
use pandastack_types::{Isolation, Size};
use serde_json::json;
use tokio::sync::OnceCell;

use self::command::{Start, fd};
use self::machine::QemuMachine;
use self::process::{Files, Host};
use self::runtime::{Runtime, file_error};
use crate::{Bake, BakeLog, Engine, EngineError, GuestImage, Machine};

pub use self::host::{Probe, probe};

/// File names in a bake's directory.
const MEMORY: &str = "memory";
const STATE: &str = "state";
const DISK: &str = "disk";

/// File names in a machine's directory.
const MACHINE_DISK: &str = "disk.qcow2";
const MACHINE_PID: &str = "pid";

/// Counts in every bake's key; raised when the files of a bake change their meaning.
const FORMAT: u32 = 1;

/// Reading 50 KiB of device state takes milliseconds; a host in trouble gets this long.
const RESTORE_DEADLINE: Duration = Duration::from_secs(20);

/// An empty control group this old belongs to nobody: machines join theirs within milliseconds.
const OLD_GROUP: Duration = Duration::from_secs(60);

/// A guest's memory, loaded at most once however many ask for it at the same time.
type LoadedMemory = Arc<OnceCell<Arc<OwnedFd>>>;

/// The engine. One per server.
pub struct QemuEngine {
    host: Host,
    tsc_khz: u64,
    memories: Mutex<HashMap<String, LoadedMemory>>,
}

impl QemuEngine {
    /// Prepares the engine; `dir` keeps QEMU's file system and what was measured of the host.
    /// Fails where QEMU is missing or the host cannot confine it.
    pub fn open(dir: &Path) -> Result<Self, EngineError> {
        fs::create_dir_all(dir).map_err(|e| file_error("create", dir, e))?;
        let runtime = Runtime::prepare(dir)?;
        let tsc_khz = host::stable_tsc_khz(&dir.join("tsc-khz"));
        let cgroups = Cgroups::find();
        cgroups.sweep(OLD_GROUP);
        Ok(Self {
            host: Host { runtime, filter: Arc::new(Filter::machine()), cgroups },
            tsc_khz,
            memories: Mutex::default(),
        })
    }

    /// QEMU's version line.
    pub fn version(&self) -> &str {
        &self.host.runtime.version
    }

    async fn memory(&self, bake: &Bake) -> Result<Arc<OwnedFd>, EngineError> {
        let cell = {
            let mut memories = self.memories.lock().expect("no panic under this lock");
            memories.entry(bake.key.clone()).or_default().clone()
        };
        let path = bake.dir.join(MEMORY);
        cell.get_or_try_init(|| async {
            let source = path.clone();
            tokio::task::spawn_blocking(move || memory::load(&source))
                .await
                .map_err(|e| file_error("load", &path, std::io::Error::other(e)))?
                .map(Arc::new)
                .map_err(|e| file_error("load", &path, e))
        })
        .await
        .cloned()
    }
}

#[async_trait]
impl Engine for QemuEngine {
    fn name(&self) -> &'static str {
        "qemu"
    }

    fn isolation(&self) -> Isolation {
        Isolation::Emulated
    }

    fn bake_key(&self, image: &GuestImage, size: Size) -> String {
        let mut hash = blake3::Hasher::new();
        for part in [
            &FORMAT.to_string(),
            &image.digest,
            &self.host.runtime.version,
            &self.host.runtime.digest,
            &command::fingerprint(size),
            // A guest keeps the counter's frequency in memory: on another host its clock is wrong.
            &self.tsc_khz.to_string(),
        ] {
            hash.update(part.as_bytes());
            hash.update(b"\0");
        }
        hash.finalize().to_hex()[..32].to_owned()
    }

    async fn bake(
        &self,
        image: &GuestImage,
        size: Size,
        out: &Path,
        log: &BakeLog<'_>,
    ) -> Result<(), EngineError> {
        let job = bake::Job { host: &self.host, image, size, tsc_khz: self.tsc_khz, log };
        bake::bake(&job, out).await
    }

    fn clear(&self, machine: &str) {
        self.host.cgroups.remove(machine);
    }

    async fn restore(&self, bake: &Bake, dir: &Path) -> Result<Box<dyn Machine>, EngineError> {
        let disk = dir.join(MACHINE_DISK);
        let bytes = u64::from(bake.image.disk_mb) << 20;
        let files = Files {
            memory: self.memory(bake).await?,
            root: bake::open(&bake.image.root)?,
            disk: qcow2::create(&disk, bytes).map_err(|e| file_error("create", &disk, e))?,
            rest: [bake::open(&bake.dir.join(DISK))?, bake::open(&bake.dir.join(STATE))?],
        };
        let name = dir.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let mut process =
            process::start(&self.host, &name, bake.size, Start::Restore, files).await?;
        let pid_file = dir.join(MACHINE_PID);
        let restored = async {
            fs::write(&pid_file, process.pid().to_string())
                .map_err(|e| file_error("write", &pid_file, e))?;
            bake::set_capabilities(&process).await?;
            let uri = format!("fd:{}", fd::INITRD_OR_STATE);
            process.qmp.execute("migrate-incoming", json!({ "uri": uri })).await?;
            bake::migrated(&mut process, RESTORE_DEADLINE).await
        }
        .await;
        // Adopted in any case: the machine's task also ends and reaps a process that failed.
        let machine = QemuMachine::adopt(process)?;
        match restored {
            Ok(()) => Ok(Box::new(machine)),
            Err(error) => {
                machine.kill().await;
                Err(error)
            }
        }
    }
}
