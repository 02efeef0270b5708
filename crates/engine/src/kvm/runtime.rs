//! The file system of a jailed monitor: its own program and the keeper, and nothing else. Both are
//! static, so there is nothing else to need.

use std::path::{Path, PathBuf};

use super::Parts;
use crate::EngineError;
use pandastack_jail::root::{self, KEEPER};

/// The monitor, in the jail.
pub(super) const MONITOR: &str = "/panda-vmm";

/// A jail root with the monitor in it.
#[derive(Clone, Debug)]
pub(super) struct Runtime {
    /// The directory that becomes `/`.
    pub root: PathBuf,
    /// Stands for the monitor's program.
    pub digest: String,
}

impl Runtime {
    /// Makes the directory below `dir` unless it is there already.
    pub fn prepare(dir: &Path, parts: &Parts) -> Result<Self, EngineError> {
        let [keeper, monitor] = [parts.keeper, parts.monitor].map(blake3::hash);
        let digest = monitor.to_hex()[..16].to_owned();
        let root = dir.join(format!("vmm-{digest}-{}", &keeper.to_hex()[..8]));
        root::publish(dir, &root, |staging| {
            root::place(staging, KEEPER, parts.keeper, root::UNREADABLE)?;
            root::place(staging, MONITOR, parts.monitor, root::READABLE)
        })?;
        Ok(Self { root, digest })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_root_has_two_programs_and_a_new_monitor_gets_a_new_one() {
        let dir = tempfile::tempdir().unwrap();
        let prepare =
            |monitor| Runtime::prepare(dir.path(), &Parts { keeper: b"keeper", monitor }).unwrap();
        let first = prepare(b"one");
        assert_eq!(first.root, prepare(b"one").root);
        let second = prepare(b"two");
        assert_ne!((&first.root, &first.digest), (&second.root, &second.digest));
        let mode = |name: &str| {
            let path = first.root.join(name.trim_start_matches('/'));
            fs::metadata(path).unwrap().permissions().mode() & 0o7777
        };
        assert_eq!((mode(KEEPER), mode(MONITOR), mode("proc")), (0o111, 0o555, 0o755));
        let names = fs::read_dir(&first.root).unwrap().count();
        assert_eq!(names, 3);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left of the making");
    }
}
