//! What is left of a service's record.

use super::super::service::rewrite;
use super::*;

/// The data of a record: priority, target, keys with values.
fn record(priority: u16, target: &str, keys: &[(u16, &[u8])]) -> Vec<u8> {
    let packet = Packet::default().words(&[priority]).name(target);
    let key = |packet: Packet, (key, value): &(u16, &[u8])| {
        packet.words(&[*key, value.len() as u16]).bytes(value)
    };
    keys.iter().fold(packet, key).0
}

fn left(data: &[u8]) -> Option<Vec<u8>> {
    rewrite(data, &[&host("a.test"), &host("b.test")])
}

const H2: (u16, &[u8]) = (1, b"\x02h2\x08http/1.1");
const PORT: (u16, &[u8]) = (3, &[0x20, 0xfb]);
const ECH: (u16, &[u8]) = (5, b"secret");
const V4: (u16, &[u8]) = (4, &[192, 0, 2, 1]);
const V6: (u16, &[u8]) = (6, &[0; 16]);

#[test]
fn keys_that_lead_elsewhere_are_taken_out() {
    let kept = record(1, "", &[H2, PORT]);
    assert_eq!(left(&kept), Some(kept.clone()));
    let keys = [H2, PORT, V4, ECH, V6, (7, b"/dns-query{?dns}"), (9, &[1]), (65280, &[])];
    assert_eq!(left(&record(1, "", &keys)), Some(kept.clone()));
    for target in ["a.test", "A.TEST", "b.test"] {
        assert_eq!(left(&record(1, target, &[H2, PORT])), Some(kept.clone()), "{target}");
    }
    let mandatory = record(1, "", &[(0, &[0, 1, 0, 3]), H2, PORT]);
    assert_eq!(left(&mandatory), Some(mandatory));
    assert_eq!(left(&record(7, "", &[(2, &[])])), Some(record(7, "", &[(2, &[])])));
}

#[test]
fn what_cannot_be_rewritten_is_dropped() {
    let half = record(1, "", &[H2]);
    for (what, data) in [
        ("an alias", record(0, "b.test", &[])),
        ("an alias of nothing", record(0, "", &[])),
        ("another target", record(1, "c.test", &[H2])),
        ("a target that is no host", record(1, "c d", &[H2])),
        ("keys out of order", record(1, "", &[PORT, H2])),
        ("a key twice", record(1, "", &[H2, H2])),
        ("hints that must be understood", record(1, "", &[(0, &[0, 4]), V4])),
        ("ech that must be understood", record(1, "", &[(0, &[0, 5]), ECH])),
        ("a mandatory key that is not there", record(1, "", &[(0, &[0, 1])])),
        ("that mandatory is mandatory", record(1, "", &[(0, &[0, 0])])),
        ("mandatory keys out of order", record(1, "", &[(0, &[0, 3, 0, 1]), H2, PORT])),
        ("half a key", record(1, "", &[(0, &[0]), H2])),
        ("no protocols", record(1, "", &[(1, &[])])),
        ("an empty protocol", record(1, "", &[(1, &[0])])),
        ("half a protocol", record(1, "", &[(1, b"\x03h2")])),
        ("a port of one byte", record(1, "", &[(3, &[1])])),
        ("a value where there is none", record(1, "", &[(2, &[1])])),
        ("a half", half[..half.len() - 1].to_vec()),
        ("a pointer", vec![0, 1, 0xc0, 0]),
        ("nothing", vec![]),
    ] {
        assert_eq!(left(&data), None, "{what}");
    }
}

#[test]
fn a_service_is_asked_for_and_told_without_what_hides() {
    let mut resolver = resolver(1);
    let (policy, site) = (every_name(), Site::default());
    let out = asked(&mut resolver, "a.test", RecordType::HTTPS, &policy);
    let alias = Packet::default().name("b.test").0;
    let packet = Packet::header(101, 0x8180, [1, 4, 0, 0])
        .question("a.test", RecordType::HTTPS)
        .record("a.test", RecordType::CNAME, 60, &alias)
        .record("b.test", RecordType::HTTPS, 60, &record(1, "", &[H2, V4, ECH, V6]))
        .record("b.test", RecordType::HTTPS, 60, &record(2, "c.test", &[H2]))
        .record("b.test", RecordType::HTTPS, 60, &record(0, "c.test", &[]));
    let out: Out = resolver.answered(NOW, out.key(), &packet.0, &policy, &site).into();
    let reply = out.reply();
    assert_eq!(reply.records, [(65, 60, record(1, "", &[H2]))]);
    assert!(out.pins.is_empty());
}
