//! Lines of the egress log: what a sandbox tried to reach, and what was decided.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// What somebody in a sandbox did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EgressKind {
    /// Asked for a name.
    Dns,
    /// Opened a TCP connection, or said something in one.
    Tcp,
    /// Sent a datagram.
    Udp,
    /// Sent a message of ICMP, such as an echo request.
    Icmp,
    /// Made a request of HTTP in an open connection.
    Http,
    /// Sent something that this network does not have: a foreign sender, another protocol.
    Other,
}

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EgressVerdict {
    /// It was let through.
    Allow,
    /// It was not.
    Deny,
    /// A flow that had been let through is over; its bytes are final.
    Close,
}

/// One decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressEntry {
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub time: OffsetDateTime,
    /// About what.
    pub kind: EgressKind,
    /// The decision.
    pub verdict: EgressVerdict,
    /// The name that it was about, if there is one: asked for, said, or the one that led there.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub name: Option<String>,
    /// Where to.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub address: Option<IpAddr>,
    /// To which port.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub port: Option<u16>,
    /// What decided, such as `allow/0` or `deny/2`; nothing where no rule did.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rule: Option<String>,
    /// Why, in one line for people.
    pub reason: String,
    /// Bytes from the sandbox, of a flow that is over.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub bytes_up: Option<u64>,
    /// Bytes to the sandbox, of a flow that is over.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub bytes_down: Option<u64>,
    /// How many more of the same kind are not shown, because they came too fast.
    #[serde(skip_serializing_if = "is_zero", default)]
    pub unshown: u64,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}
