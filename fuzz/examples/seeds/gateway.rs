//! What guests ask and say, and what resolvers answer.

use super::seed;

pub fn seeds() {
    policy();
    dns_query();
    dns_answer();
    tls_hello();
    http_head();
    frames();
}

fn policy() {
    let probe = |what: u8, address: &[u8], port: u16, words: &str| {
        let text = [&[words.len() as u8], words.as_bytes()].concat();
        [&[what], address, &port.to_le_bytes(), &text].concat()
    };
    let probes = [
        probe(0, &[203, 0, 113, 1], 443, "a.test a.test b.test /x/y"),
        probe(2, &[1, 1, 1, 1], 853, "dns.google dns.google"),
        probe(1, &[0xfd; 16], 22, "c.b.test"),
    ]
    .concat();
    for (name, text) in [
        ("none", r#""none""#),
        ("open", r#"{"allow":[{"host":"*"},{"cidr":"0.0.0.0/0"},{"cidr":"::/0"}]}"#),
        (
            "requests",
            r#"{"allow":[{"host":"*.test","methods":["GET"],"paths":["/x"],"ports":[443,"80-90"]}]}"#,
        ),
        (
            "all",
            r#"{"allow":[{"cidr":"203.0.113.0/24","ports":["123/udp"]},{"host":"dns.google"}],"deny":[{"host":"b.test"},{"cidr":"10.0.0.0/8"}],"log":false,"bandwidth":{"up_bytes_per_second":1000},"max_connections":9}"#,
        ),
    ] {
        seed("policy", name, &[text.as_bytes(), &[0], &probes].concat());
    }
}

fn name(name: &str) -> Vec<u8> {
    let label = |label: &str| [&[label.len() as u8], label.as_bytes()].concat();
    [name.split('.').flat_map(label).collect(), vec![0]].concat()
}

fn dns_query() {
    let header = |additional: u8| [0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, additional];
    let ask = |text: &str, kind: u8| [&header(0)[..], &name(text), &[0, kind, 0, 1]].concat();
    seed("dns_query", "none", &[&[0], &ask("pypi.org", 1)[..]].concat());
    seed("dns_query", "allowed", &[&[1], &ask("A.test", 28)[..]].concat());
    seed("dns_query", "denied", &[&[0x81], &ask("bad.test", 65)[..]].concat());
    seed("dns_query", "text", &[&[2], &ask("secret.a.test", 16)[..]].concat());
    let option = [0, 0, 41, 16, 0, 0, 0, 0, 0, 0, 8, 0, 12, 0, 4, 1, 2, 3, 4];
    let edns = [&[2], &header(1)[..], &name("a.test"), &[0, 1, 0, 1], &option].concat();
    seed("dns_query", "edns", &edns);
}

fn dns_answer() {
    // Flags, counts, and the records behind the question, whose name is at byte 12.
    let record = |kind: u8, data: &[u8]| {
        [&[0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 60, 0, data.len() as u8], data].concat()
    };
    let turn = |packet: &[u8]| [&(packet.len() as u16).to_le_bytes()[..], packet].concat();
    let answer = |count: u8, records: &[u8]| turn(&[&[0, 0, count, 0], records].concat());
    let address = record(1, &[192, 0, 2, 1]);
    let private = record(1, &[10, 1, 0, 1]);
    let both = answer(2, &[&address[..], &private].concat());
    seed("dns_answer", "addresses", &[&[0], &both[..]].concat());
    seed("dns_answer", "private", &[&[4], &both[..]].concat());
    let six = [0x26, 6, 0x47, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x11, 0x11];
    seed("dns_answer", "v6", &[&[9], &answer(1, &record(28, &six))[..]].concat());
    let alias = record(5, &name("b.test"));
    let behind = [&name("b.test")[..], &address[2..]].concat();
    let chain = answer(2, &[&alias[..], &behind].concat());
    seed("dns_answer", "chain", &[&[0], &chain[..]].concat());
    let service = [&[0, 1, 0][..], &[0, 1, 0, 3, 2, b'h', b'2'], &[0, 5, 0, 2, 1, 1]].concat();
    seed("dns_answer", "service", &[&[3], &answer(1, &record(65, &service))[..]].concat());
    // Cut off, then a failure, then an answer.
    let cut = turn(&[2, 0, 0, 0]);
    let fails = turn(&[0, 2, 0, 0]);
    seed("dns_answer", "turns", &[&[0], &cut[..], &fails, &both].concat());
}

fn tls_hello() {
    let long = |data: &[u8]| [&(data.len() as u16).to_be_bytes()[..], data].concat();
    let extension = |kind: u16, data: &[u8]| [&kind.to_be_bytes()[..], &long(data)].concat();
    let server = |name: &str| extension(0, &long(&[&[0], &long(name.as_bytes())[..]].concat()));
    let hello = |extensions: &[u8]| {
        let fixed = [&[3, 3][..], &[7; 32], &[0], &long(&[0x13, 1]), &[1, 0]].concat();
        [&fixed[..], &long(extensions)].concat()
    };
    let alpn = extension(16, &long(b"\x02h2\x08http/1.1"));
    for (name, extensions) in [
        ("allowed", [server("a.test"), alpn].concat()),
        ("denied", server("b.test")),
        ("hidden", [server("a.test"), extension(0xfe0d, &[0, 1, 2])].concat()),
        ("nameless", extension(43, &[2, 3, 4])),
        ("twice", [server("a.test"), server("a.test")].concat()),
    ] {
        // As a message, which the target cuts into records of 41 bytes.
        seed("tls_hello", name, &[&[1, 40, 0], &hello(&extensions)[..]].concat());
    }
    let hello = hello(&server("a.test"));
    // In records of one byte each, so that no part of the flow has the name in it.
    seed("tls_hello", "cut", &[&[1, 0, 0], &hello[..]].concat());
    let len = hello.len() as u8;
    let flow = [&[0, 9, 0][..], &[22, 3, 1, 0, len + 4, 1, 0, 0, len], &hello].concat();
    seed("tls_hello", "record", &flow);
}

fn http_head() {
    let flow = |what: u8, lines: &str| {
        [&[what, 0, 3, 20, 200], lines.replace('|', "\r\n").as_bytes()].concat()
    };
    let get = "GET /x HTTP/1.1|Host: a.test||";
    let post = "POST / HTTP/1.1|Host: b.test|Content-Length: 3||abc";
    let put = "PUT / HTTP/1.1|Host: a.test|Transfer-Encoding: chunked||3|abc|0||";
    for (name, what, lines) in [
        ("requests", 0, format!("{get}{post}{put}{get}")),
        ("read", 1, format!("{put}{post}")),
        ("second", 0, format!("{post}GET / HTTP/1.1|Host: c.test||")),
        ("upgrade", 0, format!("GET / HTTP/1.1|Host: a.test|Upgrade: websocket||\u{1}\u{5}")),
        (
            "smuggled",
            0,
            "POST / HTTP/1.1|Host: a.test|Content-Length: 3|Transfer-Encoding: chunked||0||"
                .to_owned(),
        ),
        ("other", 2, "EHLO a.test|".to_owned()),
        ("http2", 2, "PRI * HTTP/2.0||SM||".to_owned()),
        ("dns", 0, "GET /dns-query?dns=AAAB HTTP/1.1|Host: a.test||".to_owned()),
    ] {
        seed("http_head", name, &flow(what, &lines));
    }
}

/// Frames as the target mends them: all that they need is what they are.
fn frames() {
    let frame = |mending: u8, bytes: &[u8]| {
        let len = bytes.len() as u16;
        [&[mending][..], &len.to_le_bytes(), &[bytes.len() as u8], bytes].concat()
    };
    let (v4, v6) = ([&[0; 12][..], &[8, 0]].concat(), [&[0; 12][..], &[0x86, 0xdd]].concat());
    let packet = |protocol: u8, to: [u8; 4], payload: &[u8]| {
        let header = [&[0x45, 0, 0, 0, 0, 1, 0, 0, 64, protocol, 0, 0][..], &[0; 4], &to].concat();
        [&v4[..], &header, payload].concat()
    };
    let segment = |sequence: u32, acknowledged: u32, flags: u8, options: &[u8], data: &[u8]| {
        let words = (5 + options.len() / 4) as u8;
        let numbers = [sequence.to_be_bytes(), acknowledged.to_be_bytes()].concat();
        let rest = [words << 4, flags, 255, 255, 0, 0, 0, 0];
        let bytes = [&[0x9c, 0x40, 0, 80][..], &numbers, &rest, options, data].concat();
        packet(6, [203, 0, 113, 10], &bytes)
    };
    let options = [2, 4, 5, 180, 4, 2, 1, 3, 3, 7, 1, 1];
    let flow = [
        frame(11, &segment(1, 0, 2, &options, b"")),
        frame(11, &segment(2, 1, 16, &[], b"GET /")),
        frame(27, &segment(7, 1, 17, &[], b"")),
    ]
    .concat();
    let arp =
        [&[0; 12][..], &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1, 2, 0x50, 0x41, 0x4e, 0x44, 0x41]].concat();
    let arp = [&arp[..], &[198, 18, 0, 2, 0, 0, 0, 0, 0, 0, 198, 18, 0, 1]].concat();
    let echo = packet(1, [198, 18, 0, 1], &[8, 0, 0xf7, 0xfe, 0, 1, 0, 0]);
    let lease =
        [&[0, 68, 0, 67, 1, 8, 0, 0, 1, 1, 6, 0][..], &[0; 232], &[99, 130, 83, 99]].concat();
    let solicit = [&[0x60, 0, 0, 0, 0, 0, 58, 255][..], &[0; 16], &[0xff, 2], &[0; 14], &[135; 24]];
    for (name, frames) in [
        ("flow", flow),
        ("arp", frame(1, &arp)),
        ("echo", frame(3, &echo)),
        ("lease", frame(3, &packet(17, [255; 4], &lease[..200]))),
        ("solicit", frame(5, &[&v6[..], &solicit.concat()].concat())),
        ("fragment", frame(1, &packet(17, [8, 8, 8, 8], &[0; 8]))),
    ] {
        seed("frames", name, &frames);
    }
}
