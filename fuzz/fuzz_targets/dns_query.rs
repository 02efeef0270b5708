//! What a guest asks: whatever it writes, a resolver sees nothing of it but a name that the policy
//! allows and one of four types, and the guest gets a proper answer or none.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use pandastack_fuzz::Script;
use pandastack_gateway::dns::{Key, MAX_UDP, Query, Resolver, Step, Transport};
use pandastack_policy::Policy;

const ID: u16 = 0x1234;

const POLICIES: [&str; 3] = [
    r#""none""#,
    r#"{"allow":[{"host":"*.test"}],"deny":[{"host":"bad.test"}]}"#,
    r#"{"allow":[{"host":"*"}]}"#,
];

fuzz_target!(|bytes: &[u8]| {
    let mut script = Script(bytes);
    let Some(what) = script.u8() else { return };
    let packet = script.0;
    let text = POLICIES[usize::from(what) % POLICIES.len()];
    let policy: Policy = serde_json::from_str(text).expect("a policy");
    let from = if what & 0x80 == 0 { Transport::Udp } else { Transport::Tcp };
    let mut resolver = Resolver::with_ids(1, || Some(ID));
    let (mut sent, mut replies) = (0, 0);
    for step in resolver.ask(Duration::ZERO, packet, 1_u8, from, &policy) {
        match step {
            Step::Send { key, resolver: 0, transport: Transport::Udp, packet: asked } => {
                assert_eq!(key, Key(0));
                check_question(packet, &asked, &policy);
                sent += 1;
            }
            Step::Reply { client: 1, packet: reply } => {
                check_reply(packet, &reply, from);
                replies += 1;
            }
            Step::Log(line) => assert!(
                !line.reason.contains('\n')
                    && line.name.as_ref().is_none_or(|name| name.is_ascii())
            ),
            step => panic!("{step:?}"),
        }
    }
    assert!(sent + replies <= 1);
    assert_eq!(resolver.pending(), sent);
    assert!(packet.len() < 12 || packet[2] & 0x80 != 0 || sent + replies == 1, "no silence");
});

/// It is made from the name and the type alone.
fn check_question(packet: &[u8], asked: &[u8], policy: &Policy) {
    let query = Query::parse(packet).expect("or nothing is asked");
    let name = query.name.expect("or nothing is asked");
    assert!(policy.name(&name).is_allow());
    assert!([1, 28, 64, 65].contains(&query.kind.0));
    let mut expected = ID.to_be_bytes().to_vec();
    expected.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
    for label in name.as_str().split('.') {
        expected.push(label.len() as u8);
        expected.extend(label.bytes());
    }
    expected.extend([0, 0, query.kind.0 as u8, 0, 1, 0, 0, 41, 4, 0xd0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(asked, expected);
}

/// Id and question are the guest's, and it is of a length that the guest takes.
fn check_reply(packet: &[u8], reply: &[u8], from: Transport) {
    assert_eq!(reply[..2], packet[..2]);
    assert!(reply[2] & 0x80 != 0, "an answer");
    assert!(from == Transport::Tcp || reply.len() <= usize::from(MAX_UDP));
    assert_eq!(reply[6..10], [0; 4], "no records without a resolver");
    if reply[5] == 1 {
        let end = 12 + reply[12..].iter().zip(&packet[12..]).take_while(|(a, b)| a == b).count();
        assert!(end >= 17, "the question");
    }
}
