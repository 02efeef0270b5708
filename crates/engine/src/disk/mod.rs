//! A machine's disk: a stack of read-only layers and one that is its own.
//!
//! ```text
//!   disk (raw, of the template)  ◀─ layer-0 ◀─ layer-1 ◀─ disk.qcow2
//!   shared by everybody             frozen at a fork or     written by this
//!                                   snapshot, read-only     machine alone
//! ```
//!
//! A fork of a machine that has written freezes its top layer: the machine's process gets an empty
//! one to put on it ([`Disk::spare`]), and once it has, the files change their names
//! ([`Disk::freeze`]). From then on nobody, the machine itself included, has a descriptor through
//! which the frozen layer could be changed. That takes as long for an empty disk as for a full
//! one. How a process is told is each engine's own.
//!
//! A directory has links to all of its machine's layers, so it needs no other directory to live.
//! It can have those of several disks: the [`Place`] of each says how its files are called.

mod ext4;
mod place;
mod qcow2;
pub(crate) mod volume;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use pandastack_vmm::disk::merge;

use crate::error::{EngineError, file_error};
use crate::machine::After;
use crate::{files, sparse};

pub(crate) use self::ext4::make as make_ext4;
pub(crate) use self::place::{DISK, Place, layer_name};

/// Most layers of a disk. Each costs a machine's process descriptors and a lookup per read of a
/// block that was written long ago.
pub(crate) const MAX_LAYERS: usize = 64;

/// So many layers of a bake are made one.
const FLATTEN_AT: usize = 16;

/// The layers below a machine's own, and where the files are.
pub(crate) struct Disk {
    place: Place,
    /// Bytes that the guest sees.
    bytes: u64,
    base: File,
    frozen: Vec<File>,
}

/// The frozen layers in a place, lowest first.
fn layers_in(place: &Place) -> Vec<PathBuf> {
    let paths = (0..MAX_LAYERS).map(|index| place.layer(index));
    paths.take_while(|path| path.exists()).collect()
}

/// Makes one of the frozen layers in the place of a bake of a disk of `bytes`, if there are so
/// many that machines made of it, and bakes of those, would soon have too many. Takes as long as
/// copying what they hold. Blocks.
///
/// Whenever it is cut off, the layers mean what they meant: the merged one takes the place of the
/// lowest, and whatever is above the first gap is none ([`drop_strays`]).
pub(crate) fn flatten(place: &Place, bytes: u64) -> Result<(), EngineError> {
    let layers = layers_in(place);
    if layers.len() < FLATTEN_AT {
        return Ok(());
    }
    let files = layers.iter().map(|layer| files::open(layer)).collect::<Result<_, _>>()?;
    let merged = place.merged();
    let into = new_layer(&merged, bytes)?;
    let written = into.try_clone().map_err(|e| file_error("open", &merged, e))?;
    merge(files, into, bytes)
        .map_err(|e| file_error("write", &merged, io::Error::other(e.to_string())))?;
    written.sync_all().map_err(|e| file_error("write", &merged, e))?;
    // Those above it have nothing in them that is newer.
    fs::rename(&merged, &layers[0]).map_err(|e| file_error("rename", &merged, e))?;
    layers[1..].iter().try_for_each(|layer| remove(layer))
}

/// Removes what a [`flatten`] that was cut off has left: what it was writing, and layers above the
/// first gap, which would be some again as soon as the gap is filled.
pub(crate) fn drop_strays(place: &Place) -> Result<(), EngineError> {
    let strays = (layers_in(place).len()..MAX_LAYERS).map(|index| place.layer(index));
    strays.chain([place.merged()]).try_for_each(|path| remove_if_there(&path))
}

fn remove(layer: &Path) -> Result<(), EngineError> {
    fs::remove_file(layer).map_err(|e| file_error("remove", layer, e))
}

/// Removes a file that may be gone already.
fn remove_if_there(path: &Path) -> Result<(), EngineError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(file_error("remove", path, error))
        }
        _ => Ok(()),
    }
}

/// Makes an empty top layer for a disk of `bytes` in the place of a machine.
pub(crate) fn new_top(place: &Place, bytes: u64) -> Result<File, EngineError> {
    new_layer(&place.top(), bytes)
}

fn new_layer(path: &Path, bytes: u64) -> Result<File, EngineError> {
    qcow2::create(path, bytes).map_err(|e| file_error("create", path, e))
}

/// Whether a layer has something in it.
fn written_to(layer: &Path) -> io::Result<bool> {
    Ok(fs::metadata(layer)?.len() > qcow2::EMPTY_BYTES)
}

fn share(from: &Path, to: &Path) -> Result<(), EngineError> {
    sparse::share(from, to).map_err(|e| file_error("link", to, e))
}

impl Disk {
    /// A new machine's disk over the layers in `bake`, with its own top layer in `place`, open for
    /// writing.
    pub fn create(bake: &Place, place: &Place, bytes: u64) -> Result<(Self, File), EngineError> {
        let base = files::open(&bake.base())?;
        let mut frozen = Vec::new();
        for (index, layer) in layers_in(bake).iter().enumerate() {
            share(layer, &place.layer(index))?;
            frozen.push(files::open(layer)?);
        }
        share(&bake.base(), &place.base())?;
        let top = new_top(place, bytes)?;
        Ok((Self { place: place.clone(), bytes, base, frozen }, top))
    }

    /// The disk that is in `place`, top layer and all, of which this is the only user.
    pub fn open(place: &Place, bytes: u64) -> Result<(Self, File), EngineError> {
        Ok((Self::below(place, bytes)?, files::open_rw(&place.top())?))
    }

    /// The disk in `place` of a machine that runs, if nobody was about to change it. The top layer
    /// is open for reading.
    pub fn in_use(place: &Place, bytes: u64) -> Result<(Self, File), EngineError> {
        if place.spare().exists() {
            return Err(EngineError::NotAdopted("its disk is being changed".into()));
        }
        let disk = Self::below(place, bytes)?;
        let top = disk.open_top()?;
        Ok((disk, top))
    }

    fn below(place: &Place, bytes: u64) -> Result<Self, EngineError> {
        let base = files::open(&place.base())?;
        let frozen = layers_in(place).into_iter().map(|layer| files::open(&layer));
        let frozen = frozen.collect::<Result<_, _>>()?;
        Ok(Self { place: place.clone(), bytes, base, frozen })
    }

    /// The same layers for a copy of the machine, whose `place` has a top layer made by
    /// [`new_top`].
    pub fn fork(&self, place: &Place) -> Result<Self, EngineError> {
        self.link_into(place)?;
        let clone = |layer: &File| layer.try_clone().map_err(EngineError::Spawn);
        let frozen = self.frozen.iter().map(clone).collect::<Result<_, _>>()?;
        Ok(Self { place: place.clone(), bytes: self.bytes, base: clone(&self.base)?, frozen })
    }

    /// Makes the empty layer that is to be put on top, or opens one that was made in vain. The
    /// last layer is kept for a machine that is about to end: whatever was done with it before, it
    /// can still be made files.
    pub fn spare(&self, then: After) -> Result<File, EngineError> {
        let most = match then {
            After::GoesOn => MAX_LAYERS - 1,
            After::Ends => MAX_LAYERS,
        };
        if self.frozen.len() >= most {
            return Err(EngineError::NoFork(format!(
                "its disk has {most} layers, one for each time that it was forked or snapshotted \
                 after it had written; hibernate it once, which makes them one"
            )));
        }
        let path = self.place.spare();
        if path.exists() { files::open_rw(&path) } else { new_layer(&path, self.bytes) }
    }

    /// The top layer, open for reading: for a process that is to give up writing to it.
    pub fn open_top(&self) -> Result<File, EngineError> {
        files::open(&self.place.top())
    }

    /// The process has the spare layer on top: gives the files their new names, and returns what
    /// was on top so far, open for reading.
    pub fn freeze(&mut self) -> Result<&File, EngineError> {
        let (top, next) = (self.place.top(), self.place.spare());
        let below = self.place.layer(self.frozen.len());
        fs::rename(&top, &below).map_err(|e| file_error("rename", &top, e))?;
        fs::rename(&next, &top).map_err(|e| file_error("rename", &next, e))?;
        Ok(self.frozen.push_mut(files::open(&below)?))
    }

    /// Whether the guest has written since its top layer was made. Right once the machine stands
    /// still and its process has written out what it held back.
    pub fn written(&self) -> Result<bool, EngineError> {
        let path = self.place.top();
        written_to(&path).map_err(|e| file_error("look at", &path, e))
    }

    /// Makes links to all layers but the top one in another place.
    pub fn link_into(&self, place: &Place) -> Result<(), EngineError> {
        share(&self.place.base(), &place.base())?;
        (0..self.frozen.len())
            .try_for_each(|layer| share(&self.place.layer(layer), &place.layer(layer)))
    }

    /// Where its files are.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Bytes that the guest sees.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The lowest layer, open for reading.
    pub fn base(&self) -> &File {
        &self.base
    }

    /// The layers between the lowest and the top one, lowest first, open for reading.
    pub fn frozen(&self) -> &[File] {
        &self.frozen
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn at(dir: &tempfile::TempDir) -> Place {
        Place::root(dir.path())
    }

    fn bake() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(DISK), "base").unwrap();
        dir
    }

    #[test]
    fn a_top_layer_is_frozen_once_it_was_written_to() {
        let (bake, dir) = (bake(), tempfile::tempdir().unwrap());
        let (mut disk, mut top) = Disk::create(&at(&bake), &at(&dir), 1 << 30).unwrap();
        assert!(!disk.written().unwrap());
        top.set_len(qcow2::EMPTY_BYTES + 1).unwrap();
        assert!(disk.written().unwrap());

        drop(disk.spare(After::GoesOn).unwrap());
        drop(disk.spare(After::GoesOn).unwrap()); // a fork failed in between
        assert!(disk.freeze().unwrap().write_all(b"x").is_err(), "it is read-only");
        top.write_all(b"QFI").unwrap();
        assert!(!disk.written().unwrap());
        assert_eq!(disk.frozen().len(), 1);
        let frozen = fs::metadata(dir.path().join("layer-0")).unwrap();
        assert_eq!(frozen.len(), qcow2::EMPTY_BYTES + 1);
    }

    #[test]
    fn a_copy_needs_no_other_directory() {
        let (bake, dir, other) =
            (bake(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (mut disk, _) = Disk::create(&at(&bake), &at(&dir), 1 << 30).unwrap();
        disk.spare(After::GoesOn).unwrap();
        disk.freeze().unwrap();
        new_top(&at(&other), disk.bytes()).unwrap();
        let copy = disk.fork(&at(&other)).unwrap();
        drop((bake, dir));
        assert_eq!(layers_in(&at(&other)).len(), copy.frozen().len());
        assert_eq!(fs::read(other.path().join(DISK)).unwrap(), b"base");
    }

    #[test]
    fn many_layers_of_a_bake_become_one() {
        let (bake, dir) = (bake(), tempfile::tempdir().unwrap());
        fs::write(bake.path().join(DISK), vec![0; 1 << 20]).unwrap();
        let (mut disk, _) = Disk::create(&at(&bake), &at(&dir), 1 << 20).unwrap();
        for left in (1..=FLATTEN_AT).rev() {
            flatten(&at(&dir), 1 << 20).unwrap();
            assert_eq!(layers_in(&at(&dir)).len(), FLATTEN_AT - left);
            disk.spare(After::GoesOn).unwrap();
            disk.freeze().unwrap();
        }
        flatten(&at(&dir), 1 << 20).unwrap();
        assert_eq!(layers_in(&at(&dir)).len(), 1);
        assert!(!at(&dir).spare().exists());
        Disk::create(&at(&dir), &at(&tempfile::tempdir().unwrap()), 1 << 20).unwrap();
    }

    #[test]
    fn layers_mean_the_same_wherever_their_merge_is_cut_off() {
        let (bake, dir) = (bake(), tempfile::tempdir().unwrap());
        let (place, bytes) = (at(&dir), 1 << 20);
        fs::write(bake.path().join(DISK), vec![0; bytes as usize]).unwrap();
        let (mut disk, _) = Disk::create(&at(&bake), &place, bytes).unwrap();
        for _ in 0..FLATTEN_AT {
            disk.spare(After::GoesOn).unwrap();
            disk.freeze().unwrap();
        }
        let strays: Vec<_> = [2, 5].map(|index| place.layer(index)).to_vec();
        fs::write(place.merged(), b"half of one").unwrap();
        drop_strays(&place).unwrap();
        let kept = strays.iter().map(|path| fs::read(path).unwrap()).collect::<Vec<_>>();
        flatten(&place, bytes).unwrap();
        for (path, content) in strays.iter().zip(kept) {
            fs::write(path, content).unwrap();
        }
        assert_eq!(layers_in(&place).len(), 1, "what is above the gap is none");
        drop_strays(&place).unwrap();
        assert!(!strays.iter().any(|path| path.exists()));
        assert_eq!(layers_in(&place).len(), 1);
    }

    #[test]
    fn a_stack_has_an_end() {
        let (bake, dir) = (bake(), tempfile::tempdir().unwrap());
        let (mut disk, _) = Disk::create(&at(&bake), &at(&dir), 1 << 30).unwrap();
        for _ in 1..MAX_LAYERS {
            disk.spare(After::GoesOn).unwrap();
            disk.freeze().unwrap();
        }
        assert!(matches!(disk.spare(After::GoesOn), Err(EngineError::NoFork(_))));
        disk.spare(After::Ends).unwrap();
        disk.freeze().unwrap();
        assert!(matches!(disk.spare(After::Ends), Err(EngineError::NoFork(_))));
    }
}
