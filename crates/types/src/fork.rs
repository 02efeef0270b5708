//! The answer to a fork, as it goes over the wire.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::{SandboxId, SandboxView};

/// The children of a sandbox.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ForkView {
    /// What they are copies of.
    pub parent_id: SandboxId,
    /// The tree that they are siblings in.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tree_id: Option<String>,
    /// Always null: forks need no snapshot. Clients of the contract look for it.
    #[serde(default)]
    pub snapshot_id: Option<String>,
    /// The instant that they are copies of.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// Milliseconds that the parent stood still for that.
    #[serde(default)]
    pub pause_ms: f64,
    /// The first child, where only one was meant.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sandbox: Option<SandboxView>,
    /// The children that are ready, in order; never none.
    pub children: Vec<SandboxView>,
    /// Those that did not become ready.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub errors: Vec<ForkFailure>,
}

/// A child that did not become ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForkFailure {
    /// Which one it would have been, from 0.
    pub index: usize,
    /// Why.
    pub err: String,
}
