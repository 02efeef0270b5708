//! One qcow2 image of a stack, as far as it is read.
//!
//! **Checked where it is used.** The header and the first-level table are checked when the image
//! is opened, the entries of a second-level table when they are read. An offset that passed names
//! a whole cluster of the file that is neither its header nor one of its two contiguous tables.
//!
//! ```text
//!   L1 table (in memory)     L2 table             cluster
//!   512 MiB an entry ──────▶ 64 KiB an entry ───▶ content
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::header::{CLUSTER, ENTRIES, Header, MAX_CLUSTERS, l1_entries};

/// Bit 63 of an entry: its cluster belongs to nobody else. Without internal snapshots that is so
/// for every cluster.
pub(super) const COPIED: u64 = 1 << 63;
/// Bit 0 of an L2 entry: reads as zeros.
pub(super) const ZERO: u64 = 1;
/// The bits of an entry that are an offset in the file. Those below are zero for clusters of
/// 64 KiB; bit 62 would mean a compressed cluster, the rest is reserved.
const OFFSET: u64 = 0x00ff_ffff_ffff_0000;

/// Why a file cannot be a layer.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// It could not be read, or is too short.
    #[error("the file cannot be read")]
    Read(#[source] io::Error),
    /// It is no image of the kind that this project makes, or damaged.
    #[error("the image is damaged or foreign: {0}")]
    Format(&'static str),
    /// It belongs to a disk of another size.
    #[error("the image is of a disk of {0} bytes")]
    Size(u64),
    /// Something was written to what must be an empty layer.
    #[error("the image is not empty")]
    NotEmpty,
}

impl From<LayerError> for io::Error {
    fn from(error: LayerError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// What a layer knows of a cluster of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// Nothing: whatever is below shows.
    Below,
    /// Zeros. The cluster of the file that is set aside for it, or 0.
    Zeros(u32),
    /// What is in this cluster of the file.
    Cluster(u32),
}

/// An image that is open.
pub(super) struct Layer {
    /// L2 entries that are not in the file yet, by cluster of the disk: those of a top layer that is
    /// lasting, see `top.rs`.
    pub pending: BTreeMap<u64, u64>,
    pub file: File,
    /// Clusters of the file; the last may be incomplete.
    pub clusters: u32,
    /// The first-level table: 0 or an entry that was checked.
    pub l1: Vec<u64>,
    pub header: Header,
}

impl Layer {
    /// Opens the image of a disk of `bytes`. Reads no more than its header and first-level table.
    pub fn open(file: File, bytes: u64) -> Result<Self, LayerError> {
        let length = super::regular(&file).map_err(LayerError::Read)?.length;
        let clusters = length.div_ceil(CLUSTER);
        if clusters > MAX_CLUSTERS {
            return Err(LayerError::Format("a file of more than 16 TiB"));
        }
        let header = Header::read(&file, clusters)?;
        if header.bytes != bytes {
            return Err(LayerError::Size(header.bytes));
        }
        let mut table = vec![0; 8 * l1_entries(bytes) as usize];
        file.read_exact_at(&mut table, header.l1_table).map_err(LayerError::Read)?;
        let l1 = entries(&table).collect();
        let layer = Self { pending: BTreeMap::new(), file, clusters: clusters as u32, l1, header };
        for &entry in layer.l1.iter().filter(|entry| **entry != 0) {
            layer.cluster(entry)?;
        }
        Ok(layer)
    }

    /// Whether it has no content, so that everything below shows.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty() && self.l1.iter().all(|entry| *entry == 0)
    }

    /// Where the L2 entry of a cluster of the disk is in the file, if there is a table for it.
    pub fn l2_entry(&self, guest: u64) -> Option<u64> {
        let table = *self.l1.get((guest / ENTRIES) as usize)? & OFFSET;
        (table != 0).then(|| table + 8 * (guest % ENTRIES))
    }

    /// Reads the L2 entries of clusters of the disk from `guest` on into a buffer for as many as
    /// are wanted, none of them beyond the same table. False if there is no table for them.
    pub fn read_entries(&self, guest: u64, buffer: &mut [u8]) -> io::Result<bool> {
        let offset = self.l2_entry(guest);
        match offset {
            Some(offset) => self.file.read_exact_at(buffer, offset)?,
            None => buffer.fill(0),
        }
        let buffer = buffer.as_chunks_mut::<8>().0;
        let mut held_back = self.pending.range(guest..guest + buffer.len() as u64).peekable();
        let found = offset.is_some() || held_back.peek().is_some();
        held_back.for_each(|(at, entry)| buffer[(at - guest) as usize] = entry.to_be_bytes());
        Ok(found)
    }

    /// What an L2 entry says.
    pub fn content(&self, entry: u64) -> Result<Content, LayerError> {
        Ok(match entry {
            0 => Content::Below,
            ZERO => Content::Zeros(0),
            _ if entry & ZERO != 0 => Content::Zeros(self.cluster(entry & !ZERO)?),
            _ => Content::Cluster(self.cluster(entry)?),
        })
    }

    /// The cluster of the file that a table entry names.
    pub fn cluster(&self, entry: u64) -> Result<u32, LayerError> {
        if entry & !OFFSET != COPIED {
            return Err(LayerError::Format("an entry with bits that have no meaning here"));
        }
        self.at(entry & OFFSET)
    }

    /// The cluster at an offset that the file itself gives.
    pub fn at(&self, offset: u64) -> Result<u32, LayerError> {
        let Header { l1_table, refcount_table, .. } = self.header;
        let inside = (1..u64::from(self.clusters)).contains(&(offset / CLUSTER));
        if !inside
            || !offset.is_multiple_of(CLUSTER)
            || offset == l1_table
            || offset == refcount_table
        {
            return Err(LayerError::Format("an offset outside of the file or into its tables"));
        }
        Ok((offset / CLUSTER) as u32)
    }
}

/// The entries of a table.
pub(super) fn entries(table: &[u8]) -> impl Iterator<Item = u64> {
    table.as_chunks().0.iter().map(|entry| u64::from_be_bytes(*entry))
}
