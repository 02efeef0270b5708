//! An empty qcow2 image: the private disk layer that every machine starts with.
//!
//! Written here because it is four clusters of almost nothing, and because an image that names
//! no lower layer can never make anybody open a file: the layer below is given by descriptor.
//! Format: docs/interop/qcow2.txt in QEMU's source, version 3.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// Bytes of the disk that one entry of the first-level table covers: a second-level table is one
/// cluster of 8-byte entries, each for one cluster.
const L1_ENTRY_COVERS: u64 = CLUSTER * CLUSTER / 8;

/// The clusters of an empty image, in order.
const REFCOUNT_TABLE: u64 = CLUSTER;
const REFCOUNT_BLOCK: u64 = 2 * CLUSTER;
const L1_TABLE: u64 = 3 * CLUSTER;
const END: u64 = 4 * CLUSTER;

/// Length of an image that nothing was written to: every first write to a cluster makes it longer.
pub(super) const EMPTY_BYTES: u64 = END;

/// Creates an empty image of a disk of `bytes`, 0600, and returns it open for reading and writing.
pub(super) fn create(path: &Path, bytes: u64) -> io::Result<File> {
    let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(path)?;
    file.set_len(END)?;
    file.write_all_at(&header(bytes), 0)?;
    file.write_all_at(&REFCOUNT_BLOCK.to_be_bytes(), REFCOUNT_TABLE)?;
    // Four clusters are in use, once each; 16-bit counts.
    file.write_all_at(&[0, 1, 0, 1, 0, 1, 0, 1], REFCOUNT_BLOCK)?;
    Ok(file)
}

/// The 104 bytes of a version 3 header, and eight zeros that end the list of extensions.
fn header(bytes: u64) -> Vec<u8> {
    let l1_entries = u32::try_from(bytes.div_ceil(L1_ENTRY_COVERS)).unwrap_or(u32::MAX);
    let mut header = Vec::with_capacity(112);
    header.extend(b"QFI\xfb");
    header.extend(3u32.to_be_bytes());
    header.extend([0; 12]); // no backing file: offset, length of its name
    header.extend(CLUSTER_BITS.to_be_bytes());
    header.extend(bytes.to_be_bytes());
    header.extend([0; 4]); // not encrypted
    header.extend(l1_entries.to_be_bytes());
    header.extend(L1_TABLE.to_be_bytes());
    header.extend(REFCOUNT_TABLE.to_be_bytes());
    header.extend(1u32.to_be_bytes()); // clusters of the refcount table
    header.extend([0; 12]); // no snapshots: count, offset
    header.extend([0; 24]); // no incompatible, compatible or autoclear feature
    header.extend(4u32.to_be_bytes()); // refcount order: 2^4 bits
    header.extend(104u32.to_be_bytes()); // length of this header
    header.extend([0; 8]); // end of the header extensions
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_has_its_fields_where_the_format_wants_them() {
        let header = header(2 << 30);
        assert_eq!(header.len(), 112);
        assert_eq!(header[..8], [b'Q', b'F', b'I', 0xfb, 0, 0, 0, 3]);
        assert_eq!(header[20..24], [0, 0, 0, 16]);
        assert_eq!(header[24..32], (2u64 << 30).to_be_bytes());
        assert_eq!(header[36..40], [0, 0, 0, 4], "2 GiB is four tables of 512 MiB");
        assert_eq!(header[40..48], L1_TABLE.to_be_bytes());
        assert_eq!(header[96..104], [0, 0, 0, 4, 0, 0, 0, 104]);
    }

    #[test]
    fn an_image_is_small_and_private() {
        use std::os::unix::fs::{MetadataExt, PermissionsExt};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let meta = create(&path, 2 << 30).unwrap().metadata().unwrap();
        assert_eq!(meta.len(), END);
        assert!(meta.blocks() * 512 <= 64 << 10);
        assert_eq!(meta.permissions().mode() & 0o777, 0o600);
        assert!(create(&path, 1).is_err(), "an existing file is never reused");
    }
}
