//! A machine's [`Disk`] as QEMU has it: as nodes that lie on each other.
//!
//! QEMU opens the empty layer while the guest still runs ([`QemuDisk::prepare`]) and puts it on
//! top once the guest stands still ([`QemuDisk::freeze`]). It has descriptors for writing to what
//! it froze until it is forked, or to its end.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use pandastack_fork::FileId;
use serde_json::{Value, json};

use super::channels::identity;
use super::qmp::Qmp;
use crate::EngineError;
use crate::disk::{self, Disk};

/// The disk of one machine.
pub(super) struct QemuDisk {
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
        let (layers, file) = Disk::create(bake, dir, bytes)?;
        let top = id(&file)?;
        Ok((Self { layers, top, spare: None, added: 0, fresh: 0 }, file))
    }

    /// The same layers with another top layer, made by [`new_top`] in `dir`, for a copy of the
    /// machine.
    pub fn fork(&self, dir: &Path, top: FileId) -> Result<Self, EngineError> {
        let layers = self.layers.fork(dir)?;
        Ok(Self { layers, top, spare: None, added: self.added, fresh: 0 })
    }

    /// The disk of a machine that runs, which had `born_with` frozen layers at first.
    pub fn open(dir: &Path, bytes: u64, born_with: usize) -> Result<Self, EngineError> {
        let (layers, top) = Disk::open(dir, bytes)?;
        let added = layers
            .frozen()
            .len()
            .checked_sub(born_with)
            .ok_or_else(|| EngineError::NotAdopted("layers of its disk are missing".into()))?;
        Ok(Self { layers, top: id(&top)?, spare: None, added, fresh: 0 })
    }

    /// How many layers lay under the top one before any was added.
    pub fn born_with(&self) -> usize {
        self.layers.frozen().len() - self.added
    }

    /// Makes ready for [`QemuDisk::freeze`] what can be made ready while the guest runs.
    pub async fn prepare(&mut self, qmp: &Qmp) -> Result<(), EngineError> {
        if self.spare.is_some() || !self.layers.written()? {
            return Ok(());
        }
        let file = self.layers.spare()?;
        add_node(qmp, &node(self.added + 1), file.as_fd()).await?;
        self.spare = Some(id(&file)?);
        Ok(())
    }

    /// Makes what was written so far immutable, in a machine that stands still: `stop` writes out
    /// what QEMU holds back.
    pub async fn freeze(&mut self, qmp: &Qmp) -> Result<(), EngineError> {
        if !self.layers.written()? {
            return Ok(());
        }
        self.prepare(qmp).await?;
        let Some(spare) = self.spare else { return Ok(()) };
        let (over, under) = (node(self.added + 1), node(self.added));
        let arguments = json!({ "node": under, "overlay": over });
        qmp.execute("blockdev-snapshot", arguments).await?;
        self.spare = None;
        self.added += 1;
        self.layers.freeze()?;
        self.fresh += 1;
        self.top = spare;
        Ok(())
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

    /// Copies of the read-only descriptors, for the process of a machine that is restored.
    pub fn descriptors(&self) -> io::Result<(OwnedFd, Vec<OwnedFd>)> {
        let base = self.layers.base().try_clone()?.into();
        let layers = self.layers.frozen().iter().map(|layer| Ok(layer.try_clone()?.into()));
        Ok((base, layers.collect::<io::Result<_>>()?))
    }
}

/// QEMU's name for the writable layer after so many were added.
fn node(added: usize) -> String {
    if added == 0 { "disk".into() } else { format!("disk-{added}") }
}

/// Makes an empty top layer for a disk of `bytes` in the directory of a machine.
pub(super) fn new_top(dir: &Path, bytes: u64) -> Result<(FileId, File), EngineError> {
    let file = disk::new_top(dir, bytes)?;
    Ok((id(&file)?, file))
}

fn id(file: &File) -> Result<FileId, EngineError> {
    identity(file).map_err(EngineError::Spawn)
}

/// Opens an image that QEMU gets by descriptor, as a node that does not lie on anything yet.
async fn add_node(qmp: &Qmp, name: &str, file: BorrowedFd<'_>) -> Result<(), EngineError> {
    let set = qmp.add_descriptor(file).await?;
    let arguments = json!({
        "driver": "qcow2",
        "node-name": name,
        "backing": Value::Null,
        "file": {
            "driver": "file",
            "node-name": format!("{name}-file"),
            "filename": format!("/dev/fdset/{set}"),
            "locking": "off",
            "cache": { "direct": false, "no-flush": true },
        },
    });
    let added = qmp.execute("blockdev-add", arguments).await;
    // The node has descriptors of its own by now.
    qmp.execute("remove-fd", json!({ "fdset-id": set })).await?;
    added.map(drop)
}
