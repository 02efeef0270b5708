//! The egress policy: what a sandbox may reach, as pure functions.
//!
//! Nothing here does I/O or asks for the time, and nothing panics, whatever it is given. The
//! gateway asks at four moments of a flow, and each answer is a line of the egress log:
//!
//! ```text
//!   DNS question ──▶ Policy::name     a name that is not allowed never leaves the host
//!   DNS answer ────▶ Policy::answer   addresses that must not be in it are dropped (rebinding)
//!                    Pins::add        the rest is what this sandbox was told
//!   first packet ──▶ Policy::connect  with the names that Pins has for the address
//!   TLS, HTTP head ▶ Policy::said     the name in the flow is the one that led to it
//!   HTTP request ──▶ Policy::request  under rules that name methods or paths
//! ```
//!
//! A policy that changes is asked again about every open flow ([`Policy::still_allows`]).
//!
//! # What rules mean
//!
//! * **host** opens names: they may be resolved, and reached at the addresses that DNS gave. A raw
//!   address is closed. `*.example.com` is every name below `example.com` and not `example.com`;
//!   `*` is every name. Private addresses are never opened by a name. Resolvers that answer over
//!   TLS or HTTPS, and port 853, are opened by no wildcard: a rule names them exactly.
//! * **cidr** opens addresses, whatever is said to them. It opens no name: DNS answers nothing. So
//!   the open internet is `[{"host": "*"}, {"cidr": "0.0.0.0/0"}, {"cidr": "::/0"}]`.
//! * **ports** without a protocol are TCP. A rule in `allow` without any has every TCP port; UDP is
//!   only where a rule says so (`"123/udp"`), and QUIC never under a name. A rule in `deny` without
//!   any has every port of both.
//! * **methods** and **paths** open single requests, in flows whose requests can be read.
//! * **deny** wins. It denies a name in every flow that a name led to or that says it; whoever
//!   also opens the addresses by cidr must deny those as well.
//! * Some places are closed to all policies: see [`Reserved`] and [`Site`].
#![forbid(unsafe_code)]

mod address;
mod cidr;
mod decide;
mod host;
mod json;
mod path;
mod pins;
mod policy;
mod port;
mod read;
mod resolvers;
#[cfg(test)]
mod tests;
mod verdict;

pub use address::{Reserved, Site};
pub use cidr::{Cidr, CidrError};
pub use decide::{Flow, Request};
pub use host::{Host, HostError, HostPattern};
pub use path::{InvalidPath, PathPrefix, plain as plain_path};
pub use pins::Pins;
pub use policy::{Bandwidth, Policy, Rule, Target};
pub use port::{InvalidPorts, Ports, Protocol};
pub use read::is_similar;
pub use verdict::{Check, Denied, Verdict};
