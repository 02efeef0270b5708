//! Packets as such.

use super::*;
use pandastack_policy::HostError;
use proptest::prelude::*;

#[test]
fn a_question_is_read() {
    let packet = Packet::header(0xabcd, 0x0100, [1, 0, 0, 1])
        .question("PyPI.Org", RecordType::A)
        .opt(4096, &[0, 10, 0, 2, 1, 2]);
    let query = Query::parse(&packet.0).unwrap();
    assert_eq!((query.name, query.kind), (Ok(host("pypi.org")), RecordType::A));
    assert_eq!((query.frame.id, query.frame.edns), (0xabcd, Some(4096)));
    assert!(query.frame.recursion_desired);
    assert_eq!(query.frame.question, Packet::default().question("PyPI.Org", RecordType::A).0);
}

#[test]
fn what_is_no_question_is_answered_with_an_error_or_not_at_all() {
    let asked = |flags, counts| Packet::header(1, flags, counts).question("a.test", RecordType::A);
    let silent = [
        vec![],
        vec![0; 11],
        ask("a.test", RecordType::A)[..11].to_vec(),
        asked(0x8100, [1, 0, 0, 0]).0, // an answer
    ];
    for packet in silent {
        assert_eq!(Query::parse(&packet), Err(QueryError::Silent), "{packet:?}");
    }
    let header = |counts| Packet::header(1, 0x0100, counts);
    let no_root = Packet::header(1, 0x0100, [1, 0, 0, 1]).question("a.test", RecordType::A);
    for (code, packet) in [
        (4, asked(0x2000, [1, 0, 0, 0])), // NOTIFY
        (4, asked(0x2800, [0, 0, 0, 0])), // UPDATE
        (1, header([0, 0, 0, 0])),
        (1, asked(0x0100, [2, 0, 0, 0]).question("b.test", RecordType::A)),
        (1, asked(0x0100, [1, 1, 0, 0]).record("a.test", RecordType::A, 1, &[1; 4])),
        (1, asked(0x0100, [1, 0, 1, 0]).record("a.test", RecordType(6), 1, &[])),
        (1, asked(0x0100, [1, 0, 0, 5])),
        (1, asked(0x0100, [1, 0, 0, 1])), // and it is not there
        (1, asked(0x0100, [1, 0, 0, 2]).opt(512, &[]).opt(512, &[])),
        (1, no_root.record("x", RecordType::OPT, 0, &[])),
        (1, asked(0x0100, [1, 0, 0, 0]).bytes(b"more")),
        (1, header([1, 0, 0, 0]).bytes(&[0xc0, 12, 0, 1, 0, 1])), // a pointer to itself
        (1, header([1, 0, 0, 0]).bytes(&[0x41, 1, 0, 0, 1, 0, 1])), // a label of the old kind
        (1, header([1, 0, 0, 0]).bytes(&[5, b'a', b'b'])),
        (1, header([1, 0, 0, 0]).name("a.test").words(&[1])),
        (5, header([1, 0, 0, 0]).name("version.bind").words(&[16, 3])), // CHAOS
        (5, header([1, 0, 0, 0]).name("a.test").words(&[1, 255])),
    ] {
        let Err(QueryError::Answered { packet: error, .. }) = Query::parse(&packet.0) else {
            panic!("{:?}", packet.0)
        };
        let reply = Reply::read(&error);
        assert_eq!((reply.code(), reply.id, reply.records.len()), (code, 1, 0), "{:?}", packet.0);
        assert_eq!(reply.flags & 0x7800, u16::from_be_bytes([packet.0[2], 0]) & 0x7800);
    }
}

#[test]
fn another_version_of_edns_is_told_so() {
    let packet = Packet::header(1, 0x0100, [1, 0, 0, 1]).question("a.test", RecordType::A);
    let packet = packet.bytes(&[0]).words(&[41, 4096, 0x0001, 0, 0]);
    let Err(QueryError::Answered { packet, .. }) = Query::parse(&packet.0) else { panic!() };
    let reply = Reply::read(&packet);
    assert_eq!((reply.code(), reply.edns), (0, Some((vec![], 1))), "16, in two parts");
}

#[test]
fn a_name_that_no_host_has_is_told_apart() {
    let query = |labels: &[&[u8]]| {
        let mut packet = Packet::header(1, 0, [1, 0, 0, 0]);
        for label in labels {
            packet = packet.bytes(&[label.len() as u8]).bytes(label);
        }
        Query::parse(&packet.bytes(&[0, 0, 1, 0, 1]).0).unwrap()
    };
    let check = |labels: &[&[u8]], error, shown| {
        let query = query(labels);
        assert_eq!((&query.name, &*query.shown()), (&Err(error), shown));
    };
    check(&[], HostError::Empty, ".");
    check(&[b"a.b", b"test"], HostError::Byte(b'.'), "a.b.test");
    check(&[b"evil\0", b"test"], HostError::Byte(0), "evil\\x00.test");
    check(&[b"a\r\n", b"test"], HostError::Byte(b'\r'), "a\\r\\n.test");
    check(&[b"\xff\xfe"], HostError::NotAscii, "\\xff\\xfe");
    check(&[b"127", b"1"], HostError::Address, "127.1");
}

#[test]
fn an_answer_says_so_where_it_does_not_fit() {
    let query = |edns: Option<u16>| {
        let packet = Packet::header(1, 0x0100, [1, 0, 0, u16::from(edns.is_some())])
            .question("a.test", RecordType::AAAA);
        let packet = edns.map_or(packet.clone(), |size| packet.opt(size, &[]));
        Query::parse(&packet.0).unwrap()
    };
    let told = |records| reply::Told { records: vec![vec![7; 16]; records], ..Default::default() };
    // 12 + 12 of header and question, 28 a record, 11 of EDNS.
    for (edns, records, whole) in [
        (None, 17, true),
        (None, 18, false),
        (Some(0), 17, true),
        (Some(0), 18, false),
        (Some(1000), 34, true),
        (Some(1000), 35, false),
        (Some(65535), 42, true),
        (Some(65535), 43, false),
    ] {
        let frame = query(edns).frame;
        let packet = frame.answer(RecordType::AAAA, &told(records), Transport::Udp);
        let reply = Reply::read(&packet);
        assert_eq!(reply.flags & 0x0200 == 0, whole, "{edns:?} {records}");
        assert_eq!(reply.records.len(), if whole { records } else { 0 });
        assert!(packet.len() <= usize::from(edns.unwrap_or(512).clamp(512, MAX_UDP)));
        let packet = frame.answer(RecordType::AAAA, &told(records), Transport::Tcp);
        assert_eq!(Reply::read(&packet).records.len(), records);
    }
}

#[test]
fn types_have_names() {
    for (number, name) in [(1, "A"), (28, "AAAA"), (65, "HTTPS"), (255, "ANY"), (9999, "TYPE9999")]
    {
        assert_eq!(RecordType(number).to_string(), name);
    }
}

fn label() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9_]{1,20}"
}

proptest! {
    /// What a resolver is asked is read as what the guest asked, and nothing else of that is in it.
    #[test]
    fn a_question_is_passed_on(
        labels in proptest::collection::vec(label(), 1..6), kind in any::<u16>(), id in any::<u16>(),
    ) {
        let name = labels.join(".");
        prop_assume!(name.parse::<Host>().is_ok());
        let packet = Packet::header(1, 0x0100, [1, 0, 0, 0]).question(&name, RecordType(kind));
        let query = Query::parse(&packet.0).unwrap();
        prop_assert_eq!(&query.name, &Ok(host(&name)));
        let asked = reply::question(id, &host(&name), query.kind);
        let again = Query::parse(&asked).unwrap();
        prop_assert_eq!((&again.name, again.kind), (&query.name, query.kind));
        prop_assert_eq!((again.frame.id, again.frame.edns), (id, Some(MAX_UDP)));
        prop_assert_eq!(asked.len(), 12 + name.len() + 2 + 4 + 11);
        let question = Packet::default().question(&name.to_lowercase(), query.kind).0;
        prop_assert_eq!(again.frame.question, question);
    }

    /// What we write of addresses is what is read of an answer.
    #[test]
    fn addresses_round_trip(
        addresses in proptest::collection::vec(any::<[u8; 4]>(), 0..30), id in any::<u16>(), ttl in any::<u32>(),
    ) {
        let query = Query::parse(&ask("A.test", RecordType::A)).unwrap();
        let records = addresses.iter().map(|octets| octets.to_vec()).collect();
        let mut frame = query.frame;
        frame.id = id;
        let told = reply::Told { records, ttl, ..Default::default() };
        let packet = frame.answer(RecordType::A, &told, Transport::Tcp);
        let answer = Answer::parse(&packet, id, &host("a.test"), RecordType::A).unwrap();
        let expected: Vec<_> = addresses.into_iter().map(IpAddr::from).collect();
        let life = if ttl > i32::MAX as u32 { 0 } else { ttl };
        let life = if expected.is_empty() { u32::MAX } else { life };
        prop_assert_eq!((answer.addresses, answer.ttl, answer.exists), (expected, life, true));
    }
}
