//! Decisions, in words that a person who reads the egress log understands.

use std::fmt;

use crate::address::Reserved;

/// A decision, with what decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Yes.
    Allow {
        /// The rule's place in the allow list.
        rule: usize,
        /// What the flow still has to show.
        check: Check,
    },
    /// No.
    Deny(Denied),
}

impl Verdict {
    /// Whether it is a yes.
    pub fn is_allow(self) -> bool {
        matches!(self, Verdict::Allow { .. })
    }

    /// The rule that decided, such as `allow/0` or `deny/2`; nothing where no rule did.
    pub fn rule(self) -> Option<String> {
        match self {
            Verdict::Allow { rule, .. } => Some(format!("allow/{rule}")),
            Verdict::Deny(reason) => reason.rule(),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Allow { rule, .. } => write!(f, "allowed by allow/{rule}"),
            Verdict::Deny(reason) => write!(f, "denied: {reason}"),
        }
    }
}

/// What a flow has to show before its bytes go through, from the least to the most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Check {
    /// Its address is allowed, whatever is said to it.
    Nothing,
    /// A name that it says (TLS, HTTP) must pass [`crate::Policy::said`], and it must not hide one
    /// (encrypted ClientHello). A protocol without names passes: DNS did lead it there.
    Name,
    /// Each request must pass [`crate::Policy::request`]; a flow whose requests cannot be read
    /// does not pass.
    Requests,
}

/// Why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// A rule of the deny list, by its place.
    #[error("by deny/{0}")]
    Rule(usize),
    /// An address that no policy opens.
    #[error("{0}, which no policy opens")]
    Reserved(Reserved),
    /// A name that no policy opens.
    #[error("this name is of the machine or of its cloud, which no policy opens")]
    ReservedName,
    /// A private address that is not open here.
    #[error("a private address: the operator must open them, and a rule name its cidr")]
    Private,
    /// A name that is not allowed.
    #[error("no rule allows this name")]
    Name,
    /// A resolver that answers over TLS or HTTPS, under a wildcard alone.
    #[error("a resolver for every name: only a rule with this very name opens it")]
    Resolver,
    /// An address that came out of nowhere.
    #[error("no allowed name led to this address, and no cidr has it")]
    Address,
    /// The right place, but another door.
    #[error("the rules for this destination have other ports")]
    Port,
    /// UDP that no rule names.
    #[error("UDP is only where a rule names the port, such as \"123/udp\"")]
    Udp,
    /// UDP to port 443.
    #[error("QUIC hides the host it is for; TCP to port 443 may be allowed")]
    Quic,
    /// A flow says another name than the one that led to its address.
    #[error("the name in the connection did not lead to this address")]
    Mismatch,
    /// A request's target that is not a path.
    #[error("the target of the request is not a path")]
    Target,
    /// A request's path that can be read in two ways.
    #[error("the path of the request is ambiguous")]
    AmbiguousPath,
    /// A method or a path that is not allowed.
    #[error("no rule allows this method and path")]
    Request,
}

impl Denied {
    /// The rule that denied, such as `deny/2`; nothing where no rule did.
    pub fn rule(self) -> Option<String> {
        match self {
            Denied::Rule(rule) => Some(format!("deny/{rule}")),
            _ => None,
        }
    }
}
