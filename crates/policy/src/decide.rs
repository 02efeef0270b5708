//! Decisions.
//!
//! ```text
//!            the address in every form, and the names
//!                             │
//!   never reachable? ──yes──▶ no     metadata, loopback, the host, …
//!                             │
//!   private? ──────────yes──▶ no     unless the operator's switch is on
//!                             │
//!   a deny rule? ──────yes──▶ no     in every form; any of the names
//!                             │
//!   an allow rule? ────no───▶ no     for a private address: a cidr in a private range
//!                             │
//!                            yes     by the rule that asks the least
//! ```
//!
//! The invariant: **every step only takes away.** A rule that is added to the deny list, or
//! removed from the allow list, never makes a no a yes. Allow rules see an address as it is, and
//! everything else sees its other forms too.

use std::net::IpAddr;
use std::slice;

use crate::address::{Kind, Site, faces, is_private, is_reserved};
use crate::host::{Host, HostPattern};
use crate::path::plain;
use crate::policy::{Policy, Rule, Target};
use crate::port::Protocol;
use crate::resolvers::{DNS_OVER_TLS, is_resolver};
use crate::verdict::{Check, Denied, Verdict};

/// A connection, or for UDP an exchange between two ports.
#[derive(Clone, Copy, Debug)]
pub struct Flow<'a> {
    /// What is spoken.
    pub protocol: Protocol,
    /// Where to.
    pub address: IpAddr,
    /// To which port.
    pub port: u16,
    /// The names that led there, which are those that [`crate::Pins`] has for the address. Once
    /// the flow has said its name, that one alone.
    pub names: &'a [Host],
}

/// A request of HTTP.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The name in its Host field or `:authority`.
    pub host: &'a Host,
    /// Its method.
    pub method: &'a str,
    /// Its target, as it is on the wire.
    pub target: &'a str,
}

impl Policy {
    /// Whether a name may be resolved. A deny rule for some ports of a name leaves the others, so
    /// it leaves the name.
    pub fn name(&self, name: &Host) -> Verdict {
        let names = |rule: &Rule| rule.names_any(slice::from_ref(name));
        if is_reserved(name) {
            return Verdict::Deny(Denied::ReservedName);
        }
        if let Some(rule) = self.deny.iter().position(|rule| rule.ports.is_empty() && names(rule)) {
            return Verdict::Deny(Denied::Rule(rule));
        }
        let reason = if is_resolver(name) { Denied::Resolver } else { Denied::Name };
        self.least(|rule| rule.opens_any(slice::from_ref(name), None))
            .unwrap_or(Verdict::Deny(reason))
    }

    /// Whether an address may be in an answer of DNS. This is what stops a public name from
    /// leading to a private place; the connection is decided once more when it comes.
    pub fn answer(&self, site: &Site, address: IpAddr) -> Result<(), Denied> {
        let kind = self.ground(site, address)?;
        let denies = |rule: &Rule| rule.ports.is_empty() && rule.covers(faces(address));
        if let Some(rule) = self.deny.iter().position(denies) {
            return Err(Denied::Rule(rule));
        }
        let named = || self.allow.iter().any(|rule| rule.names_private(address));
        if kind == Kind::Private && !named() { Err(Denied::Private) } else { Ok(()) }
    }

    /// Whether a flow may be opened, by any of the names that led to its address.
    pub fn connect(&self, site: &Site, flow: &Flow<'_>) -> Verdict {
        self.decide(site, flow, true)
    }

    /// The same once the flow has said its name, for example in a TLS server name. By name, it
    /// must be one that led to the address.
    pub fn said(&self, site: &Site, flow: &Flow<'_>, name: &Host) -> Verdict {
        let (led, names) = (flow.names.contains(name), slice::from_ref(name));
        self.decide(site, &Flow { names, ..*flow }, led)
    }

    /// Whether a request may be made in a flow. Each of a flow's requests has to be decided, also
    /// those after the first.
    pub fn request(&self, site: &Site, flow: &Flow<'_>, request: &Request<'_>) -> Verdict {
        let Request { host, method, target } = *request;
        // Any other form has a host of its own, and servers do not agree on which one counts.
        if !target.starts_with('/') && (method, target) != ("OPTIONS", "*") {
            return Verdict::Deny(Denied::Target);
        }
        let verdict = self.said(site, flow, host);
        let Verdict::Allow { check: Check::Requests, .. } = verdict else {
            return verdict;
        };
        let path = plain(target);
        let permitted = |rule: &Rule| {
            rule.reaches(flow.address, Kind::Public, slice::from_ref(host), flow.port)
                && rule.opens(flow.protocol, flow.port)
                && rule.permits(method, path.as_deref())
        };
        let reason = if path.is_none() { Denied::AmbiguousPath } else { Denied::Request };
        self.least(permitted).unwrap_or(Verdict::Deny(reason))
    }

    /// Whether a flow that is open may stay under this policy, after it has passed so much of a
    /// check. A flow that was never read cannot be read from its middle.
    pub fn still_allows(&self, site: &Site, flow: &Flow<'_>, passed: Check) -> bool {
        match self.connect(site, flow) {
            Verdict::Allow { check, .. } => check <= passed,
            Verdict::Deny(_) => false,
        }
    }

    fn decide(&self, site: &Site, flow: &Flow<'_>, led: bool) -> Verdict {
        let Flow { protocol, address, port, names } = *flow;
        let kind = match self.ground(site, address) {
            Ok(kind) => kind,
            Err(reason) => return Verdict::Deny(reason),
        };
        if names.iter().any(is_reserved) {
            return Verdict::Deny(Denied::ReservedName);
        }
        let denies = |rule: &Rule| {
            rule.closes(protocol, port) && (rule.covers(faces(address)) || rule.names_any(names))
        };
        if let Some(rule) = self.deny.iter().position(denies) {
            return Verdict::Deny(Denied::Rule(rule));
        }
        // A name that did not lead here allows nothing.
        let leading = if led { names } else { &[] };
        let reaches = |rule: &Rule| rule.reaches(address, kind, leading, port);
        self.least(|rule| reaches(rule) && rule.opens(protocol, port)).unwrap_or_else(|| {
            let here = self.allow.iter().any(reaches);
            let wild = self.allow.iter().any(|rule| rule.names_any(leading));
            let resolver = wild && (port == DNS_OVER_TLS || leading.iter().any(is_resolver));
            Verdict::Deny(if !led {
                Denied::Mismatch
            } else if kind == Kind::Private && !here {
                Denied::Private
            } else if protocol == Protocol::Udp {
                if port == 443 { Denied::Quic } else { Denied::Udp }
            } else if here {
                Denied::Port
            } else if resolver {
                Denied::Resolver
            } else if names.is_empty() {
                Denied::Address
            } else {
                Denied::Name
            })
        })
    }

    /// What the address is, if it is anything that a policy may speak of.
    fn ground(&self, site: &Site, address: IpAddr) -> Result<Kind, Denied> {
        match site.kind(address) {
            Kind::Never(reason) => Err(Denied::Reserved(reason)),
            Kind::Private if !site.private => Err(Denied::Private),
            kind => Ok(kind),
        }
    }

    /// Of the allow rules that match, the one that asks the least of a flow: rules add up, so a
    /// narrow one does not take back what a wide one gives.
    fn least(&self, matches: impl Fn(&Rule) -> bool) -> Option<Verdict> {
        let rules = self.allow.iter().enumerate().filter(|(_, rule)| matches(rule));
        rules
            .min_by_key(|(_, rule)| rule.check())
            .map(|(index, rule)| Verdict::Allow { rule: index, check: rule.check() })
    }
}

impl Rule {
    fn names_any(&self, names: &[Host]) -> bool {
        matches!(&self.target, Target::Host(pattern) if names.iter().any(|n| pattern.matches(n)))
    }

    fn covers(&self, mut addresses: impl Iterator<Item = IpAddr>) -> bool {
        matches!(&self.target, Target::Cidr(cidr) if addresses.any(|a| cidr.contains(a)))
    }

    fn names_private(&self, address: IpAddr) -> bool {
        matches!(&self.target, Target::Cidr(cidr) if is_private(cidr) && cidr.contains(address))
    }

    /// Whether an allowing rule is about one of the names. A wildcard is not about resolvers.
    fn opens_any(&self, names: &[Host], port: Option<u16>) -> bool {
        let Target::Host(pattern) = &self.target else { return false };
        let exactly = matches!(pattern, HostPattern::Exactly(_));
        names.iter().any(|name| {
            let resolver = port == Some(DNS_OVER_TLS) || is_resolver(name);
            pattern.matches(name) && (exactly || !resolver)
        })
    }

    /// Whether an allowing rule is about this destination.
    fn reaches(&self, address: IpAddr, kind: Kind, names: &[Host], port: u16) -> bool {
        match kind {
            Kind::Public => self.opens_any(names, Some(port)) || self.covers([address].into_iter()),
            Kind::Private => self.names_private(address),
            Kind::Never(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Reserved;
    use Verdict::{Allow, Deny};
    use serde_json::json;

    fn policy(json: serde_json::Value) -> Policy {
        serde_json::from_value(json).unwrap()
    }

    fn host(name: &str) -> Host {
        name.parse().unwrap()
    }

    /// A flow to `address`, `port` or `port/udp`, by names.
    fn connect(policy: &Policy, site: &Site, address: &str, port: &str, names: &[&str]) -> Verdict {
        let names: Vec<_> = names.iter().map(|name| host(name)).collect();
        let (port, protocol) = match port.strip_suffix("/udp") {
            Some(port) => (port, Protocol::Udp),
            None => (port, Protocol::Tcp),
        };
        let (address, port) = (address.parse().unwrap(), port.parse().unwrap());
        policy.connect(site, &Flow { protocol, address, port, names: &names })
    }

    #[test]
    fn the_default_is_closed() {
        let (none, site) = (Policy::default(), Site::default());
        assert_eq!(none.name(&host("pypi.org")), Deny(Denied::Name));
        assert_eq!(connect(&none, &site, "1.1.1.1", "443", &[]), Deny(Denied::Address));
        assert_eq!(connect(&none, &site, "8.8.8.8", "53/udp", &[]), Deny(Denied::Udp));
        assert_eq!(
            connect(&none, &site, "2606:4700::1111", "443", &["a.test"]),
            Deny(Denied::Name)
        );
        let metadata = connect(&none, &site, "169.254.169.254", "80", &[]);
        assert_eq!(metadata, Deny(Denied::Reserved(Reserved::Metadata)));
        assert_eq!(
            metadata.to_string(),
            "denied: a cloud's metadata service, which no policy opens"
        );
    }

    #[test]
    fn names_and_ports() {
        let site = Site::default();
        let policy = policy(json!({
            "allow": [
                { "host": "pypi.org", "ports": [443] },
                { "host": "*.test", "ports": [80, "123/udp"] },
                { "host": "any.example" },
            ],
            "deny": [{ "host": "*.bad.test" }, { "host": "half.test", "ports": [80] }],
        }));
        assert_eq!(policy.name(&host("PyPI.org.")), Allow { rule: 0, check: Check::Name });
        assert_eq!(policy.name(&host("test")), Deny(Denied::Name));
        assert_eq!(policy.name(&host("a.bad.test")), Deny(Denied::Rule(0)));
        assert!(
            policy.name(&host("bad.test")).is_allow() && policy.name(&host("half.test")).is_allow()
        );

        let to = |port, names: &[&str]| connect(&policy, &site, "198.51.100.1", port, names);
        assert_eq!(to("443", &["pypi.org"]), Allow { rule: 0, check: Check::Name });
        assert_eq!(to("443", &[]), Deny(Denied::Address));
        assert_eq!(to("80", &["pypi.org"]), Deny(Denied::Port));
        assert_eq!(to("443/udp", &["pypi.org"]), Deny(Denied::Quic));
        assert!(to("123/udp", &["ntp.test"]).is_allow());
        assert_eq!(to("123/udp", &["any.example"]), Deny(Denied::Udp));
        assert!(to("22", &["any.example"]).is_allow());
        assert_eq!(to("80", &["half.test"]), Deny(Denied::Rule(1)));
        // A denied name that leads to the same place closes it.
        assert_eq!(to("80", &["good.test", "a.bad.test"]), Deny(Denied::Rule(0)));
    }

    #[test]
    fn a_flow_says_the_name_that_led_to_it() {
        let site = Site { private: true, ..Site::default() };
        let names = [host("a.test"), host("b.test")];
        let to = |address: &str| Flow {
            protocol: Protocol::Tcp,
            address: address.parse().unwrap(),
            port: 443,
            names: &names,
        };
        let policy = policy(json!({
            "allow": [{ "host": "*" }, { "cidr": "203.0.113.0/24" }, { "cidr": "10.1.0.0/16" }],
            "deny": [{ "host": "evil.test" }],
        }));
        let said = |address, name| policy.said(&site, &to(address), &host(name));
        assert_eq!(said("198.51.100.1", "a.test"), Allow { rule: 0, check: Check::Name });
        assert_eq!(said("198.51.100.1", "c.test"), Deny(Denied::Mismatch));
        // Where the address alone is allowed, the name does not matter unless it is denied.
        assert_eq!(said("203.0.113.1", "c.test"), Allow { rule: 1, check: Check::Nothing });
        assert_eq!(said("10.1.2.3", "c.test"), Allow { rule: 2, check: Check::Nothing });
        assert_eq!(said("203.0.113.1", "evil.test"), Deny(Denied::Rule(0)));
        assert_eq!(said("203.0.113.1", "metadata.google.internal"), Deny(Denied::ReservedName));
    }

    #[test]
    fn private_networks_need_the_switch_and_a_cidr_of_their_own() {
        let everything = json!([{ "host": "*" }, { "cidr": "0.0.0.0/0" }, { "cidr": "::/0" }]);
        let mut named = everything.clone();
        named.as_array_mut().unwrap().push(json!({ "cidr": "10.1.0.0/16", "ports": [22] }));
        let (everything, named) =
            (policy(json!({ "allow": everything })), policy(json!({ "allow": named })));
        let closed = Site::default();
        let open = Site { private: true, ..Site::default() };
        for (policy, site, rule) in [
            (&everything, &closed, None),
            (&everything, &open, None),
            (&named, &closed, None),
            (&named, &open, Some(3)),
        ] {
            let want =
                rule.map_or(Deny(Denied::Private), |rule| Allow { rule, check: Check::Nothing });
            assert_eq!(connect(policy, site, "10.1.2.3", "22", &["a.test"]), want);
            assert_eq!(connect(policy, site, "::ffff:10.1.2.3", "22", &[]), want);
            assert_eq!(policy.answer(site, "10.1.2.3".parse().unwrap()).is_ok(), rule.is_some());
            for address in ["10.2.0.1", "fd00::1", "64:ff9b::10.1.2.3", "2002:a01:203::"] {
                assert_eq!(
                    connect(policy, site, address, "22", &["a.test"]),
                    Deny(Denied::Private),
                    "{address}"
                );
                assert_eq!(policy.answer(site, address.parse().unwrap()), Err(Denied::Private));
            }
            assert!(policy.answer(site, "1.1.1.1".parse().unwrap()).is_ok());
        }
        assert_eq!(connect(&named, &open, "10.1.2.3", "80", &["a.test"]), Deny(Denied::Port));
    }

    #[test]
    fn a_denied_network_is_denied_in_every_form() {
        let policy = policy(json!({
            "allow": [{ "cidr": "0.0.0.0/0" }, { "cidr": "::/0" }],
            "deny": [{ "cidr": "203.0.113.0/24" }, { "cidr": "198.51.100.0/24", "ports": ["53/udp"] }],
        }));
        let site = Site::default();
        for address in
            ["203.0.113.9", "::ffff:203.0.113.9", "64:ff9b::203.0.113.9", "2002:cb00:7109::1"]
        {
            assert_eq!(
                connect(&policy, &site, address, "443", &[]),
                Deny(Denied::Rule(0)),
                "{address}"
            );
            assert_eq!(policy.answer(&site, address.parse().unwrap()), Err(Denied::Rule(0)));
        }
        assert!(connect(&policy, &site, "198.51.100.1", "53", &[]).is_allow());
        assert!(policy.answer(&site, "198.51.100.1".parse().unwrap()).is_ok());
    }

    #[test]
    fn a_wildcard_opens_no_resolver() {
        let site = Site::default();
        let wild = policy(json!({ "allow": [{ "host": "*" }, { "host": "*.google" }] }));
        let exact = policy(json!({ "allow": [{ "host": "*" }, { "host": "dns.google" }] }));
        let rule = Allow { rule: 1, check: Check::Name };
        assert_eq!(wild.name(&host("dns.google")), Deny(Denied::Resolver));
        assert_eq!(exact.name(&host("dns.google")), rule);
        assert_eq!(exact.name(&host("x.dns.google")), Deny(Denied::Resolver));
        assert!(wild.name(&host("www.google")).is_allow());
        for port in ["443", "853"] {
            let to = |policy, names: &[&str]| connect(policy, &site, "1.1.1.1", port, names);
            assert_eq!(to(&wild, &["dns.google"]), Deny(Denied::Resolver), "{port}");
            assert_eq!(to(&exact, &["dns.google"]), rule, "{port}");
        }
        // Nothing but DNS is spoken there, whoever it is.
        let to = |policy, names: &[&str]| connect(policy, &site, "1.1.1.1", "853", names);
        assert_eq!(to(&exact, &["a.test"]), Deny(Denied::Resolver));
        assert_eq!(
            to(&policy(json!({ "allow": [{ "cidr": "1.0.0.0/8" }] })), &[]).rule(),
            Some("allow/0".to_owned())
        );
        let said = |policy: &Policy| {
            let names = [host("dns.google"), host("a.test")];
            let (protocol, address) = (Protocol::Tcp, "8.8.8.8".parse().unwrap());
            let flow = Flow { protocol, address, port: 443, names: &names };
            policy.said(&site, &flow, &host("dns.google"))
        };
        assert_eq!((said(&wild), said(&exact)), (Deny(Denied::Resolver), rule));
    }

    #[test]
    fn requests_are_read_where_a_rule_names_them() {
        let site = Site::default();
        let names = [host("a.test"), host("wide.test")];
        let flow = Flow {
            protocol: Protocol::Tcp,
            address: "198.51.100.1".parse().unwrap(),
            port: 443,
            names: &names,
        };
        let policy = policy(json!({ "allow": [
            { "host": "a.test", "methods": ["GET"], "paths": ["/simple", "/files/"] },
            { "host": "a.test", "methods": ["POST"], "ports": [443] },
            { "host": "wide.test", "paths": ["/x"] },
            { "host": "wide.test" },
            { "host": "a.test", "methods": ["DELETE"], "ports": [8443] },
        ] }));
        let ask = |host_name: &str, method, target| {
            policy.request(&site, &flow, &Request { host: &host(host_name), method, target })
        };
        assert_eq!(
            ask("a.test", "GET", "/simple/pip?x"),
            Allow { rule: 0, check: Check::Requests }
        );
        assert_eq!(ask("a.test", "GET", "/simpler"), Deny(Denied::Request));
        assert_eq!(ask("a.test", "get", "/simple"), Deny(Denied::Request));
        for (method, why) in [("PUT", "no rule has it"), ("DELETE", "at another port")] {
            assert_eq!(ask("a.test", method, "/simple"), Deny(Denied::Request), "{why}");
        }
        assert_eq!(ask("a.test", "GET", "/simple/../admin"), Deny(Denied::AmbiguousPath));
        assert_eq!(
            ask("a.test", "POST", "/any/../thing"),
            Allow { rule: 1, check: Check::Requests }
        );
        assert_eq!(ask("a.test", "POST", "http://b.test/"), Deny(Denied::Target));
        assert_eq!(ask("a.test", "CONNECT", "b.test:443"), Deny(Denied::Target));
        assert_eq!(ask("a.test", "OPTIONS", "*"), Deny(Denied::AmbiguousPath));
        assert_eq!(ask("c.test", "GET", "/simple"), Deny(Denied::Mismatch));
        // A rule that asks for less, although it comes later.
        let said = policy.said(&site, &flow, &host("wide.test"));
        assert_eq!(said, Allow { rule: 3, check: Check::Name });
        assert_eq!(ask("wide.test", "PUT", "/a//b"), Allow { rule: 3, check: Check::Name });
    }

    #[test]
    fn tightening_closes_what_was_not_read() {
        let names = [host("a.test")];
        let flow = Flow {
            protocol: Protocol::Tcp,
            address: "203.0.113.1".parse().unwrap(),
            port: 443,
            names: &names,
        };
        let still = |json, passed| policy(json).still_allows(&Site::default(), &flow, passed);
        assert!(still(json!({ "allow": [{ "cidr": "203.0.113.0/24" }] }), Check::Nothing));
        assert!(!still(json!({ "allow": [{ "host": "a.test" }] }), Check::Nothing));
        assert!(still(json!({ "allow": [{ "host": "a.test" }] }), Check::Name));
        assert!(!still(json!({ "allow": [{ "host": "a.test", "paths": ["/"] }] }), Check::Name));
        assert!(!still(json!("none"), Check::Requests));
    }
}
