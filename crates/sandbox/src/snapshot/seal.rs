//! The files of a snapshot as they were when it was made, so that others are not taken for them.
//!
//! Of each file the length is kept, and of the small ones, which say how the large ones are to be
//! read, a hash as well. The large ones are mapped and read as the guest touches them: to hash them
//! for every sandbox would cost more than the sandbox. Engines may check more.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Longest file that is hashed.
const SMALL: u64 = 1 << 20;

/// What is known of each file, by its name.
pub(super) type Seals = BTreeMap<String, Seal>;

/// What is known of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seal {
    /// Bytes.
    length: u64,
    /// BLAKE3, of a small one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    blake3: Option<String>,
}

impl Seal {
    pub(super) fn of(file: &File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        let hash = (length <= SMALL).then(|| {
            let mut hasher = blake3::Hasher::new();
            hasher.update_reader(file)?;
            io::Result::Ok(hasher.finalize().to_hex().to_string())
        });
        Ok(Self { length, blake3: hash.transpose()? })
    }
}

/// The name of a file in `dir` that is missing, or is not what it was. Blocks.
pub(super) fn changed(dir: &Path, seals: &Seals) -> Option<String> {
    let differs = |(name, seal): &(&String, &Seal)| {
        // A name leads to no other directory, and a link to no other file.
        let path = dir.join(name);
        let plain = !name.contains('/')
            && fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_file());
        let now = File::open(&path).and_then(|file| Seal::of(&file));
        !(plain && now.is_ok_and(|now| now == **seal))
    };
    seals.iter().find(differs).map(|(name, _)| name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_changed_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let restore = || {
            fs::write(path("state"), "state").unwrap();
            File::create(path("memory")).unwrap().set_len(SMALL + 1).unwrap();
        };
        restore();
        let seal =
            |name: &str| (name.to_owned(), Seal::of(&File::open(path(name)).unwrap()).unwrap());
        let seals: Seals = ["state", "memory"].map(seal).into_iter().collect();
        assert!(seals["state"].blake3.is_some() && seals["memory"].blake3.is_none());
        assert_eq!(changed(dir.path(), &seals), None);
        let state = || Some("state".to_owned());
        fs::write(path("state"), "State").unwrap();
        assert_eq!(changed(dir.path(), &seals), state());
        fs::write(path("state"), "stat").unwrap();
        assert_eq!(changed(dir.path(), &seals), state());
        fs::remove_file(path("state")).unwrap();
        assert_eq!(changed(dir.path(), &seals), state());
        fs::write(path("elsewhere"), "state").unwrap();
        std::os::unix::fs::symlink("elsewhere", path("state")).unwrap();
        assert_eq!(changed(dir.path(), &seals), state(), "a link");
        fs::remove_file(path("state")).unwrap();
        restore();
        File::options().write(true).open(path("memory")).unwrap().set_len(SMALL + 2).unwrap();
        assert_eq!(changed(dir.path(), &seals), Some("memory".to_owned()));
    }
}
