//! The kvm engine: guests that the processor runs, in a monitor of our own.
//!
//! Guest memory is a private mapping of a bake's file, so a machine costs the pages that it
//! changes, and `fork(2)` of its monitor is the fork of the machine. The monitor (`panda-vmm`, the
//! crate `pandastack_vmm`) is the only process that a guest can reach; it is started in a jail
//! with a control socket, and everything else it gets over that. This module is the other end.
//!
//! | module | is |
//! | --- | --- |
//! | `probe`, [`KvmEngine::prove`] | whether this host can |
//! | `monitor`, `client`, `channels`, `runtime` | one process, and talking to it |
//! | `files`, `manifest`, `processor` | what a bake is, and how damage is found |
//! | `bake`, `restore`, `fork`, `snapshot`, `volume`, `machine` | what is done |

mod bake;
mod channels;
mod client;
mod files;
mod fork;
mod laps;
mod machine;
mod manifest;
mod monitor;
mod probe;
mod processor;
mod restore;
mod runtime;
mod snapshot;
mod volume;

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use pandastack_jail::{Cgroups, Filter};
use pandastack_types::{Isolation, Size};
use pandastack_vmm::control::{Request, Role};

use self::client::PROVE;
use self::files::Files;
use self::fork::Family;
use self::machine::KvmMachine;
use self::monitor::{Host, launch};
use self::processor::Processor;
use self::runtime::Runtime;
use crate::error::file_error;
use crate::generations::Generations;
use crate::process::OLD_GROUP;
use crate::proof::Proof;
use crate::{Bake, BakeLog, Engine, EngineError, GuestImage, Machine, files as names, tsc};

pub use self::manifest::verify;
pub use self::probe::{Probe, probe};

/// The engine. One per server.
pub struct KvmEngine {
    host: Arc<Host>,
    processor: Processor,
    tsc_khz: u64,
    proof: Proof,
}

/// Programs of a jailed machine.
pub struct Parts {
    /// `panda-keeper`, a static program.
    pub keeper: &'static [u8],
    /// `panda-vmm`, a static program.
    pub monitor: &'static [u8],
}

impl KvmEngine {
    /// Prepares the engine; `dir` keeps the file system of jails and what was measured of the
    /// host. Fails where there is no KVM to try.
    pub fn open(dir: &Path, parts: &Parts) -> Result<Self, EngineError> {
        let found = probe();
        let hint = || found.to_string();
        if !found.is_promising() {
            return Err(EngineError::Host { what: "hardware virtualisation".into(), hint: hint() });
        }
        let kvm = probe::open()
            .map_err(|e| EngineError::Host { what: "/dev/kvm".into(), hint: e.to_string() })?;
        fs::create_dir_all(dir).map_err(|e| file_error("create", dir, e))?;
        let runtime = Runtime::prepare(dir, parts)?;
        let cgroups = Cgroups::find();
        cgroups.sweep(OLD_GROUP);
        let filter = Arc::new(Filter::monitor());
        Ok(Self {
            host: Arc::new(Host { runtime, filter, cgroups, kvm, generations: Generations::new() }),
            processor: Processor::of_host(),
            tsc_khz: tsc::stable_khz(&dir.join("tsc-khz")),
            proof: Proof::default(),
        })
    }

    /// Proves that guests run here, by running one of a few instructions in a jailed monitor. A
    /// host that is itself emulated takes a second or more.
    pub async fn prove(&self) -> Result<(), EngineError> {
        let smallest = Size { cpu: 1, memory_mb: Size::MIN_MEMORY_MB, disk_mb: Size::DISK_STEP_MB };
        let name = format!("prove-{}", std::process::id());
        let monitor = launch(&self.host, &name, smallest).await?.monitor;
        let with = vec![(Role::Kvm, self.host.kvm.as_fd())];
        match monitor.client.done(Request::Prove, with, PROVE).await {
            Ok(()) => {
                monitor.process.end().await;
                Ok(())
            }
            Err(error) => Err(monitor.explain(error).await),
        }
    }
}

#[async_trait]
impl Engine for KvmEngine {
    fn name(&self) -> &'static str {
        "kvm"
    }

    fn version(&self) -> String {
        format!("panda-vmm {} on {}", self.host.runtime.digest, self.processor.describe())
    }

    fn isolation(&self) -> Isolation {
        Isolation::Hardware
    }

    fn bake_key(&self, image: &GuestImage, size: Size) -> String {
        let (monitor, processor) = (&self.host.runtime.digest, self.processor.fingerprint());
        key(&image.digest, size, monitor, &processor, self.tsc_khz)
    }

    /// Everything warm is memory, which is in the bake; running would only make pages that every
    /// fork has to copy the tables of.
    fn warms_by_running(&self) -> bool {
        false
    }

    async fn bake(
        &self,
        image: &GuestImage,
        size: Size,
        out: &Path,
        log: &BakeLog<'_>,
    ) -> Result<(), EngineError> {
        let processor = self.processor.describe();
        bake::bake(&bake::Job { host: &self.host, processor, image, size, log }, out).await
    }

    async fn restore(&self, bake: &Bake, dir: &Path) -> Result<Box<dyn Machine>, EngineError> {
        let files = Files::open(bake)?;
        let group = names::name_of(dir);
        let machine = restore::restore(&self.host, bake, &files, dir, &group).await?;
        let family = Family { host: self.host.clone(), bake: bake.clone(), files };
        Ok(Box::new(KvmMachine::adopt(Arc::new(family), machine, None)))
    }

    async fn prove_fork(&self, bake: &Bake, scratch: &Path) -> Result<(), EngineError> {
        self.proof.of(self, bake, scratch).await
    }

    fn volume_slots(&self) -> usize {
        pandastack_vmm::VOLUME_SLOTS
    }

    fn verify(&self, dir: &Path) -> Result<bool, EngineError> {
        verify(dir).map(|()| true)
    }

    fn clear(&self, machine: &str) {
        self.host.cgroups.remove(machine);
    }

    async fn settled(&self) {
        crate::process::settled().await;
    }
}

/// Content address of a bake: everything that its files depend on.
fn key(image: &str, size: Size, monitor: &str, processor: &str, tsc_khz: u64) -> String {
    let mut hash = blake3::Hasher::new();
    for part in [
        "kvm",
        &manifest::FORMAT.to_string(),
        image,
        &size.to_string(),
        // Devices, boot and the form of the state are the monitor's.
        monitor,
        processor,
        // The guest's clock counts in it.
        &tsc_khz.to_string(),
    ] {
        hash.update(part.as_bytes());
        hash.update(b"\0");
    }
    hash.finalize().to_hex()[..32].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_stands_for_everything_that_a_bake_depends_on() {
        let size = |cpu, memory| Size::new(cpu, memory, 2048).unwrap();
        let wide = Size::new(1, 512, 4096).unwrap();
        let base = key("image", size(1, 512), "monitor", "amd", 2_000_000);
        assert_eq!(base.len(), 32);
        assert_eq!(base, key("image", size(1, 512), "monitor", "amd", 2_000_000));
        for other in [
            key("other", size(1, 512), "monitor", "amd", 2_000_000),
            key("image", size(2, 512), "monitor", "amd", 2_000_000),
            key("image", size(1, 1024), "monitor", "amd", 2_000_000),
            key("image", wide, "monitor", "amd", 2_000_000),
            key("image", size(1, 512), "newer", "amd", 2_000_000),
            key("image", size(1, 512), "monitor", "intel", 2_000_000),
            key("image", size(1, 512), "monitor", "amd", 2_100_000),
            key("imagemonitor", size(1, 512), "", "amd", 2_000_000),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn a_host_without_kvm_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let parts = Parts { keeper: b"", monitor: b"" };
        if !probe().is_promising() {
            let error = KvmEngine::open(dir.path(), &parts).err().unwrap();
            assert!(error.to_string().contains("/dev/kvm"), "{error}");
        }
    }
}
