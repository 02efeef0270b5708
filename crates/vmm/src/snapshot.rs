//! The state file of a snapshot: everything of a machine but memory and disk.
//!
//! ```text
//!   magic(8) version(4) length(4) BLAKE3 of the rest(32) state in postcard …
//! ```
//!
//! A state means something only to a monitor of the same version on a processor of the same kind:
//! both are checked, and the file's own hash, made when it was written. After that it is still
//! hostile input, which every part checks as it takes its own.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};

use crate::ioapic::IoapicState;
use crate::kvm::VmState;
use crate::kvm::cpuid::CpuIdentity;
use crate::legacy::SerialState;
use crate::virtio::SlotState;

const MAGIC: &[u8; 8] = b"PANDSNAP";
/// Raised whenever the same bytes would mean something else.
pub const VERSION: u32 = 2;
const HEADER: usize = 48;
/// Longest state: eight vCPUs with extended state take some 100 KiB.
const MAX_BYTES: u64 = 4 << 20;

/// A machine's state.
#[derive(Debug, Serialize, Deserialize)]
pub struct Saved {
    /// Guest memory in MiB.
    pub memory_mb: u32,
    /// The processor that it ran on.
    pub processor: CpuIdentity,
    /// vCPUs and clock.
    pub vm: VmState,
    /// Interrupt controller.
    pub ioapic: IoapicState,
    /// Serial port.
    pub serial: SerialState,
    /// virtio devices, by window.
    pub devices: Vec<SlotState>,
}

/// Why a state file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It cannot be read.
    #[error("the state file cannot be read")]
    Read(#[source] io::Error),
    /// It is damaged, or something else.
    #[error("the state file is damaged: {0}")]
    Damaged(&'static str),
    /// It is of another version.
    #[error("the state file has version {0}, not {VERSION}")]
    Version(u32),
}

impl Saved {
    /// Writes it to an empty file.
    pub fn write(&self, file: &File) -> io::Result<()> {
        let state = postcard::to_stdvec(self).map_err(io::Error::other)?;
        let mut bytes = Vec::with_capacity(HEADER + state.len());
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((state.len() as u32).to_le_bytes());
        bytes.extend(blake3::hash(&state).as_bytes());
        bytes.extend(state);
        file.write_all_at(&bytes, 0)
    }

    /// Reads one.
    pub fn read(file: &File) -> Result<Self, StateError> {
        let length = file.metadata().map_err(StateError::Read)?.len();
        if length > MAX_BYTES {
            return Err(StateError::Damaged("no machine has so much state"));
        }
        let mut bytes = vec![0; length as usize];
        file.read_exact_at(&mut bytes, 0).map_err(StateError::Read)?;
        Self::decode(&bytes)
    }

    /// Checks and decodes the content of a state file.
    pub fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        let Some((header, state)) = bytes.split_at_checked(HEADER) else {
            return Err(StateError::Damaged("it is too short"));
        };
        if header[..8] != MAGIC[..] {
            return Err(StateError::Damaged("it begins with something else"));
        }
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("4 bytes"));
        if word(8) != VERSION {
            return Err(StateError::Version(word(8)));
        }
        if word(12) as usize != state.len() || header[16..] != blake3::hash(state).as_bytes()[..] {
            return Err(StateError::Damaged("it is not what was written"));
        }
        let (saved, rest) = postcard::take_from_bytes(state)
            .map_err(|_| StateError::Damaged("it says nothing that makes sense"))?;
        if !rest.is_empty() {
            return Err(StateError::Damaged("it goes on after its end"));
        }
        Ok(saved)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn other_versions_are_told_apart_from_damage() {
        let mut bytes = MAGIC.to_vec();
        bytes.extend((VERSION + 1).to_le_bytes());
        bytes.extend([0; 36]);
        assert!(matches!(Saved::decode(&bytes), Err(StateError::Version(n)) if n == VERSION + 1));
        assert!(matches!(Saved::decode(&bytes[..40]), Err(StateError::Damaged(_))));
    }

    proptest! {
        #[test]
        fn arbitrary_states_are_refused(state in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut bytes = MAGIC.to_vec();
            bytes.extend(VERSION.to_le_bytes());
            bytes.extend((state.len() as u32).to_le_bytes());
            bytes.extend(blake3::hash(&state).as_bytes());
            bytes.extend(state);
            prop_assert!(Saved::decode(&bytes).is_err());
        }
    }
}
