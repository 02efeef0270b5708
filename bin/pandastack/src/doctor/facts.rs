//! What there is to know about this host. Looks, runs a guest and forks a machine to see whether
//! that works, and leaves nothing behind.

use std::fs;
use std::path::{Path, PathBuf};

use pandastack_engine::{kvm, qemu};
use pandastack_image::MissingProgram;
use pandastack_types::Isolation;
use rustix::fs::{Access, access, statvfs};
use uuid::Uuid;

use super::fork::Fork;
use crate::client::Client;
use crate::confinement::Confinement;
use crate::engines::{EngineChoice, Kvm, MachineArgs};
use crate::workshop::Workshop;
use crate::{config, engines, run, template};

/// Facts about this host.
#[derive(Clone, Debug)]
pub struct Facts {
    pub kernel: String,
    pub root: bool,
    /// What was asked for.
    pub wanted: EngineChoice,
    pub qemu: Result<String, String>,
    /// What `/dev/kvm` looks like.
    pub kvm_found: String,
    pub kvm: Kvm,
    pub jail: Confinement,
    pub reduced_jail_allowed: bool,
    pub missing: Vec<MissingProgram>,
    pub data_dir: DataDir,
    /// Names of all templates, and whether they are built; why they cannot be read, otherwise.
    pub templates: Result<Vec<(String, bool)>, String>,
    pub memory: Option<Memory>,
    pub fork: Fork,
    /// URL of a server that answers.
    pub server: Option<String>,
}

/// The data directory.
#[derive(Clone, Debug)]
pub struct DataDir {
    pub path: PathBuf,
    pub writable: bool,
    /// Free bytes of its file system.
    pub free: Option<u64>,
    /// Whether others may look into it.
    pub open_to_others: bool,
}

/// The host's memory in MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    pub total_mb: u64,
    pub available_mb: u64,
}

impl Facts {
    /// Looks at the host.
    pub async fn gather(data_dir: &Path, args: MachineArgs) -> Self {
        let trying = if args.engine == EngineChoice::Qemu {
            Kvm::Refused("not tried: another engine was asked for".into())
        } else {
            try_kvm(data_dir).await
        };
        let (templates, fork) = templates(data_dir, args).await;
        Self {
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            root: rustix::process::geteuid().is_root(),
            wanted: args.engine,
            qemu: qemu::installed().map_err(|e| e.to_string()),
            kvm_found: kvm::probe().to_string(),
            kvm: trying,
            jail: Confinement::find(),
            reduced_jail_allowed: args.allow_reduced_jail,
            missing: pandastack_image::missing_programs(),
            data_dir: DataDir::look_at(data_dir),
            templates,
            memory: fs::read_to_string("/proc/meminfo").ok().and_then(|text| Memory::parse(&text)),
            fork,
            server: server().await,
        }
    }

    /// The engine that a server here would have.
    pub fn engine(&self) -> (&'static str, Isolation) {
        let proved = matches!(self.kvm, Kvm::Proved(_));
        match self.wanted {
            EngineChoice::Kvm => ("kvm", Isolation::Hardware),
            EngineChoice::Auto if proved => ("kvm", Isolation::Hardware),
            EngineChoice::Auto | EngineChoice::Qemu => ("qemu", Isolation::Emulated),
        }
    }
}

/// Runs a guest, in a directory that is gone afterwards: a data directory that is not there is not
/// made for that.
async fn try_kvm(data_dir: &Path) -> Kvm {
    let parent = if data_dir.is_dir() { data_dir.to_owned() } else { std::env::temp_dir() };
    let dir = parent.join(format!("doctor-{}", Uuid::new_v4().simple()));
    let tried = engines::try_kvm(&dir).await;
    let _ = fs::remove_dir_all(&dir);
    tried
}

/// Which templates are built, and whether their machines can be forked.
async fn templates(
    data_dir: &Path,
    args: MachineArgs,
) -> (Result<Vec<(String, bool)>, String>, Fork) {
    if !data_dir.join("templates").is_dir() {
        return (template::unbuilt().map_err(|e| format!("{e:#}")), Fork::nothing_built());
    }
    // What is wrong with the jail is said elsewhere.
    let args = MachineArgs { allow_reduced_jail: true, ..args };
    match Workshop::open(data_dir, args).await {
        Ok(workshop) => (Ok(template::built(&workshop)), Fork::find_out(&workshop, data_dir).await),
        Err(error) => {
            let why = format!("{error:#}");
            (Err(why.clone()), Fork::Untried(why))
        }
    }
}

impl DataDir {
    fn look_at(path: &Path) -> Self {
        // It is made at the first start, in the nearest directory that exists.
        let existing = path.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/"));
        let free = statvfs(existing).ok().map(|fs| fs.f_bavail.saturating_mul(fs.f_frsize));
        let mode = fs::metadata(path).map(|meta| std::os::unix::fs::MetadataExt::mode(&meta));
        Self {
            path: path.to_owned(),
            writable: access(existing, Access::WRITE_OK | Access::EXEC_OK).is_ok(),
            free,
            open_to_others: mode.is_ok_and(|mode| mode & 0o022 != 0),
        }
    }
}

impl Memory {
    fn parse(meminfo: &str) -> Option<Self> {
        let mb = |name: &str| -> Option<u64> {
            let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
            let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
            Some(kib / 1024)
        };
        Some(Self { total_mb: mb("MemTotal:")?, available_mb: mb("MemAvailable:")? })
    }
}

async fn server() -> Option<String> {
    let client = Client::new(&config::endpoint().ok()?).ok()?;
    client.is_healthy(run::HEALTH_DEADLINE).await.then(|| client.url().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read() {
        let text = "MemTotal:  2097152 kB\nMemFree: 1 kB\nMemAvailable: 1048576 kB\n";
        assert_eq!(Memory::parse(text), Some(Memory { total_mb: 2048, available_mb: 1024 }));
        assert_eq!(Memory::parse("MemTotal: 5 kB\n"), None);
    }

    #[test]
    fn a_directory_that_does_not_exist_yet_is_judged_by_its_parent() {
        let dir = tempfile::tempdir().unwrap();
        let found = DataDir::look_at(&dir.path().join("not/yet"));
        assert!(found.writable && found.free.is_some() && !found.open_to_others);
    }
}
