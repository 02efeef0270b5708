//! What this host can give a jail.

use std::fmt;

use crate::Cgroups;

/// The parts of a jail on this host, for people and for `doctor`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Level {
    /// Own user, mount, pid, network, ipc, uts and cgroup namespaces; why not, otherwise.
    pub namespaces: Result<(), String>,
    /// Whether each machine has a host user id of its own.
    pub own_uid: bool,
    /// `cgroup-v2`, `cgroup-v1` or `none`.
    pub cgroup: &'static str,
}

impl Level {
    /// Whether machines can be confined at all. Without namespaces none is started.
    pub fn usable(&self) -> bool {
        self.namespaces.is_ok()
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespaces {
            Err(why) => return write!(f, "unavailable: {why}"),
            Ok(()) => f.write_str("namespaces, seccomp, no capabilities, no_new_privs")?,
        }
        f.write_str(if self.own_uid { ", own uid" } else { ", the server's uid" })?;
        match self.cgroup {
            "none" => f.write_str(", no cgroup (only rlimits)"),
            kind => write!(f, ", {kind}"),
        }
    }
}

/// Finds out what the host offers, by making namespaces in a child that exits at once.
pub fn probe() -> Level {
    Level {
        namespaces: try_namespaces(),
        own_uid: rustix::process::geteuid().is_root(),
        cgroup: Cgroups::find().name(),
    }
}

fn try_namespaces() -> Result<(), String> {
    // The tool of util-linux makes the same call from a single-threaded process.
    let output = std::process::Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "--pid", "--net", "--ipc", "--uts"])
        .args(["--cgroup", "--fork", "--mount-proc", "true"])
        .output()
        .map_err(|e| format!("cannot run unshare: {e}"))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}
