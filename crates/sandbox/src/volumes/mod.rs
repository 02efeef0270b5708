//! Volumes: named disks that outlive sandboxes.
//!
//! ```text
//!   reserve: in the records ─▶ put into the machine ─▶ runs ─▶ mounted at /volumes/NAME
//!            a reader or the one writer                          │
//!   detach:  out of the records ◀─ machine gone ◀─ flushed ◀─────┘
//! ```
//!
//! The invariants: **a volume has readers or one writer**, which the records keep; **what is in the
//! records comes before anything of it exists and goes after all of it**; and **nothing but its
//! writer ever changes a volume**. A fork and a snapshot have copies of that instant, whose changes
//! are theirs, and which do not need the volume any more: who has a copy does not hold it.
//!
//! A hibernated sandbox keeps its place in the records. Its memory knows the volume as it was then,
//! so when it wakes, it writes on from there ([`VolumeSource::Write`], `rewind`): what an attempt to
//! wake wrote that came to nothing is given up, as on its other disk.

mod shelf;

use std::path::Path;
use std::time::Duration;

use pandastack_engine::{Machine, VolumeSource, make_volume, settle_volume};
use pandastack_store::{AttachError, Store};
use pandastack_types::{MAX_VOLUMES, SandboxId, VolumeMount, VolumeName, VolumeView};
use tokio::time::timeout;

pub(crate) use self::shelf::VolumeShelf;
use crate::error::{Chain, CreateError, InvalidRequest, VolumeError};
use crate::fault::{self, Point};
use crate::machines::{MachineDir, new_name};
use crate::manager::{Core, Manager};
use crate::sandbox::Sandbox;

/// The smallest volume in MiB. Below 3 there is no room for a journal, and a crash may cost more
/// than what was not synced.
const MIN_MB: i64 = 1;
/// The largest.
const MAX_MB: i64 = 65_536;
/// The size of one that is asked for without a size.
const DEFAULT_MB: i64 = 256;

/// Time for a guest to write out what it holds back, and to unmount, before its machine ends.
const LAST_WRITES: Duration = Duration::from_secs(2);

impl Manager {
    /// Makes a volume with an empty file system, durable when it returns.
    pub async fn create_volume(
        &self,
        name: VolumeName,
        size_mb: Option<i64>,
    ) -> Result<VolumeView, VolumeError> {
        let core = &self.core;
        core.has_volumes()?;
        let size_mb = size_mb.unwrap_or(DEFAULT_MB);
        let legal = u32::try_from(size_mb).ok().filter(|_| (MIN_MB..=MAX_MB).contains(&size_mb));
        let size_mb = legal.ok_or_else(|| {
            let text = format!("size_mb must be {MIN_MB} to {MAX_MB}, not {size_mb}");
            InvalidRequest::Field(text)
        })?;
        let _turn = core.volume_turn.lock().await;
        let names = core.volumes.names();
        if names.contains(&name) {
            return Err(VolumeError::Exists(name));
        }
        if names.len() >= core.config.max_volumes {
            return Err(VolumeError::Quota(core.config.max_volumes));
        }
        core.room_for_volume(size_mb)?;
        let out = MachineDir::create(&core.machines, new_name()).map_err(VolumeError::Files)?;
        make_volume(out.path(), size_mb).await.map_err(VolumeError::Engine)?;
        fault::point(Point::VolumeMade);
        let shelf = core.volumes.clone();
        let made = blocking(move || shelf.publish(out, &name, size_mb)).await;
        fault::point(Point::VolumePublished);
        made
    }

    /// Every volume, by name. One that is damaged is left out.
    pub async fn volumes(&self) -> Vec<VolumeView> {
        let shelf = self.core.volumes.clone();
        let listing = tokio::task::spawn_blocking(move || {
            shelf.names().iter().filter_map(|name| shelf.get(name).ok()).collect()
        });
        listing.await.unwrap_or_default()
    }

    /// One volume.
    pub fn volume(&self, name: &VolumeName) -> Result<VolumeView, VolumeError> {
        self.core.volumes.get(name)
    }

    /// Deletes a volume that no sandbox has, and everything in it.
    pub async fn delete_volume(&self, name: VolumeName) -> Result<(), VolumeError> {
        let core = &self.core;
        let _turn = core.volume_turn.lock().await;
        if !core.volumes.path(&name).exists() {
            return Err(VolumeError::NotFound(name));
        }
        if let Some(holder) = core.store.holder(&name).map_err(VolumeError::Journal)? {
            return Err(VolumeError::Attached { name, holder });
        }
        let shelf = core.volumes.clone();
        blocking(move || shelf.remove(&name)).await
    }
}

/// What a machine gets before it runs.
#[derive(Clone, Debug)]
pub(crate) struct Fitting {
    slot: usize,
    source: VolumeSource,
    mount: VolumeMount,
    /// Whether its guest has it mounted already, since it was copied with it.
    mounted: bool,
}

/// The volumes of a new sandbox. Dropping it gives back what is not kept.
#[derive(Default)]
pub(crate) struct Reserved {
    given: Option<(Store, SandboxId)>,
    pub(crate) fittings: Vec<Fitting>,
}

impl Reserved {
    /// The volumes that came with a snapshot, which are copies.
    pub(crate) fn copies(dir: &Path, volumes: &[VolumeMount]) -> Self {
        Self { given: None, fittings: fittings(volumes, |_| VolumeSource::Copy(dir.to_owned())) }
    }

    /// The sandbox has an owner now, who gives them back.
    pub(crate) fn keep(mut self) -> Vec<Fitting> {
        self.given = None;
        std::mem::take(&mut self.fittings)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Some((store, id)) = self.given.take()
            && let Err(error) = store.detach(id)
        {
            tracing::error!(sandbox = %id, error = %Chain(&error), "its volumes stay taken");
        }
    }
}

/// What the guest of a snapshot has mounted already, each in the slot of its index.
fn fittings(
    volumes: &[VolumeMount],
    source: impl Fn(&VolumeMount) -> VolumeSource,
) -> Vec<Fitting> {
    let fitting = |(slot, mount): (usize, &VolumeMount)| Fitting {
        slot,
        source: source(mount),
        mount: mount.clone(),
        mounted: true,
    };
    volumes.iter().enumerate().map(fitting).collect()
}

/// The same volumes as a copy of the sandbox has them.
pub(crate) fn copied(volumes: &[VolumeMount]) -> Vec<VolumeMount> {
    volumes.iter().map(|mount| VolumeMount { clone: true, ..mount.clone() }).collect()
}

/// Refuses lists that make no sense.
pub(crate) fn check(volumes: &[VolumeMount]) -> Result<(), InvalidRequest> {
    if volumes.len() > MAX_VOLUMES {
        let text = format!("a sandbox has at most {MAX_VOLUMES} volumes");
        return Err(InvalidRequest::Field(text));
    }
    for (index, mount) in volumes.iter().enumerate() {
        if volumes[..index].iter().any(|other| other.name == mount.name) {
            let text = format!("volume {} is in volumes twice", mount.name);
            return Err(InvalidRequest::Field(text));
        }
    }
    Ok(())
}

impl Core {
    fn has_volumes(&self) -> Result<(), VolumeError> {
        match self.engine.volume_slots() {
            0 => Err(VolumeError::Unsupported(self.engine.name())),
            _ => Ok(()),
        }
    }

    /// Gives a sandbox that is about to be created its volumes, and makes their files ready.
    pub(crate) async fn reserve(
        &self,
        id: SandboxId,
        volumes: &[VolumeMount],
    ) -> Result<Reserved, VolumeError> {
        if volumes.is_empty() {
            return Ok(Reserved::default());
        }
        self.has_volumes()?;
        check(volumes)?;
        let _turn = self.volume_turn.lock().await;
        for mount in volumes {
            self.volumes.get(&mount.name)?;
        }
        let wanted: Vec<_> =
            volumes.iter().map(|mount| (mount.name.clone(), mount.read_only)).collect();
        self.store.attach(id, &wanted).map_err(|error| match error {
            AttachError::InUse { volume, holder, writes } => {
                VolumeError::InUse { name: volume, holder, writes }
            }
            AttachError::Store(error) => VolumeError::Journal(error),
        })?;
        fault::point(Point::VolumesReserved);
        let given = Some((self.store.clone(), id));
        let mut reserved = Reserved { given, fittings: Vec::new() };
        for (slot, mount) in volumes.iter().enumerate() {
            let (dir, read_only) = (self.volumes.path(&mount.name), mount.read_only);
            let settled = dir.clone();
            blocking(move || settle_volume(&settled, read_only).map_err(VolumeError::Engine))
                .await?;
            let source = match read_only {
                true => VolumeSource::Read(dir),
                false => VolumeSource::Write { dir, rewind: false },
            };
            let mount = mount.clone();
            reserved.fittings.push(Fitting { slot, source, mount, mounted: false });
        }
        Ok(reserved)
    }

    /// What the machine of a sandbox gets that wakes from the files in `dir`.
    pub(crate) fn refit(&self, sandbox: &Sandbox, dir: &Path) -> Vec<Fitting> {
        fittings(&sandbox.birth.volumes, |mount| match mount.clone || mount.read_only {
            true => VolumeSource::Copy(dir.to_owned()),
            false => VolumeSource::Write { dir: self.volumes.path(&mount.name), rewind: true },
        })
    }

    /// The sandbox has no machine any more, nor files of one: others may have its volumes.
    pub(crate) fn detach(&self, sandbox: &Sandbox) {
        if sandbox.birth.volumes.iter().all(|mount| mount.clone) {
            return;
        }
        if let Err(error) = self.store.detach(sandbox.id()) {
            let error = Chain(&error);
            tracing::error!(sandbox = %sandbox.id(), %error, "its volumes stay taken until a restart");
        }
    }
}

/// Puts volumes into a machine that stands still, and tells how many bytes each has.
pub(crate) async fn fit(
    machine: &dyn Machine,
    fittings: &[Fitting],
) -> Result<Vec<u64>, CreateError> {
    let mut sizes = Vec::with_capacity(fittings.len());
    for Fitting { slot, source, .. } in fittings {
        let bytes = machine.attach(*slot, source.clone()).await.map_err(CreateError::Machine)?;
        sizes.push(bytes);
    }
    Ok(sizes)
}

/// Has a guest mount those volumes that it does not know yet.
pub(crate) async fn mount(
    machine: &dyn Machine,
    fittings: &[Fitting],
    sizes: &[u64],
    deadline: Duration,
) -> Result<(), CreateError> {
    for (fitting, bytes) in fittings.iter().zip(sizes).filter(|(fitting, _)| !fitting.mounted) {
        let Fitting { slot, mount, .. } = fitting;
        let name = mount.name.as_str();
        let mounting = machine.agent().mount_volume(*slot, name, *bytes, mount.read_only);
        let mounted = timeout(deadline, mounting).await;
        let mounted = mounted.map_err(|_| CreateError::NotReady(deadline))?;
        mounted.map_err(|error| CreateError::NotMounted(mount.name.clone(), error))?;
    }
    Ok(())
}

/// Has a guest that runs write out what it holds back of its volumes, if it answers in time. One
/// that does not loses what it did not sync, as in a power cut.
pub(crate) async fn flush(sandbox: &Sandbox, machine: &dyn Machine, unmount: bool) {
    let writes = |mount: &VolumeMount| !mount.read_only && !mount.clone;
    if !sandbox.birth.volumes.iter().any(writes) {
        return;
    }
    let flushed = timeout(LAST_WRITES, machine.agent().flush_volumes(unmount)).await;
    let why = match flushed {
        Ok(Ok(())) => return,
        Ok(Err(error)) => Chain(&error).to_string(),
        Err(_) => "it did not answer".to_owned(),
    };
    tracing::warn!(sandbox = %sandbox.id(), why, "did not write out its volumes");
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, VolumeError> + Send + 'static,
) -> Result<T, VolumeError> {
    let worked = tokio::task::spawn_blocking(work).await;
    worked.unwrap_or_else(|error| Err(VolumeError::Files(std::io::Error::other(error))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mounts(names: &[&str]) -> Vec<VolumeMount> {
        let mount = |name: &&str| VolumeMount {
            name: name.parse().unwrap(),
            read_only: false,
            clone: false,
        };
        names.iter().map(mount).collect()
    }

    #[test]
    fn a_sandbox_has_a_few_volumes_once_each() {
        check(&mounts(&["a", "b", "c", "d", "e", "f", "g", "h"])).unwrap();
        assert!(check(&mounts(&["a", "b", "c", "d", "e", "f", "g", "h", "i"])).is_err());
        let twice = check(&mounts(&["a", "b", "a"])).unwrap_err();
        assert!(twice.to_string().contains("volume a"), "{twice}");
    }

    #[test]
    fn copies_are_marked_and_keep_their_slots() {
        let copies = copied(&mounts(&["a", "b"]));
        assert!(copies.iter().all(|mount| mount.clone));
        let fitted = Reserved::copies(Path::new("/snapshot"), &copies).keep();
        assert_eq!(fitted.iter().map(|f| f.slot).collect::<Vec<_>>(), [0, 1]);
        assert!(
            fitted.iter().all(|f| f.mounted && f.source == VolumeSource::Copy("/snapshot".into()))
        );
    }
}
