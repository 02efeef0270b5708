//! Everything that a server has on its host, in numbers, to be compared before and after.
//!
//! Invariant: what is counted is this server's alone. Other servers may run on the same host, so
//! control groups are found through the processes in them ([`groups_of`]) and not by listing.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::{Server, descendants, open_descriptors, wait_until};

/// What a server has at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footprint {
    /// Processes below it: machines and their keepers.
    pub processes: usize,
    /// Directories of machines.
    pub machine_dirs: usize,
    /// Files and directories in its data directory, without the templates that it shares.
    pub files: usize,
    /// Its own open descriptors.
    pub descriptors: usize,
    /// Its own mappings.
    pub mappings: usize,
    /// Its own resident memory, MiB.
    pub resident_mb: usize,
}

impl Footprint {
    /// Counts.
    pub fn of(server: &Server) -> Self {
        let read = |name: &str| fs::read_to_string(format!("/proc/{}/{name}", server.pid()));
        let maps = read("maps").unwrap_or_default();
        let status = read("status").unwrap_or_default();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let resident_kb = resident.and_then(|text| text.split_whitespace().next()?.parse().ok());
        Self {
            processes: descendants(server.pid()).len(),
            machine_dirs: server.machine_dirs(),
            files: entries_below(server.data()),
            descriptors: open_descriptors(server.pid()),
            mappings: maps.lines().count(),
            resident_mb: resident_kb.unwrap_or(0_usize) >> 10,
        }
    }

    /// What a server has once that does not change any more.
    pub fn settled(server: &Server, within: Duration) -> Result<Self> {
        const CALM: Duration = Duration::from_secs(3);
        let mut last = Self::of(server);
        let mut same_since = Instant::now();
        let still = || {
            let now = Self::of(server);
            // Its memory is never quite the same twice.
            if (Self { resident_mb: last.resident_mb, ..now }) != last {
                (last, same_since) = (now, Instant::now());
            }
            same_since.elapsed() > CALM
        };
        ensure!(wait_until(within, still), "the server does not come to rest");
        Ok(Self::of(server))
    }

    /// Whether nothing of what came after `before` is left: the same processes, directories and
    /// files, and no more of the server's own than it keeps for its next requests (connections
    /// that were just closed, stacks and arenas of its threads).
    pub fn is_back_at(&self, before: &Self) -> bool {
        const DESCRIPTORS: usize = 8;
        const MAPPINGS: usize = 16;
        const RESIDENT_MB: usize = 32;
        self.processes <= before.processes
            && self.machine_dirs <= before.machine_dirs
            && self.files <= before.files
            && self.descriptors <= before.descriptors + DESCRIPTORS
            && self.mappings <= before.mappings + MAPPINGS
            && self.resident_mb <= before.resident_mb + RESIDENT_MB
    }
}

/// Entries of a directory and those below it. Links are not followed.
fn entries_below(dir: &Path) -> usize {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| {
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            1 + if is_dir { entries_below(&entry.path()) } else { 0 }
        })
        .sum()
}

/// The control groups of a process that are its machine's own, as directories, whatever kind of
/// hierarchies the host has.
pub fn groups_of(pid: u32) -> BTreeSet<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    groups_in(&text)
}

/// `ID:CONTROLLERS:PATH` of cgroups(7); the unified hierarchy has no controllers.
fn groups_in(text: &str) -> BTreeSet<PathBuf> {
    let ours = text.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let name = path.rsplit_once("pandastack/")?.1;
        // The keepers of all servers share one.
        (name != "keepers" && !name.is_empty()).then_some((controllers, path))
    });
    ours.map(|(controllers, path)| {
        Path::new("/sys/fs/cgroup").join(controllers).join(path.trim_start_matches('/'))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_both_kinds_of_hierarchies_are_found() {
        let found = |text: &str| {
            groups_in(text).iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(found("0::/pandastack/m1\n"), ["/sys/fs/cgroup/pandastack/m1"]);
        let old = "9:name=systemd:/\n8:pids:/pandastack/m1\n4:memory:/pandastack/m1\n0::/\n";
        assert_eq!(
            found(old),
            ["/sys/fs/cgroup/memory/pandastack/m1", "/sys/fs/cgroup/pids/pandastack/m1"]
        );
        assert!(found("0::/pandastack/keepers\n4:memory:/pandastack\n0::/user.slice\n").is_empty());
    }

    #[test]
    fn every_entry_counts_once() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        fs::write(dir.path().join("a/b/c"), "").unwrap();
        std::os::unix::fs::symlink("/usr", dir.path().join("link")).unwrap();
        assert_eq!(entries_below(dir.path()), 4);
    }
}
