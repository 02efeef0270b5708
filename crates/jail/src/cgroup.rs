//! Control groups: a ceiling on what one machine takes from the host.
//!
//! Hosts come in three kinds: one unified hierarchy (v2), one hierarchy per controller (v1), and
//! none that we may write. [`Cgroups::find`] tells which; a [`Cgroup`] is one directory in each
//! hierarchy it needs, removed when dropped.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Our directory in each hierarchy.
const PARENT: &str = "pandastack";
/// Group of the keepers of forks, in the unified hierarchy.
const KEEPERS: &str = "keepers";

/// Ceilings of one machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CgroupLimits {
    /// Bytes of memory, page cache included.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub pids: u32,
    /// Share of the processors under contention; 100 is everybody's default.
    pub cpu_weight: u32,
}

/// The hierarchies of this host that we can use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cgroups {
    /// The unified hierarchy, with our parent directory.
    V2(PathBuf),
    /// One hierarchy per controller: our parent directories, by controller name.
    V1(Vec<(&'static str, PathBuf)>),
    /// None that this process may use.
    None,
}

impl Cgroups {
    /// Finds what the host offers below `/sys/fs/cgroup` and makes our parent directories.
    pub fn find() -> Self {
        Self::find_below(Path::new("/sys/fs/cgroup"))
    }

    fn find_below(mount: &Path) -> Self {
        if let Some(parent) = unified_parent(mount) {
            return Self::V2(parent);
        }
        let found: Vec<_> = ["memory", "pids", "cpu"]
            .into_iter()
            .map(|name| (name, mount.join(name).join(PARENT)))
            .filter(|(_, dir)| dir.parent().is_some_and(Path::is_dir))
            .filter(|(_, dir)| make_dir(dir).is_ok() && is_writable(dir))
            .collect();
        if found.is_empty() { Self::None } else { Self::V1(found) }
    }

    /// `cgroup-v2`, `cgroup-v1` or `none`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::V2(_) => "cgroup-v2",
            Self::V1(_) => "cgroup-v1",
            Self::None => "none",
        }
    }

    /// Whether a group can bound what this controller counts: `memory` or `pids`.
    pub(crate) fn bounds(&self, controller: &str) -> bool {
        match self {
            // One without the two is not ours to use.
            Self::V2(_) => true,
            Self::V1(parents) => parents.iter().any(|(name, _)| *name == controller),
            Self::None => false,
        }
    }

    /// Makes the group `name` with `limits`. `None` where the host has no usable hierarchy.
    pub fn create(&self, name: &str, limits: CgroupLimits) -> io::Result<Option<Cgroup>> {
        let group = match self {
            Self::None => return Ok(None),
            Self::V2(parent) => {
                let dir = parent.join(name);
                make_dir(&dir)?;
                let group = Cgroup { dirs: vec![dir.clone()] };
                write(&dir, "memory.max", limits.memory_bytes)?;
                write(&dir, "pids.max", u64::from(limits.pids))?;
                group
            }
            Self::V1(parents) => {
                let mut group = Cgroup { dirs: Vec::with_capacity(parents.len()) };
                for (controller, parent) in parents {
                    let dir = parent.join(name);
                    make_dir(&dir)?;
                    group.dirs.push(dir.clone());
                    match *controller {
                        "memory" => write(&dir, "memory.limit_in_bytes", limits.memory_bytes)?,
                        "pids" => write(&dir, "pids.max", u64::from(limits.pids))?,
                        _ => {}
                    }
                }
                group
            }
        };
        group.set_cpu_weight(limits.cpu_weight);
        Ok(Some(group))
    }

    /// The group `name` that another supervisor made; `None` if there is none.
    pub fn adopt(&self, name: &str) -> Option<Cgroup> {
        let dirs: Vec<_> = self.parents().into_iter().map(|parent| parent.join(name)).collect();
        let there = !dirs.is_empty() && dirs.iter().all(|dir| dir.is_dir());
        there.then_some(Cgroup { dirs })
    }

    /// Control files that the keeper of a fork leaves the group of the forked machine through: it
    /// was born in there, may live longer, and a group with a process in it cannot be removed.
    /// Used like [`Cgroup::join_files`].
    pub fn keeper_files(&self) -> io::Result<Vec<OwnedFd>> {
        match self {
            Self::None => Ok(Vec::new()),
            // A group of the unified hierarchy that has groups below has no processes itself.
            Self::V2(parent) => {
                let leaf = parent.join(KEEPERS);
                make_dir(&leaf)?;
                Ok(vec![join_file(&leaf)?])
            }
            Self::V1(parents) => parents.iter().map(|(_, dir)| join_file(dir)).collect(),
        }
    }

    /// Kills what is left in the group `name` and removes it: recovery after the supervisor was
    /// killed.
    pub fn remove(&self, name: &str) {
        let dirs = self.parents().into_iter().map(|parent| parent.join(name));
        Cgroup { dirs: dirs.filter(|dir| dir.is_dir()).collect() }.kill();
    }

    /// Removes empty groups that nobody can want any more: those called `NAME-PID` after a process
    /// that was killed before it could, and whatever is older than `age`, whoever left it. Another
    /// one may belong to a machine that is about to join it.
    pub fn sweep(&self, age: Duration) {
        for parent in self.parents() {
            for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                let owner = name.rsplit_once('-').and_then(|(_, pid)| pid.parse().ok());
                let made = entry.metadata().and_then(|meta| meta.modified());
                let is_old =
                    || made.is_ok_and(|made| made.elapsed().is_ok_and(|found| found > age));
                if owner.is_some_and(is_dead) || is_old() {
                    // Files and groups with a process in them refuse.
                    let _ = fs::remove_dir(entry.path());
                }
            }
        }
    }

    fn parents(&self) -> Vec<&Path> {
        match self {
            Self::None => Vec::new(),
            Self::V2(parent) => vec![parent],
            Self::V1(parents) => parents.iter().map(|(_, dir)| dir.as_path()).collect(),
        }
    }
}

/// Whether there is no such process. One that is another user's, or that nobody may ask about, is
/// there.
fn is_dead(pid: i32) -> bool {
    let Some(pid) = rustix::process::Pid::from_raw(pid).filter(|_| pid > 0) else { return false };
    rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH)
}

/// Our parent directory in a unified hierarchy, if it has the controllers and we may write.
fn unified_parent(mount: &Path) -> Option<PathBuf> {
    let controllers = fs::read_to_string(mount.join("cgroup.controllers")).ok()?;
    let has = |name| controllers.split_whitespace().any(|c| c == name);
    if !(has("memory") && has("pids")) {
        return None;
    }
    let parent = mount.join(PARENT);
    make_dir(&parent).ok().filter(|()| is_writable(&parent))?;
    for dir in [mount, &parent] {
        let wanted = if has("cpu") { "+memory +pids +cpu" } else { "+memory +pids" };
        fs::write(dir.join("cgroup.subtree_control"), wanted).ok()?;
    }
    Some(parent)
}

fn make_dir(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

/// Whether we may make groups in there: another user's server may have made the directory.
fn is_writable(dir: &Path) -> bool {
    rustix::fs::access(dir, rustix::fs::Access::WRITE_OK).is_ok()
}

/// Writes to a file that must exist: a control file is never created.
fn write(dir: &Path, file: &str, value: u64) -> io::Result<()> {
    use io::Write;
    let mut file = fs::File::options().write(true).open(dir.join(file))?;
    file.write_all(value.to_string().as_bytes())
}

fn join_file(dir: &Path) -> io::Result<OwnedFd> {
    let open = |name| fs::File::options().write(true).open(dir.join(name)).map(OwnedFd::from);
    match open("tasks") {
        Err(e) if e.kind() == io::ErrorKind::NotFound => open("cgroup.procs"),
        other => other,
    }
}

/// One machine's group. Dropping it removes its directories, which works once it is empty.
#[derive(Debug)]
pub struct Cgroup {
    dirs: Vec<PathBuf>,
}

impl Cgroup {
    /// The control files that a process with one thread joins the group through, by writing `0` to
    /// each; open for writing only.
    ///
    /// A thread that moves itself through `tasks` is the one case in which the kernel does not
    /// first wait for an RCU grace period; `cgroup.procs`, the only such file of the unified
    /// hierarchy, was measured to take 10 to 20 ms. The kernel checks the permission of whoever
    /// opened the file, so the writer needs none.
    pub fn join_files(&self) -> io::Result<Vec<OwnedFd>> {
        self.dirs.iter().map(|dir| join_file(dir)).collect()
    }

    /// Changes its share of the processors under contention; 100 is everybody's default. A host
    /// may have left the controller off: a weight is not a wall.
    pub fn set_cpu_weight(&self, weight: u32) {
        for dir in &self.dirs {
            let _ = write(dir, "cpu.weight", u64::from(weight));
            // 1024 shares are the default that a weight of 100 stands for.
            let _ = write(dir, "cpu.shares", u64::from(weight) * 1024 / 100);
        }
    }

    /// Kills every process in the group.
    fn kill(&self) {
        for dir in &self.dirs {
            if fs::write(dir.join("cgroup.kill"), "1").is_ok() {
                continue; // v2, one write kills all
            }
            let Ok(procs) = fs::read_to_string(dir.join("cgroup.procs")) else { continue };
            for pid in procs.lines().filter_map(|l| l.parse().ok()) {
                if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
            }
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for dir in &self.dirs {
            // A group stays busy for a moment after its last process was reaped, and for a longer
            // one on a busy host.
            for _ in 0..1000 {
                match fs::remove_dir(dir) {
                    Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {
                        std::thread::sleep(Duration::from_millis(2));
                    }
                    _ => break,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_hierarchies_has_none() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Cgroups::find_below(dir.path()), Cgroups::None);
        assert!(!Cgroups::None.bounds("memory"));
        assert!(Cgroups::None.create("x", LIMITS).unwrap().is_none());
    }

    #[test]
    fn groups_of_dead_processes_are_swept_and_no_others_that_are_young() {
        let dir = tempfile::tempdir().unwrap();
        let parent = dir.path().join("memory/pandastack");
        let mut ended = std::process::Command::new("true").spawn().unwrap();
        let dead = ended.id();
        ended.wait().unwrap();
        let stay =
            [format!("gateway-{}", std::process::id()), "keepers".into(), "x-a".into(), "7".into()];
        for name in stay.iter().chain([&format!("gateway-{dead}")]) {
            fs::create_dir_all(parent.join(name)).unwrap();
        }
        Cgroups::V1(vec![("memory", parent.clone())]).sweep(Duration::from_secs(60));
        assert!(!parent.join(format!("gateway-{dead}")).exists());
        assert!(stay.iter().all(|name| parent.join(name).exists()));
    }

    #[test]
    fn version_one_gets_a_directory_per_controller() {
        let dir = tempfile::tempdir().unwrap();
        for (name, file) in [("memory", "memory.limit_in_bytes"), ("cpu", "cpu.shares")] {
            let group = dir.path().join(name).join("pandastack/m1");
            fs::create_dir_all(&group).unwrap();
            for file in [file, "tasks", "cgroup.procs"] {
                fs::write(group.join(file), "").unwrap();
            }
        }
        let groups = Cgroups::find_below(dir.path());
        assert_eq!(groups.name(), "cgroup-v1");
        assert!(groups.bounds("memory") && !groups.bounds("pids"));
        let group = groups.create("m1", LIMITS).unwrap().unwrap();
        let read = |path: &str| fs::read_to_string(dir.path().join(path)).unwrap();
        assert_eq!(read("memory/pandastack/m1/memory.limit_in_bytes"), "1048576");
        assert_eq!(read("cpu/pandastack/m1/cpu.shares"), "512");
        join(&group);
        for controller in ["memory", "cpu"] {
            assert_eq!(read(&format!("{controller}/pandastack/m1/tasks")), "0");
            assert_eq!(read(&format!("{controller}/pandastack/m1/cgroup.procs")), "");
        }
    }

    #[test]
    fn version_two_needs_its_controllers() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.controllers"), "cpu io").unwrap();
        assert_eq!(Cgroups::find_below(dir.path()), Cgroups::None);
        fs::write(dir.path().join("cgroup.controllers"), "cpu memory pids").unwrap();
        let own = dir.path().join("pandastack/m1");
        fs::create_dir_all(&own).unwrap();
        for file in ["memory.max", "pids.max", "cpu.weight", "cgroup.procs"] {
            fs::write(own.join(file), "").unwrap();
        }
        let groups = Cgroups::find_below(dir.path());
        assert!(groups.bounds("memory") && groups.bounds("pids"));
        let group = groups.create("m1", LIMITS).unwrap().unwrap();
        assert_eq!(group.dirs, std::slice::from_ref(&own));
        assert_eq!(fs::read_to_string(own.join("cpu.weight")).unwrap(), "50");
        join(&group);
        assert_eq!(fs::read_to_string(own.join("cgroup.procs")).unwrap(), "0");
        fs::remove_file(own.join("cgroup.procs")).unwrap();
        assert!(group.join_files().is_err(), "a control file is never created");
        assert!(!own.join("tasks").exists());
    }

    /// What a process does that joins.
    fn join(group: &Cgroup) {
        use std::io::{Read, Write};
        for file in group.join_files().unwrap() {
            let mut file = fs::File::from(file);
            file.write_all(b"0").unwrap();
            assert!(file.read(&mut [0]).is_err(), "it is for writing only");
        }
    }

    const LIMITS: CgroupLimits = CgroupLimits { memory_bytes: 1 << 20, pids: 8, cpu_weight: 50 };
}
