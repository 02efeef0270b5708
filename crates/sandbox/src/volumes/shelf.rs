//! Volumes on disk.
//!
//! ```text
//!   machines/<scratch name>   made here ──rename──▶ volumes/<name>/  disk, layer-…, disk.qcow2
//!        recovery empties it  ◀──rename── deleted                    volume.json
//! ```
//!
//! As with snapshots, a volume is its directory and there is no other record of it: were the
//! records lost, no volume would be.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use pandastack_types::{VolumeName, VolumeView};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::error::{StartError, VolumeError};
use crate::fault::{self, Point};
use crate::machines::{MachineDir, new_name};

/// The manifest's file name; the disk has no file of this name.
const MANIFEST: &str = "volume.json";

/// What is known of a volume besides its name.
#[derive(Serialize, Deserialize)]
struct Manifest {
    size_mb: u32,
    #[serde(with = "time::serde::rfc3339")]
    created_at: OffsetDateTime,
}

/// The volumes of a server.
#[derive(Clone, Debug)]
pub(crate) struct VolumeShelf {
    dir: PathBuf,
    machines: PathBuf,
}

impl VolumeShelf {
    /// The shelf in a server's directory (0700), made if it is not there.
    pub(crate) fn of(instance: &Path) -> Result<Self, StartError> {
        use std::os::unix::fs::DirBuilderExt;
        let dir = instance.join("volumes");
        match fs::DirBuilder::new().mode(0o700).create(&dir) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                Err(StartError::Directory { path: dir, source })
            }
            _ => Ok(Self { dir, machines: instance.join("machines") }),
        }
    }

    /// Where the files of a volume are.
    pub(crate) fn path(&self, name: &VolumeName) -> PathBuf {
        self.dir.join(name.as_str())
    }

    /// The names of all that have a directory here, sorted.
    pub(crate) fn names(&self) -> Vec<VolumeName> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    /// One volume.
    pub(crate) fn get(&self, name: &VolumeName) -> Result<VolumeView, VolumeError> {
        let path = self.path(name);
        let text = match fs::read(path.join(MANIFEST)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !path.exists() => {
                return Err(VolumeError::NotFound(name.clone()));
            }
            text => text.map_err(VolumeError::Files)?,
        };
        let Manifest { size_mb, created_at } =
            serde_json::from_slice(&text).map_err(|error| VolumeError::Files(error.into()))?;
        Ok(VolumeView { name: name.clone(), size_mb, size_bytes: taken(&path), created_at })
    }

    /// Makes the disk in `out` a volume. Durable when it returns.
    pub(crate) fn publish(
        &self,
        out: MachineDir,
        name: &VolumeName,
        size_mb: u32,
    ) -> Result<VolumeView, VolumeError> {
        let manifest = Manifest { size_mb, created_at: OffsetDateTime::now_utc() };
        let write = || {
            use std::os::unix::fs::OpenOptionsExt;
            let path = out.path().join(MANIFEST);
            let mut file = File::options().mode(0o600).create_new(true).write(true).open(path)?;
            file.write_all(&serde_json::to_vec_pretty(&manifest)?)?;
            file.sync_all()?;
            File::open(out.path())?.sync_all()?;
            fs::rename(out.path(), self.path(name))?;
            File::open(&self.dir)?.sync_all()
        };
        write().map_err(VolumeError::Files)?;
        self.get(name)
    }

    /// Deletes a volume that nobody has. Copies of it are their owners' and stay.
    pub(crate) fn remove(&self, name: &VolumeName) -> Result<(), VolumeError> {
        let away = self.machines.join(new_name());
        fs::rename(self.path(name), &away).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => VolumeError::NotFound(name.clone()),
            _ => VolumeError::Files(error),
        })?;
        fault::point(Point::VolumeHidden);
        fs::remove_dir_all(&away).map_err(VolumeError::Files)
    }
}

/// Bytes that the files of a directory take on the host's disk.
fn taken(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some(entry.metadata().ok()?.blocks() * 512)).sum()
}
