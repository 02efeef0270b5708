//! Hellos of TLS.

use super::super::tls::{ClientHello, NotAHello};
use super::*;

#[test]
fn a_hello_that_says_the_right_name_opens_the_flow() {
    let hello = Hello::to("A.test").with(16, &long(b"\x02h2\x08http/1.1")).with(43, &[2, 3, 4]);
    let flow = [hello.records(1 << 14), b"\x14\x03\x03 anything".to_vec()].concat();
    let outcome = whole(Check::Name, &flow);
    assert_eq!((outcome.forwarded, outcome.refusal), (flow, None));
    assert_eq!(
        (outcome.asked, outcome.open, outcome.passed),
        (vec!["a.test".to_owned()], true, Check::Name)
    );
    let read = ClientHello::read(&hello.records(1)).unwrap().unwrap();
    assert_eq!(read.alpn, [b"h2".to_vec(), b"http/1.1".to_vec()]);
    assert_eq!(read.name, Some(Ok(host("a.test"))));
}

#[test]
fn a_hello_may_be_in_many_records() {
    let message = Hello::to("a.test").with(21, &[0; 2000]).message();
    for len in [1 << 14, 1000, 64, 1] {
        let outcome = whole(Check::Name, records(&message, len));
        assert_eq!((reason(&outcome), outcome.open), (None, true), "{len}");
    }
    // Six bytes for each of it are more than may wait.
    let message = Hello::to("a.test").with(21, &[0; 4000]).message();
    let outcome = whole(Check::Name, records(&message, 1));
    assert_eq!((reason(&outcome), outcome.asked.len()), (Some(Reason::TooLong), 0));
}

#[test]
fn where_names_decide_there_is_one_and_it_is_not_hidden() {
    let a = sni(&[(0, b"a.test")]);
    let none = Hello { extensions: vec![(43, vec![2, 3, 4])] };
    let named = |data: &[u8]| Hello { extensions: vec![(0, data.to_vec())] };
    let malformed = Reason::Malformed("a TLS hello that cannot be read");
    for (what, hello, expected) in [
        ("another name", Hello::to("c.test"), Reason::Denied(Denied::Mismatch)),
        ("no name", none, Reason::Nameless("TLS")),
        ("an address", Hello::to("203.0.113.1"), Reason::NotAName),
        ("a zero byte", Hello::to("a.test\0.evil.test"), Reason::NotAName),
        ("an empty name", Hello::to(""), Reason::NotAName),
        ("no name in the list", named(&sni(&[])), malformed),
        ("two names", named(&sni(&[(0, b"a.test"), (0, b"c.test")])), malformed),
        ("another type of name", named(&sni(&[(1, b"a.test")])), malformed),
        ("one of each", named(&sni(&[(0, b"a.test"), (1, b"c.test")])), malformed),
        ("bytes behind the list", named(&[&a[..], b"x"].concat()), malformed),
        ("a list that is too long", named(&[&[0, 99], &a[2..]].concat()), malformed),
        ("twice", Hello::to("a.test").with(0, &a), malformed),
        ("ECH", Hello::to("a.test").with(0xfe0d, &[0, 0, 1, 0, 1, 9]), Reason::Hidden),
        ("ECH of an inner hello", Hello::to("a.test").with(0xfe0d, &[1]), Reason::Hidden),
        ("a draft of it", Hello::to("a.test").with(0xfe0a, &[]), Reason::Hidden),
        ("the one before", Hello::to("a.test").with(0xffce, &[]), Reason::Hidden),
        ("DNS over TLS", Hello::to("a.test").with(16, &long(b"\x03dot")), Reason::Dns),
        ("half a protocol", Hello::to("a.test").with(16, &long(b"\x09h2")), malformed),
    ] {
        for len in [1 << 14, 7] {
            let outcome = whole(Check::Name, hello.records(len));
            assert_eq!(reason(&outcome), Some(expected), "{what}");
            assert!(outcome.forwarded.is_empty(), "{what}");
            let refusal = outcome.refusal.unwrap();
            assert_eq!(refusal.response(), Some(vec![21, 3, 3, 0, 2, 2, 49]), "an alert");
            assert!(!refusal.to_string().contains('\n'));
        }
    }
    let refusal = whole(Check::Name, Hello::to("c.test").records(99)).refusal.unwrap();
    assert_eq!((refusal.name, refusal.request), (Some(host("c.test")), None));
}

#[test]
fn what_looks_like_tls_and_is_no_hello_is_refused() {
    let hello = Hello::to("a.test");
    let (body, first) = (hello.body(), hello.records(1 << 14));
    let cut = |len: usize| records(&message(&body[..len]), 1 << 14);
    let old = [&[0x80, 46, 1, 3, 1, 0, 21, 0, 0, 0, 16][..], &[0; 37]].concat();
    let behind = [hello.message(), vec![1, 0, 0, 0]].concat();
    for (what, flow) in [
        ("SSL 2", old.clone()),
        ("SSL 2 of itself", [&[0x80, 46, 1, 0, 2][..], &old[5..]].concat()),
        ("an alert first", [&[21, 3, 3, 0, 2, 1, 0][..], &first].concat()),
        ("a change of ciphers first", [&[20, 3, 3, 0, 1, 1][..], &first].concat()),
        ("data first", [&[23, 3, 3, 0, 1, 1][..], &first].concat()),
        (
            "something between",
            [&records(&hello.message(), 40)[..45], &[20, 3, 3, 0, 1, 1]].concat(),
        ),
        ("an empty record", [&[22, 3, 1, 0, 0][..], &first].concat()),
        ("a record that is too long", [22, 3, 1, 0x40, 1, 1].to_vec()),
        ("another message", [22, 3, 1, 0, 4, 2, 0, 0, 0].to_vec()),
        ("a message that is too long", [22, 3, 1, 0, 4, 1, 0, 0x40, 1].to_vec()),
        ("another message behind", records(&behind, 1 << 14)),
        ("an old version", records(&message(&[&[2, 0][..], &body[2..]].concat()), 1 << 14)),
        ("no more than a version", cut(2)),
        ("half of the extensions", cut(body.len() - 3)),
        ("half of the ciphers", cut(70)),
        ("bytes at the end", records(&message(&[&body[..], b"x"].concat()), 1 << 14)),
    ] {
        for port in [443, 8443] {
            let outcome = feed(Check::Name, port, &flow, &[]);
            let malformed = Reason::Malformed("a TLS hello that cannot be read");
            assert_eq!((reason(&outcome), outcome.forwarded.len()), (Some(malformed), 0), "{what}");
        }
    }
    assert_eq!(ClientHello::read(&old), Err(NotAHello));
    // Without extensions, as long ago, it has no name.
    let outcome = whole(Check::Name, cut(2 + 32 + 33 + 6 + 2));
    assert_eq!(reason(&outcome), Some(Reason::Nameless("TLS")));
}

#[test]
fn requests_in_tls_cannot_be_read() {
    let flow = Hello::to("a.test").records(1 << 14);
    let outcome = whole(Check::Requests, &flow);
    assert_eq!(reason(&outcome), Some(Reason::Unreadable("TLS")));
    assert_eq!(outcome.refusal.unwrap().name, Some(host("a.test")));
    // The address alone asked for a name, and the name asks for more.
    let (mut inspector, mut rules) =
        (Inspector::new(Check::Name, 443), Rules::new(Check::Requests));
    let refusal = inspector.pass(&flow, &mut rules).unwrap_err();
    assert_eq!(refusal.reason, Reason::Unreadable("TLS"));
}
