//! The one layer that is written to.
//!
//! Room is only ever taken at the end of the file, and never given back. A cluster comes into
//! being in three steps, each in the file before the next:
//!
//! ```text
//!   content ──▶ reference count ──▶ table entry that names it
//!   (room,       (claim)             (point)
//!    write)
//! ```
//!
//! **At every moment the file is a valid image**: a process that dies between two steps leaves at
//! most clusters that are counted but not named. After a failure of the host's power nothing is
//! promised of most disks: no machine survives one, and its disk is part of it. One that is
//! `lasting` is a valid image then too, with all that was flushed: **what a table entry names is
//! synced before the entry is written.** So that this costs a sync per flush and not one per
//! cluster, entries are held back in memory until the next flush, and with them what they name: a
//! process that dies takes it along, as a disk does with what was not flushed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::header::{BLOCK_COUNTS, CLUSTER, ENTRIES, MAX_CLUSTERS};
use super::layer::{COPIED, Layer, LayerError};

/// Most entries that are held back: 256 MiB of the disk.
const PENDING_MAX: usize = 4096;

/// The writable layer.
pub(super) struct Top {
    pub layer: Layer,
    /// What is in the file has to survive a failure of the host's power.
    pub lasting: bool,
    /// The refcount block in use: its index in the refcount table and its offset in the file.
    block: Option<(u64, u64)>,
}

impl Top {
    /// Opens an image for reading and writing.
    pub fn open(file: File, bytes: u64) -> Result<Self, LayerError> {
        Ok(Self { layer: Layer::open(file, bytes)?, lasting: false, block: None })
    }

    /// Opens one that must be empty.
    pub fn open_empty(file: File, bytes: u64) -> Result<Self, LayerError> {
        let top = Self::open(file, bytes)?;
        if top.layer.is_empty() { Ok(top) } else { Err(LayerError::NotEmpty) }
    }

    /// Adjacent free clusters, at least one and at most `wanted`. They are nobody's until they are
    /// [claimed](Self::claim).
    pub fn room(&mut self, wanted: u32) -> io::Result<Range<u32>> {
        self.block()?;
        let start = self.layer.clusters;
        let counted = BLOCK_COUNTS - u64::from(start) % BLOCK_COUNTS;
        Ok(start..start + wanted.min(counted as u32))
    }

    /// Takes what [`Self::room`] gave: its clusters are counted from now on.
    pub fn claim(&mut self, room: &Range<u32>) -> io::Result<()> {
        let block = self.block()?;
        let ones: Vec<u8> = room.clone().flat_map(|_| 1u16.to_be_bytes()).collect();
        self.write(&ones, block + 2 * (u64::from(room.start) % BLOCK_COUNTS))?;
        self.layer.clusters = room.end;
        Ok(())
    }

    /// Makes the clusters of the disk from `guest` on have these L2 entries. They must be in the
    /// same table.
    pub fn point(&mut self, guest: u64, entries: &[u64]) -> io::Result<()> {
        if !self.lasting {
            return self.write_entries(guest, entries);
        }
        self.layer.pending.extend((guest..).zip(entries.iter().copied()));
        if self.layer.pending.len() < PENDING_MAX { Ok(()) } else { self.commit() }
    }

    /// Writes the entries that are held back, after what they name. What could not be written stays
    /// held back.
    pub fn commit(&mut self) -> io::Result<()> {
        if self.layer.pending.is_empty() {
            return Ok(());
        }
        self.sync()?;
        let pending = std::mem::take(&mut self.layer.pending);
        let runs = runs(&pending);
        let written = runs.iter().try_for_each(|(guest, run)| self.write_entries(*guest, run));
        if written.is_err() {
            self.layer.pending = pending;
        }
        written
    }

    fn write_entries(&mut self, guest: u64, entries: &[u64]) -> io::Result<()> {
        let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        if let Some(offset) = self.layer.l2_entry(guest) {
            return self.write(&bytes, offset);
        }
        let within = 8 * (guest % ENTRIES) as usize;
        let mut table = vec![0; CLUSTER as usize];
        table[within..within + bytes.len()].copy_from_slice(&bytes);
        let room = self.room(1)?;
        self.write(&table, offset(room.start))?;
        self.claim(&room)?;
        self.order()?;

        let (index, entry) = (guest / ENTRIES, COPIED | offset(room.start));
        self.write(&entry.to_be_bytes(), self.layer.header.l1_table + 8 * index)?;
        self.layer.l1[index as usize] = entry;
        Ok(())
    }

    /// What was written so far is there before what is written from now on, if that matters.
    fn order(&self) -> io::Result<()> {
        if self.lasting { self.sync() } else { Ok(()) }
    }

    /// What was written so far survives a failure of the host's power.
    pub fn sync(&self) -> io::Result<()> {
        #[cfg(test)]
        super::tests::fault::sync();
        self.layer.file.sync_data()
    }

    /// Writes to the file.
    pub fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        #[cfg(test)]
        super::tests::fault::strike(&self.layer.file, bytes, offset)?;
        self.layer.file.write_all_at(bytes, offset)
    }

    /// Offset of the refcount block that counts the next free cluster.
    fn block(&mut self) -> io::Result<u64> {
        loop {
            let next = u64::from(self.layer.clusters);
            if next >= MAX_CLUSTERS {
                return Err(io::Error::new(io::ErrorKind::StorageFull, "a layer of 16 TiB"));
            }
            let index = next / BLOCK_COUNTS;
            if let Some((have, block)) = self.block
                && have == index
            {
                return Ok(block);
            }
            let at = self.layer.header.refcount_table + 8 * index;
            let mut entry = [0; 8];
            self.layer.file.read_exact_at(&mut entry, at)?;
            let block = match u64::from_be_bytes(entry) {
                // A new block may take the last cluster that it counts, hence the loop.
                0 => self.new_block(at)?,
                block => offset(self.layer.at(block)?),
            };
            self.block = Some((index, block));
        }
    }

    /// Makes the next free cluster the block that counts it, named by the entry of the refcount
    /// table that is at `entry`.
    fn new_block(&mut self, entry: u64) -> io::Result<u64> {
        let cluster = self.layer.clusters;
        let itself = 2 * (u64::from(cluster) % BLOCK_COUNTS) as usize;
        let mut block = vec![0; CLUSTER as usize];
        block[itself..itself + 2].copy_from_slice(&1u16.to_be_bytes());
        self.write(&block, offset(cluster))?;
        self.order()?;
        self.write(&offset(cluster).to_be_bytes(), entry)?;
        self.layer.clusters += 1;
        Ok(offset(cluster))
    }
}

/// Entries that are adjacent in one table, and the cluster of the disk that each run begins with.
fn runs(pending: &BTreeMap<u64, u64>) -> Vec<(u64, Vec<u64>)> {
    let mut runs: Vec<(u64, Vec<u64>)> = Vec::new();
    for (&guest, &entry) in pending {
        match runs.last_mut() {
            Some((first, run)) if *first + run.len() as u64 == guest && guest % ENTRIES != 0 => {
                run.push(entry);
            }
            _ => runs.push((guest, vec![entry])),
        }
    }
    runs
}

/// Offset of a cluster in its file.
pub(super) fn offset(cluster: u32) -> u64 {
    u64::from(cluster) * CLUSTER
}
