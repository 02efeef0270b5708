//! What a policy is made of. [`crate::read`] is the only maker of these, so they hold what
//! it checks: limits, and fields that go together.

use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::cidr::Cidr;
use crate::host::HostPattern;
use crate::path::PathPrefix;
use crate::port::{Ports, Protocol};
use crate::verdict::Check;

/// What a sandbox may reach: `egress` of the API.
///
/// ```json
/// { "allow": [ { "host": "pypi.org", "ports": [443] },
///              { "host": "*.example.com", "methods": ["GET"], "paths": ["/public"] },
///              { "cidr": "203.0.113.0/24", "ports": [22, "8000-8999", "123/udp"] } ],
///   "deny":  [ { "host": "private.example.com" } ],
///   "max_connections": 100 }
/// ```
///
/// The default is `"none"`, and a policy with nothing but an empty allow list is the same one. It
/// can only be read from formats that describe themselves, such as JSON, and should be read from
/// text: a `serde_json::Value` has forgotten the first of two equal fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    pub(crate) allow: Vec<Rule>,
    pub(crate) deny: Vec<Rule>,
    pub(crate) log: bool,
    pub(crate) bandwidth: Option<Bandwidth>,
    pub(crate) max_connections: Option<u32>,
}

impl Policy {
    /// Most rules of each list.
    pub const MAX_RULES: usize = 256;
    /// Most ports, methods or paths of one rule.
    pub const MAX_ENTRIES: usize = 64;
    /// Longest policy in bytes, in its one spelling in JSON.
    pub const MAX_LEN: usize = 64 << 10;
    /// Largest limit of connections.
    pub const MAX_CONNECTIONS: u32 = 65_536;

    /// What may be reached.
    pub fn allow(&self) -> &[Rule] {
        &self.allow
    }

    /// What may not, although it is allowed.
    pub fn deny(&self) -> &[Rule] {
        &self.deny
    }

    /// Whether decisions go to the egress log: they do unless somebody says `false`.
    pub fn log(&self) -> bool {
        self.log
    }

    /// How fast, if that is limited.
    pub fn bandwidth(&self) -> Option<Bandwidth> {
        self.bandwidth
    }

    /// How many flows at a time, if less than the gateway gives.
    pub fn max_connections(&self) -> Option<u32> {
        self.max_connections
    }
}

impl Default for Policy {
    /// Nothing at all.
    fn default() -> Self {
        Self {
            allow: Vec::new(),
            deny: Vec::new(),
            log: true,
            bandwidth: None,
            max_connections: None,
        }
    }
}

impl Serialize for Policy {
    /// The one spelling: what says nothing is left out.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if *self == Self::default() {
            return serializer.serialize_str("none");
        }
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("allow", &self.allow)?;
        if !self.deny.is_empty() {
            map.serialize_entry("deny", &self.deny)?;
        }
        if !self.log {
            map.serialize_entry("log", &false)?;
        }
        if let Some(bandwidth) = &self.bandwidth {
            map.serialize_entry("bandwidth", bandwidth)?;
        }
        if let Some(limit) = self.max_connections {
            map.serialize_entry("max_connections", &limit)?;
        }
        map.end()
    }
}

/// One entry of a list. An empty list of it was not given, and means no restriction.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Rule {
    #[serde(flatten)]
    pub(crate) target: Target,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) ports: Vec<Ports>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) methods: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) paths: Vec<PathPrefix>,
}

/// What a rule is about.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// Names, and what DNS says about them.
    Host(HostPattern),
    /// Addresses, with or without a name.
    Cidr(Cidr),
}

impl Rule {
    /// What it is about.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// What a flow under it has to show.
    pub(crate) fn check(&self) -> Check {
        match self.target {
            Target::Cidr(_) => Check::Nothing,
            Target::Host(_) if self.methods.is_empty() && self.paths.is_empty() => Check::Name,
            Target::Host(_) => Check::Requests,
        }
    }

    /// Whether its ports have this one; without any, an allowing rule has every port of TCP. UDP
    /// is only where a rule says so.
    pub(crate) fn opens(&self, protocol: Protocol, port: u16) -> bool {
        if self.ports.is_empty() { protocol == Protocol::Tcp } else { self.has(protocol, port) }
    }

    /// The same for a denying rule, which without any has every port of everything.
    pub(crate) fn closes(&self, protocol: Protocol, port: u16) -> bool {
        self.ports.is_empty() || self.has(protocol, port)
    }

    fn has(&self, protocol: Protocol, port: u16) -> bool {
        self.ports.iter().any(|ports| ports.contains(protocol, port))
    }

    /// Whether a request may be made under it. Without a path that is clear, only if it names none.
    pub(crate) fn permits(&self, method: &str, path: Option<&str>) -> bool {
        let clear = |path: &str| self.paths.iter().any(|prefix| prefix.covers(path));
        (self.methods.is_empty() || self.methods.iter().any(|own| own == method))
            && (self.paths.is_empty() || path.is_some_and(clear))
    }
}

/// Limits of all flows of a sandbox together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Bandwidth {
    /// From the sandbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub up_bytes_per_second: Option<u64>,
    /// To the sandbox.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub down_bytes_per_second: Option<u64>,
}

impl Bandwidth {
    /// Smallest limit: less would not carry a handshake.
    pub const MIN: u64 = 1_000;
    /// Largest limit, more than any host has.
    pub const MAX: u64 = 1_000_000_000_000;
}
