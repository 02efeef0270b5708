//! The objects of the contract about ports.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::SandboxId;

/// A port of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortView {
    /// Its number.
    pub port: u16,
    /// What it is for, in the words of who listed it.
    pub label: Option<String>,
    /// Whether something listens there.
    pub listening: bool,
    /// Who knows of it.
    pub source: PortSource,
    /// Whether anybody may reach it, without a key.
    pub public: bool,
    /// Its address below the API's, for holders of a key.
    pub proxy_url: String,
    /// The address of its own site, if it has one.
    pub preview_url: Option<String>,
}

/// Who knows of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PortSource {
    /// Somebody listed it.
    User,
    /// It was found.
    Detected,
}

impl PortSource {
    /// As in the contract.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Detected => "detected",
        }
    }
}

/// A token that opens a port for a while.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreviewTokenView {
    /// An address with the token in it, which opens the port below the API's address.
    pub url: String,
    /// The same for the port's own site, if it has one.
    pub preview_url: Option<String>,
    /// The token itself.
    pub token: String,
    /// The sandbox.
    pub sandbox_id: SandboxId,
    /// Its port.
    pub port: u16,
    /// The paths that it opens, each with everything below; all of them when there is none.
    pub paths: Vec<String>,
    /// When it ends.
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
}

/// The token that opens every port of a sandbox.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficTokenView {
    /// The sandbox.
    pub sandbox_id: SandboxId,
    /// The token itself.
    pub traffic_token: String,
}
