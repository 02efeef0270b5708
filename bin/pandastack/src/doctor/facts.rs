//! What there is to know about this host. Looks, forks a machine to see whether that works, and
//! leaves nothing behind.

use std::fs;
use std::path::{Path, PathBuf};

use pandastack_engine::qemu;
use pandastack_image::MissingProgram;
use pandastack_jail::Level;
use rustix::fs::{Access, access, statvfs};

use super::fork::Fork;
use crate::client::Client;
use crate::{config, run, template};

/// Facts about this host.
#[derive(Clone, Debug)]
pub struct Facts {
    pub kernel: String,
    pub root: bool,
    pub qemu: Result<String, String>,
    pub kvm: String,
    pub jail: Level,
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
    pub async fn gather(data_dir: &Path) -> Self {
        let probe = qemu::probe();
        Self {
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            root: rustix::process::geteuid().is_root(),
            qemu: probe.qemu,
            kvm: probe.kvm,
            jail: pandastack_jail::probe(),
            missing: pandastack_image::missing_programs(),
            data_dir: DataDir::look_at(data_dir),
            templates: template::built(data_dir).map_err(|error| format!("{error:#}")),
            memory: fs::read_to_string("/proc/meminfo").ok().and_then(|text| Memory::parse(&text)),
            fork: Fork::find_out(data_dir).await,
            server: server().await,
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
