//! Which processes belong to a command, and how to kill all of them.
//!
//! In a guest each command has a cgroup of its own, so no double fork and no new session gets a
//! process out of reach. Making a cgroup costs more than running `true`; leaves that are empty
//! again are kept and used for the next command.
//!
//! ```text
//!            take()                  command ends, leaf empty
//!   (spare) ────────▶ in use ───────────────────────────────▶ (spare)
//!                        │ something still runs in it
//!                        └──────────▶ lingering ──▶ removed once empty
//! ```
//!
//! In development mode there may be no cgroup to use. Then a variable in the environment marks
//! the processes of a command; one that clears its environment and leaves its group escapes.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags, mkdirat, openat, unlinkat};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// Most empty leaves that are kept.
const MAX_SPARE: usize = 8;
/// Most lingering leaves that are looked at when a command starts.
const SWEEP: usize = 16;

/// The cgroup above all commands.
pub struct Cgroups {
    top: OwnedFd,
    spare: Vec<Leaf>,
    /// Names only: a thousand background jobs must not hold a thousand descriptors.
    lingering: Vec<String>,
    next: u32,
}

/// The cgroup of one command.
pub struct Leaf {
    name: String,
    dir: OwnedFd,
    kill: OwnedFd,
    events: OwnedFd,
}

impl Cgroups {
    /// Uses the existing cgroup `top`, and makes the first leaf so that the first command need
    /// not wait for it.
    pub fn new(top: OwnedFd) -> Self {
        let mut groups = Self { top, spare: Vec::new(), lingering: Vec::new(), next: 0 };
        let first = groups.take();
        groups.spare.extend(first);
        groups
    }

    /// An empty leaf, or `None` if the kernel gives no more.
    pub fn take(&mut self) -> Option<Leaf> {
        self.sweep();
        self.spare.pop().or_else(|| self.make().ok())
    }

    /// Takes a leaf back, with or without processes in it.
    pub fn give(&mut self, leaf: Leaf) {
        if leaf.is_empty() && self.spare.len() < MAX_SPARE {
            self.spare.push(leaf);
        } else {
            self.lingering.push(leaf.name);
        }
    }

    fn make(&mut self) -> rustix::io::Result<Leaf> {
        let name = format!("exec{}", self.next);
        self.next = self.next.wrapping_add(1);
        mkdirat(&self.top, &*name, Mode::from_raw_mode(0o755))?;
        let open = |dir: BorrowedFd<'_>, file: &str, flags| {
            openat(dir, file, flags | OFlags::CLOEXEC, Mode::empty())
        };
        let dir = open(self.top.as_fd(), &name, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let kill = open(dir.as_fd(), "cgroup.kill", OFlags::WRONLY)?;
        let events = open(dir.as_fd(), "cgroup.events", OFlags::RDONLY)?;
        Ok(Leaf { name, dir, kill, events })
    }

    /// Removes some lingering leaves; those with processes in them refuse.
    fn sweep(&mut self) {
        let count = self.lingering.len().min(SWEEP);
        for name in self.lingering.drain(..count).collect::<Vec<_>>() {
            if unlinkat(&self.top, &*name, AtFlags::REMOVEDIR) == Err(rustix::io::Errno::BUSY) {
                self.lingering.push(name);
            }
        }
    }
}

impl Leaf {
    fn is_empty(&self) -> bool {
        let mut text = [0; 64];
        match rustix::io::pread(&self.events, &mut text, 0) {
            Ok(n) => text[..n].starts_with(b"populated 0"),
            Err(_) => false,
        }
    }
}

/// The processes of one command.
pub enum Tree {
    /// Those in a cgroup.
    Leaf(Leaf),
    /// Those with this value of `PANDA_EXEC`, and the group of the first one.
    Marked(String),
}

impl Tree {
    /// The cgroup to be born in.
    pub fn cgroup(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Leaf(leaf) => Some(leaf.dir.as_fd()),
            Self::Marked(_) => None,
        }
    }

    /// Value of the variable that marks them.
    pub fn marker(&self) -> Option<&str> {
        match self {
            Self::Leaf(_) => None,
            Self::Marked(marker) => Some(marker),
        }
    }

    /// Whether none of them is left. Without a cgroup nobody knows, and nothing is waited for.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Leaf(leaf) => leaf.is_empty(),
            Self::Marked(_) => true,
        }
    }

    /// Kills all of them; `first` is the one that was started and may be gone already.
    pub fn kill(&self, first: Option<Pid>) {
        match self {
            Self::Leaf(leaf) => {
                // Fails only when the leaf is gone, and everything in it with it.
                let _ = rustix::io::write(&leaf.kill, b"1");
            }
            Self::Marked(marker) => {
                if let Some(first) = first {
                    let _ = kill_process_group(first, Signal::KILL);
                    let _ = kill_process(first, Signal::KILL);
                }
                kill_marked(marker);
            }
        }
    }
}

/// Kills whoever carries the marker, again and again until nobody is left: they may fork meanwhile.
fn kill_marked(marker: &str) {
    let wanted = format!("PANDA_EXEC={marker}");
    for _ in 0..16 {
        let mut found = false;
        let Ok(proc_dir) = openat(CWD, "/proc", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        else {
            return;
        };
        let Ok(entries) = Dir::new(proc_dir) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy();
            let Some(pid) = name.parse().ok().and_then(Pid::from_raw) else { continue };
            let environ = std::fs::read(format!("/proc/{name}/environ")).unwrap_or_default();
            if environ.split(|&b| b == 0).any(|variable| variable == wanted.as_bytes()) {
                found |= kill_process(pid, Signal::KILL).is_ok();
            }
        }
        if !found {
            return;
        }
    }
}
