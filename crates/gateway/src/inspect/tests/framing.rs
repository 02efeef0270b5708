//! Where requests end: T28, T29.

use super::*;

/// What a head may say about its body, and what is wrong with it.
#[test]
fn lengths_that_two_readers_could_understand_differently_are_refused() {
    for fields in [
        "Content-Length: 5|Content-Length: 5",
        "Content-Length: 5|Content-Length: 6",
        "Content-Length: 5, 5",
        "Content-Length: +5",
        "Content-Length: -1",
        "Content-Length: 05",
        "Content-Length: 0x5",
        "Content-Length: 5 5",
        "Content-Length:",
        "Content-Length: 18446744073709551616",
        "Content-Length: 9999999999999999",
        "Content-Length: 5|Transfer-Encoding: chunked",
        "Transfer-Encoding: chunked|content-length: 0",
        "Transfer-Encoding: chunked|Transfer-Encoding: chunked",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: \"chunked\"",
        "Transfer-Encoding: chunked;x",
        "Transfer-Encoding: chun\u{0b}ked",
        "Transfer-Encoding:",
        "Transfer-Encoding : chunked",
        "Content-Length : 5",
        "Transfer-Encoding|: chunked",
        "Transfer-Encoding:| chunked",
        "X: y| Content-Length: 5",
        " Content-Length: 5",
        "X: a\u{0}b",
        "X\u{0}: a",
        "(X): a",
        ": a",
        "X",
    ] {
        let flow = [request(&format!("POST / HTTP/1.1|Host: a.test|{fields}")), vec![b'x'; 9]];
        for port in [80, 5000] {
            let outcome = feed(Check::Name, port, &flow.concat(), &[]);
            let malformed = matches!(reason(&outcome), Some(Reason::Malformed(_)));
            assert!(malformed && outcome.forwarded.is_empty(), "{fields}: {outcome:?}");
            assert!(outcome.asked.is_empty());
        }
    }
    let old = request("POST / HTTP/1.0|Host: a.test|Transfer-Encoding: chunked");
    assert!(matches!(reason(&whole(Check::Name, old)), Some(Reason::Malformed(_))));
}

#[test]
fn lines_end_in_one_way() {
    for flow in [
        "GET / HTTP/1.1\nHost: a.test\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.test\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.test\r\n\n",
        "GET / HTTP/1.1\r\nHost: a.test\rX: y\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.test\r\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: c.test\r\n\r\n",
    ] {
        for check in [Check::Name, Check::Requests] {
            let outcome = whole(check, flow);
            assert!(outcome.refusal.is_some(), "{flow:?}");
            assert!(!String::from_utf8(outcome.forwarded).unwrap().contains("c.test"));
        }
    }
}

#[test]
fn chunks_have_no_freedom() {
    let head = request("POST / HTTP/1.1|Host: a.test|Transfer-Encoding: chunked");
    let next = request("GET / HTTP/1.1|Host: c.test");
    for (good, bad) in [
        ("", "5;x=y\r\nhello\r\n0\r\n\r\n"),
        ("", "5 \r\nhello\r\n0\r\n\r\n"),
        ("", " 5\r\nhello\r\n0\r\n\r\n"),
        ("", "5\nhello\r\n0\r\n\r\n"),
        ("", "0x5\r\nhello\r\n0\r\n\r\n"),
        ("", "-1\r\n"),
        ("", "\r\n"),
        ("", "g\r\n"),
        ("", "0000000000000005\r\nhello"),
        ("", "ffffffffffffffff\r\n"),
        ("", "0\r\nX: y\r\n\r\n"),
        ("", "0\r\nHost: c.test\r\n\r\n"),
        ("", "0\r\n\n"),
        ("", "0\n\n"),
        ("5\r\nhello", "x\r\n0\r\n\r\n"),
        ("5\r\nhello", "\n0\r\n\r\n"),
        ("5\r\nhello", "\r0\r\n\r\n"),
        ("5\r\nhello\r\n", "\r\n0\r\n\r\n"),
    ] {
        let flow = [&head[..], good.as_bytes(), bad.as_bytes(), &next].concat();
        let outcome = whole(Check::Name, &flow);
        assert!(matches!(reason(&outcome), Some(Reason::Malformed(_))), "{bad:?}: {outcome:?}");
        assert_eq!(outcome.forwarded, [&head[..], good.as_bytes()].concat(), "{bad:?}");
        assert_eq!(outcome.asked.len(), 1);
    }
    // Chunks of the largest size are counted, not kept.
    let body = b"fffffffffffffff\r\n".to_vec();
    let flow = [&head[..], &body, &vec![b'x'; 100_000]].concat();
    assert_eq!(whole(Check::Name, &flow).forwarded, flow);
}

#[test]
fn heads_are_bounded() {
    let padded = |len: usize| {
        let empty = request("GET / HTTP/1.1|Host: a.test|X: ").len();
        request(&format!("GET / HTTP/1.1|Host: a.test|X: {}", "x".repeat(len - empty)))
    };
    let longest = padded(16 << 10);
    assert_eq!(whole(Check::Name, &longest).forwarded, longest);
    let outcome = whole(Check::Name, padded((16 << 10) + 1));
    assert_eq!((reason(&outcome), outcome.forwarded.len()), (Some(Reason::TooLong), 0));
    // A line that never ends is not waited for, whatever it may be.
    let endless = [&b"FOO "[..], &vec![b'x'; 20 << 10]].concat();
    assert_eq!(reason(&feed(Check::Name, 5000, &endless, &[1000])), Some(Reason::TooLong));
    let fields = |count| request(&format!("GET / HTTP/1.1|Host: a.test{}", "|X: y".repeat(count)));
    assert_eq!(reason(&whole(Check::Name, fields(63))), None);
    let many = Some(Reason::Malformed("a request with too many fields"));
    assert_eq!(reason(&whole(Check::Name, fields(64))), many);
}

#[test]
fn a_target_in_the_log_is_cut() {
    let flow = request(&format!("GET /{} HTTP/1.1|Host: c.test", "x".repeat(5000)));
    let (method, target) = whole(Check::Name, flow).refusal.unwrap().request.unwrap();
    assert_eq!((&*method, target.len()), ("GET", 200));
}
