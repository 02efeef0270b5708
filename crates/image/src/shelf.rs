//! The directory where finished things stand, addressed by their digests.
//!
//! ```text
//! roots/<digest>/   root.erofs vmlinuz modules/ manifest.json
//! images/<digest>/  initrd.cpio manifest.json
//! bakes/<key>/      the engine's files, manifest.json
//! tmp/              work directories of live builds
//! logs/ locks/      what builds said; who builds
//! ```
//!
//! Invariant: a thing is either complete, flushed to disk and read-only, or not there.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::ImageError;

const MANIFEST: &str = "manifest.json";

/// What can stand on the shelf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// File system, kernel and modules.
    Root,
    /// Initramfs of a root and an agent.
    Image,
    /// A frozen machine.
    Bake,
}

impl Kind {
    pub(crate) const ALL: [Kind; 3] = [Kind::Root, Kind::Image, Kind::Bake];

    fn folder(self) -> &'static str {
        match self {
            Kind::Root => "roots",
            Kind::Image => "images",
            Kind::Bake => "bakes",
        }
    }
}

/// The directory.
pub(crate) struct Shelf {
    dir: PathBuf,
}

impl Shelf {
    /// Opens the shelf in `dir`, making it if need be.
    pub(crate) fn open(dir: &Path) -> Result<Self, ImageError> {
        for folder in ["roots", "images", "bakes", "tmp", "logs", "locks"] {
            let path = dir.join(folder);
            fs::create_dir_all(&path).map_err(ImageError::file("create", &path))?;
        }
        // Absolute, because builds run in other directories.
        let dir = dir.canonicalize().map_err(ImageError::file("open", dir))?;
        Ok(Self { dir })
    }

    /// Parent of work directories. On the same file system as the shelf, for the rename.
    pub(crate) fn tmp(&self) -> PathBuf {
        self.dir.join("tmp")
    }

    pub(crate) fn locks(&self) -> PathBuf {
        self.dir.join("locks")
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    /// Where a thing is or would be.
    pub(crate) fn path(&self, kind: Kind, key: &str) -> PathBuf {
        self.dir.join(kind.folder()).join(key)
    }

    /// The manifest of a thing, or `None` if it is not there.
    pub(crate) fn manifest<M: DeserializeOwned>(
        &self,
        kind: Kind,
        key: &str,
    ) -> Result<Option<M>, ImageError> {
        let dir = self.path(kind, key);
        let path = dir.join(MANIFEST);
        match fs::read(&path) {
            Ok(bytes) => {
                serde_json::from_slice(&bytes).map(Some).map_err(|_| ImageError::Damaged(dir))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(ImageError::file("read", &path)(error)),
        }
    }

    /// Writes `manifest` into `staging` and moves that onto the shelf, unless the same thing is
    /// there already: what stands on the shelf may be in use and is never replaced.
    pub(crate) fn publish<M: Serialize>(
        &self,
        staging: &Path,
        kind: Kind,
        key: &str,
        manifest: &M,
    ) -> Result<(), ImageError> {
        let target = self.path(kind, key);
        if target.join(MANIFEST).exists() {
            return Ok(());
        }
        let path = staging.join(MANIFEST);
        let write = || fs::write(&path, serde_json::to_vec_pretty(manifest)?);
        write().map_err(ImageError::file("write", &path))?;
        settle(staging)?;
        // Without a manifest nothing is there, so this is at most someone's manual damage.
        match fs::remove_dir_all(&target) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(ImageError::file("remove", &target)(error));
            }
            _ => {}
        }
        fs::rename(staging, &target).map_err(ImageError::file("publish", &target))?;
        sync(&self.dir.join(kind.folder()))
    }

    /// Keys of everything of a kind.
    pub(crate) fn keys(&self, kind: Kind) -> Result<Vec<String>, ImageError> {
        let dir = self.dir.join(kind.folder());
        let entries = fs::read_dir(&dir).map_err(ImageError::file("list", &dir))?;
        Ok(entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect())
    }

    /// Takes a thing off the shelf; returns the bytes that this freed. Moves it away first, so
    /// that it is never half there.
    pub(crate) fn remove(&self, kind: Kind, key: &str) -> Result<u64, ImageError> {
        let path = self.path(kind, key);
        let bytes = disk_bytes(&path);
        let grave = crate::workdir::Workdir::create(&self.tmp())?;
        fs::rename(&path, grave.path().join("thing")).map_err(ImageError::file("remove", &path))?;
        Ok(bytes)
    }
}

/// Bytes that a file or directory occupies; holes do not count.
pub(crate) fn disk_bytes(path: &Path) -> u64 {
    let Ok(metadata) = fs::symlink_metadata(path) else { return 0 };
    let own = metadata.blocks() * 512;
    let inner = fs::read_dir(path).into_iter().flatten().flatten();
    own + inner.map(|entry| disk_bytes(&entry.path())).sum::<u64>()
}

/// Makes files read-only and flushes everything below `dir`. Nobody gets to read what they could
/// not read before: a bake is the memory of a machine. Directories stay writable for their owner,
/// or nothing in them could ever be removed.
fn settle(dir: &Path) -> Result<(), ImageError> {
    let entries = fs::read_dir(dir).map_err(ImageError::file("list", dir))?;
    for entry in entries {
        let path = entry.map_err(ImageError::file("list", dir))?.path();
        let failed = |source| ImageError::file("flush", &path)(source);
        if fs::symlink_metadata(&path).map_err(failed)?.is_dir() {
            settle(&path)?;
        } else {
            let mode = fs::metadata(&path).map_err(failed)?.mode() & 0o444;
            fs::set_permissions(&path, Permissions::from_mode(mode)).map_err(failed)?;
            sync(&path)?;
        }
    }
    let publish = || {
        let mode = fs::metadata(dir)?.mode() & 0o755;
        fs::set_permissions(dir, Permissions::from_mode(mode))
    };
    publish().map_err(ImageError::file("publish", dir))?;
    sync(dir)
}

fn sync(path: &Path) -> Result<(), ImageError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(ImageError::file("flush", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_published_is_complete_and_read_only() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(dir.path()).unwrap();
        let staging = shelf.tmp().join("staging");
        fs::create_dir_all(staging.join("modules")).unwrap();
        fs::write(staging.join("modules/a"), "a").unwrap();
        fs::write(staging.join("secret"), "b").unwrap();
        fs::set_permissions(staging.join("secret"), Permissions::from_mode(0o600)).unwrap();
        assert_eq!(shelf.manifest::<u32>(Kind::Root, "k").unwrap(), None);
        shelf.publish(&staging, Kind::Root, "k", &7).unwrap();
        assert_eq!(shelf.manifest(Kind::Root, "k").unwrap(), Some(7));
        assert!(!staging.exists());
        let file = shelf.path(Kind::Root, "k").join("modules/a");
        assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o444);
        let secret = shelf.path(Kind::Root, "k").join("secret");
        assert_eq!(secret.metadata().unwrap().mode() & 0o777, 0o400);

        assert_eq!(shelf.keys(Kind::Root).unwrap(), ["k"]);
        assert!(shelf.remove(Kind::Root, "k").unwrap() > 0);
        assert!(shelf.keys(Kind::Root).unwrap().is_empty());
        assert_eq!(fs::read_dir(shelf.tmp()).unwrap().count(), 0);
    }

    #[test]
    fn a_broken_manifest_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(dir.path()).unwrap();
        let broken = shelf.path(Kind::Bake, "k");
        fs::create_dir(&broken).unwrap();
        fs::write(broken.join(MANIFEST), "{").unwrap();
        let error = shelf.manifest::<u32>(Kind::Bake, "k").unwrap_err();
        assert!(error.to_string().contains(broken.to_str().unwrap()));
    }
}
