//! What happened, as the events routes show it.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::SandboxId;

/// One entry of the history of a sandbox, or of the server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// When it happened.
    #[serde(with = "time::serde::rfc3339")]
    pub time: OffsetDateTime,
    /// Whose history it belongs to; the server's own when absent.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sandbox_id: Option<SandboxId>,
    /// What happened, such as `sandbox.running` or `template.baked`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Details; an object whose members depend on `kind`.
    pub payload: serde_json::Value,
}
