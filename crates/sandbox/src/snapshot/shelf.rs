//! Snapshots on disk.
//!
//! ```text
//!   machines/<scratch name>   written here ──rename──▶ snapshots/<id>/  engine's files
//!        recovery empties it  ◀──rename── deleted                       snapshot.json
//! ```
//!
//! A snapshot is its directory and there is no other record of it: a rename shows or hides all of
//! it at once, also in a crash, where a table beside it could say something else. What is half
//! written or half deleted is where machines live, and goes with what they left behind.
//!
//! Nothing refers to a snapshot's files by their place but a restore that is under way ([`uses`]):
//! what a machine has of them it holds open, and what another snapshot shares with them has names of
//! its own there. So the file system counts the references, and a snapshot can go whatever was made
//! of it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use pandastack_policy::Policy;
use pandastack_proto::Token;
use pandastack_types::{SandboxId, SnapshotId, SnapshotView, VolumeMount};
use serde::{Deserialize, Serialize};

use crate::error::{DeleteSnapshotError, NoSnapshot, StartError};
use crate::fault::{self, Point};
use crate::machines::{MachineDir, new_name};

use super::seal::{Seal, Seals, changed};
use super::uses::{Lease, Uses};

/// The manifest's file name; engines have no file of this name.
const MANIFEST: &str = "snapshot.json";

/// What is known of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// The key that a bake of its image and size has where it was taken. Where that key is
    /// another, the image, the engine or the host has changed, and so would the machine.
    pub(crate) origin: String,
    /// What the guest obeys. As secret as its memory, where it is as well.
    pub(crate) token: Token,
    /// What the guest calls itself. Manifests that are older than hibernation have none.
    #[serde(default)]
    pub(crate) names: Option<Names>,
    /// What the sandbox was allowed to reach, as the text of its one spelling: a policy that is
    /// damaged must not pass for another one, nor hide the rest. Snapshots that are older than
    /// policies are of sandboxes that reached nothing.
    #[serde(default = "none")]
    pub(crate) policy: String,
    /// Its files. Manifests that are older than this name none.
    #[serde(default)]
    pub(super) files: Seals,
    /// The volumes that its guest has, each a copy in the slot of its index. Older snapshots have
    /// none.
    #[serde(default)]
    pub(crate) volumes: Vec<VolumeMount>,
    /// As clients see it.
    #[serde(flatten)]
    pub(crate) view: SnapshotView,
}

/// Names that a guest has of its own, besides that of its host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Names {
    /// machine-id(5).
    pub(crate) machine_id: String,
    /// `/proc/sys/kernel/random/boot_id`.
    pub(crate) boot_id: String,
}

fn none() -> String {
    "\"none\"".to_owned()
}

impl Manifest {
    /// The text that a policy is kept as.
    pub(crate) fn keep(policy: &Policy) -> io::Result<String> {
        Ok(serde_json::to_string(policy)?)
    }

    /// With the policy in what clients see, if it can be read.
    fn shown(self) -> Self {
        let egress = serde_json::from_str(&self.policy).ok();
        if egress.is_none() {
            tracing::warn!(snapshot = %self.view.id, "the policy of a snapshot is damaged");
        }
        Self { view: SnapshotView { egress, ..self.view }, ..self }
    }
}

/// The snapshots of a server.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotShelf {
    dir: PathBuf,
    machines: PathBuf,
    uses: Uses,
}

impl SnapshotShelf {
    /// Opens the shelf in `dir` (0700), made if it is not there.
    pub(crate) fn open(dir: PathBuf, machines: PathBuf) -> io::Result<Self> {
        use std::os::unix::fs::DirBuilderExt;
        match fs::DirBuilder::new().mode(0o700).create(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(Self { dir, machines, uses: Uses::default() }),
        }
    }

    /// The shelf of this name in a server's directory.
    pub(crate) fn of(instance: &Path, name: &str) -> Result<Self, StartError> {
        let path = instance.join(name);
        Self::open(path.clone(), instance.join("machines"))
            .map_err(|source| StartError::Directory { path, source })
    }

    /// Where the files of a snapshot are.
    pub(crate) fn path(&self, id: SnapshotId) -> PathBuf {
        self.dir.join(id.to_string())
    }

    /// Every snapshot, newest first; those of one sandbox, if it is named.
    pub(crate) fn list(&self, sandbox: Option<SandboxId>) -> Vec<SnapshotView> {
        let mut views: Vec<SnapshotView> = self
            .ids()
            .into_iter()
            .filter_map(|id| self.get(id).ok())
            .map(|manifest| manifest.view)
            .filter(|view| sandbox.is_none_or(|sandbox| view.sandbox_id == sandbox))
            .collect();
        views.sort_by_key(|view| std::cmp::Reverse((view.created_at, view.id)));
        views
    }

    /// The names of all that have files here, whatever these hold.
    pub(crate) fn ids(&self) -> Vec<SnapshotId> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }

    /// What is known of a snapshot.
    pub(crate) fn get(&self, id: SnapshotId) -> Result<Manifest, NoSnapshot> {
        if self.uses.is_leaving(id) {
            return Err(NoSnapshot(id));
        }
        self.read(id)
    }

    /// A snapshot for somebody who reads its files: they stay as long as the lease.
    pub(crate) fn lend(&self, id: SnapshotId) -> Result<(Manifest, Lease), NoSnapshot> {
        let lease = self.uses.lend(id).ok_or(NoSnapshot(id))?;
        Ok((self.read(id)?, lease))
    }

    /// The name of a file of a snapshot that is not what it was.
    pub(crate) fn changed(&self, id: SnapshotId, manifest: &Manifest) -> Option<String> {
        changed(&self.path(id), &manifest.files)
    }

    fn read(&self, id: SnapshotId) -> Result<Manifest, NoSnapshot> {
        let path = self.path(id).join(MANIFEST);
        let text = fs::read(&path).map_err(|_| NoSnapshot(id))?;
        let manifest: Result<Manifest, _> = serde_json::from_slice(&text);
        // Its directory is its name, wherever it was copied from.
        let named = |manifest: Manifest| Manifest {
            view: SnapshotView { id, ..manifest.view },
            ..manifest
        };
        manifest.map(|manifest| named(manifest).shown()).map_err(|error| {
            tracing::warn!(path = %path.display(), %error, "the manifest of a snapshot is damaged");
            NoSnapshot(id)
        })
    }

    /// Makes the files in `out` a snapshot, with its true size in the view. Durable when it
    /// returns.
    pub(crate) fn publish(
        &self,
        out: MachineDir,
        mut manifest: Manifest,
    ) -> io::Result<SnapshotView> {
        use std::os::unix::fs::OpenOptionsExt;
        (manifest.view.size_bytes, manifest.files) = settle(out.path())?;
        let text = serde_json::to_vec_pretty(&manifest)?;
        let path = out.path().join(MANIFEST);
        let mut file = File::options().mode(0o600).create_new(true).write(true).open(&path)?;
        file.write_all(&text)?;
        file.sync_all()?;
        File::open(out.path())?.sync_all()?;
        fault::point(Point::FilesSettled);
        fs::rename(out.path(), self.path(manifest.view.id))?;
        fault::point(Point::FilesPublished);
        File::open(&self.dir)?.sync_all()?;
        Ok(manifest.shown().view)
    }

    /// Deletes a snapshot: from now on there is none, and when nobody reads its files any more they
    /// go. Sandboxes that were made of it have them open and go on.
    pub(crate) async fn delete(&self, id: SnapshotId) -> Result<(), DeleteSnapshotError> {
        let leaving = self.uses.leave(id).ok_or(NoSnapshot(id))?;
        leaving.unread().await;
        let shelf = self.clone();
        let removed = tokio::task::spawn_blocking(move || {
            let away = shelf.take_away(id)?;
            drop(leaving);
            fs::remove_dir_all(&away).map_err(DeleteSnapshotError::Files)
        });
        removed
            .await
            .unwrap_or_else(|error| Err(DeleteSnapshotError::Files(io::Error::other(error))))
    }

    /// Deletes one that nobody can be reading.
    pub(crate) fn remove(&self, id: SnapshotId) -> Result<(), DeleteSnapshotError> {
        let away = self.take_away(id)?;
        fs::remove_dir_all(&away).map_err(DeleteSnapshotError::Files)
    }

    /// The first half of [`Self::remove`], which takes no time: it is no snapshot any more. Its
    /// files, which can take long to remove, are where machines live.
    pub(crate) fn take_away(&self, id: SnapshotId) -> Result<PathBuf, DeleteSnapshotError> {
        let away = self.machines.join(new_name());
        fs::rename(self.path(id), &away).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => NoSnapshot(id).into(),
            _ => DeleteSnapshotError::Files(error),
        })?;
        fault::point(Point::FilesHidden);
        Ok(away)
    }
}

/// Writes the files of a directory through to the disk, and tells them and the space that they take.
/// A file with other names is not counted: engines link to what they share with a template.
fn settle(dir: &Path) -> io::Result<(u64, Seals)> {
    use std::os::unix::fs::MetadataExt;
    let (mut bytes, mut seals) = (0, Seals::new());
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let file = File::open(entry.path())?;
        file.sync_all()?;
        seals.insert(entry.file_name().to_string_lossy().into_owned(), Seal::of(&file)?);
        let metadata = file.metadata()?;
        if metadata.nlink() == 1 {
            bytes += metadata.blocks() * 512;
        }
    }
    Ok((bytes, seals))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use time::OffsetDateTime;

    use super::*;

    fn manifest(sandbox: SandboxId, age: i64) -> Manifest {
        let view = SnapshotView {
            id: SnapshotId::random(),
            sandbox_id: sandbox,
            template: "base".parse().unwrap(),
            cpu: 1,
            memory_mb: 512,
            disk_mb: 2048,
            engine: "fake".to_owned(),
            size_bytes: 0,
            created_at: OffsetDateTime::UNIX_EPOCH - time::Duration::seconds(age),
            egress: None,
            references: 0,
        };
        let (origin, files, volumes) = ("key".to_owned(), Seals::new(), Vec::new());
        Manifest { origin, token: [7; 16], names: None, policy: none(), files, volumes, view }
    }

    #[test]
    fn snapshots_appear_and_vanish_whole() {
        let root = tempfile::tempdir().unwrap();
        let machines = root.path().join("machines");
        fs::create_dir(&machines).unwrap();
        let open = || SnapshotShelf::open(root.path().join("snapshots"), machines.clone()).unwrap();
        let shelf = open();
        let sandbox = SandboxId::random();
        for age in [2, 1, 3] {
            let out = MachineDir::create(&machines, new_name()).unwrap();
            fs::write(out.path().join("memory"), vec![1; 10_000]).unwrap();
            let manifest = manifest(sandbox, age);
            let view = shelf.publish(out, manifest.clone()).unwrap();
            assert!(view.size_bytes >= 10_000, "{view:?}");
            let found = shelf.get(view.id).unwrap();
            assert_eq!((found.origin, found.token), (manifest.origin, manifest.token));
        }
        assert_eq!(fs::read_dir(&machines).unwrap().count(), 0);
        let shelf = open();
        let views = shelf.list(Some(sandbox));
        let ages: Vec<_> = views.iter().map(|view| -view.created_at.unix_timestamp()).collect();
        assert_eq!(ages, [1, 2, 3], "newest first");
        assert!(shelf.list(Some(SandboxId::random())).is_empty());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let own = shelf.path(views[0].id);
        assert_eq!((mode(&shelf.dir), mode(&own)), (0o700, 0o700));
        assert_eq!(mode(&own.join(MANIFEST)), 0o600);

        shelf.remove(views[0].id).unwrap();
        assert!(matches!(shelf.remove(views[0].id), Err(DeleteSnapshotError::NotFound(_))));
        assert_eq!(shelf.get(views[0].id), Err(NoSnapshot(views[0].id)));
        assert_eq!(fs::read_dir(&machines).unwrap().count(), 0);
    }

    #[test]
    fn what_is_no_snapshot_is_not_listed() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("snapshots");
        let shelf = SnapshotShelf::open(dir.clone(), root.path().to_owned()).unwrap();
        let damaged = SnapshotId::random();
        for name in ["x".to_owned(), SnapshotId::random().to_string(), damaged.to_string()] {
            fs::create_dir(dir.join(name)).unwrap();
        }
        fs::write(shelf.path(damaged).join(MANIFEST), "{").unwrap();
        assert!(shelf.list(None).is_empty());
        assert!(shelf.get(damaged).is_err());
    }
}
