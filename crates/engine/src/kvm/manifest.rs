//! What the files of a bake are: `machine.json`, written last.
//!
//! A bake is this file and the files that it names. What is not named, too short, too long or
//! missing is damage, and so is a manifest that is not as it was written ([`Manifest::seal`]).
//!
//! Copies of volumes (`volume-*`) are beside them and not in it: they may be large, and what is on
//! them is no part of the machine. Their headers are looked at before a monitor gets them.
//!
//! Hashes are made once, when the files are. A restore checks the small ones, which are read in
//! whole anyway; of the large ones, which are mapped and read as the guest touches them, it checks
//! the length. [`verify`] reads all of them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use pandastack_types::Size;
use serde::{Deserialize, Serialize};

use crate::EngineError;
use crate::disk::{DISK, MAX_LAYERS, layer_name};
use crate::error::file_error;
use crate::files::{self, DIFF, MEMORY, STATE};
use crate::sparse;

/// Name of the manifest.
const MANIFEST: &str = "machine.json";
/// Pages that a machine touches first.
pub(super) const WORKING_SET: &str = "working-set";

/// Counts in every manifest and key; raised when the files change their meaning.
pub(super) const FORMAT: u32 = 1;
/// Longest manifest. One of a disk with all layers has some 10 KiB.
const MAX_BYTES: u64 = 64 << 10;
/// Whose files they are.
const ENGINE: &str = "kvm";

/// Owner only: a machine's memory has everything in it that its guest knew.
const READ_ONLY: u32 = 0o400;

/// The files of a bake and what they were made on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    format: u32,
    engine: String,
    /// Stands for the program that wrote the state.
    pub monitor: String,
    /// For people; what the monitor compares is in the state.
    pub processor: String,
    pub size: Size,
    /// By name.
    pub files: BTreeMap<String, Entry>,
    /// BLAKE3 of all of the above.
    seal: String,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    /// Bytes.
    pub length: u64,
    /// BLAKE3 as [`sparse::digest`] makes it.
    pub blake3: String,
}

impl Entry {
    /// Hashes a file. Blocks.
    pub fn of(file: &File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        Ok(Self { length, blake3: sparse::digest(file)?.to_hex().to_string() })
    }
}

impl Manifest {
    /// One without files.
    pub fn new(monitor: &str, processor: &str, size: Size) -> Self {
        Self {
            format: FORMAT,
            engine: ENGINE.into(),
            monitor: monitor.into(),
            processor: processor.into(),
            size,
            files: BTreeMap::new(),
            seal: String::new(),
        }
    }

    /// Takes in the engine's files of `dir`, makes them read-only, and writes the manifest there
    /// in place of one that may be there. Files that are in it already are not hashed again: they
    /// were when they were made, and never change. Blocks.
    pub fn complete(&mut self, dir: &Path) -> Result<(), EngineError> {
        for name in names_in(dir)? {
            if self.files.contains_key(&name) {
                continue;
            }
            let path = dir.join(&name);
            files::set_mode(&path, READ_ONLY)?;
            let entry =
                Entry::of(&files::open(&path)?).map_err(|e| file_error("hash", &path, e))?;
            self.files.insert(name, entry);
        }
        self.files.retain(|name, _| dir.join(name).exists());
        self.seal = self.make_seal();
        let (path, staging) = (dir.join(MANIFEST), dir.join("machine.json.new"));
        let text = serde_json::to_vec_pretty(self).map_err(io::Error::other);
        text.and_then(|text| fs::write(&staging, text))
            .and_then(|()| fs::rename(&staging, &path))
            .map_err(|e| file_error("write", &path, e))?;
        files::set_mode(&path, READ_ONLY)
    }

    /// Reads the manifest of `dir` and checks it, and that the files that it names are there in
    /// their lengths, and no others.
    pub fn load(dir: &Path) -> Result<Self, EngineError> {
        let manifest = Self::parse(&read(&dir.join(MANIFEST))?)?;
        for name in [MEMORY, STATE, DISK] {
            if !manifest.files.contains_key(name) {
                return Err(damaged(MANIFEST, format!("it does not name {name}")));
            }
        }
        for (name, entry) in &manifest.files {
            if !is_ours(name) {
                return Err(damaged(MANIFEST, format!("it names {name:?}")));
            }
            let path = dir.join(name);
            match fs::symlink_metadata(&path) {
                Ok(found) if !found.is_file() => return Err(damaged(name, "it is no file")),
                Ok(found) => entry.check_length(name, found.len())?,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    return Err(damaged(name, "it is missing"));
                }
                Err(e) => return Err(file_error("look at", &path, e)),
            }
        }
        match names_in(dir)?.into_iter().find(|name| !manifest.files.contains_key(name)) {
            Some(foreign) => Err(damaged(&foreign, "it belongs to another bake")),
            None => Ok(manifest),
        }
    }

    fn parse(text: &[u8]) -> Result<Self, EngineError> {
        let wrong = |why: String| damaged(MANIFEST, why);
        let value: serde_json::Value =
            serde_json::from_slice(text).map_err(|_| wrong("it is no JSON".into()))?;
        // Before anything else is understood: another version may have other fields.
        match value.get("format").and_then(serde_json::Value::as_u64) {
            Some(format) if format == u64::from(FORMAT) => {}
            Some(format) => return Err(wrong(format!("it has format {format}, not {FORMAT}"))),
            None => return Err(wrong("it has no format".into())),
        }
        let manifest: Self = serde_json::from_value(value).map_err(|e| wrong(e.to_string()))?;
        if manifest.engine != ENGINE {
            return Err(wrong(format!("it is of the engine {:?}", manifest.engine)));
        }
        if manifest.seal != manifest.make_seal() {
            return Err(wrong("it was changed".into()));
        }
        Ok(manifest)
    }

    fn make_seal(&self) -> String {
        let unsealed = Self { seal: String::new(), ..self.clone() };
        // Fields in their order, files in that of their names: the same text for the same content.
        let text = serde_json::to_vec(&unsealed).unwrap_or_default();
        blake3::hash(&text).to_hex().to_string()
    }

    /// Checks an open file of the bake against its hash. Blocks, and reads the whole file.
    pub fn check(&self, name: &str, file: &File) -> Result<(), EngineError> {
        let entry = self.files.get(name).ok_or_else(|| damaged(name, "it is not expected"))?;
        let read = |e| file_error("read", Path::new(name), e);
        entry.check_length(name, file.metadata().map_err(read)?.len())?;
        let found = Entry::of(file).map_err(read)?;
        if found == *entry { Ok(()) } else { Err(damaged(name, "its content was changed")) }
    }
}

impl Entry {
    fn check_length(&self, name: &str, found: u64) -> Result<(), EngineError> {
        if found == self.length {
            return Ok(());
        }
        let length = self.length;
        Err(damaged(name, format!("it is {found} bytes long instead of {length}")))
    }
}

/// Reads every file of the bake in `dir` and compares it with what it was when it was made.
/// Blocks.
pub fn verify(dir: &Path) -> Result<(), EngineError> {
    let manifest = Manifest::load(dir)?;
    manifest.files.keys().try_for_each(|name| manifest.check(name, &files::open(&dir.join(name))?))
}

pub(super) fn damaged(file: &str, why: impl Into<String>) -> EngineError {
    EngineError::Damaged { file: file.to_owned(), why: why.into() }
}

fn read(path: &Path) -> Result<Vec<u8>, EngineError> {
    let file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(damaged(MANIFEST, "it is missing"));
        }
        other => other.map_err(|e| file_error("open", path, e))?,
    };
    let mut text = Vec::new();
    let read = file.take(MAX_BYTES + 1).read_to_end(&mut text);
    read.map_err(|e| file_error("read", path, e))?;
    if text.len() as u64 > MAX_BYTES {
        return Err(damaged(MANIFEST, "it is too long"));
    }
    Ok(text)
}

/// The engine's files in a directory. Others may put theirs beside them.
fn names_in(dir: &Path) -> Result<Vec<String>, EngineError> {
    let entries = fs::read_dir(dir).map_err(|e| file_error("list", dir, e))?;
    let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    Ok(names.filter(|name| is_ours(name)).collect())
}

fn is_ours(name: &str) -> bool {
    [MEMORY, STATE, DIFF, DISK, WORKING_SET].contains(&name)
        || (0..MAX_LAYERS).any(|index| layer_name(index) == name)
}

#[cfg(test)]
mod tests;
