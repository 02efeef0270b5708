//! Programs of the host that a build runs.

use std::env;
use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A program that is not installed, and where it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissingProgram {
    /// Its name.
    pub program: &'static str,
    /// The Debian package that brings it.
    pub package: &'static str,
}

/// Everyone needs these.
const ALWAYS: [MissingProgram; 4] = [
    MissingProgram { program: "mmdebstrap", package: "mmdebstrap" },
    MissingProgram { program: "mkfs.erofs", package: "erofs-utils" },
    MissingProgram { program: "unshare", package: "util-linux" },
    MissingProgram { program: "xz", package: "xz-utils" },
];

/// Without root, ids of the build's user namespace are set by these.
const ROOTLESS: [MissingProgram; 2] = [
    MissingProgram { program: "newuidmap", package: "uidmap" },
    MissingProgram { program: "newgidmap", package: "uidmap" },
];

/// Where daemons' and administrators' programs are, which the path of a user may lack.
const SYSTEM: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// What has to be installed before this user can build templates.
pub fn missing_programs() -> Vec<MissingProgram> {
    let folders = folders();
    let rootless = if is_root() { &[] } else { &ROOTLESS[..] };
    let needed = ALWAYS.iter().chain(rootless);
    needed.filter(|need| !is_installed(need.program, &folders)).copied().collect()
}

/// Whether builds run as root, or else in a user namespace.
pub(super) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// The `PATH` for a build.
pub(super) fn path_variable() -> OsString {
    // Only fails for a folder with a colon in its name, which came out of a split at colons.
    env::join_paths(folders()).unwrap_or_default()
}

fn folders() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
    env::split_paths(&path).chain(SYSTEM.map(PathBuf::from)).collect()
}

fn is_installed(program: &str, folders: &[PathBuf]) -> bool {
    let executable = |path: &Path| {
        path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    };
    folders.iter().any(|folder| executable(&folder.join(program)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_executable_files_count() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("plain"), "").unwrap();
        std::fs::create_dir(dir.path().join("folder")).unwrap();
        let folders = [dir.path().to_owned()];
        assert!(!is_installed("plain", &folders));
        assert!(!is_installed("folder", &folders));
        assert!(!is_installed("absent", &folders));
        assert!(is_installed("sh", &[PathBuf::from("/bin")]));
    }
}
