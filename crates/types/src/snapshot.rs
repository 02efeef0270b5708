//! The snapshot object of the contract.

use pandastack_policy::Policy;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::{SandboxId, SnapshotId, TemplateName};

/// A sandbox of one instant, kept on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotView {
    /// Its id.
    pub id: SnapshotId,
    /// The sandbox that it was taken of, which may be gone.
    pub sandbox_id: SandboxId,
    /// The template of that sandbox.
    pub template: TemplateName,
    /// vCPUs of every sandbox made of it.
    pub cpu: u32,
    /// Their guest memory in MiB.
    pub memory_mb: u32,
    /// Their writable disk in MiB; 0 in one of before that could be asked for.
    #[serde(default)]
    pub disk_mb: u32,
    /// The engine that it is for.
    pub engine: String,
    /// Bytes that it takes on disk.
    pub size_bytes: u64,
    /// When it was taken.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// What a sandbox made of it may reach, unless the request says otherwise. Absent if that
    /// cannot be read, and then the request has to.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub egress: Option<Policy>,
    /// Sandboxes that were made of it and are there still. They do not need it any more.
    #[serde(default)]
    pub references: u32,
}

/// The answer to a request for all of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotList {
    /// Newest first.
    pub snapshots: Vec<SnapshotView>,
}
