//! A machine's [`Disk`] as QEMU has it: as nodes that lie on each other.
//!
//! QEMU opens the empty layer while the guest still runs ([`QemuDisk::prepare`]) and puts it on
//! top once the guest stands still ([`QemuDisk::freeze`]). It has descriptors for writing to what
//! it froze until it is forked, or to its end.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use pandastack_fork::FileId;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::channels::identity;
use super::command::volume_device;
use super::qmp::Qmp;
use crate::disk::volume::lock;
use crate::disk::{self, Disk, Place};
use crate::{After, EngineError, VolumeSource};

/// What does not change of a disk while its machine runs.
#[derive(Serialize, Deserialize)]
pub(super) struct Noted {
    slot: Option<usize>,
    /// The directory of the volume that is written to.
    volume: Option<PathBuf>,
    bytes: u64,
    /// Frozen layers when its QEMU had added none.
    born_with: usize,
}

/// A disk of one machine: the one that every machine has, or a volume.
pub(super) struct QemuDisk {
    /// The slot that a volume is in.
    slot: Option<usize>,
    /// Whether what is written outlives the machine: the host's disk is waited for when the guest
    /// does, and there is one writer.
    lasts: bool,
    layers: Disk,
    /// Identity of the top layer's file.
    top: FileId,
    /// An empty layer that QEMU has open already, to be put on top.
    spare: Option<FileId>,
    /// Nodes added to QEMU so far, for names that never come twice.
    added: usize,
    /// How many of the frozen layers the machine's process may still hold open for writing.
    fresh: usize,
}

impl QemuDisk {
    /// A new machine's disk over the layers in `bake`, with its own top layer in `dir`, open for
    /// writing.
    pub fn create(bake: &Path, dir: &Path, bytes: u64) -> Result<(Self, File), EngineError> {
        let (layers, file) = Disk::create(&Place::root(bake), &Place::root(dir), bytes)?;
        let top = id(&file)?;
        let disk = Self { slot: None, lasts: false, layers, top, spare: None, added: 0, fresh: 0 };
        Ok((disk, file))
    }

    /// Puts a volume into the empty slot of a machine in `dir` that stands still. The guest hears
    /// of it when it runs.
    pub async fn attach(
        qmp: &Qmp,
        slot: usize,
        dir: &Path,
        source: VolumeSource,
    ) -> Result<Self, EngineError> {
        let (lasts, own) = (source.lasts(), dir.to_owned());
        let opening = tokio::task::spawn_blocking(move || source.open(slot, &own));
        let opened = opening.await.unwrap_or_else(|e| Err(EngineError::Spawn(io::Error::other(e))));
        let (layers, file) = opened?;
        let top = id(&file)?;
        let disk = Self { slot: Some(slot), lasts, layers, top, spare: None, added: 0, fresh: 0 };
        let mut below = format!("{}-base", disk.name());
        add_read_only(qmp, "raw", &below, None, disk.layers.base().as_fd()).await?;
        for (index, layer) in disk.layers.frozen().iter().enumerate() {
            let node = format!("{}-layer-{index}", disk.name());
            add_read_only(qmp, "qcow2", &node, Some(&below), layer.as_fd()).await?;
            below = node;
        }
        disk.add_top(qmp, 0, json!(below), file.as_fd()).await?;
        let device = volume_device(slot);
        let arguments = json!({ "path": device, "property": "drive", "value": disk.node(0) });
        qmp.execute("qom-set", arguments).await?;
        // To the size that it has: that is what makes the device tell the guest.
        let arguments = json!({ "node-name": disk.node(0), "size": disk.layers.bytes() });
        qmp.execute("block_resize", arguments).await?;
        Ok(disk)
    }

    /// The same layers with another top layer, made by [`QemuDisk::new_top`] in `dir`, for a copy of
    /// the machine. The copy's is its own, whatever this is.
    pub fn fork(&self, dir: &Path, top: FileId) -> Result<Self, EngineError> {
        let layers = self.layers.fork(&self.place(dir))?;
        let Self { slot, added, .. } = *self;
        Ok(Self { slot, lasts: false, layers, top, spare: None, added, fresh: 0 })
    }

    /// Makes an empty top layer for a copy of the machine, in the copy's directory.
    pub fn new_top(&self, dir: &Path) -> Result<(FileId, File), EngineError> {
        let file = disk::new_top(&self.place(dir), self.layers.bytes())?;
        Ok((id(&file)?, file))
    }

    /// Where the files of this disk are in the directory of a copy.
    pub fn place(&self, dir: &Path) -> Place {
        self.slot.map_or_else(|| Place::root(dir), |slot| Place::slot(dir, slot))
    }

    /// QEMU's name for it.
    fn name(&self) -> String {
        self.slot.map_or_else(|| "disk".to_owned(), |slot| format!("volume-{slot}"))
    }

    /// QEMU's name for the writable layer after so many were added.
    fn node(&self, added: usize) -> String {
        if added == 0 { self.name() } else { format!("{}-{added}", self.name()) }
    }

    /// What the next server is told of it.
    pub fn noted(&self) -> Noted {
        Noted {
            slot: self.slot,
            volume: self.lasts.then(|| self.layers.place().dir().to_owned()),
            bytes: self.layers.bytes(),
            born_with: self.layers.frozen().len() - self.added,
        }
    }

    /// The disk of a machine in `dir` that runs, as another server has noted it.
    pub fn in_use(dir: &Path, noted: Noted) -> Result<Self, EngineError> {
        let Noted { slot, volume, bytes, born_with } = noted;
        let place = match (slot, &volume) {
            (_, Some(volume)) => Place::root(volume),
            (Some(slot), None) => Place::slot(dir, slot),
            (None, None) => Place::root(dir),
        };
        let (layers, top) = Disk::in_use(&place, bytes)?;
        let added = layers.frozen().len().checked_sub(born_with);
        let missing = || EngineError::NotAdopted("layers of its disk are missing".into());
        let (added, top, lasts) = (added.ok_or_else(missing)?, id(&top)?, volume.is_some());
        Ok(Self { slot, lasts, layers, top, spare: None, added, fresh: 0 })
    }

    /// Makes ready for [`QemuDisk::freeze`] what can be made ready while the guest runs.
    pub async fn prepare(&mut self, qmp: &Qmp, then: After) -> Result<(), EngineError> {
        if self.spare.is_some() || !self.layers.written()? {
            return Ok(());
        }
        let file = self.layers.spare(then)?;
        if self.lasts {
            lock(&file, self.layers.place().dir())?;
        }
        self.add_top(qmp, self.added + 1, Value::Null, file.as_fd()).await?;
        self.spare = Some(id(&file)?);
        Ok(())
    }

    /// Makes what was written so far immutable, in a machine that stands still: `stop` writes out
    /// what QEMU holds back.
    pub async fn freeze(&mut self, qmp: &Qmp, then: After) -> Result<(), EngineError> {
        if !self.layers.written()? {
            return Ok(());
        }
        self.prepare(qmp, then).await?;
        let Some(spare) = self.spare else { return Ok(()) };
        let (over, under) = (self.node(self.added + 1), self.node(self.added));
        let arguments = json!({ "node": under, "overlay": over });
        qmp.execute("blockdev-snapshot", arguments).await?;
        self.spare = None;
        self.added += 1;
        self.layers.freeze()?;
        self.fresh += 1;
        self.top = spare;
        Ok(())
    }

    /// The slot that a volume is in.
    pub fn slot(&self) -> Option<usize> {
        self.slot
    }

    /// The layers below the top one.
    pub fn layers(&self) -> &Disk {
        &self.layers
    }

    /// Identity of the top layer.
    pub fn top(&self) -> FileId {
        self.top
    }

    /// The read-only layers, lowest first.
    pub fn below(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        std::iter::once(self.layers.base()).chain(self.layers.frozen()).map(AsFd::as_fd)
    }

    /// Layers that the machine's process may still be able to write to, open for reading.
    pub fn fresh(&self) -> &[File] {
        let frozen = self.layers.frozen();
        &frozen[frozen.len() - self.fresh..]
    }

    /// The process gave up every descriptor for writing to what is frozen.
    pub fn set_frozen(&mut self) {
        self.fresh = 0;
    }

    /// Opens an image that QEMU gets by descriptor, as a writable node that does not lie on
    /// anything yet, or on the node `below`.
    async fn add_top(
        &self,
        qmp: &Qmp,
        added: usize,
        below: Value,
        file: BorrowedFd<'_>,
    ) -> Result<(), EngineError> {
        let (name, no_flush) = (self.node(added), !self.lasts);
        let protocol = |set| {
            let mut node = file_node(&name, set);
            node["cache"] = json!({ "direct": false, "no-flush": no_flush });
            node
        };
        let image = |set| json!({ "driver": "qcow2", "node-name": name, "backing": below, "file": protocol(set) });
        add_node(qmp, file, image).await
    }

    /// Copies of the read-only descriptors, for the process of a machine that is restored.
    pub fn descriptors(&self) -> io::Result<(OwnedFd, Vec<OwnedFd>)> {
        let base = self.layers.base().try_clone()?.into();
        let layers = self.layers.frozen().iter().map(|layer| Ok(layer.try_clone()?.into()));
        Ok((base, layers.collect::<io::Result<_>>()?))
    }
}

fn id(file: &File) -> Result<FileId, EngineError> {
    identity(file).map_err(EngineError::Spawn)
}

/// Opens a layer that QEMU only reads. What lies below it is said here, whatever the image says.
async fn add_read_only(
    qmp: &Qmp,
    driver: &str,
    name: &str,
    below: Option<&str>,
    file: BorrowedFd<'_>,
) -> Result<(), EngineError> {
    let image = |set| {
        let mut protocol = file_node(name, set);
        protocol["read-only"] = json!(true);
        let mut node = json!({
            "driver": driver, "node-name": name, "read-only": true, "file": protocol,
        });
        if let Some(below) = below {
            node["backing"] = json!(below);
        }
        node
    };
    add_node(qmp, file, image).await
}

/// The node that reads and writes the file of a descriptor set.
fn file_node(name: &str, set: u64) -> Value {
    json!({
        "driver": "file",
        "node-name": format!("{name}-file"),
        "filename": format!("/dev/fdset/{set}"),
        "locking": "off",
    })
}

/// Gives QEMU a descriptor, and has it make of that what `node` says.
async fn add_node(
    qmp: &Qmp,
    file: BorrowedFd<'_>,
    node: impl FnOnce(u64) -> Value,
) -> Result<(), EngineError> {
    let set = qmp.add_descriptor(file).await?;
    let added = qmp.execute("blockdev-add", node(set)).await;
    // The node has descriptors of its own by now.
    qmp.execute("remove-fd", json!({ "fdset-id": set })).await?;
    added.map(drop)
}
