//! Drivers made of bytes, against a disk that fails at times: what is under the disk is asked for
//! whole sectors within its bounds only, and to write only if it may be written.
#![no_main]

use std::io;

use libfuzzer_sys::fuzz_target;
use pandastack_vmm::virtio::block::SECTOR;
use pandastack_vmm::virtio::hostile::drive;
use pandastack_vmm::virtio::{Block, Storage};

/// Sectors, and a rest that is not part of the disk.
const BYTES: usize = 64 * SECTOR as usize + 100;

struct Checked {
    content: Vec<u8>,
    read_only: bool,
    /// Which accesses fail, by number modulo 8.
    fails: u8,
    accesses: u32,
}

impl Checked {
    fn access(&mut self, offset: u64, len: usize) -> io::Result<usize> {
        assert!(offset.is_multiple_of(SECTOR) && len.is_multiple_of(SECTOR as usize));
        assert!(offset + len as u64 <= BYTES as u64 / SECTOR * SECTOR, "{len} at {offset}");
        self.accesses += 1;
        let fails = self.fails >> (self.accesses % 8) & 1 == 1;
        if fails { Err(io::Error::other("it fails")) } else { Ok(offset as usize) }
    }
}

impl Storage for Checked {
    fn bytes(&self) -> u64 {
        BYTES as u64
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let at = self.access(offset, buffer.len())?;
        buffer.copy_from_slice(&self.content[at..][..buffer.len()]);
        Ok(())
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        assert!(!self.read_only, "written though it is read-only");
        let at = self.access(offset, bytes.len())?;
        self.content[at..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.access(0, 0).map(|_| ())
    }
}

fuzz_target!(|bytes: &[u8]| {
    let Some(([kind, fails], script)) = bytes.split_first_chunk() else { return };
    let read_only = kind & 1 == 1;
    let storage = Checked { content: vec![7; BYTES], read_only, fails: *fails, accesses: 0 };
    drive(Block::new(storage, "fuzz", read_only), script);
});
