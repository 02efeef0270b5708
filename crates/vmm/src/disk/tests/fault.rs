//! Writes that fail.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

thread_local! {
    /// Writes to top layers that this thread may still make.
    static LEFT: Cell<u32> = const { Cell::new(u32::MAX) };
}

/// Lets so many more writes of this thread succeed.
pub fn after(writes: u32) {
    LEFT.set(writes);
}

/// Fails if it is time: whole pages of the first half are written then, as a kernel does that has
/// no room any more.
pub fn strike(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    if LEFT.get() == u32::MAX {
        return Ok(());
    }
    if let Some(left) = LEFT.get().checked_sub(1) {
        LEFT.set(left);
        return Ok(());
    }
    file.write_all_at(&bytes[..bytes.len() / 2 / 4096 * 4096], offset)?;
    Err(io::Error::from(io::ErrorKind::StorageFull))
}
