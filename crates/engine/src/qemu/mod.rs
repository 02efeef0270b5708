//! The qemu engine: guests whose instructions are emulated, for hosts without hardware
//! virtualisation.
//!
//! A bake is a memory file and 50 KiB of device state; restoring maps the former privately and
//! reads the latter, which takes some 40 ms, most of it QEMU's own start. Translated code is
//! never part of a bake: what a guest runs first is slow. It is part of a process, though, and a
//! process can be forked (module `fork`): a machine that is a fork of a warm one is warm, and there
//! in milliseconds. Whether that works on a host is proved first ([`Engine::prove_fork`]).
//!
//! QEMU's authors give no security promise for emulation. The jail is the wall: see
//! `pandastack_jail`, and the module `runtime` for the only files such a process can see.

mod adopt;
mod bake;
mod channels;
mod command;
mod control;
mod controls;
mod disk;
mod fork;
mod host;
mod machine;
mod memory;
mod process;
mod qmp;
mod runtime;

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use pandastack_jail::{Cgroups, Filter};
use pandastack_types::{Isolation, Size};
use rustix::pipe::{PipeFlags, pipe_with};

use self::command::Start;
use self::disk::QemuDisk;
use self::fork::{Body, Copy, Family};
use self::machine::QemuMachine;
use self::memory::loaded::Loaded;
use self::process::{Files, Host};
use self::runtime::Runtime;
use crate::error::file_error;
use crate::files::{self as names, DIFF, MEMORY, STATE};
use crate::generations::Generations;
use crate::process::OLD_GROUP;
use crate::proof::Proof;
use crate::{Bake, BakeLog, Engine, EngineError, GuestImage, Kept, Machine, tsc};

pub use self::host::installed;

/// Counts in every bake's key; raised when the files of a bake change their meaning.
const FORMAT: u32 = 2;

/// The engine. One per server.
pub struct QemuEngine {
    host: Arc<Host>,
    tsc_khz: u64,
    memories: Loaded,
    proof: Proof,
}

/// Programs that a jailed QEMU runs with, as they are in the file system.
pub struct Parts {
    /// `panda-keeper`, a static program.
    pub keeper: &'static [u8],
    /// `panda-qemu-fork`, a library for the C library that QEMU uses.
    pub fork_library: &'static [u8],
}

impl QemuEngine {
    /// Prepares the engine; `dir` keeps QEMU's file system and what was measured of the host.
    /// Fails where QEMU is missing or the host cannot confine it.
    pub fn open(dir: &Path, parts: &Parts) -> Result<Self, EngineError> {
        fs::create_dir_all(dir).map_err(|e| file_error("create", dir, e))?;
        let runtime = Runtime::prepare(dir, parts)?;
        let tsc_khz = tsc::stable_khz(&dir.join("tsc-khz"));
        let cgroups = Cgroups::find();
        cgroups.sweep(OLD_GROUP);
        Ok(Self {
            host: Arc::new(Host {
                runtime,
                filter: Arc::new(Filter::machine()),
                cgroups,
                generations: Generations::new(),
            }),
            tsc_khz,
            memories: Loaded::default(),
            proof: Proof::default(),
        })
    }

    async fn memory(&self, bake: &Bake) -> Result<Arc<OwnedFd>, EngineError> {
        let path = bake.dir.join(MEMORY);
        let diff = Some(bake.dir.join(DIFF)).filter(|diff| diff.exists());
        let loaded = self.memories.get(&bake.key, &path, diff).await;
        loaded.map_err(|e| file_error("load", &path, e))
    }
}

#[async_trait]
impl Engine for QemuEngine {
    fn name(&self) -> &'static str {
        "qemu"
    }

    fn version(&self) -> String {
        self.host.runtime.version.clone()
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
            &format!("{} MiB of disk", size.disk_mb),
            // A guest keeps the counter's frequency in memory: on another host its clock is wrong.
            &self.tsc_khz.to_string(),
        ] {
            hash.update(part.as_bytes());
            hash.update(b"\0");
        }
        hash.finalize().to_hex()[..32].to_owned()
    }

    fn warms_by_running(&self) -> bool {
        true
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

    async fn adopt(&self, dir: &Path, kept: Kept) -> Result<Box<dyn Machine>, EngineError> {
        Ok(Box::new(adopt::adopt(&self.host, dir, kept).await?))
    }

    fn clear(&self, machine: &str) {
        self.host.cgroups.remove(machine);
    }

    async fn settled(&self) {
        crate::process::settled().await;
    }

    fn volume_slots(&self) -> usize {
        command::VOLUME_SLOTS
    }

    async fn prove_fork(&self, bake: &Bake, scratch: &Path) -> Result<(), EngineError> {
        self.proof.of(self, bake, scratch).await
    }

    async fn restore(&self, bake: &Bake, dir: &Path) -> Result<Box<dyn Machine>, EngineError> {
        let (disk, top) = QemuDisk::create(&bake.dir, dir, bake.size.disk_bytes())?;
        let (base, layers) = disk.descriptors().map_err(EngineError::Spawn)?;
        let memory = self.memory(bake).await?;
        let root = names::open(&bake.image.root)?;
        let (hangs_on, lifeline) =
            pipe_with(PipeFlags::CLOEXEC).map_err(|e| EngineError::Spawn(e.into()))?;
        let family = Arc::new(Family {
            host: self.host.clone(),
            bake: bake.clone(),
            common: fork::identities([memory.as_fd(), root.as_fd()])?,
            memory: memory.clone(),
            lifeline,
        });
        let start = Start::Restore { layers: layers.len() };
        let rest = [base.into(), names::open(&bake.dir.join(STATE))?];
        let files = Files { memory, root, disk: top, rest, layers };
        let name = names::name_of(dir);
        let started = process::start(&self.host, &name, bake.size, start, files, Some(hangs_on));
        let mut emulator = started.await?;
        let restored = async {
            names::note_pid(dir, emulator.process.pid())?;
            bake::load_state(&mut emulator).await
        }
        .await;
        let gone = || EngineError::Ended("its control socket was taken".into());
        let control = emulator.control.take().ok_or_else(gone)?;
        let (identities, disks, dir) = (emulator.identities, vec![disk], dir.to_owned());
        let body = Body { control, identities, disks, dir, running: false, generation: 0 };
        // Adopted in any case: the machine's task also ends and reaps a process that failed.
        let machine = QemuMachine::adopt(family, Copy { emulator, body }, None)?;
        match restored {
            Ok(()) => Ok(Box::new(machine)),
            Err(error) => {
                machine.kill().await;
                Err(error)
            }
        }
    }
}
