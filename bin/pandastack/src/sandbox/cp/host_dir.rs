//! A directory of this host that hostile names are written into.
//!
//! Everything goes through descriptors of directories, one name at a time, and no symbolic link
//! is followed on the way; so nothing is written outside, whatever the names are and whoever
//! changes the directory meanwhile. A file appears under its name when it is complete.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, open, openat, renameat, unlinkat};
use uuid::Uuid;

use super::location::SafeName;

const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::RDONLY).union(OFlags::CLOEXEC);

/// An open directory.
pub struct HostDir {
    descriptor: OwnedFd,
    path: PathBuf,
}

impl HostDir {
    /// Opens the directory at `path`. Links on the way are followed: the user named it.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let descriptor = open(path, DIRECTORY, Mode::empty())
            .with_context(|| format!("cannot open the directory {}", path.display()))?;
        Ok(Self { descriptor, path: path.to_owned() })
    }

    /// Opens the directory `name` in this one, and makes it when it is missing.
    pub fn enter(&self, name: &SafeName) -> anyhow::Result<Self> {
        let path = self.path.join(name.as_str());
        match mkdirat(&self.descriptor, name.as_str(), Mode::from_raw_mode(0o777)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => {
                return Err(error).with_context(|| format!("cannot create {}", path.display()));
            }
        }
        let flags = DIRECTORY | OFlags::NOFOLLOW;
        let descriptor = openat(&self.descriptor, name.as_str(), flags, Mode::empty())
            .with_context(|| format!("{} is in the way: it is no directory", path.display()))?;
        Ok(Self { descriptor, path })
    }

    /// Begins the file `name`, which replaces one that is there once it is complete.
    pub fn create(&self, name: &SafeName, executable: bool) -> anyhow::Result<NewFile> {
        let draft = format!(".pandastack-{}", Uuid::new_v4());
        let mode = Mode::from_raw_mode(if executable { 0o777 } else { 0o666 });
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let begin = || -> io::Result<(OwnedFd, File)> {
            let dir = self.descriptor.as_fd().try_clone_to_owned()?;
            let file = openat(&dir, &draft, flags | OFlags::NOFOLLOW, mode)?;
            Ok((dir, file.into()))
        };
        let path = self.path.join(name.as_str());
        let (dir, file) = begin().with_context(|| format!("cannot create {}", path.display()))?;
        Ok(NewFile {
            dir,
            draft: Some(draft),
            name: name.clone(),
            path,
            file: tokio::fs::File::from_std(file),
        })
    }
}

/// A file that is not complete yet. Dropped before it is, it leaves nothing behind.
pub struct NewFile {
    dir: OwnedFd,
    draft: Option<String>,
    name: SafeName,
    path: PathBuf,
    file: tokio::fs::File,
}

impl NewFile {
    /// Adds bytes.
    pub async fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        use tokio::io::AsyncWriteExt;
        let written = self.file.write_all(bytes).await;
        written.with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// Gives the complete file its name.
    pub async fn finish(mut self) -> anyhow::Result<()> {
        use tokio::io::AsyncWriteExt;
        let flushed = self.file.flush().await;
        flushed.with_context(|| format!("cannot write {}", self.path.display()))?;
        if let Some(draft) = self.draft.as_deref() {
            renameat(&self.dir, draft, &self.dir, self.name.as_str())
                .with_context(|| format!("cannot create {}", self.path.display()))?;
        }
        self.draft = None;
        Ok(())
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(draft) = &self.draft {
            let _ = unlinkat(&self.dir, draft.as_str(), AtFlags::empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn name(text: &str) -> SafeName {
        SafeName::new(text).unwrap()
    }

    async fn put(dir: &HostDir, file: &str, text: &str) -> anyhow::Result<()> {
        let mut new = dir.create(&name(file), false)?;
        new.write(text.as_bytes()).await?;
        new.finish().await
    }

    #[tokio::test]
    async fn files_and_directories_are_made_inside() {
        let root = tempfile::tempdir().unwrap();
        let dir = HostDir::open(root.path()).unwrap();
        let sub = dir.enter(&name("sub")).unwrap();
        put(&sub, "a", "one").await.unwrap();
        put(&sub, "a", "two").await.unwrap();
        assert_eq!(fs::read_to_string(root.path().join("sub/a")).unwrap(), "two");
        assert_eq!(fs::read_dir(root.path().join("sub")).unwrap().count(), 1);

        let tool = dir.create(&name("tool"), true).unwrap();
        tool.finish().await.unwrap();
        let mode = fs::metadata(root.path().join("tool")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7100, 0o100, "executable, and never set-uid");
    }

    #[tokio::test]
    async fn links_are_replaced_and_never_followed() {
        let outside = tempfile::tempdir().unwrap();
        let secret = outside.path().join("secret");
        fs::write(&secret, "untouched").unwrap();
        let root = tempfile::tempdir().unwrap();
        symlink(outside.path(), root.path().join("dir")).unwrap();
        symlink(&secret, root.path().join("file")).unwrap();

        let dir = HostDir::open(root.path()).unwrap();
        assert!(dir.enter(&name("dir")).is_err());
        put(&dir, "file", "new").await.unwrap();
        assert_eq!(fs::read_to_string(&secret).unwrap(), "untouched");
        assert!(fs::symlink_metadata(root.path().join("file")).unwrap().is_file());
    }

    #[tokio::test]
    async fn an_unfinished_file_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("kept"), "old").unwrap();
        let dir = HostDir::open(root.path()).unwrap();
        let mut new = dir.create(&name("kept"), false).unwrap();
        new.write(b"half").await.unwrap();
        drop(new);
        assert_eq!(fs::read_to_string(root.path().join("kept")).unwrap(), "old");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }
}
