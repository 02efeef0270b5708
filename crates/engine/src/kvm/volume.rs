//! The disks of a machine that are written to: the one that every machine has, and volumes in slots.

use std::fs::File;
use std::path::Path;

use pandastack_vmm::control::{Attach, Request, Role};

use super::client::{ATTACH, Attached, Client, attach};
use super::snapshot::blocking;
use crate::disk::volume::lock;
use crate::disk::{self, Disk, Place};
use crate::{After, EngineError, VolumeSource};

/// A disk that is written to.
pub(super) struct OwnDisk {
    /// The slot that a volume is in.
    pub slot: Option<u8>,
    /// Whether what is written outlives the machine, so that there is one writer.
    pub lasts: bool,
    pub layers: Disk,
}

impl OwnDisk {
    /// The one that every machine has.
    pub fn root(layers: Disk) -> Self {
        Self { slot: None, lasts: false, layers }
    }

    /// Puts a volume into the empty slot of a machine in `dir` that stands still. The guest hears
    /// of it when it runs.
    pub async fn attach(
        client: &Client,
        slot: u8,
        dir: &Path,
        source: VolumeSource,
    ) -> Result<Self, EngineError> {
        let (lasts, own) = (source.lasts(), dir.to_owned());
        let (layers, top) = blocking(move || source.open(slot.into(), &own)).await?;
        let mut with = Attached::new();
        attach(&mut with, Role::Disk, [layers.base()]);
        attach(&mut with, Role::Layer, layers.frozen());
        attach(&mut with, Role::Top, [&top]);
        let request = Request::Attach(Attach { slot, lasting: lasts });
        client.done(request, with, ATTACH).await?;
        Ok(Self { slot: Some(slot), lasts, layers })
    }

    /// Where the files of this disk are in the directory of a copy.
    pub fn place(&self, dir: &Path) -> Place {
        self.slot.map_or_else(|| Place::root(dir), |slot| Place::slot(dir, slot.into()))
    }

    /// Makes an empty top layer for a copy of the machine, in the copy's directory.
    pub fn new_top(&self, dir: &Path) -> Result<File, EngineError> {
        disk::new_top(&self.place(dir), self.layers.bytes())
    }

    /// The same layers with another top one, made by [`OwnDisk::new_top`] in `dir`. The copy's is
    /// its own, whatever this is.
    pub fn fork(&self, dir: &Path) -> Result<Self, EngineError> {
        let layers = self.layers.fork(&self.place(dir))?;
        Ok(Self { slot: self.slot, lasts: false, layers })
    }

    /// The layer that is on top now, for reading only, and the one that will be, if the top one
    /// must be frozen for a copy: something is in it, or may be before the machine stands still. In
    /// one that has not run, that is what the writer before left on a volume.
    pub fn freezing(
        &self,
        has_run: bool,
        then: After,
    ) -> Result<Option<(File, File)>, EngineError> {
        let may_hold = has_run || self.lasts && self.layers.written()?;
        if !may_hold {
            return Ok(None);
        }
        let spare = self.layers.spare(then)?;
        if self.lasts {
            lock(&spare, self.layers.place().dir())?;
        }
        Ok(Some((self.layers.open_top()?, spare)))
    }
}
