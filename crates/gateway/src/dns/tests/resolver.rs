//! One sandbox's questions.

use super::*;

const MS: fn(u64) -> Duration = Duration::from_millis;

#[test]
fn a_name_is_asked_for_told_and_pinned() {
    let (policy, site) = (policy(json!({ "allow": [{ "host": "pypi.org" }] })), Site::default());
    let mut resolver = resolver(2);
    let out = asked(&mut resolver, "PyPI.org", RecordType::A, &policy);
    let [(key, 0, Transport::Udp, packet)] = &out.sent[..] else { panic!("{out:?}") };
    assert_eq!(packet, &reply::question(101, &host("pypi.org"), RecordType::A));
    assert!(out.replies.is_empty() && out.lines.is_empty());
    let (one, two) = (address("151.101.0.223"), address("151.101.64.223"));
    let packet = answer(101, "pypi.org", &[one, two, one]);
    let out: Out = resolver.answered(NOW, *key, &packet, &policy, &site).into();
    assert_eq!(out.closed, [*key]);
    assert_eq!(out.pins, [(host("pypi.org"), vec![one, two], Duration::from_secs(60))]);
    let reply = out.reply();
    assert_eq!((reply.id, reply.flags), (7, 0x8180));
    assert_eq!(reply.question, Packet::default().question("PyPI.org", RecordType::A).0);
    assert_eq!(reply.records, [(1, 60, data(one)), (1, 60, data(two))]);
    let line = out.line();
    assert_eq!((line.allowed, line.rule.as_deref()), (true, Some("allow/0")));
    assert_eq!(line.reason, "at 151.101.0.223 and 1 more (A)");
    // Whatever else comes is nothing.
    assert!(resolver.answered(NOW, *key, &packet, &policy, &site).is_empty());
}

#[test]
fn what_is_not_allowed_leaves_nothing_behind() {
    let narrow = policy(json!({ "allow": [{ "host": "*.a.test" }, { "cidr": "0.0.0.0/0" }] }));
    for (policy, name, reason) in [
        (&Policy::default(), "pypi.org", "no rule allows this name (A)"),
        (&narrow, "secret-in-a-label.evil.test", "no rule allows this name (A)"),
        (&narrow, "a.test", "no rule allows this name (A)"),
        (&every_name(), "metadata.google.internal", "this name is of the machine or of its cloud"),
        (&every_name(), "localhost", "this name is of the machine or of its cloud"),
        (&every_name(), "dns.google", "a resolver for every name"),
        (&every_name(), "127.0.0.1", "this is an address"),
        (&every_name(), "evil\0.a.test", "a host name cannot contain '\\x00' (A)"),
    ] {
        let mut resolver = resolver(1);
        let out = asked(&mut resolver, name, RecordType::A, policy);
        assert!(out.sent.is_empty() && out.pins.is_empty() && resolver.pending() == 0, "{name}");
        assert_eq!(out.reply().code(), 3, "{name}: NXDOMAIN is what libc stops at");
        let line = out.line();
        assert!(line.reason.starts_with(reason) && !line.allowed, "{line:?}");
    }
    let out = asked(&mut resolver(1), "", RecordType::A, &every_name());
    assert_eq!((out.reply().code(), out.sent.len()), (5, 0), "the root");
}

/// T23: no type carries anything out but those that a web client needs.
#[test]
fn other_types_are_answered_without_a_packet() {
    for kind in (0..=300).chain([32768, 32769, 65280, 65399, 65535]).map(RecordType) {
        let mut resolver = resolver(1);
        let out = asked(&mut resolver, "a.test", kind, &every_name());
        if kind.is_forwarded() {
            assert_eq!((out.sent.len(), out.replies.len()), (1, 0), "{kind}");
            continue;
        }
        assert!(out.sent.is_empty() && resolver.pending() == 0, "{kind}");
        assert_eq!((out.reply().code(), out.reply().records.len()), (0, 0), "{kind}: no data");
        assert!(out.line().reason.starts_with("only A, AAAA, HTTPS and SVCB"));
    }
    let forwarded = (0..=u16::MAX).filter(|kind| RecordType(*kind).is_forwarded());
    assert_eq!(forwarded.collect::<Vec<_>>(), [1, 28, 64, 65]);
}

/// Of a packet nothing reaches a resolver but the name in lower case and the type.
#[test]
fn what_a_guest_writes_stays_here() {
    let plain = reply::question(101, &host("a.test"), RecordType::AAAA);
    let question =
        |id, flags, counts| Packet::header(id, flags, counts).question("A.TesT", RecordType::AAAA);
    let padding = [&[0, 12, 0, 200][..], &[0xaa; 200]].concat();
    let subnet = [0, 8, 0, 7, 0, 1, 24, 0, 1, 2, 3];
    for packet in [
        question(0xdead, 0x0100, [1, 0, 0, 0]),
        question(0xbeef, 0x0000, [1, 0, 0, 0]),
        question(1, 0x0130, [1, 0, 0, 0]),
        question(1, 0x0140, [1, 0, 0, 0]),
        question(1, 0x010f, [1, 0, 0, 0]),
        question(1, 0x0100, [1, 0, 0, 1]).opt(4096, &padding),
        question(1, 0x0100, [1, 0, 0, 1]).opt(1, &subnet),
        question(1, 0x0100, [1, 0, 0, 2])
            .record("secret.test", RecordType(16), 1, b"secret")
            .opt(1, &[]),
    ] {
        let out: Out = resolver(1).ask(NOW, &packet.0, 1, Transport::Tcp, &every_name()).into();
        let [(_, 0, Transport::Udp, asked)] = &out.sent[..] else { panic!("{:?}", packet.0) };
        assert_eq!(asked, &plain, "{:?}", packet.0);
    }
}

/// T30: a public name leads to no private place, whoever has it.
#[test]
fn addresses_that_must_not_be_in_an_answer_are_dropped() {
    let site = Site {
        own: vec!["198.51.100.7/32".parse().unwrap(), "2001:db8:7::/48".parse().unwrap()],
        control: vec!["198.51.100.8".parse().unwrap()],
        private: true,
    };
    let bad = "127.0.0.1 127.1.2.3 0.0.0.0 10.0.0.1 172.16.0.1 192.168.1.1 100.64.0.1 198.18.0.1 \
               169.254.169.254 169.254.1.1 100.100.100.200 224.0.0.1 255.255.255.255 198.51.100.7 \
               198.51.100.8 ::1 :: fe80::1 fd00::1 fd00:ec2::254 ff02::1 2001:db8:7::9 \
               ::ffff:10.0.0.1 ::ffff:127.0.0.1 64:ff9b::10.0.0.1 64:ff9b::169.254.169.254 \
               2002:a00:1:: ::10.0.0.1 64:ff9b::198.51.100.7";
    let policy =
        policy(json!({ "allow": [{ "host": "*" }, { "cidr": "0.0.0.0/0" }, { "cidr": "::/0" }] }));
    for text in bad.split_whitespace() {
        let out = told(&policy, &site, "rebind.test", &[text]);
        assert!(out.pins.is_empty(), "{text}");
        assert_eq!((out.reply().code(), out.reply().records.len()), (0, 0), "{text}");
        let [dropped, whole] = &out.lines[..] else { panic!("{out:?}") };
        assert_eq!((dropped.address, dropped.allowed), (Some(address(text)), false));
        assert!(dropped.reason.starts_with("the address is dropped from the answer: "), "{text}");
        assert_eq!(whole.reason, format!("no address is left ({})", whole.kind.unwrap()));
        // What is good of an answer is told.
        let good = if text.contains(':') { "2606:4700::1111" } else { "1.1.1.1" };
        let out = told(&policy, &site, "rebind.test", &[text, good]);
        assert_eq!(out.pins[0].1, [address(good)], "{text}");
        assert_eq!(out.reply().records.len(), 1);
    }
    assert!(told(&policy, &site, "a.test", &["203.0.113.1"]).lines.len() == 1);
}

#[test]
fn an_alias_that_is_denied_for_itself_closes_the_name() {
    let policy = policy(json!({
        "allow": [{ "host": "a.test" }], "deny": [{ "host": "*.ads.test" }]
    }));
    for (alias, reason) in [
        ("cdn.test", None),
        ("x.ads.test", Some("by deny/0, for it is an alias of x.ads.test (A)")),
        (
            "metadata.google.internal",
            Some(
                "this name is of the machine or of its cloud, which no policy opens, for it is an alias of metadata.google.internal (A)",
            ),
        ),
    ] {
        let mut resolver = resolver(1);
        let key = asked(&mut resolver, "a.test", RecordType::A, &policy).key();
        let packet = Packet::header(101, 0x8180, [1, 2, 0, 0])
            .question("a.test", RecordType::A)
            .record("a.test", RecordType::CNAME, 60, &Packet::default().name(alias).0)
            .record(alias, RecordType::A, 60, &[1, 1, 1, 1]);
        let out: Out = resolver.answered(NOW, key, &packet.0, &policy, &Site::default()).into();
        assert_eq!(out.pins.is_empty(), reason.is_some(), "{alias}");
        assert_eq!(out.line().reason, reason.unwrap_or("at 1.1.1.1 (A)"));
        if reason.is_none() {
            assert_eq!(out.pins[0].0, host("a.test"), "pinned under the name that was asked for");
        }
    }
}

#[test]
fn a_policy_that_was_tightened_meanwhile_holds() {
    let mut resolver = resolver(1);
    let key = asked(&mut resolver, "a.test", RecordType::A, &every_name()).key();
    let packet = answer(101, "a.test", &[address("1.1.1.1")]);
    let none = Policy::default();
    let out: Out = resolver.answered(NOW, key, &packet, &none, &Site::default()).into();
    assert_eq!((out.reply().code(), out.pins.len(), out.line().allowed), (3, 0, false));
}

#[test]
fn the_guest_is_told_the_life_of_its_pin() {
    for (ttl, life) in [(0, 5), (60, 60), (86_400, 3600), (u32::MAX, 5)] {
        let mut resolver = resolver(1);
        let key = asked(&mut resolver, "a.test", RecordType::A, &every_name()).key();
        let packet = Packet::header(101, 0x8180, [1, 1, 0, 0])
            .question("a.test", RecordType::A)
            .record("a.test", RecordType::A, ttl, &[1, 1, 1, 1]);
        let out: Out =
            resolver.answered(NOW, key, &packet.0, &every_name(), &Site::default()).into();
        assert_eq!(out.pins[0].2, Duration::from_secs(life.into()));
        assert_eq!(out.reply().records[0].1, life);
    }
}

#[test]
fn who_speaks_edns_is_told_why() {
    let packet = Packet::header(7, 0x0100, [1, 0, 0, 1]).question("a.test", RecordType::A);
    let packet = packet.opt(1232, &[]).0;
    let none = Policy::default();
    let out: Out = resolver(1).ask(NOW, &packet, 1, Transport::Udp, &none).into();
    let (options, _) = out.reply().edns.clone().unwrap();
    assert_eq!(&options[..6], [0, 15, 0, 26, 0, 18], "an extended error: prohibited");
    assert_eq!(&options[6..], b"no rule allows this name");
}

#[test]
fn attempts_follow_each_other_until_there_are_no_more() {
    let (policy, site) = (every_name(), Site::default());
    let mut one = resolver(2);
    let mut sent = asked(&mut one, "a.test", RecordType::A, &policy).sent;
    assert!(one.tick(NOW + MS(1499)).is_empty());
    for (at, resolver) in [(1500, 1), (3000, 0)] {
        assert_eq!(one.next_deadline(), Some(NOW + MS(at)));
        let out: Out = one.tick(NOW + MS(at)).into();
        assert!(out.closed.is_empty() && out.replies.is_empty(), "the earlier ones stay open");
        assert_eq!(out.sent[0].1, resolver);
        sent.extend(out.sent);
    }
    // Ids differ, and so do keys.
    assert!(sent.iter().is_sorted_by(|a, b| a.0 < b.0 && a.3[..2] < b.3[..2]));
    // The first is heard although it is late; an id belongs to its key.
    let late = answer(101, "a.test", &[address("1.1.1.1")]);
    assert!(one.answered(NOW + MS(3100), sent[1].0, &late, &policy, &site).is_empty());
    let out: Out = one.answered(NOW + MS(3100), sent[0].0, &late, &policy, &site).into();
    assert_eq!(out.pins.len(), 1);
    assert_eq!(out.closed, sent.iter().map(|sent| sent.0).collect::<Vec<_>>());

    let mut silent = resolver(1);
    let mut opened = vec![asked(&mut silent, "a.test", RecordType::A, &policy).key()];
    let (now, out) = loop {
        let now = silent.next_deadline().unwrap();
        let out: Out = silent.tick(now).into();
        if !out.replies.is_empty() {
            break (now, out);
        }
        opened.push(out.key());
    };
    assert!(now - NOW < Duration::from_secs(5), "before a library asks again");
    assert_eq!((out.reply().code(), opened.len(), &out.closed), (2, 3, &opened));
    assert_eq!((silent.pending(), silent.next_deadline()), (0, None));
}

#[test]
fn a_resolver_that_cannot_is_left_out() {
    let (policy, site) = (every_name(), Site::default());
    let refuses = |id| Packet::header(id, 0x8185, [1, 0, 0, 0]).question("a.test", RecordType::A).0;
    let mut two = resolver(2);
    let first = asked(&mut two, "a.test", RecordType::A, &policy).key();
    let out: Out = two.answered(NOW, first, &refuses(101), &policy, &site).into();
    assert_eq!((&out.closed[..], out.sent[0].1), (&[first][..], 1));
    let out: Out = two.failed(NOW, out.key()).into();
    assert_eq!((out.reply().code(), out.sent.len(), two.pending()), (2, 0, 0));

    let mut none = resolver(0);
    let out = asked(&mut none, "a.test", RecordType::A, &policy);
    assert_eq!(
        (out.reply().code(), &*out.line().reason),
        (2, "the operator has named no resolver (A)")
    );
    let mut dumb = Resolver::with_ids(1, || None);
    let out = asked(&mut dumb, "a.test", RecordType::A, &policy);
    assert_eq!((out.reply().code(), out.sent.len()), (2, 0));
}

#[test]
fn an_answer_that_was_cut_off_is_asked_for_over_tcp() {
    let (policy, site) = (every_name(), Site::default());
    let cut = |id| Packet::header(id, 0x8380, [1, 0, 0, 0]).question("a.test", RecordType::A).0;
    let mut resolver = resolver(2);
    let udp = asked(&mut resolver, "a.test", RecordType::A, &policy).key();
    let out: Out = resolver.answered(NOW + MS(100), udp, &cut(101), &policy, &site).into();
    let [(tcp, 0, Transport::Tcp, packet)] = &out.sent[..] else { panic!("{out:?}") };
    assert_eq!(packet, &reply::question(102, &host("a.test"), RecordType::A));
    assert_eq!((&out.closed[..], resolver.next_deadline()), (&[udp][..], Some(NOW + MS(1600))));
    let many: Vec<IpAddr> = (1..=40).map(|last| [203, 0, 113, last].into()).collect();
    let mut again = resolver;
    let out: Out = again.answered(NOW, *tcp, &answer(102, "a.test", &many), &policy, &site).into();
    // Too long for the guest's datagram, too: it comes again over TCP, and its pins are there.
    assert_eq!((out.reply().flags & 0x0200, out.reply().records.len()), (0x0200, 0));
    assert_eq!(out.pins[0].1, many[..32]);

    let mut liar = super::resolver(1);
    let udp = asked(&mut liar, "a.test", RecordType::A, &policy).key();
    let tcp = Out::from(liar.answered(NOW, udp, &cut(101), &policy, &site)).key();
    let out: Out = liar.answered(NOW, tcp, &cut(102), &policy, &site).into();
    assert_eq!((out.reply().code(), out.sent.len()), (2, 0), "cut off over TCP is a failure");
}

#[test]
fn who_guesses_ids_gets_eight_guesses() {
    let (policy, site) = (every_name(), Site::default());
    let mut resolver = resolver(1);
    let key = asked(&mut resolver, "a.test", RecordType::A, &policy).key();
    for guess in 0..8 {
        let packet = answer(guess, "a.test", &[address("203.0.113.66")]);
        assert!(resolver.answered(NOW, key, &packet, &policy, &site).is_empty());
    }
    let packet = answer(8, "a.test", &[address("203.0.113.66")]);
    let out: Out = resolver.answered(NOW, key, &packet, &policy, &site).into();
    assert_eq!((&out.closed[..], out.reply().code()), (&[key][..], 2));
}

#[test]
fn what_waits_is_bounded() {
    let (policy, max) = (every_name(), Resolver::<u16>::MAX_PENDING);
    let mut resolver = resolver(1);
    let mut ask = |client: u16| -> Out {
        let packet = ask(&format!("n{client}.test"), RecordType::A);
        resolver.ask(NOW, &packet, client, Transport::Udp, &policy).into()
    };
    for client in 0..max as u16 {
        assert_eq!(ask(client).sent.len(), 1);
    }
    let out = ask(max as u16);
    assert_eq!((out.sent.len(), out.reply().code()), (0, 2));
    assert_eq!(out.line().reason, "too many questions at a time (A)");
    // The same question of the same asker is the same question.
    let out = ask(0);
    assert!(out.sent.is_empty() && out.replies.is_empty());
    let out: Out = resolver.tick(NOW + MS(1500)).into();
    assert_eq!(out.sent.len(), max);
    for at in [3000, 4500] {
        let _ = resolver.tick(NOW + MS(at));
    }
    assert_eq!(resolver.pending(), 0);
}

#[test]
fn junk_is_answered_at_most() {
    let mut resolver = resolver(1);
    let out: Out = resolver.ask(NOW, b"x", 1, Transport::Udp, &every_name()).into();
    assert!(out.replies.is_empty() && out.line().name.is_none());
    let packet = Packet::header(7, 0x2000, [0, 0, 0, 0]).0;
    let out: Out = resolver.ask(NOW, &packet, 1, Transport::Udp, &every_name()).into();
    assert_eq!((out.reply().code(), out.reply().id), (4, 7));
}

#[test]
fn resolvers_may_change_while_questions_wait() {
    let policy = every_name();
    let mut resolver = resolver(1);
    let key = asked(&mut resolver, "a.test", RecordType::A, &policy).key();
    resolver.set_resolvers(3);
    let out: Out = resolver.failed(NOW, key).into();
    assert_eq!(out.sent[0].1, 1);
    resolver.set_resolvers(0);
    let out: Out = resolver.tick(NOW + MS(1500)).into();
    assert_eq!((out.reply().code(), out.closed.len()), (2, 1));
}
