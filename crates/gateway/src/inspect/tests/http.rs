//! Requests of HTTP, and what is no request.

use super::*;

const GET: &str = "GET /x HTTP/1.1|Host: a.test";

#[test]
fn requests_with_the_right_name_go_through() {
    let flow = [
        request("GET / HTTP/1.1|Host: a.test|Accept: */*"),
        request("POST /x?y HTTP/1.1|host:A.TEST:8080|Expect: 100-continue|Content-Length: 5"),
        b"hello".to_vec(),
        request("PUT /y HTTP/1.1|Host: b.test.|Transfer-Encoding: Chunked"),
        b"5\r\nhello\r\n00A\r\n0123456789\r\n0\r\n\r\n".to_vec(),
        request("M-SEARCH /z HTTP/1.0|Host: a.test"),
    ]
    .concat();
    for check in [Check::Name, Check::Requests] {
        let outcome = feed(check, 80, &flow, &[]);
        assert_eq!((&outcome.forwarded, &outcome.refusal), (&flow, &None));
        assert_eq!(
            outcome.asked,
            ["a.test GET /", "a.test POST /x?y", "b.test PUT /y", "a.test M-SEARCH /z"]
        );
        assert_eq!((outcome.open, outcome.passed), (false, Check::Requests));
    }
}

#[test]
fn each_request_is_judged_and_nothing_follows_a_refused_one() {
    let good =
        [request("POST /x HTTP/1.1|Host: a.test|Content-Length: 3"), b"abc".to_vec()].concat();
    let flow = [&good[..], &request("GET /secret HTTP/1.1|Host: c.test"), &request(GET)].concat();
    let outcome = whole(Check::Name, &flow);
    assert_eq!(outcome.forwarded, good);
    let refusal = outcome.refusal.unwrap();
    assert_eq!(refusal.reason, Reason::Denied(Denied::Mismatch));
    assert_eq!(refusal.name, Some(host("c.test")));
    assert_eq!(refusal.request, Some(("GET".to_owned(), "/secret".to_owned())));
    assert_eq!(refusal.response(), None, "the server may be answering the first");
    assert_eq!(outcome.asked.len(), 2);

    let outcome = whole(Check::Requests, request("GET /no HTTP/1.1|Host: a.test"));
    let refusal = outcome.refusal.unwrap();
    assert_eq!((refusal.reason, outcome.forwarded.len()), (Reason::Denied(Denied::Request), 0));
    let response = String::from_utf8(refusal.response().unwrap()).unwrap();
    let text = "PandaStack: no rule allows this method and path\n";
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    assert_eq!(body, text);
    assert_eq!(
        head.lines().collect::<Vec<_>>(),
        [
            "HTTP/1.1 403 Forbidden",
            "Content-Type: text/plain; charset=utf-8",
            &format!("Content-Length: {}", text.len()),
            "Connection: close",
        ]
    );
}

#[test]
fn the_rule_of_a_refusal_is_told() {
    struct No;
    impl Judge for No {
        fn name(&mut self, _: &Host) -> Verdict {
            Verdict::Deny(Denied::Rule(3))
        }
        fn request(&mut self, _: &Request<'_>) -> Verdict {
            Verdict::Deny(Denied::Rule(4))
        }
    }
    let of = |flow: &[u8]| Inspector::new(Check::Name, 80).pass(flow, &mut No).unwrap_err().rule();
    assert_eq!(of(&request(GET)), Some("deny/4".to_owned()));
    assert_eq!(of(&Hello::to("a.test").records(99)), Some("deny/3".to_owned()));
    assert_eq!(of(b"\x01"), None);
}

/// T25, T29: one name, and only one.
#[test]
fn the_name_of_a_request_is_a_host_and_the_only_one() {
    for (lines, expected) in [
        ("GET / HTTP/1.1", Reason::Nameless("HTTP")),
        ("GET / HTTP/1.0", Reason::Nameless("HTTP")),
        ("GET / HTTP/1.1|Host:", Reason::NotAName),
        ("GET / HTTP/1.1|Host: 203.0.113.1", Reason::NotAName),
        ("GET / HTTP/1.1|Host: 0x7f.1:80", Reason::NotAName),
        ("GET / HTTP/1.1|Host: [::1]", Reason::NotAName),
        ("GET / HTTP/1.1|Host: user@a.test", Reason::NotAName),
        ("GET / HTTP/1.1|Host: a.test, c.test", Reason::NotAName),
        ("GET / HTTP/1.1|Host: a.test/x", Reason::NotAName),
        ("GET / HTTP/1.1|Host: a.test:x", Reason::NotAName),
        ("GET / HTTP/1.1|Host: c.test", Reason::Denied(Denied::Mismatch)),
        ("GET http://c.test/ HTTP/1.1|Host: a.test", Reason::Denied(Denied::Target)),
        ("CONNECT c.test:443 HTTP/1.1|Host: a.test", Reason::Denied(Denied::Target)),
        (
            "GET / HTTP/1.1|Host: a.test|Host: c.test",
            Reason::Malformed("a request with several Host fields"),
        ),
        (
            "GET / HTTP/1.1|Host: a.test|hOST: a.test",
            Reason::Malformed("a request with several Host fields"),
        ),
    ] {
        for check in [Check::Name, Check::Requests] {
            let outcome = feed(check, 8080, &request(lines), &[]);
            assert_eq!((reason(&outcome), outcome.forwarded.len()), (Some(expected), 0), "{lines}");
            assert!(outcome.refusal.unwrap().response().is_some());
        }
    }
}

/// T24.
#[test]
fn dns_in_http_is_refused() {
    for lines in [
        "POST /dns-query HTTP/1.1|Host: a.test|Content-Type: application/dns-message|Content-Length: 1",
        "GET /x HTTP/1.1|Host: a.test|Accept: text/html, Application/DNS-Message;q=0.9",
        "GET /x HTTP/1.1|Host: a.test|Accept: */*|accept: application/dns-json",
        "GET /dns-query?dns=AAABAAABAAAAAAAAA3d3dwdleGFtcGxlA2NvbQAAAQAB HTTP/1.1|Host: a.test",
        "GET /x/dns-query/?ct&dns=AAAB HTTP/1.1|Host: a.test",
    ] {
        let outcome = whole(Check::Name, request(lines));
        assert_eq!(reason(&outcome), Some(Reason::Dns), "{lines}");
        assert!(outcome.asked.is_empty());
    }
    for lines in [
        "GET /dns-query HTTP/1.1|Host: a.test|Accept: text/html",
        "GET /records?dns=1 HTTP/1.1|Host: a.test",
        "GET /dns-query?mydns=1 HTTP/1.1|Host: a.test",
    ] {
        assert_eq!(reason(&whole(Check::Name, request(lines))), None, "{lines}");
    }
}

#[test]
fn an_upgrade_is_for_names_alone() {
    let ask = request("GET /chat HTTP/1.1|Host: a.test|Connection: Upgrade|Upgrade: websocket");
    let frames = b"\x81\x85abcd.....\x89\x80abcd".to_vec();
    let flow = [ask.clone(), frames].concat();
    for port in [80, 8080] {
        let outcome = feed(Check::Name, port, &flow, &[]);
        assert_eq!((&outcome.forwarded, outcome.open, outcome.passed), (&flow, true, Check::Name));
    }
    let outcome = whole(Check::Requests, &flow);
    let expected = Reason::Unreadable("the protocol after an Upgrade");
    assert_eq!((reason(&outcome), outcome.forwarded.len()), (Some(expected), 0));
    // The server may have ignored it: what comes is judged as if it had.
    let after = |what: &[u8]| {
        let outcome = feed(Check::Name, 80, &[&ask[..], what].concat(), &[]);
        assert_eq!(outcome.passed, Check::Name);
        (outcome.forwarded.len() == ask.len() + what.len(), reason(&outcome), outcome.open)
    };
    let mismatch = Some(Reason::Denied(Denied::Mismatch));
    assert_eq!(after(&request("GET / HTTP/1.1|Host: c.test")), (false, mismatch, false));
    assert_eq!(after(&request(GET)), (true, None, false));
    assert_eq!(after(&Hello::to("c.test").records(999)), (false, mismatch, false));
    assert_eq!(after(&Hello::to("a.test").records(999)), (true, None, true));
    assert_eq!(after(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").1, Some(Reason::Http2));
}

#[test]
fn fields_that_ask_for_something_else_are_refused_under_rules_on_requests() {
    for field in
        ["X-HTTP-Method-Override: DELETE", "X-Original-URL: /no", "x-forwarded-host: c.test"]
    {
        let flow = request(&format!("{GET}|{field}"));
        let outcome = whole(Check::Requests, &flow);
        assert!(matches!(reason(&outcome), Some(Reason::Malformed(_))), "{field}");
        assert_eq!(reason(&whole(Check::Name, &flow)), None);
    }
}

#[test]
fn anything_else_has_no_name_and_no_place_on_the_ports_of_the_web() {
    for flow in [
        &b"SSH-2.0-OpenSSH_10.0\r\n"[..],
        b"\x00\x00\x00\x08\x04\xd2\x16\x2f",
        b"*1\r\n$4\r\nPING\r\n",
        b"EHLO a.test\r\n",
        b"OPTIONS rtsp://a.test/ RTSP/1.0\r\n",
        b"CONNECT {\"verbose\":false}\r\nPING\r\n",
        b"0032git-upload-pack /x\0host=a.test\0",
        b"\x16\x01\x00",
        b"\x80\x00\x02\x03",
        b"ABCDEFGHIJKLMNOPQRSTUVWXYZABCDEFGHIJ\n",
        b"hello there\n",
    ] {
        let outcome = feed(Check::Name, 5000, flow, &[]);
        assert_eq!((&outcome.forwarded[..], outcome.open), (flow, true), "{flow:?}");
        assert_eq!((outcome.passed, outcome.asked.len()), (Check::Name, 0));
        for port in [80, 443] {
            let outcome = feed(Check::Name, port, flow, &[]);
            assert_eq!(
                (reason(&outcome), outcome.forwarded.len()),
                (Some(Reason::NotWeb(port)), 0)
            );
            assert_eq!(outcome.refusal.unwrap().response(), None);
        }
        let outcome = feed(Check::Requests, 5000, flow, &[]);
        assert_eq!(reason(&outcome), Some(Reason::Unreadable("another protocol than HTTP")));
        assert_eq!(feed(Check::Nothing, 443, flow, &[]).forwarded, flow);
    }
    assert_eq!(
        reason(&whole(Check::Name, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")),
        Some(Reason::Http2)
    );
}

#[test]
fn what_a_lenient_server_takes_for_a_request_is_one() {
    for flow in [
        "\r\nGET / HTTP/1.1\r\nHost: c.test\r\n\r\n",
        "\nGET / HTTP/1.1\r\nHost: c.test\r\n\r\n",
        " GET / HTTP/1.1\r\nHost: c.test\r\n\r\n",
        "GET\t/ HTTP/1.1\r\nHost: c.test\r\n\r\n",
        "GET  /  HTTP/1.1\r\nHost: c.test\r\n\r\n",
        "GET / http/1.1\r\nHost: c.test\r\n\r\n",
        "FOO / HTTP/1.1\nHost: c.test\n\n",
        "FOO / HTTP/1.1 \r\nHost: c.test\r\n\r\n",
        "FOO http://c.test/ HTTP/1.1\r\n\r\n",
        "OPTIONS /\0 HTTP/1.1\r\nHost: c.test\r\n\r\n",
    ] {
        let outcome = feed(Check::Name, 5000, flow.as_bytes(), &[]);
        assert!(outcome.refusal.is_some() && outcome.forwarded.is_empty(), "{flow:?}");
    }
    // Any word is a method to some servers, in pieces too.
    let long = "m".repeat(300);
    for method in ["get", "gET", "G3T", "G~T", "a.b", "POSt", &long] {
        let other = format!("{method} / HTTP/1.1\r\nHost: c.test\r\n\r\n");
        let upgraded = "GET / HTTP/1.1\r\nHost: a.test\r\nUpgrade: x\r\n\r\n";
        for cut in [0, 1, method.len(), method.len() + 2] {
            let outcome = feed(Check::Name, 5000, other.as_bytes(), &[cut]);
            assert!(outcome.refusal.is_some() && outcome.forwarded.is_empty(), "{method} {cut}");
            let (flow, cut) = (format!("{upgraded}{other}"), upgraded.len() + cut);
            let outcome = feed(Check::Name, 80, flow.as_bytes(), &[cut]);
            assert!(outcome.refusal.is_some(), "{method} {cut}");
            assert_eq!(outcome.forwarded, upgraded.as_bytes(), "{method} {cut}");
        }
    }
    // However much of a line is there, it is the same line.
    for (flow, opens) in [("PRI * HTTP/2.\0\n", false), ("get /\0 HTTP/1.1\n", true)] {
        for cut in [0, 1, flow.len() - 2] {
            let outcome = feed(Check::Name, 5000, flow.as_bytes(), &[cut]);
            assert_eq!((outcome.open, outcome.refusal.is_none()), (opens, opens), "{flow:?} {cut}");
        }
    }
    for word in ["said", "hello there", "get"] {
        assert!(feed(Check::Name, 5000, word.as_bytes(), &[]).forwarded.is_empty());
    }
    // Of a request without a version there is no more, and it waits for it.
    let outcome = feed(Check::Name, 5000, b"GET /\r\n", &[]);
    assert!(outcome.forwarded.is_empty() && !outcome.open);
}

#[test]
fn a_policy_may_ask_for_more_or_for_less() {
    let mut rules = Rules::new(Check::Name);
    let mut fresh = Inspector::new(Check::Name, 80);
    assert_eq!(fresh.passed(), Check::Requests, "nothing has been said");
    fresh.require(Check::Requests);
    let refusal = fresh.pass(&Hello::to("b.test").records(99), &mut rules).unwrap_err();
    assert_eq!(refusal.reason, Reason::Unreadable("TLS"));

    let hello = Hello::to("a.test").records(99);
    let mut open = Inspector::new(Check::Name, 443);
    assert_eq!(open.pass(&hello, &mut rules), Ok(hello.len()));
    open.require(Check::Nothing);
    assert_eq!((open.passed(), open.is_open()), (Check::Name, true));
    open.require(Check::Requests);
    assert!(open.pass(b"x", &mut rules).is_err() && !open.is_open());

    let mut inside = Inspector::new(Check::Requests, 80);
    let head = request("POST / HTTP/1.1|Host: a.test|Content-Length: 10");
    assert_eq!(inside.pass(&head, &mut rules), Ok(head.len()));
    inside.require(Check::Nothing);
    assert_eq!(inside.pass(&[b'x'; 100], &mut rules), Ok(100));
    assert_eq!((inside.is_open(), inside.passed()), (true, Check::Nothing));
}

#[test]
fn a_request_that_is_under_way_stands_only_if_it_may_still_be_made() {
    let long = format!("/{}", "x".repeat(3000));
    for (target, field, named, asked) in [
        ("/yes", "", true, true),
        ("/no", "", true, false),
        ("/yes", "X-Http-Method-Override: DELETE\r\n", true, false),
        (&long, "", true, false),
    ] {
        let mut rules = Rules::new(Check::Name);
        let mut inspector = Inspector::new(Check::Name, 80);
        let head =
            format!("POST {target} HTTP/1.1\r\nHost: a.test\r\n{field}Content-Length: 9\r\n\r\n");
        assert_eq!(inspector.pass(head.as_bytes(), &mut rules), Ok(head.len()));
        inspector.require(Check::Name);
        assert_eq!(inspector.stands(&mut rules), named, "{target}");
        inspector.require(Check::Requests);
        assert_eq!(inspector.stands(&mut Rules::new(Check::Requests)), asked, "{target} {field}");
        inspector.require(Check::Nothing);
        assert!(inspector.stands(&mut rules));
    }
    assert!(
        Inspector::new(Check::Name, 80).stands(&mut Rules::new(Check::Name)),
        "nothing is said"
    );
}
