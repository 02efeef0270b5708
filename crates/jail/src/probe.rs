//! What this host can give a jail.
//!
//! Every part of a [`Level`] is found out by trying it or by asking the kernel for it. What is
//! missing has a name ([`Missing`]), so that whoever starts machines can refuse to, and whoever
//! allowed it anyway can see what was given up.

use std::fmt;

use crate::{Cgroups, ids, landlock};

/// The parts of a jail on this host, for people and for `doctor`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Level {
    /// Own user, mount, pid, network, ipc, uts and cgroup namespaces; why not, otherwise.
    pub namespaces: Result<(), String>,
    /// Whether each machine has a host user id of its own.
    pub own_uid: bool,
    /// Whether machines run as the host's root, as far as files go: a server that is root where
    /// no other ids can be had.
    pub as_root: bool,
    /// Whether system calls can be filtered.
    pub seccomp: bool,
    /// Version of Landlock, 0 without. See the table in `landlock`.
    pub landlock: u32,
    /// `cgroup-v2`, `cgroup-v1` or `none`.
    pub cgroup: &'static str,
    /// Whether a machine's memory can be bounded.
    pub bounds_memory: bool,
    /// Whether a machine's processes can be bounded.
    pub bounds_pids: bool,
}

/// How good a jail is, all in all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grade {
    /// Nothing is missing.
    Full,
    /// Some of it is missing, in the order of weight.
    Reduced(Vec<Missing>),
}

/// A part of a jail that a host cannot give.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Missing {
    /// Namespaces. Without them no machine is started at all.
    Namespaces,
    /// The filter of system calls. The same.
    Seccomp,
    /// A user id that is not the host's root.
    OrdinaryUid,
    /// Landlock.
    Landlock,
    /// A bound on memory.
    MemoryBound,
    /// A bound on processes.
    PidsBound,
}

impl Level {
    /// Whether machines can be confined at all. Without namespaces none is started.
    pub fn usable(&self) -> bool {
        self.namespaces.is_ok()
    }

    /// How good it is, all in all. An id that the machines share with the server is good enough if
    /// it is an ordinary user's: no machine sees a process or a file of another.
    pub fn grade(&self) -> Grade {
        let parts = [
            (self.namespaces.is_ok(), Missing::Namespaces),
            (self.seccomp, Missing::Seccomp),
            (!self.as_root, Missing::OrdinaryUid),
            (self.landlock > 0, Missing::Landlock),
            (self.bounds_memory, Missing::MemoryBound),
            (self.bounds_pids, Missing::PidsBound),
        ];
        let missing: Vec<_> =
            parts.into_iter().filter(|(there, _)| !there).map(|(_, what)| what).collect();
        if missing.is_empty() { Grade::Full } else { Grade::Reduced(missing) }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespaces {
            Err(why) => return write!(f, "unavailable: {why}"),
            Ok(()) => f.write_str("namespaces, seccomp, no capabilities, no_new_privs")?,
        }
        match self.landlock {
            0 => f.write_str(", no Landlock")?,
            version => write!(f, ", Landlock {version}")?,
        }
        f.write_str(match (self.own_uid, self.as_root) {
            (true, _) => ", own uid",
            (false, false) => ", the server's uid",
            (false, true) => ", the server's uid, which is root",
        })?;
        match self.cgroup {
            "none" => f.write_str(", no cgroup (only rlimits)"),
            kind => write!(f, ", {kind}"),
        }
    }
}

impl fmt::Display for Grade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Reduced(missing) = self else { return f.write_str("full") };
        f.write_str("reduced: ")?;
        for (index, what) in missing.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{what}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Namespaces => "no namespaces",
            Self::Seccomp => "no system call filter",
            Self::OrdinaryUid => "machines run as root",
            Self::Landlock => "no Landlock",
            Self::MemoryBound => "no bound on memory",
            Self::PidsBound => "no bound on processes",
        })
    }
}

/// Finds out what the host offers, by making namespaces in a child that exits at once.
pub fn probe() -> Level {
    let cgroups = Cgroups::find();
    let own_uid = ids::machines_have_own();
    Level {
        namespaces: try_namespaces(),
        own_uid,
        as_root: !own_uid && rustix::process::geteuid().is_root(),
        seccomp: has_seccomp(),
        landlock: landlock::version(),
        cgroup: cgroups.name(),
        bounds_memory: cgroups.bounds("memory"),
        bounds_pids: cgroups.bounds("pids"),
    }
}

/// Whether the kernel has filters that can fail a call.
fn has_seccomp() -> bool {
    let action = libc::SECCOMP_RET_ERRNO;
    // SAFETY: the kernel reads one number, and tells whether it knows it.
    let known = unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action)
    };
    known == 0
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

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Level {
        Level {
            namespaces: Ok(()),
            own_uid: true,
            as_root: false,
            seccomp: true,
            landlock: 7,
            cgroup: "cgroup-v2",
            bounds_memory: true,
            bounds_pids: true,
        }
    }

    #[test]
    fn a_level_is_full_or_says_what_is_missing() {
        assert_eq!(full().grade(), Grade::Full);
        assert_eq!(full().grade().to_string(), "full");
        let shared = Level { own_uid: false, ..full() };
        assert_eq!(shared.grade(), Grade::Full, "an ordinary user's machines");
        type Part = (fn(&mut Level), Missing);
        let all: [Part; 6] = [
            (|l| l.namespaces = Err("no".into()), Missing::Namespaces),
            (|l| l.seccomp = false, Missing::Seccomp),
            (|l| l.as_root = true, Missing::OrdinaryUid),
            (|l| l.landlock = 0, Missing::Landlock),
            (|l| l.bounds_memory = false, Missing::MemoryBound),
            (|l| l.bounds_pids = false, Missing::PidsBound),
        ];
        let mut none = full();
        for (take, missing) in &all {
            let mut level = full();
            take(&mut level);
            assert_eq!(level.grade(), Grade::Reduced(vec![*missing]));
            assert_eq!(level.grade().to_string(), format!("reduced: {missing}"));
            take(&mut none);
        }
        assert_eq!(none.grade(), Grade::Reduced(all.map(|(_, missing)| missing).to_vec()));
        let two = Grade::Reduced(vec![Missing::Landlock, Missing::PidsBound]);
        assert_eq!(two.to_string(), "reduced: no Landlock, no bound on processes");
    }

    #[test]
    fn a_level_says_what_it_has() {
        let text = full().to_string();
        assert!(text.contains("Landlock 7, own uid, cgroup-v2"), "{text}");
        let text = Level { landlock: 0, own_uid: false, as_root: true, ..full() }.to_string();
        assert!(text.contains("no Landlock, the server's uid, which is root"), "{text}");
    }
}
