//! A machine's disk: a stack of read-only layers and one that is its own.
//!
//! ```text
//!   disk (raw, of the template)  ◀─ layer-0 ◀─ layer-1 ◀─ disk.qcow2
//!   0444, shared by everybody       frozen at a fork or     written by this
//!                                   snapshot, read-only     machine alone
//! ```
//!
//! A fork of a machine that has written freezes its top layer: QEMU puts an empty one on it
//! ([`Disk::freeze`]), and from then on nobody, the machine itself included, has a descriptor
//! through which the frozen one could be changed. That takes as long for an empty disk as for a
//! full one. A machine that has not written since keeps its layer, and nothing is stacked. The
//! empty layer is opened while the guest still runs ([`Disk::prepare`]).
//!
//! A directory has links to all of its machine's layers, so it needs no other directory to live.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use pandastack_fork::FileId;
use serde_json::{Value, json};

use super::channels::identity;
use super::qmp::Qmp;
use super::runtime::file_error;
use super::{DISK, MACHINE_DISK, memory, qcow2};
use crate::EngineError;

/// Most layers of a disk. Each costs a machine's process two descriptors and a lookup per read of
/// a block that was written long ago.
pub(super) const MAX_LAYERS: usize = 64;

/// The file of an empty layer that is not in use yet.
const SPARE: &str = "disk.next";

/// A frozen layer, open for reading.
struct Layer {
    file: File,
    id: FileId,
}

/// The disk of one machine.
pub(super) struct Disk {
    dir: PathBuf,
    /// Bytes that the guest sees.
    bytes: u64,
    base: Layer,
    frozen: Vec<Layer>,
    /// Identity of the top layer's file.
    top: FileId,
    /// An empty layer that QEMU has open already, to be put on top.
    spare: Option<FileId>,
    /// Nodes added to QEMU so far, for names that never come twice.
    added: usize,
    /// How many of the frozen layers the machine's process may still hold open for writing.
    fresh: usize,
}

/// Name of a frozen layer's file.
pub(super) fn layer_name(index: usize) -> String {
    format!("layer-{index}")
}

/// The frozen layers in a directory, lowest first.
pub(super) fn layers_in(dir: &Path) -> Vec<PathBuf> {
    let paths = (0..MAX_LAYERS).map(|index| dir.join(layer_name(index)));
    paths.take_while(|path| path.exists()).collect()
}

impl Disk {
    /// A new machine's disk over the layers in `bake`, with its own top layer in `dir`, open for
    /// writing.
    pub fn create(bake: &Path, dir: &Path, bytes: u64) -> Result<(Self, File), EngineError> {
        let base = Layer::open(&bake.join(DISK))?;
        let mut frozen = Vec::new();
        for (index, layer) in layers_in(bake).iter().enumerate() {
            share(layer, &dir.join(layer_name(index)))?;
            frozen.push(Layer::open(layer)?);
        }
        share(&bake.join(DISK), &dir.join(DISK))?;
        let (top, file) = new_top(dir, bytes)?;
        let disk =
            Self { dir: dir.to_owned(), bytes, base, frozen, top, spare: None, added: 0, fresh: 0 };
        Ok((disk, file))
    }

    /// The same layers with another top layer, made by [`new_top`] in `dir`, for a copy of the
    /// machine.
    pub fn fork(&self, dir: &Path, top: FileId) -> Result<Self, EngineError> {
        self.link_into(dir)?;
        let frozen = self.frozen.iter().map(Layer::try_clone).collect::<Result<_, _>>()?;
        let base = self.base.try_clone()?;
        let (dir, bytes, added) = (dir.to_owned(), self.bytes, self.added);
        Ok(Self { dir, bytes, base, frozen, top, spare: None, added, fresh: 0 })
    }

    /// Makes ready for [`Disk::freeze`] what can be made ready while the guest runs.
    pub async fn prepare(&mut self, qmp: &Qmp) -> Result<(), EngineError> {
        if self.spare.is_some() || !self.written()? {
            return Ok(());
        }
        if self.frozen.len() >= MAX_LAYERS {
            return Err(EngineError::NoFork(format!(
                "its disk has {MAX_LAYERS} layers, the most that a disk may have"
            )));
        }
        let (id, file) = new_layer(&self.dir.join(SPARE), self.bytes)?;
        add_node(qmp, &node(self.added + 1), file.as_fd()).await?;
        self.spare = Some(id);
        Ok(())
    }

    /// Makes what was written so far immutable, in a machine that stands still.
    pub async fn freeze(&mut self, qmp: &Qmp) -> Result<(), EngineError> {
        if !self.written()? {
            return Ok(());
        }
        self.prepare(qmp).await?;
        let Some(spare) = self.spare else { return Ok(()) };
        let (over, under) = (node(self.added + 1), node(self.added));
        let arguments = json!({ "node": under, "overlay": over });
        qmp.execute("blockdev-snapshot", arguments).await?;
        self.spare = None;
        self.added += 1;
        let (top, next) = (self.dir.join(MACHINE_DISK), self.dir.join(SPARE));
        let below = self.dir.join(layer_name(self.frozen.len()));
        fs::rename(&top, &below).map_err(|e| file_error("rename", &top, e))?;
        fs::rename(&next, &top).map_err(|e| file_error("rename", &next, e))?;
        self.frozen.push(Layer::open(&below)?);
        self.fresh += 1;
        self.top = spare;
        Ok(())
    }

    /// Whether the guest has written since its top layer was made. Right once it stands still:
    /// `stop` writes out what QEMU holds back.
    fn written(&self) -> Result<bool, EngineError> {
        let path = self.dir.join(MACHINE_DISK);
        let length = fs::metadata(&path).map_err(|e| file_error("look at", &path, e))?.len();
        Ok(length > qcow2::EMPTY_BYTES)
    }

    /// Makes links to all layers but the top one in another directory.
    pub fn link_into(&self, dir: &Path) -> Result<(), EngineError> {
        share(&self.dir.join(DISK), &dir.join(DISK))?;
        (0..self.frozen.len())
            .map(layer_name)
            .try_for_each(|layer| share(&self.dir.join(&layer), &dir.join(&layer)))
    }

    /// Bytes that the guest sees.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Identity of the top layer.
    pub fn top(&self) -> FileId {
        self.top
    }

    /// The read-only layers, lowest first: identity and a descriptor for reading.
    pub fn below(&self) -> impl Iterator<Item = (FileId, &File)> {
        std::iter::once(&self.base).chain(&self.frozen).map(|layer| (layer.id, &layer.file))
    }

    /// Layers that the machine's process may still be able to write to.
    pub fn fresh(&self) -> impl Iterator<Item = (FileId, &File)> {
        let from = self.frozen.len() - self.fresh;
        self.frozen[from..].iter().map(|layer| (layer.id, &layer.file))
    }

    /// The process gave up every descriptor for writing to what is frozen.
    pub fn set_frozen(&mut self) {
        self.fresh = 0;
    }

    /// Copies of the read-only descriptors, for the process of a machine that is restored.
    pub fn descriptors(&self) -> io::Result<(OwnedFd, Vec<OwnedFd>)> {
        let base = self.base.file.try_clone()?.into();
        let layers = self.frozen.iter().map(|layer| Ok(layer.file.try_clone()?.into()));
        Ok((base, layers.collect::<io::Result<_>>()?))
    }
}

impl Layer {
    fn open(path: &Path) -> Result<Self, EngineError> {
        let file = File::open(path).map_err(|e| file_error("open", path, e))?;
        let id = identity(&file).map_err(|e| file_error("look at", path, e))?;
        Ok(Self { file, id })
    }

    fn try_clone(&self) -> Result<Self, EngineError> {
        let file = self.file.try_clone().map_err(EngineError::Spawn)?;
        Ok(Self { file, id: self.id })
    }
}

/// QEMU's name for the writable layer after so many were added.
pub(super) fn node(added: usize) -> String {
    if added == 0 { "disk".into() } else { format!("disk-{added}") }
}

/// Makes an empty top layer for a disk of `bytes` in the directory of a machine.
pub(super) fn new_top(dir: &Path, bytes: u64) -> Result<(FileId, File), EngineError> {
    new_layer(&dir.join(MACHINE_DISK), bytes)
}

fn new_layer(path: &Path, bytes: u64) -> Result<(FileId, File), EngineError> {
    let file = qcow2::create(path, bytes).map_err(|e| file_error("create", path, e))?;
    let id = identity(&file).map_err(|e| file_error("look at", path, e))?;
    Ok((id, file))
}

fn share(from: &Path, to: &Path) -> Result<(), EngineError> {
    memory::share(from, to).map_err(|e| file_error("link", to, e))
}

/// Opens an image that QEMU gets by descriptor, as a node that does not lie on anything yet.
async fn add_node(
    qmp: &Qmp,
    name: &str,
    file: std::os::fd::BorrowedFd<'_>,
) -> Result<(), EngineError> {
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
