//! The header of a qcow2 image, and an image that nothing was written to.
//!
//! ```text
//!   cluster 0        1               2               3            4 …
//!   ┌────────┬────────────────┬────────────────┬──────────┬─────────────────┐
//!   │ header │ refcount table │ refcount block │ L1 table │ what is written │
//!   └────────┴────────────────┴────────────────┴──────────┴─────────────────┘
//! ```
//!
//! Exactly one dialect of the format is spoken, the one that [`write_empty`] and QEMU's defaults
//! make: version 3, clusters of 64 KiB, 16-bit reference counts, no feature bits, no internal
//! snapshots. Whatever else a header asks for is refused: an option that no layer of ours has is
//! only ever an attack on its implementation. The name of a lower layer is never looked at.
//!
//! Format: docs/interop/qcow2.txt in QEMU's source, section "Header".

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::layer::LayerError;

/// Clusters of 64 KiB. A second-level table then covers 512 MiB, and every table of a disk of up to
/// [`MAX_BYTES`](super::MAX_BYTES) that must be contiguous fits one cluster.
const CLUSTER_BITS: u32 = 16;
/// Bytes of a cluster.
pub(super) const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// 8-byte entries in a cluster: in a second-level table, and at most in the two first-level ones.
pub(super) const ENTRIES: u64 = CLUSTER / 8;
/// Clusters that one refcount block counts, in 16 bits each.
pub(super) const BLOCK_COUNTS: u64 = CLUSTER / 2;
/// Most clusters of a file: what a refcount table of one cluster can count. 16 TiB.
pub(super) const MAX_CLUSTERS: u64 = ENTRIES * BLOCK_COUNTS;

/// Bytes of a version 3 header without additional fields.
const HEADER_BYTES: usize = 104;

/// Where [`write_empty`] puts things.
const REFCOUNT_TABLE: u64 = CLUSTER;
const REFCOUNT_BLOCK: u64 = 2 * CLUSTER;
const L1_TABLE: u64 = 3 * CLUSTER;

/// Length of an image that nothing was written to: the first write makes it longer.
pub const EMPTY_BYTES: u64 = 4 * CLUSTER;

/// What a header says, as far as it may differ between images.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Bytes of the disk.
    pub bytes: u64,
    /// Offset of the first-level table in the file.
    pub l1_table: u64,
    /// Offset of the refcount table in the file.
    pub refcount_table: u64,
}

/// Entries of the first-level table of a disk of `bytes`.
pub(super) fn l1_entries(bytes: u64) -> u64 {
    bytes.div_ceil(ENTRIES * CLUSTER)
}

impl Header {
    /// Reads and checks the header of an image of `clusters` clusters.
    pub fn read(file: &File, clusters: u64) -> Result<Self, LayerError> {
        let mut header = [0; HEADER_BYTES];
        file.read_exact_at(&mut header, 0).map_err(LayerError::Read)?;
        Self::parse(&header, clusters)
    }

    fn parse(header: &[u8; HEADER_BYTES], clusters: u64) -> Result<Self, LayerError> {
        let u32_at = |at: usize| u32::from_be_bytes(std::array::from_fn(|i| header[at + i]));
        let u64_at = |at: usize| u64::from_be_bytes(std::array::from_fn(|i| header[at + i]));
        let must = |holds: bool, what| if holds { Ok(()) } else { Err(LayerError::Format(what)) };

        must(header[..4] == *b"QFI\xfb", "no qcow2 image")?;
        must(u32_at(4) == 3, "not version 3")?;
        must(u32_at(20) == CLUSTER_BITS, "clusters that are not 64 KiB")?;
        must(u32_at(32) == 0, "encrypted")?;
        must(u32_at(60) == 0, "internal snapshots")?;
        must(u64_at(72) == 0, "incompatible features")?;
        must(u64_at(88) == 0, "autoclear features")?;
        must(u32_at(96) == 4, "reference counts that are not 16 bits")?;
        must(u32_at(100) >= HEADER_BYTES as u32, "a header that is too short")?;

        let (bytes, l1_table, refcount_table) = (u64_at(24), u64_at(40), u64_at(48));
        let entries = u64::from(u32_at(36));
        must((l1_entries(bytes)..=ENTRIES).contains(&entries), "an L1 table of the wrong size")?;
        must(u32_at(56) == 1, "a refcount table that is not one cluster")?;
        for table in [l1_table, refcount_table] {
            let inside = (1..clusters).contains(&(table / CLUSTER));
            must(inside && table % CLUSTER == 0, "a table outside of the file")?;
        }
        must(l1_table != refcount_table, "tables in the same place")?;
        Ok(Self { bytes, l1_table, refcount_table })
    }
}

/// Checks that `file` is an image of a disk of `bytes` in the dialect of ours: one that names no
/// other file that anybody would open.
pub fn check(file: &File, bytes: u64) -> Result<(), LayerError> {
    let length = file.metadata().map_err(LayerError::Read)?.len();
    match Header::read(file, length.div_ceil(CLUSTER))?.bytes == bytes {
        true => Ok(()),
        false => Err(LayerError::Format("an image of another size")),
    }
}

/// Makes `file` an image of a disk of `bytes` that nothing was written to and that names no lower
/// layer. What was in it is gone.
pub fn write_empty(file: &File, bytes: u64) -> io::Result<()> {
    file.set_len(0)?;
    file.set_len(EMPTY_BYTES)?;
    file.write_all_at(&encode(bytes)?, 0)?;
    file.write_all_at(&REFCOUNT_BLOCK.to_be_bytes(), REFCOUNT_TABLE)?;
    // Four clusters are in use, once each.
    file.write_all_at(&[0, 1, 0, 1, 0, 1, 0, 1], REFCOUNT_BLOCK)
}

/// The header of an empty image, and eight zeros that end the list of extensions.
fn encode(bytes: u64) -> io::Result<[u8; HEADER_BYTES + 8]> {
    if !super::possible(bytes) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no size of a disk"));
    }
    let mut header = [0; HEADER_BYTES + 8];
    let mut put = |at: usize, field: &[u8]| header[at..at + field.len()].copy_from_slice(field);
    put(0, b"QFI\xfb");
    put(4, &3u32.to_be_bytes());
    put(20, &CLUSTER_BITS.to_be_bytes());
    put(24, &bytes.to_be_bytes());
    put(36, &(l1_entries(bytes) as u32).to_be_bytes());
    put(40, &L1_TABLE.to_be_bytes());
    put(48, &REFCOUNT_TABLE.to_be_bytes());
    put(56, &1u32.to_be_bytes()); // clusters of the refcount table
    put(96, &4u32.to_be_bytes()); // a count has 2^4 bits
    put(100, &(HEADER_BYTES as u32).to_be_bytes());
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header of a disk of 2 GiB with one field changed, in a file of four clusters.
    fn with(at: usize, field: &[u8]) -> Result<Header, LayerError> {
        let mut header: [u8; HEADER_BYTES] =
            encode(2 << 30).unwrap()[..HEADER_BYTES].try_into().unwrap();
        header[at..at + field.len()].copy_from_slice(field);
        Header::parse(&header, 4)
    }

    #[test]
    fn what_is_written_can_be_read() {
        let header = with(0, b"QFI\xfb").unwrap();
        let (l1_table, refcount_table) = (L1_TABLE, REFCOUNT_TABLE);
        assert_eq!(header, Header { bytes: 2 << 30, l1_table, refcount_table });
        assert!(encode(0).is_err() && encode(513).is_err() && encode(2 << 40).is_err());
        assert!(encode(1 << 40).is_ok());
    }

    #[test]
    fn whatever_is_not_ours_is_refused() {
        let huge = u64::MAX.to_be_bytes();
        let cases: [(usize, &[u8]); 22] = [
            (0, b"QED\0"),
            (4, &2u32.to_be_bytes()),
            (4, &4u32.to_be_bytes()),
            (20, &12u32.to_be_bytes()),
            (20, &u32::MAX.to_be_bytes()),
            (24, &huge),                  // more than the L1 table covers
            (32, &1u32.to_be_bytes()),    // AES
            (36, &3u32.to_be_bytes()),    // too few L1 entries
            (36, &8193u32.to_be_bytes()), // more than a cluster
            (36, &u32::MAX.to_be_bytes()),
            (40, &0u64.to_be_bytes()),          // L1 over the header
            (40, &(4 * CLUSTER).to_be_bytes()), // beyond the end
            (40, &512u64.to_be_bytes()),        // unaligned
            (40, &CLUSTER.to_be_bytes()),       // over the refcount table
            (48, &huge),
            (56, &0u32.to_be_bytes()),
            (56, &u32::MAX.to_be_bytes()),
            (60, &1u32.to_be_bytes()),       // an internal snapshot
            (72, &[0, 0, 0, 0, 0, 0, 0, 1]), // dirty
            (72, &[0x80]),
            (88, &[0x80]),
            (96, &[0, 0, 0, 4, 0, 0, 0, 72]),
        ];
        for (at, field) in cases {
            let result = with(at, field);
            assert!(matches!(result, Err(LayerError::Format(_))), "{at}, {field:?}: {result:?}");
        }
    }

    #[test]
    fn the_name_of_a_lower_layer_and_compatible_features_are_ignored() {
        assert!(with(8, &[0xff; 12]).is_ok());
        assert!(with(80, &[0xff; 8]).is_ok());
    }
}
