//! Answers that mean harm.

use super::*;
use proptest::prelude::*;

fn parse(packet: &Packet) -> Result<Answer, AnswerError> {
    Answer::parse(&packet.0, 9, &host("a.test"), RecordType::A)
}

/// An answer to the question, with so many records to come.
fn head(answers: u16) -> Packet {
    Packet::header(9, 0x8180, [1, answers, 0, 0]).question("a.test", RecordType::A)
}

fn alias(packet: Packet, from: &str, to: &str) -> Packet {
    let data = Packet::default().name(to).0;
    packet.record(from, RecordType::CNAME, 60, &data)
}

#[test]
fn only_the_answer_to_the_question_counts() {
    let with = |id, flags, name: &str, kind, class| {
        let packet = Packet::header(id, flags, [1, 0, 0, 0]).name(name).words(&[kind, class]);
        parse(&packet).err()
    };
    let stranger = Some(AnswerError::Stranger);
    assert_eq!(with(9, 0x8180, "A.tEst", 1, 1), None);
    assert_eq!(with(8, 0x8180, "a.test", 1, 1), stranger, "another id");
    assert_eq!(with(9, 0x0180, "a.test", 1, 1), stranger, "a question");
    assert_eq!(with(9, 0xa180, "a.test", 1, 1), stranger, "another operation");
    assert_eq!(with(9, 0x8180, "b.test", 1, 1), stranger, "another name");
    assert_eq!(with(9, 0x8180, "a.test", 28, 1), stranger, "another type");
    assert_eq!(with(9, 0x8180, "a.test", 1, 3), stranger, "another class");
    assert_eq!(with(9, 0x8380, "b.test", 1, 1), stranger, "also if it is cut off");
    assert_eq!(parse(&Packet::header(9, 0x8180, [0, 0, 0, 0])), Err(AnswerError::Stranger));
    assert_eq!(parse(&Packet(head(0).0[..20].to_vec())), Err(AnswerError::Stranger));
    for (flags, error) in [
        (0x8380, Some(AnswerError::Truncated)),
        (0x8182, Some(AnswerError::Failed)),
        (0x8185, Some(AnswerError::Failed)),
        (0x8183, None),
    ] {
        assert_eq!(with(9, flags, "a.test", 1, 1), error, "{flags:x}");
    }
    assert_eq!(parse(&Packet::header(9, 0x8181, [0, 0, 0, 0])), Err(AnswerError::Failed));
    let none = parse(&Packet::header(9, 0x8183, [1, 0, 0, 0]).question("a.test", RecordType::A));
    assert!(!none.unwrap().exists);
}

#[test]
fn records_count_only_if_the_question_leads_to_them() {
    let one = [192, 0, 2, 1];
    // Of another name, another class, of a name that no host has; and behind the answers.
    let packet = head(4)
        .record("b.test", RecordType::A, 60, &one)
        .name("a.test")
        .words(&[1, 3, 0, 60, 4])
        .bytes(&one)
        .record("a b.test", RecordType::A, 60, &one)
        .record("a.test", RecordType::AAAA, 60, &[7; 16])
        .record("a.test", RecordType::A, 60, &one);
    assert!(parse(&packet).unwrap().addresses.is_empty());
    // A chain in any order, with a time to live of its shortest part.
    let packet = head(4).record("c.test", RecordType::A, 300, &one);
    let packet = alias(alias(packet, "b.test", "C.test"), "a.test", "b.test");
    let packet = packet.record("a.test", RecordType::A, 60, &[192, 0, 2, 2]);
    let answer = parse(&packet).unwrap();
    assert_eq!(answer.addresses, [address("192.0.2.1")], "of the last name alone");
    assert_eq!((answer.chain, answer.ttl), (vec![host("b.test"), host("c.test")], 60));
}

#[test]
fn chains_end() {
    for len in 0..12 {
        let name = |at: usize| if at == 0 { "a.test".to_owned() } else { format!("n{at}.test") };
        let mut packet = head(len as u16 + 1);
        for at in 0..len {
            packet = alias(packet, &name(at), &name(at + 1));
        }
        let packet = packet.record(&name(len), RecordType::A, 60, &[192, 0, 2, 1]);
        match parse(&packet) {
            Ok(answer) => {
                assert!(len <= 8 && answer.addresses.len() == 1 && answer.chain.len() == len)
            }
            Err(error) => assert!(len > 8 && error == AnswerError::Malformed, "{len}"),
        }
    }
    assert_eq!(parse(&alias(head(1), "a.test", "a.test")), Err(AnswerError::Malformed));
    let circle = alias(alias(head(2), "a.test", "b.test"), "b.test", "a.test");
    assert_eq!(parse(&circle), Err(AnswerError::Malformed));
}

#[test]
fn pointers_lead_back_and_end() {
    let one = [192, 0, 2, 1];
    let at = |name: &[u8]| head(1).bytes(name).words(&[1, 1, 0, 60, 4]).bytes(&one);
    // Position 12 is the question's name, 24 the record's.
    assert_eq!(parse(&at(&[0xc0, 12])).unwrap().addresses.len(), 1);
    for (what, name) in [
        ("to itself", &[0xc0, 24][..]),
        ("forward", &[0xc0, 40]),
        ("behind the end", &[0xff, 0xff]),
        ("back and forth", &[1, b'x', 0xc0, 24]),
        ("to a half", &[0xc0]),
    ] {
        assert_eq!(parse(&at(name)), Err(AnswerError::Malformed), "{what}");
    }
    // Sixteen pointers in a row are a name, seventeen are none.
    for (pointers, good) in [(16_u16, true), (17, false)] {
        let mut packet = head(2).name("x").words(&[16, 1, 0, 0, 2 * (pointers - 1)]);
        let first = packet.0.len() as u16;
        for number in 0..pointers - 1 {
            let to = if number == 0 { 12 } else { first + 2 * (number - 1) };
            packet = packet.words(&[0xc000 | to]);
        }
        let last = 0xc000 | (first + 2 * (pointers - 2));
        let packet = packet.words(&[last, 1, 1, 0, 60, 4]).bytes(&one);
        assert_eq!(parse(&packet).is_ok_and(|answer| answer.addresses.len() == 1), good);
    }
    // 255 bytes, and one more: by a pointer to a long name.
    for (last, good) in [(61, true), (62, false)] {
        let label = |len: usize| "a".repeat(len);
        let (long, name) = (label(63), format!("{0}.{0}.{0}", label(63)));
        let packet = head(2).record(&name, RecordType(16), 0, &[]);
        let packet = packet.bytes(&[last]).bytes(&long.as_bytes()[..last.into()]);
        let packet = packet.bytes(&[0xc0, 24]).words(&[1, 1, 0, 60, 4]).bytes(&one);
        assert_eq!(parse(&packet).is_ok(), good, "{last}");
    }
}

#[test]
fn lies_about_lengths_and_counts_are_malformed() {
    let one = [192, 0, 2, 1];
    let records = |count: u16, stated: u16| {
        let record = |packet: Packet, _| packet.record("a.test", RecordType::A, 60, &one);
        parse(&(0..count).fold(head(stated), record))
    };
    assert_eq!(records(1, 2), Err(AnswerError::Malformed), "fewer than it says");
    assert_eq!(records(1, 65535), Err(AnswerError::Malformed));
    assert_eq!(records(257, 257), Err(AnswerError::Malformed), "more than anybody has");
    assert_eq!(records(256, 256).unwrap().addresses.len(), 32, "and of those the first");
    for len in [0, 3, 5, 16] {
        let packet = head(1).record("a.test", RecordType::A, 60, &vec![1; len]);
        assert_eq!(parse(&packet), Err(AnswerError::Malformed), "an address of {len} bytes");
    }
    let long = head(1).name("a.test").words(&[1, 1, 0, 60, 5]).bytes(&one);
    assert_eq!(parse(&long), Err(AnswerError::Malformed), "data behind the end");
    let target = Packet::default().name("b.test").bytes(b"x").0;
    let packet = head(1).record("a.test", RecordType::CNAME, 60, &target);
    assert_eq!(parse(&packet), Err(AnswerError::Malformed), "bytes behind an alias");
}

#[test]
fn a_time_to_live_may_be_none() {
    for (ttl, seconds) in [(0, 0), (i32::MAX as u32, i32::MAX as u32), (1 << 31, 0), (u32::MAX, 0)]
    {
        let packet = head(1).record("a.test", RecordType::A, ttl, &[192, 0, 2, 1]);
        assert_eq!(parse(&packet).unwrap().ttl, seconds);
    }
}

proptest! {
    /// Any bytes at all, and proper packets with a few bytes changed or cut off.
    #[test]
    fn nothing_panics(
        junk in proptest::collection::vec(any::<u8>(), 0..100),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..4),
        cut in any::<proptest::sample::Index>(),
    ) {
        let packet = alias(head(2), "a.test", "b.test").record("b.test", RecordType::A, 9, &[1; 4]);
        let mut packet = packet.0;
        for (at, byte) in changes {
            let at = at.index(packet.len());
            packet[at] = byte;
        }
        for packet in [&packet[..], &packet[..cut.index(packet.len())], &junk] {
            if let Ok(answer) = Answer::parse(packet, 9, &host("a.test"), RecordType::A) {
                prop_assert!(answer.chain.len() <= 8 && answer.addresses.len() <= 32);
            }
            if let Err(QueryError::Answered { packet, .. }) = Query::parse(packet) {
                Reply::read(&packet);
            }
        }
    }
}
