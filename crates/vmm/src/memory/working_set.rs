//! Which pages a machine touches first, recorded once; every machine after that has them before it
//! needs them.
//!
//! Without it a guest meets its memory page by page, and each meeting is an exit and a fault: most
//! of the time to the first answer. The list is a hint. What is wrong with it costs time and
//! nothing else, so a damaged one is ignored.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};

use super::pages::{self, Kind};
use super::{Extent, Mapping, PAGE};
use crate::kvm::Vcpu;

/// Longest list in bytes.
const MAX_BYTES: u64 = 1 << 20;
/// Most extents of each kind.
const MAX_EXTENTS: usize = 16 << 10;

/// The pages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkingSet {
    /// Those that were written: a copy is needed.
    written: Vec<Extent>,
    /// Those that were only read: a mapping will do.
    read: Vec<Extent>,
}

impl WorkingSet {
    /// What a machine has touched since it was restored.
    pub fn record(mapping: &Mapping, pagemap: &File) -> io::Result<Self> {
        let find = |kind| {
            let found = pages::find(mapping, pagemap, kind)?;
            Ok::<_, io::Error>(pages::coalesce(found, MAX_EXTENTS))
        };
        Ok(Self { written: find(Kind::Written)?, read: find(Kind::Read)? })
    }

    /// Reads a list; an empty one from what is none.
    pub fn read(file: &File) -> Self {
        let bytes = || {
            let length = file.metadata().ok()?.len().min(MAX_BYTES);
            let mut bytes = vec![0; length as usize];
            // Not from where others have read to: the descriptor is shared.
            file.read_exact_at(&mut bytes, 0).ok()?;
            postcard::from_bytes(&bytes).ok()
        };
        bytes().unwrap_or_default()
    }

    /// Writes it to an empty file.
    pub fn write(&self, file: &File) -> io::Result<()> {
        let bytes = postcard::to_stdvec(self).map_err(io::Error::other)?;
        file.write_all_at(&bytes, 0)
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.written.is_empty() && self.read.is_empty()
    }

    /// Maps what will be looked at.
    pub fn fetch(&self, mapping: &Mapping) {
        self.advise(mapping, &self.read, libc::MADV_POPULATE_READ);
        self.advise(mapping, &self.written, libc::MADV_POPULATE_READ);
    }

    /// Copies what will be written.
    pub fn copy(&self, mapping: &Mapping) {
        self.advise(mapping, &self.written, libc::MADV_POPULATE_WRITE);
    }

    /// Maps all of it where the guest's processor looks, too. Costs a walk and a fault for each
    /// page, of which the guest touches only some: it is for when nobody waits.
    pub fn premap(&self, mapping: &Mapping, vcpu: &Vcpu) {
        let extents = self.written.iter().chain(&self.read);
        for extent in extents.filter(|extent| mapping.holds(extent)) {
            if vcpu.premap(extent.start * PAGE, extent.count * PAGE).is_err() {
                return; // not known here, or no memory for it now
            }
        }
    }

    fn advise(&self, mapping: &Mapping, extents: &[Extent], advice: i32) {
        // What a kernel does not know, or has no memory for now, happens later by itself.
        for extent in extents.iter().filter(|extent| mapping.holds(extent)) {
            let _ = mapping.advise(extent, advice);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_touched_is_recorded_and_fetched_again() {
        let base = tempfile::tempfile().unwrap();
        base.set_len(32 * PAGE).unwrap();
        base.write_all_at(&[1; 32 * PAGE as usize], 0).unwrap();
        let mapping = || Mapping::of_files(&base, None, 32 * PAGE).unwrap().0;
        let first = mapping();
        // SAFETY: within the mapping.
        unsafe { first.start().add(5 * PAGE as usize).write_volatile(2) };
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        let set = WorkingSet::record(&first, &pagemap).unwrap();
        let file = tempfile::tempfile().unwrap();
        set.write(&file).unwrap();
        let again = WorkingSet::read(&file);
        assert_eq!(again, set);
        assert_eq!(WorkingSet::read(&file), set, "as often as one likes");
        assert_eq!(again.written, [Extent { start: 5, count: 1 }]);

        let second = mapping();
        again.copy(&second);
        let written = pages::find(&second, &pagemap, Kind::Written).unwrap();
        assert_eq!(written, [Extent { start: 5, count: 1 }]);
    }

    #[test]
    fn a_damaged_list_is_an_empty_one_and_a_foreign_one_does_no_harm() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[0xff; 100], 0).unwrap();
        assert!(WorkingSet::read(&file).is_empty());
        let far = Extent { start: u64::MAX - 1, count: 9 };
        let set = WorkingSet { written: vec![far], read: vec![far] };
        let mapping = Mapping::anonymous(PAGE).unwrap();
        set.fetch(&mapping);
        set.copy(&mapping);
    }
}
