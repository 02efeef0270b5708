//! Where the files of a disk are and how they are called.

use std::path::{Path, PathBuf};

/// The lowest layer of the disk that every machine has.
pub(crate) const DISK: &str = "disk";

/// A directory, and what the names of one disk's files in it begin with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    dir: PathBuf,
    prefix: String,
}

/// Name of a frozen layer's file, of the disk that every machine has.
pub(crate) fn layer_name(index: usize) -> String {
    format!("layer-{index}")
}

impl Place {
    /// That of the disk which every bake and machine has, and of a volume in its own directory.
    pub fn root(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), prefix: String::new() }
    }

    /// That of the volume in a slot, in the directory of a machine or snapshot.
    pub fn slot(dir: &Path, slot: usize) -> Self {
        Self { dir: dir.to_owned(), prefix: format!("volume-{slot}-") }
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The lowest layer, raw.
    pub fn base(&self) -> PathBuf {
        self.file(DISK)
    }

    /// A frozen layer.
    pub fn layer(&self, index: usize) -> PathBuf {
        self.file(&layer_name(index))
    }

    /// The top layer.
    pub fn top(&self) -> PathBuf {
        self.file("disk.qcow2")
    }

    /// An empty layer that is not in use yet.
    pub fn spare(&self) -> PathBuf {
        self.file("disk.next")
    }

    /// What layers are being merged into.
    pub fn merged(&self) -> PathBuf {
        self.file("disk.merged")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{}{name}", self.prefix))
    }
}
