//! Disks that outlive machines: volumes, as files.
//!
//! A volume is a directory with a disk in it: a raw file with the file system as it was made, which
//! nobody ever writes to, and layers of what was written since. Who only reads it, and every fork
//! and snapshot, has links to the frozen layers under a private top, so what they see never
//! changes, and no one of them needs the volume any more. The one writer has the volume's own top.
//!
//! The invariant: **a frozen layer never changes, and a top layer has one writer**. The second is
//! the caller's to see to; that a machine's process which is about to end is not overtaken is
//! seen to here, by a lock that lasts as long as the process has the file open.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use pandastack_vmm::disk::check;

use super::{
    Disk, Place, drop_strays, ext4, flatten, layers_in, new_top, remove_if_there, written_to,
};
use crate::error::{EngineError, file_error};
use crate::files;
use crate::machine::After;

/// Time for the process of the writer before to end.
const TURN: Duration = Duration::from_secs(10);

/// What a machine has in one of its slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeSource {
    /// The volume in this directory, to be written to.
    Write {
        /// Its directory.
        dir: PathBuf,
        /// Whether what was written since its last layer was frozen is given up: it is the
        /// machine's of that instant which goes on.
        rewind: bool,
    },
    /// The frozen layers of the volume in this directory, under a private one.
    Read(PathBuf),
    /// The copy in this slot of a snapshot's directory, under a private layer.
    Copy(PathBuf),
}

/// Makes a volume of `megabytes` in the existing empty directory `dir`: an ext4 file system with a
/// journal, durable when it returns.
pub async fn make(dir: &Path, megabytes: u32) -> Result<(), EngineError> {
    let place = Place::root(dir);
    ext4::make_journalled(&place.base(), megabytes).await?;
    files::set_mode(&place.base(), 0o400)?;
    let top = new_top(&place, bytes_of(&place)?)?;
    for file in [files::open(&place.base())?, top, files::open(dir)?] {
        file.sync_all().map_err(|e| file_error("write", dir, e))?;
    }
    Ok(())
}

/// Makes a volume that nobody writes to ready for machines: what was written last is frozen, if it
/// is to be read, and many layers become one. Blocks.
pub fn settle(dir: &Path, to_be_read: bool) -> Result<(), EngineError> {
    let place = Place::root(dir);
    let bytes = bytes_of(&place)?;
    drop_strays(&place)?;
    finish_freeze(&place)?;
    if !place.top().exists() {
        // A crash between the two renames of a freeze, or a rewind.
        new_top(&place, bytes)?;
    }
    if to_be_read {
        let (mut disk, top) = Disk::open(&place, bytes)?;
        // Not while the process of the last writer is still there.
        lock(&top, &place.top())?;
        if disk.written()? {
            drop(disk.spare(After::Ends)?);
            disk.freeze()?;
        }
    }
    for layer in layers_in(&place) {
        vouch(&layer, bytes)?;
    }
    flatten(&place, bytes)
}

/// Finds out how far a fork came that was cut off. A layer that was to be put on top, and has
/// something in it, is on top since: the machine went on with it.
fn finish_freeze(place: &Place) -> Result<(), EngineError> {
    let (top, spare) = (place.top(), place.spare());
    let rename =
        |from: &Path, to: &Path| fs::rename(from, to).map_err(|e| file_error("rename", from, e));
    match written_to(&spare) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(file_error("look at", &spare, error)),
        Ok(false) => fs::remove_file(&spare).map_err(|e| file_error("remove", &spare, e)),
        Ok(true) => {
            if top.exists() {
                rename(&top, &place.layer(layers_in(place).len()))?;
            }
            rename(&spare, &top)
        }
    }
}

impl VolumeSource {
    /// The disk in `slot` of the machine in `dir`, its top layer open for writing.
    pub(crate) fn open(&self, slot: usize, dir: &Path) -> Result<(Disk, File), EngineError> {
        let own = Place::slot(dir, slot);
        match self {
            Self::Write { dir, rewind } => {
                let place = Place::root(dir);
                let bytes = bytes_of(&place)?;
                if *rewind {
                    let taken = files::open_rw(&place.top())?;
                    lock(&taken, &place.top())?;
                    fs::remove_file(place.top())
                        .map_err(|e| file_error("remove", &place.top(), e))?;
                    remove_if_there(&place.spare())?;
                    new_top(&place, bytes)?;
                    // Nobody else is here, so this is when the layers of many naps become one.
                    drop_strays(&place)?;
                    flatten(&place, bytes)?;
                }
                let (disk, top) = Disk::open(&place, bytes)?;
                lock(&top, &place.top())?;
                vouch(&place.top(), bytes)?;
                Ok((disk, top))
            }
            Self::Read(dir) => Self::private(&Place::root(dir), &own),
            Self::Copy(dir) => Self::private(&Place::slot(dir, slot), &own),
        }
    }

    fn private(of: &Place, own: &Place) -> Result<(Disk, File), EngineError> {
        let bytes = bytes_of(of)?;
        for layer in layers_in(of) {
            vouch(&layer, bytes)?;
        }
        Disk::create(of, own, bytes)
    }

    /// Whether what is written outlives the machine.
    pub(crate) fn lasts(&self) -> bool {
        matches!(self, Self::Write { .. })
    }
}

/// Bytes that a guest sees: those of the raw file.
fn bytes_of(place: &Place) -> Result<u64, EngineError> {
    let base = place.base();
    Ok(fs::metadata(&base).map_err(|e| file_error("look at", &base, e))?.len())
}

/// Looks at the header of a layer that a machine's process wrote, which is not trusted: one that
/// names another file, or is of a kind that we do not make, is given to nobody.
fn vouch(layer: &Path, bytes: u64) -> Result<(), EngineError> {
    check(&files::open(layer)?, bytes).map_err(|why| EngineError::Damaged {
        file: layer.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        why: why.to_string(),
    })
}

/// Takes the lock of a top layer, which its writer's process has for as long as it is there.
pub(crate) fn lock(top: &File, path: &Path) -> Result<(), EngineError> {
    let end = Instant::now() + TURN;
    loop {
        match top.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(error) => return Err(file_error("lock", path, error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, PermissionsExt};

    use super::super::qcow2;
    use super::*;

    async fn volume() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), 16).await.unwrap();
        dir
    }

    #[tokio::test]
    async fn a_volume_is_private_and_has_a_journal() {
        let dir = volume().await;
        let place = Place::root(dir.path());
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(place.base()), mode(place.top())), (0o400, 0o600));
        assert_eq!(bytes_of(&place).unwrap(), 16 << 20);
        // s_feature_compat of the superblock has EXT4_FEATURE_COMPAT_HAS_JOURNAL.
        let mut features = [0; 4];
        files::open(&place.base()).unwrap().read_exact_at(&mut features, 1024 + 0x5c).unwrap();
        assert_ne!(u32::from_le_bytes(features) & 4, 0);
    }

    #[tokio::test]
    async fn readers_have_what_was_written_before_and_never_change_it() {
        let (dir, machine) = (volume().await, tempfile::tempdir().unwrap());
        let place = Place::root(dir.path());
        let written = files::open_rw(&place.top()).unwrap();
        written.set_len(qcow2::EMPTY_BYTES + (64 << 10)).unwrap();
        settle(dir.path(), true).unwrap();
        assert_eq!(layers_in(&place).len(), 1);
        settle(dir.path(), true).unwrap();
        assert_eq!(layers_in(&place).len(), 1, "nothing was written since");

        let source = VolumeSource::Read(dir.path().to_owned());
        let (disk, _top) = source.open(3, machine.path()).unwrap();
        assert_eq!(disk.frozen().len(), 1);
        assert!(Place::slot(machine.path(), 3).top().exists());
        assert!(!disk.written().unwrap());
    }

    #[tokio::test]
    async fn what_a_machine_wrote_after_a_fork_that_was_cut_off_is_there() {
        let write = |path: PathBuf| {
            let file = File::options().create(true).append(true).open(path).unwrap();
            file.set_len(qcow2::EMPTY_BYTES + (64 << 10)).unwrap();
        };
        for (renamed, written, layers) in [(false, true, 1), (true, true, 1), (false, false, 0)] {
            let dir = volume().await;
            let place = Place::root(dir.path());
            let (disk, _top) = Disk::open(&place, 16 << 20).unwrap();
            write(place.top());
            drop(disk.spare(After::GoesOn).unwrap());
            if written {
                write(place.spare());
            }
            if renamed {
                fs::rename(place.top(), place.layer(0)).unwrap();
            }
            settle(dir.path(), false).unwrap();
            assert_eq!(layers_in(&place).len(), layers, "{renamed} {written}");
            assert!(place.top().exists() && !place.spare().exists());
            assert!(written_to(&place.top()).unwrap());
        }
    }

    #[tokio::test]
    async fn a_rewind_gives_up_what_was_written_last() {
        let (dir, machine) = (volume().await, tempfile::tempdir().unwrap());
        let top = Place::root(dir.path()).top();
        files::open_rw(&top).unwrap().set_len(qcow2::EMPTY_BYTES + (64 << 10)).unwrap();
        let open = |rewind| {
            VolumeSource::Write { dir: dir.path().to_owned(), rewind }.open(0, machine.path())
        };
        let (disk, file) = open(false).unwrap();
        assert!(disk.written().unwrap());
        assert!(File::open(&top).unwrap().try_lock().is_err(), "it has one writer");
        drop(file);
        assert!(!open(true).unwrap().0.written().unwrap());
    }

    #[tokio::test]
    async fn a_layer_that_names_a_file_of_the_host_is_given_to_nobody() {
        let (dir, machine) = (volume().await, tempfile::tempdir().unwrap());
        let top = files::open_rw(&Place::root(dir.path()).top()).unwrap();
        let source = VolumeSource::Write { dir: dir.path().to_owned(), rewind: false };
        // An external data file is an incompatible feature; another size would be read beyond.
        for (at, byte) in [(79, 4), (26, 9), (0, b'X')] {
            let mut before = [0];
            top.read_exact_at(&mut before, at).unwrap();
            top.write_all_at(&[byte], at).unwrap();
            let error = source.open(0, machine.path()).map(drop).unwrap_err();
            assert!(matches!(error, EngineError::Damaged { .. }), "{error}");
            top.write_all_at(&before, at).unwrap();
        }
        source.open(0, machine.path()).unwrap();
    }
}
