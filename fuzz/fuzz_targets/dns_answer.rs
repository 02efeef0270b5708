//! What a resolver says, or somebody who pretends to be one: nothing is told or pinned but
//! addresses that the policy lets into an answer, and what is told is what is pinned.
#![no_main]

use std::net::IpAddr;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use pandastack_fuzz::Script;
use pandastack_gateway::dns::{Answer, RecordType, Resolver, Step, Transport};
use pandastack_policy::{Host, Pins, Policy, Site};

const NOW: Duration = Duration::ZERO;

fuzz_target!(|bytes: &[u8]| {
    let mut script = Script(bytes);
    let Some(what) = script.u8() else { return };
    let kind = [1_u8, 28, 64, 65][usize::from(what % 4)];
    let site = Site {
        own: vec!["198.51.100.0/24".parse().expect("a network")],
        control: vec!["203.0.113.9".parse().expect("an address")],
        private: what & 4 != 0,
    };
    let text = r#"{"allow":[{"host":"*"},{"cidr":"10.1.0.0/16"}],"deny":[{"host":"bad.test"}]}"#;
    let policy: Policy = serde_json::from_str(text).expect("a policy");
    let question = [&b"\x01a\x04test\x00\x00"[..], &[kind, 0, 1]].concat();
    let ask = [&b"\x00\x07\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00"[..], &question].concat();

    let mut id = 0;
    let mut resolver = Resolver::with_ids(2, move || {
        id += 1;
        Some(id)
    });
    let from = if what & 8 == 0 { Transport::Udp } else { Transport::Tcp };
    let mut waiting = resolver.ask(NOW, &ask, 1_u8, from, &policy);
    // Packets by turns, each for the last question; some get a proper beginning.
    for turn in 0..12 {
        let Some(Step::Send { key, packet: asked, .. }) = waiting.pop() else { break };
        let Some(len) = script.u16() else { break };
        let packet = script.0.get(..usize::from(len % 2048)).unwrap_or(script.0);
        script.0 = &script.0[packet.len()..];
        let proper =
            [&asked[..2], &[0x81, 0x80, 0, 1], packet.get(..1).unwrap_or(&[]), packet].concat();
        let packet = if len & 0x8000 == 0 { begin(&asked[..2], packet, &question) } else { proper };
        let steps = resolver.answered(NOW, key, &packet, &policy, &site);
        check(&steps, &packet, kind, &policy, &site);
        let answered = steps.iter().any(|step| matches!(step, Step::Reply { .. }));
        assert_eq!(resolver.pending(), usize::from(!answered));
        let again: Vec<Step<u8>> =
            steps.into_iter().filter(|s| matches!(s, Step::Send { .. })).collect();
        waiting = if again.is_empty() && !answered {
            resolver.tick(Duration::from_secs(2 * turn + 2))
        } else {
            again
        };
        waiting.retain(|step| matches!(step, Step::Send { .. }));
    }
});

/// Flags and counts of the script between the id and the question.
fn begin(id: &[u8], packet: &[u8], question: &[u8]) -> Vec<u8> {
    let (head, rest) = packet.split_at(packet.len().min(4));
    let field = |at: usize| head.get(at).copied().unwrap_or(0);
    let flags = [0x81 | field(0) & 2, 0x80 | field(1) & 0x0f, 0, 1];
    [id, &flags, &[0, field(2), 0, 0, 0, field(3)], question, rest].concat()
}

fn check(steps: &[Step<u8>], packet: &[u8], kind: u8, policy: &Policy, site: &Site) {
    let pinned: Vec<IpAddr> = steps
        .iter()
        .filter_map(|step| match step {
            Step::Pin { name, addresses, ttl } => {
                assert_eq!(name.as_str(), "a.test");
                assert!(!addresses.is_empty() && *ttl == Pins::ttl(*ttl));
                Some(addresses.clone())
            }
            _ => None,
        })
        .flatten()
        .collect();
    for address in &pinned {
        assert_eq!(policy.answer(site, *address), Ok(()), "{address}");
        let octets = match address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        assert!(packet.windows(octets.len()).any(|part| part == octets), "out of the packet");
    }
    for step in steps {
        let Step::Reply { client: 1, packet } = step else { continue };
        let name: Host = "a.test".parse().expect("a name");
        // Our own answers are proper ones, unless they are errors or do not fit.
        let Ok(answer) = Answer::parse(packet, 7, &name, RecordType(kind.into())) else {
            assert!(packet[3] & 15 == 2 || packet[2] & 2 != 0, "{packet:?}");
            continue;
        };
        assert_eq!(answer.addresses, pinned);
        assert!(answer.chain.is_empty() && answer.services.iter().all(|data| is_clean(data)));
    }
}

/// Of itself, and without the keys that hide or lead away.
fn is_clean(data: &[u8]) -> bool {
    let mut rest = &data[3..];
    while let [high, low, a, b, more @ ..] = rest {
        let len = usize::from(u16::from_be_bytes([*a, *b]));
        if *high != 0 || *low > 3 {
            return false;
        }
        rest = &more[len..];
    }
    data[2] == 0 && rest.is_empty()
}
