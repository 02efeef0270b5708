//! Where machines live on disk.

use std::io;
use std::path::{Path, PathBuf};

use uuid::Uuid;

/// A machine's name: of its directory and in the records. Never reused.
pub(crate) fn new_name() -> String {
    Uuid::new_v4().simple().to_string()
}

/// The private directory of one machine. Removed with everything in it when it is dropped, so
/// that no path out of a create, a failure or a panic leaves one behind.
#[derive(Debug)]
pub(crate) struct MachineDir {
    name: String,
    path: PathBuf,
}

impl MachineDir {
    /// Makes the empty directory `name` (0700) below `machines`.
    pub(crate) fn create(machines: &Path, name: String) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        let path = machines.join(&name);
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self { name, path })
    }

    /// Takes over the directory of a machine that another server left.
    pub(crate) fn existing(machines: &Path, name: String) -> Self {
        let path = machines.join(&name);
        Self { name, path }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for MachineDir {
    fn drop(&mut self) {
        // A handful of files whose space the kernel frees later: short enough for an async task.
        if let Err(error) = std::fs::remove_dir_all(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(machine = self.name, %error, "cannot remove a machine's directory");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_goes_with_its_owner_and_never_takes_over_another() {
        let root = tempfile::tempdir().unwrap();
        let dir = MachineDir::create(root.path(), new_name()).unwrap();
        std::fs::write(dir.path().join("disk"), b"x").unwrap();
        assert!(MachineDir::create(root.path(), dir.name().to_owned()).is_err());
        let path = dir.path().to_owned();
        drop(dir);
        assert!(!path.exists());
    }
}
