//! However a flow is cut up, the same of it goes through.

use proptest::prelude::*;
use proptest::sample::select;

use super::*;

/// Flows that are almost something.
fn flow() -> impl Strategy<Value = Vec<u8>> {
    let line = select(vec![
        "GET / HTTP/1.1|Host: a.test",
        "GET /no HTTP/1.1|Host: a.test",
        "POST / HTTP/1.1|Host: b.test|Content-Length: 7",
        "PUT / HTTP/1.1|Host: a.test|Transfer-Encoding: chunked",
        "GET / HTTP/1.1|Host: a.test|Upgrade: x",
        "GET / HTTP/1.1|Host: c.test",
        "GET / HTTP/1.1|Host: a.test|Host: a.test",
        "FOO x",
    ])
    .prop_map(request);
    let part = prop_oneof![
        6 => line,
        1 => select(vec![Hello::to("a.test"), Hello::to("c.test")])
            .prop_flat_map(|hello| (1_usize..300).prop_map(move |len| hello.records(len))),
        4 => select(vec![
            "1234567", "7\r\n1234567\r\n", "0\r\n\r\n", "3\r\nabc", "\r\n", "\n", "\r", "\u{1}",
            "PRI * HTTP/2.0\r\n", "GET ", "0\r\nX: y\r\n\r\n",
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 0..20),
        1 => (0_usize..40_000).prop_map(|len| vec![b'x'; len]),
    ];
    proptest::collection::vec(part, 1..7).prop_map(|parts| parts.concat())
}

fn check() -> impl Strategy<Value = Check> {
    select(vec![Check::Name, Check::Requests])
}

proptest! {
    #[test]
    fn pieces_make_no_difference(
        flow in flow(), check in check(), port in select(vec![80, 443, 5000]),
        pieces in proptest::collection::vec(prop_oneof![1_usize..4, 1_usize..60, 1000_usize..20_000], 1..6),
    ) {
        let whole = feed(check, port, &flow, &[]);
        prop_assert!(flow.starts_with(&whole.forwarded));
        let cut = feed(check, port, &flow, &pieces);
        prop_assert_eq!(&cut, &whole);
        // What is not forwarded was refused or waits for more.
        let more = whole.forwarded.len() < flow.len() && whole.refusal.is_none();
        prop_assert!(!more || !whole.open);
    }

    /// Two requests in one piece, as a simple model reads them: who has its body before the next
    /// head, and nothing of the second unless both are allowed.
    #[test]
    fn two_requests_are_two(
        hosts in proptest::array::uniform2(select(vec!["a.test", "b.test", "c.test"])),
        bodies in proptest::array::uniform2(proptest::collection::vec(any::<u8>(), 0..50)),
        chunked in proptest::array::uniform2(any::<bool>()),
        size in 1_usize..20,
    ) {
        let one = |at: usize| {
            let (host, body): (&str, &[u8]) = (hosts[at], &bodies[at]);
            if !chunked[at] {
                let head = format!("POST /{at} HTTP/1.1|Host: {host}|Content-Length: {}", body.len());
                return [request(&head), body.to_vec()].concat();
            }
            let head = request(&format!("POST /{at} HTTP/1.1|Host: {host}|Transfer-Encoding: chunked"));
            let chunk = |data: &[u8]| [format!("{:x}\r\n", data.len()).as_bytes(), data, b"\r\n"].concat();
            let chunks: Vec<u8> = body.chunks(size).flat_map(chunk).collect();
            [head, chunks, b"0\r\n\r\n".to_vec()].concat()
        };
        let (first, second) = (one(0), one(1));
        let outcome = feed(Check::Name, 80, &[&first[..], &second].concat(), &[]);
        let expected = match hosts.map(|host| host != "c.test") {
            [true, true] => [&first[..], &second].concat(),
            [true, false] => first,
            [false, _] => Vec::new(),
        };
        prop_assert_eq!(outcome.forwarded, expected);
        prop_assert_eq!(outcome.refusal.is_some(), hosts.contains(&"c.test"));
        let asked = if hosts[0] == "c.test" { 1 } else { 2 };
        prop_assert_eq!(outcome.asked.len(), asked);
    }

    /// Any bytes after the first refusal change nothing.
    #[test]
    fn nothing_follows_a_refusal(before in flow(), after in flow()) {
        let outcome = feed(Check::Name, 80, &before, &[]);
        if outcome.refusal.is_some() {
            let longer = feed(Check::Name, 80, &[before, after].concat(), &[]);
            prop_assert_eq!(longer, outcome);
        }
    }
}
