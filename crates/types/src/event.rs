//! What happened to a sandbox, as the events route shows it.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::SandboxId;

/// One entry of a sandbox's history.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// When it happened.
    #[serde(with = "time::serde::rfc3339")]
    pub time: OffsetDateTime,
    /// Whose history it belongs to.
    pub sandbox_id: SandboxId,
    /// What happened, such as `sandbox.running`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Details; an object whose members depend on `kind`.
    pub payload: serde_json::Value,
}
