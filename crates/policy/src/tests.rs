//! Properties of whole policies.
//!
//! Names, networks and addresses come from small sets that overlap a lot, so that rules meet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;
use proptest::sample::{Index, select};
use serde_json::{Value, json};

use crate::*;

const NAMES: &str = "a.test b.a.test c.b.a.test b.test test metadata.google.internal dns.google";

const ADDRESSES: &str = "203.0.113.1 203.0.113.200 198.51.100.1 255.255.255.254 1.1.1.1 10.1.0.1 \
    10.2.0.1 fd00::1 2606:4700::1111 64:ff9b::203.0.113.1 64:ff9b::10.1.0.1 2002:cb00:7101::1 \
    ::ffff:203.0.113.1 169.254.169.254 ::1 192.0.2.1";

const HOSTS: &str = "a.test *.a.test *.test b.test * metadata.google.internal dns.google";

const CIDRS: &str = "0.0.0.0/0 ::/0 203.0.113.0/24 203.0.113.1/32 198.0.0.0/8 10.1.0.0/16 \
    10.0.0.0/8 fd00::/8 64:ff9b::/96 169.254.169.254/32 fc00::/7";

/// One word of a list.
fn one_of(words: &'static str) -> impl Strategy<Value = &'static str> {
    select(words.split(' ').collect::<Vec<_>>())
}

fn target() -> impl Strategy<Value = (&'static str, &'static str)> {
    prop_oneof![
        one_of(HOSTS).prop_map(|host| ("host", host)),
        one_of(CIDRS).prop_map(|cidr| ("cidr", cidr)),
    ]
}

fn rule(allows: bool) -> impl Strategy<Value = Value> {
    let ports = proptest::option::of(select(vec![
        json!([443]),
        json!(["80-90", 443]),
        json!(["53/udp"]),
        json!([22, "1-442/udp"]),
    ]));
    let requests =
        select(vec![json!({}), json!({ "methods": ["GET"] }), json!({ "paths": ["/a"] })]);
    (target(), ports, requests).prop_map(move |((kind, text), ports, requests)| {
        let mut rule = json!({ kind: text });
        let udp = ports.as_ref().is_some_and(|ports| ports.to_string().contains("udp"));
        if let Some(ports) = ports {
            rule["ports"] = ports;
        }
        if allows && kind == "host" && !udp {
            rule.as_object_mut().unwrap().extend(requests.as_object().unwrap().clone());
        }
        rule
    })
}

fn policy() -> impl Strategy<Value = Policy> {
    let list = |allows| proptest::collection::vec(rule(allows), 0..5);
    (list(true), list(false), any::<bool>(), proptest::option::of(1_u32..=65_536)).prop_map(
        |(allow, deny, log, limit)| {
            let mut json = json!({ "allow": allow, "deny": deny, "log": log });
            if let Some(limit) = limit {
                json["max_connections"] = limit.into();
            }
            serde_json::from_value(json).unwrap()
        },
    )
}

fn site() -> impl Strategy<Value = Site> {
    any::<bool>().prop_map(|private| Site {
        own: vec!["192.0.2.0/25".parse().unwrap()],
        control: vec!["192.0.2.200".parse().unwrap()],
        private,
    })
}

/// Every question that can be asked about one place.
#[derive(Clone, Debug)]
struct Probe {
    protocol: Protocol,
    address: IpAddr,
    port: u16,
    names: Vec<Host>,
    said: Host,
    method: &'static str,
    target: &'static str,
}

fn name() -> impl Strategy<Value = Host> {
    one_of(NAMES).prop_map(|name| name.parse().unwrap())
}

fn probe() -> impl Strategy<Value = Probe> {
    let address = one_of(ADDRESSES).prop_map(|address| address.parse().unwrap());
    let names = proptest::collection::vec(name(), 0..3);
    let request = (select(vec!["GET", "PUT"]), select(vec!["/a/b", "/b", "/a/../b"]));
    let place =
        (select(vec![Protocol::Tcp, Protocol::Udp]), address, select(vec![22, 53, 85, 443, 853]));
    (place, names, name(), request).prop_map(
        |((protocol, address, port), names, said, (method, target))| Probe {
            protocol,
            address,
            port,
            names,
            said,
            method,
            target,
        },
    )
}

impl Probe {
    fn flow(&self) -> Flow<'_> {
        Flow { protocol: self.protocol, address: self.address, port: self.port, names: &self.names }
    }

    fn ask(&self, policy: &Policy, site: &Site) -> [bool; 5] {
        let (flow, host) = (self.flow(), &self.said);
        let request = Request { host, method: self.method, target: self.target };
        [
            policy.name(host).is_allow(),
            policy.answer(site, self.address).is_ok(),
            policy.connect(site, &flow).is_allow(),
            policy.said(site, &flow, host).is_allow(),
            policy.request(site, &flow, &request).is_allow(),
        ]
    }
}

/// Addresses that no policy may open.
fn never() -> impl Strategy<Value = Ipv4Addr> {
    let base = "169.254.0.0/16 127.0.0.0/8 0.0.0.0/8 224.0.0.0/4 240.0.0.0/4 100.100.100.200/32 \
                255.255.255.255/32 192.0.2.0/25 192.0.2.200/32";
    (one_of(base), any::<u32>()).prop_map(|(base, bits)| {
        let (base, prefix) = base.split_once('/').unwrap();
        let (base, prefix): (Ipv4Addr, u32) = (base.parse().unwrap(), prefix.parse().unwrap());
        Ipv4Addr::from_bits(base.to_bits() | (u64::from(bits) % (1 << (32 - prefix))) as u32)
    })
}

/// An IPv4 address in all the forms that are another way to it.
fn forms(v4: Ipv4Addr) -> Vec<IpAddr> {
    let [a, b, c, d] = v4.octets();
    let [high, low] = [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])];
    let v6 = |groups: [u16; 8]| IpAddr::V6(Ipv6Addr::from(groups));
    vec![
        v4.into(),
        v6([0, 0, 0, 0, 0, 0xffff, high, low]),
        v6([0, 0, 0, 0, 0, 0, high, low]),
        v6([0, 0, 0, 0, 0xffff, 0, high, low]),
        v6([0x64, 0xff9b, 0, 0, 0, 0, high, low]),
        v6([0x2002, high, low, 7, 0, 0, 0, 1]),
        v6([0x2001, 0, high, low, 0, 0, 0xf7f7, 0xf7f7]),
        v6([0x2001, 0, 0x0808, 0x0808, 0, 0, !high, !low]),
    ]
}

proptest! {
    #[test]
    fn policies_round_trip(policy in policy()) {
        let text = serde_json::to_string(&policy).unwrap();
        let again: Policy = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(serde_json::to_string(&again).unwrap(), text);
        prop_assert_eq!(again, policy);
    }

    /// More in deny and less in allow: a no never becomes a yes.
    #[test]
    fn every_step_only_takes_away(
        policy in policy(), other in policy(), site in site(), probe in probe(), at in any::<Index>(),
    ) {
        let before = probe.ask(&policy, &site);
        let mut tighter = vec![];
        for rule in other.deny() {
            let mut next = policy.clone();
            next.deny.insert(at.index(next.deny.len() + 1), rule.clone());
            tighter.push(next);
        }
        if !policy.allow().is_empty() {
            let mut next = policy.clone();
            next.allow.remove(at.index(next.allow.len()));
            tighter.push(next);
        }
        for next in tighter {
            for (was, is) in before.into_iter().zip(probe.ask(&next, &site)) {
                prop_assert!(was || !is, "{next:?}");
            }
        }
    }

    /// What a policy allows is nothing that one of its deny rules speaks of.
    #[test]
    fn deny_wins(policy in policy(), site in site(), probe in probe()) {
        if !policy.connect(&site, &probe.flow()).is_allow() {
            return Ok(());
        }
        for rule in policy.deny() {
            let ports = rule.ports.is_empty() || rule.ports.iter().any(|p| p.contains(probe.protocol, probe.port));
            let place = match rule.target() {
                Target::Host(pattern) => probe.names.iter().any(|name| pattern.matches(name)),
                Target::Cidr(cidr) => cidr.contains(probe.address),
            };
            prop_assert!(!(ports && place), "{rule:?}");
        }
    }

    /// A yes to a connection is a rule's, and a name's if the rule is about names.
    #[test]
    fn a_yes_has_its_rule(policy in policy(), site in site(), probe in probe()) {
        if let Verdict::Allow { rule, check } = policy.connect(&site, &probe.flow()) {
            let rule = &policy.allow()[rule];
            let udp = rule.ports.iter().any(|p| p.contains(Protocol::Udp, probe.port));
            prop_assert!(probe.protocol == Protocol::Tcp || udp);
            match rule.target() {
                Target::Host(pattern) => {
                    prop_assert!(probe.names.iter().any(|name| pattern.matches(name)));
                    prop_assert!(check > Check::Nothing);
                }
                Target::Cidr(cidr) => prop_assert!(cidr.contains(probe.address)),
            }
            let flow = probe.flow();
            prop_assert!(policy.still_allows(&site, &flow, check));
        }
    }

    /// Without a cidr, who reaches a resolver was named.
    #[test]
    fn a_wildcard_leads_to_no_resolver(policy in policy(), site in site(), mut probe in probe()) {
        probe.names.truncate(1);
        let name = probe.names.first();
        let resolver = name.is_some_and(|name| name.as_str() == "dns.google");
        if let Verdict::Allow { rule, .. } = policy.connect(&site, &probe.flow())
            && let Target::Host(pattern) = policy.allow()[rule].target()
            && (resolver || probe.port == 853)
        {
            prop_assert_eq!(pattern, &HostPattern::Exactly(probe.names[0].clone()));
        }
    }

    /// Whatever a policy says, and even if it names the very address.
    #[test]
    fn some_places_are_closed_to_all_policies(policy in policy(), mut site in site(), v4 in never(), probe in probe()) {
        site.private = true;
        for address in forms(v4) {
            let mut policy = policy.clone();
            let everything = json!({ "allow": [
                { "host": "*" }, { "cidr": "0.0.0.0/0" }, { "cidr": "::/0" },
                { "cidr": Cidr::single(address), "ports": ["1-65535", "1-65535/udp"] },
            ] });
            policy.allow.extend(serde_json::from_value::<Policy>(everything).unwrap().allow);
            let probe = Probe { address, ..probe.clone() };
            let [_, answer, connect, said, request] = probe.ask(&policy, &site);
            prop_assert!(!answer && !connect && !said && !request, "{address}");
        }
        for name in ["metadata.google.internal", "metadata", "x.metadata.google.internal"] {
            prop_assert!(!policy.name(&name.parse().unwrap()).is_allow());
        }
    }

    /// Text of any kind is refused or is a policy, and never a panic.
    #[test]
    fn any_json_is_read(text in r#"(\{|\[|"(allow|host|cidr|ports|none|\*|a\.test|::/0)"|:|,|1|null|\}|\]){0,30}"#) {
        if let Ok(policy) = serde_json::from_str::<Policy>(&text) {
            prop_assert!(policy.allow().len() <= 30);
        }
    }
}
