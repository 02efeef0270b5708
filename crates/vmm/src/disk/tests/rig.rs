//! A disk with files in a directory, and beside it a model of what must be on it.
//!
//! The disk is large, so that requests cross the borders of tables, and the model knows only some
//! windows of it: at the beginning, at the end, which is no cluster's, and around the borders of a
//! slice and of a second-level table.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::check::{Report, check};
use crate::disk::{Disk, DiskError, EMPTY_BYTES, merge, write_empty};

pub const CLUSTER: u64 = 65536;
/// Not a whole number of clusters, and four second-level tables of which the last is not full.
pub const BYTES: u64 = (1536 << 20) + 3 * CLUSTER + 512;
/// Bytes of each window.
pub const WINDOW: u64 = 5 * CLUSTER + 512;
/// Where the windows begin.
pub const WINDOWS: [u64; 4] =
    [0, (32 << 20) - 2 * CLUSTER - 512, (512 << 20) - 3 * CLUSTER, BYTES - WINDOW];

pub struct Rig {
    pub dir: tempfile::TempDir,
    pub disk: Disk,
    /// What must be in each window.
    pub model: [Vec<u8>; WINDOWS.len()],
    /// Files of the frozen layers and of the top, from below.
    pub layers: Vec<PathBuf>,
    /// What new layers are called.
    pub name: &'static str,
    made: usize,
}

/// Bytes that tell where they belong: different for every seed.
pub fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(&mut next).flatten().take(bytes).collect()
}

pub fn open(path: &Path) -> File {
    File::options().read(true).write(true).open(path).unwrap()
}

/// Creates an empty layer of a disk of `bytes`.
pub fn empty(path: &Path, bytes: u64) -> File {
    let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
    write_empty(&file, bytes).unwrap();
    file
}

impl Rig {
    /// A base that has something in every window, and an empty top on it.
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let base = File::create(dir.path().join("base")).unwrap();
        base.set_len(BYTES).unwrap();
        let mut model = WINDOWS.map(|_| vec![0; WINDOW as usize]);
        for (window, at) in model.iter_mut().zip(WINDOWS) {
            let some = WINDOW as usize * 2 / 3;
            window[..some].copy_from_slice(&noise(at + 77, some));
            base.write_all_at(window, at).unwrap();
        }
        let top = dir.path().join("layer-0");
        empty(&top, BYTES);
        let disk = Self::open(dir.path(), std::slice::from_ref(&top));
        Self { dir, disk, model, layers: vec![top], name: "layer", made: 1 }
    }

    fn open(dir: &Path, layers: &[PathBuf]) -> Disk {
        let (top, frozen) = layers.split_last().unwrap();
        let base = File::open(dir.join("base")).unwrap();
        let frozen = frozen.iter().map(|layer| File::open(layer).unwrap()).collect();
        Disk::layered(base, frozen, open(top)).unwrap()
    }

    /// A disk of the same files that knows nothing yet.
    pub fn another(&self) -> Disk {
        Self::open(self.dir.path(), &self.layers)
    }

    /// Writes to a window and to its model. `at` and the length are cut to what fits.
    pub fn write(&mut self, window: usize, at: u64, bytes: &[u8]) {
        let (at, bytes) = cut(at, bytes);
        self.disk.write_at(WINDOWS[window] + at as u64, bytes).unwrap();
        self.model[window][at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Reads a part of a window and compares.
    pub fn read(&mut self, window: usize, at: u64, bytes: u64) {
        let (at, mut buffer) = (at.min(WINDOW), vec![0xaa; bytes.min(WINDOW) as usize]);
        buffer.truncate((WINDOW - at) as usize);
        self.disk.read_at(WINDOWS[window] + at, &mut buffer).unwrap();
        let expected = &self.model[window][at as usize..][..buffer.len()];
        assert!(buffer == expected, "window {window} at {at}, {bytes} bytes");
    }

    fn new_layer(&mut self) -> PathBuf {
        let path = self.dir.path().join(format!("{}-{}", self.name, self.made));
        self.made += 1;
        empty(&path, BYTES);
        path
    }

    pub fn freeze(&mut self) {
        let path = self.new_layer();
        let below = File::open(self.layers.last().unwrap()).unwrap();
        self.disk.freeze(below, open(&path)).unwrap();
        self.layers.push(path);
    }

    /// Makes one of all frozen layers, which everybody who had them open goes on using.
    pub fn merge(&mut self) {
        let top = self.layers.pop().unwrap();
        let frozen = self.layers.iter().map(|layer| File::open(layer).unwrap()).collect();
        let path = self.new_layer();
        merge(frozen, open(&path), BYTES).unwrap();
        self.layers = vec![path, top];
        self.disk = self.another();
    }

    /// Exchanges the top if that is possible. Sure to be if its file has not grown; a write that
    /// failed may have made it longer without leaving anything in it.
    pub fn replace_top(&mut self) {
        let length = std::fs::metadata(self.layers.last().unwrap()).unwrap().len();
        let path = self.new_layer();
        match self.disk.replace_top(open(&path)) {
            Ok(()) => *self.layers.last_mut().unwrap() = path,
            Err(DiskError::Written) => assert!(length > EMPTY_BYTES),
            Err(error) => panic!("{error}"),
        }
    }

    /// Compares everything that the model knows with the disk, and with another one that has only
    /// the files; checks the files.
    pub fn verify(&mut self) {
        self.verify_content();
        for layer in &self.layers {
            assert_eq!(check(layer), Report::default(), "{}", layer.display());
        }
    }

    pub fn verify_content(&mut self) {
        for window in 0..WINDOWS.len() {
            self.read(window, 0, WINDOW);
        }
        let mut another = self.another();
        for (at, expected) in WINDOWS.into_iter().zip(&self.model) {
            let mut buffer = vec![0xaa; WINDOW as usize];
            another.read_at(at, &mut buffer).unwrap();
            assert!(buffer == *expected, "window at {at}, opened anew");
        }
    }
}

pub fn cut(at: u64, bytes: &[u8]) -> (usize, &[u8]) {
    let at = at.min(WINDOW) as usize;
    (at, &bytes[..bytes.len().min(WINDOW as usize - at)])
}
