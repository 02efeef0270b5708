//! Policies: text that is read as one says the same when it is said again, and a policy decides
//! about every name and address without a panic, and never for what no policy opens.
#![no_main]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use libfuzzer_sys::fuzz_target;
use pandastack_fuzz::Script;
use pandastack_policy::{Flow, Host, Policy, Protocol, Request, Site, Verdict};

/// Addresses that a guest must never reach, in some of their forms.
const NEVER: &str = "169.254.169.254 127.0.0.1 0.0.0.0 ::1 fe80::1 fd00:ec2::254 100.100.100.200 \
    64:ff9b::a9fe:a9fe ::ffff:127.0.0.1 224.0.0.1 192.0.2.1";

// The text, a zero byte, and what is asked about.
fuzz_target!(|bytes: &[u8]| {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let (text, probes) = bytes.split_at(end);
    let Ok(policy) = serde_json::from_slice::<Policy>(text) else { return };
    let canonical = serde_json::to_string(&policy).expect("it was read");
    assert!(canonical.len() <= Policy::MAX_LEN);
    let again: Policy = serde_json::from_str(&canonical).expect("the one spelling");
    assert_eq!(again, policy);
    assert_eq!(serde_json::to_string(&again).expect("it was read"), canonical);

    let own = vec!["192.0.2.0/24".parse().expect("a network")];
    let site = Site { own, control: Vec::new(), private: true };
    for address in NEVER.split_whitespace() {
        let address = address.parse().expect("an address");
        assert!(policy.answer(&site, address).is_err(), "{address}");
        let names = ["a.test".parse().expect("a name")];
        let flow = Flow { protocol: Protocol::Tcp, address, port: 443, names: &names };
        assert!(!policy.connect(&site, &flow).is_allow(), "{address}");
    }
    let mut script = Script(probes.get(1..).unwrap_or_default());
    while probe(&policy, &site, &mut script).is_some() {}
});

fn probe(policy: &Policy, site: &Site, script: &mut Script<'_>) -> Option<()> {
    let what = script.u8()?;
    let address: IpAddr = match what & 1 {
        0 => Ipv4Addr::from(script.take::<4>()?).into(),
        _ => Ipv6Addr::from(script.take::<16>()?).into(),
    };
    let port = script.u16()?;
    let protocol = if what & 2 == 0 { Protocol::Tcp } else { Protocol::Udp };
    let text = script.some(60)?;
    let mut words = text.split(|byte| *byte == b' ');
    let said = words.next().and_then(|word| Host::parse(word).ok())?;
    let names: Vec<Host> = words.by_ref().take(2).flat_map(Host::parse).collect();
    let target = words.next().and_then(|word| str::from_utf8(word).ok()).unwrap_or("/");

    let flow = Flow { protocol, address, port, names: &names };
    let request = Request { host: &said, method: "GET", target };
    let verdicts = [
        policy.name(&said),
        policy.connect(site, &flow),
        policy.said(site, &flow, &said),
        policy.request(site, &flow, &request),
    ];
    for verdict in verdicts {
        if let Verdict::Allow { rule, .. } = verdict {
            assert!(rule < policy.allow().len());
        }
        assert!(!verdict.to_string().contains('\n'));
    }
    // A request is never more than the flow that it is in.
    assert!(!verdicts[3].is_allow() || verdicts[2].is_allow());
    if let Verdict::Allow { check, .. } = verdicts[1] {
        assert!(policy.still_allows(site, &flow, check));
    }
    Some(())
}
