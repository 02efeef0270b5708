//! The volume objects of the contract.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::VolumeName;

/// Most volumes of one sandbox.
pub const MAX_VOLUMES: usize = 8;

/// A volume as the API shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeView {
    /// Its name.
    pub name: VolumeName,
    /// What fits in, in MiB.
    pub size_mb: u32,
    /// What it takes on the host's disk.
    pub size_bytes: u64,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// A volume as a sandbox has it, at `/volumes/NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMount {
    /// The volume.
    pub name: VolumeName,
    /// Whether nothing that the sandbox writes reaches it.
    #[serde(default)]
    pub read_only: bool,
    /// Whether this is a copy of the sandbox's own, as it was when the sandbox was forked or its
    /// snapshot taken.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub clone: bool,
}
