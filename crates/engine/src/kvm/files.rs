//! The files of one bake, checked and open.
//!
//! A monitor gets them by descriptor, for reading: it could not change a bake if it wanted to, and
//! a bake that is deleted goes on to exist for its machines.

use std::fs::File;

use pandastack_vmm::control::Role;

use super::client::{Attached, attach};
use super::manifest::{Manifest, WORKING_SET, damaged};
use crate::files::{DIFF, MEMORY, STATE, open};
use crate::{Bake, EngineError};

/// What a machine is restored from, but for its disk.
pub(super) struct Files {
    pub manifest: Manifest,
    /// Guest memory of the template.
    pub memory: File,
    root: File,
    state: File,
    diff: Option<File>,
    working_set: Option<File>,
}

impl Files {
    /// Opens the files of a bake and checks what can be checked without reading gigabytes.
    /// Blocks for some hundred microseconds.
    pub fn open(bake: &Bake) -> Result<Self, EngineError> {
        let manifest = Manifest::load(&bake.dir)?;
        if manifest.size != bake.size {
            return Err(damaged(STATE, "it is of a machine of another size"));
        }
        if manifest.files[MEMORY].length != bake.size.memory_bytes() {
            return Err(damaged(MEMORY, "it is of a machine of another size"));
        }
        let there = |name: &str| manifest.files.contains_key(name);
        let maybe = |name| there(name).then(|| open(&bake.dir.join(name))).transpose();
        let files = Self {
            memory: open(&bake.dir.join(MEMORY))?,
            root: open(&bake.image.root)?,
            state: open(&bake.dir.join(STATE))?,
            diff: maybe(DIFF)?,
            working_set: maybe(WORKING_SET)?,
            manifest,
        };
        files.manifest.check(STATE, &files.state)?;
        if let Some(set) = &files.working_set {
            files.manifest.check(WORKING_SET, set)?;
        }
        Ok(files)
    }

    /// What a monitor gets to restore a machine.
    pub fn attached(&self) -> Attached<'_> {
        let mut to = Attached::new();
        attach(&mut to, Role::Root, [&self.root]);
        attach(&mut to, Role::Memory, [&self.memory]);
        attach(&mut to, Role::State, [&self.state]);
        attach(&mut to, Role::Diff, &self.diff);
        attach(&mut to, Role::WorkingSet, &self.working_set);
        to
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use pandastack_types::Size;

    use super::*;
    use crate::GuestImage;
    use crate::disk::DISK;

    fn bake(dir: &Path) -> Bake {
        let size = Size::new(1, 128, 256).unwrap();
        for name in [STATE, DIFF, DISK, WORKING_SET] {
            fs::write(dir.join(name), name).unwrap();
        }
        File::create(dir.join(MEMORY)).unwrap().set_len(size.memory_bytes()).unwrap();
        Manifest::new("monitor", "processor", size).complete(dir).unwrap();
        let image = GuestImage {
            kernel: dir.join("kernel"),
            initrd: dir.join("initrd"),
            root: dir.join(DISK),
            preload: Vec::new(),
            warm_up: Vec::new(),
            digest: String::new(),
        };
        Bake { dir: dir.to_owned(), image, size, key: "key".into() }
    }

    fn damaged_file(bake: &Bake) -> String {
        match Files::open(bake) {
            Err(EngineError::Damaged { file, .. }) => file,
            other => panic!("{:?}", other.err()),
        }
    }

    #[test]
    fn a_monitor_gets_every_file_once_and_for_reading() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::open(&bake(dir.path())).unwrap();
        let attached = files.attached();
        let roles: Vec<_> = attached.iter().map(|(role, _)| *role).collect();
        let expected = [Role::Root, Role::Memory, Role::State, Role::Diff, Role::WorkingSet];
        assert_eq!(roles, expected);
        for (role, fd) in attached {
            assert!(rustix::io::write(fd, b"x").is_err(), "{role:?}");
        }
    }

    #[test]
    fn small_files_are_read_before_a_machine_is_made_of_them() {
        for name in [STATE, WORKING_SET] {
            let dir = tempfile::tempdir().unwrap();
            let bake = bake(dir.path());
            let other = "x".repeat(name.len());
            fs::remove_file(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name), other).unwrap();
            assert_eq!(damaged_file(&bake), name);
        }
    }

    #[test]
    fn a_bake_of_another_size_is_not_restored() {
        let dir = tempfile::tempdir().unwrap();
        let bake = bake(dir.path());
        for size in [Size::new(2, 128, 256), Size::new(1, 256, 256)] {
            assert_eq!(damaged_file(&Bake { size: size.unwrap(), ..bake.clone() }), STATE);
        }
        // A manifest that agrees with itself, and not with the memory.
        fs::remove_file(dir.path().join(MEMORY)).unwrap();
        File::create(dir.path().join(MEMORY)).unwrap().set_len(64 << 20).unwrap();
        Manifest::new("monitor", "processor", bake.size).complete(dir.path()).unwrap();
        assert_eq!(damaged_file(&bake), MEMORY);
    }
}
