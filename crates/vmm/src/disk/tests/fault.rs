//! Writes that fail, and writes that are written down with the syncs between them.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

thread_local! {
    /// Writes to top layers that this thread may still make.
    static LEFT: Cell<u32> = const { Cell::new(u32::MAX) };
    /// Once somebody wants to know.
    static LOG: RefCell<Option<Vec<Event>>> = const { RefCell::new(None) };
}

/// What was done to the top layer.
#[derive(Clone, Debug)]
pub enum Event {
    Write(u64, Vec<u8>),
    Sync,
}

/// What this thread has done to top layers since the last call.
pub fn events() -> Vec<Event> {
    LOG.replace(Some(Vec::new())).unwrap_or_default()
}

fn log(event: impl FnOnce() -> Event) {
    LOG.with_borrow_mut(|log| log.as_mut().map(|log| log.push(event())));
}

/// A sync comes.
pub fn sync() {
    log(|| Event::Sync);
}

/// Lets so many more writes of this thread succeed.
pub fn after(writes: u32) {
    LEFT.set(writes);
}

/// Fails if it is time: whole pages of the first half are written then, as a kernel does that has
/// no room any more.
pub fn strike(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    log(|| Event::Write(offset, bytes.to_vec()));
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
