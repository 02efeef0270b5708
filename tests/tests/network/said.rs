//! T28, T29: the name in a connection is the one that led to its address. Fronting, encrypted
//! ClientHello, hosts that are written in odd ways, and addresses that nobody was told of.

use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;
use pandastack_tests::deadline;
use pandastack_tests::lab::Record;
use serde_json::json;

use crate::guest::{Probe, hex, request};
use crate::hello::{client_hello, encrypted, records};
use crate::stage::{SITE_A, SITE_B, Stage};

/// Bytes to site A's port of TLS; done when a handshake's record comes back.
fn hello(bytes: &[u8]) -> Probe {
    Probe::tcp(SITE_A, 443, bytes).with("until", "\u{16}\u{3}\u{3}")
}

/// Bytes to site A's port of HTTP; done when the lab's server answers.
fn http(text: &str) -> Probe {
    Probe::tcp(SITE_A, 80, text.as_bytes()).with("until", "received=")
}

#[test]
fn tls_says_the_name_that_led_there() -> Result<()> {
    let Some(mut stage) = Stage::new()? else { return Ok(()) };
    stage.lab.begin_tls(&["a.lab", "b.lab", "shared.lab"])?;
    // Two names of one address, of which one is allowed, and one of another address.
    stage.lab.zone().point("shared.lab", &[SITE_A]);
    let policy = json!({ "allow": [{ "host": "a.lab" }, { "host": "b.lab" }] });
    let sandbox = stage.sandbox(&policy)?;
    stage.open(&sandbox, &[Probe::resolve("a.lab"), Probe::resolve("b.lab")])?;
    let good = client_hello(&["a.lab"], &[]);
    let fronted = client_hello(&["shared.lab"], &[]);
    let mut cut = records(&good, 1000);
    cut.truncate(60);
    stage.closed(
        &sandbox,
        &[
            Probe::tls(SITE_A, "shared.lab"),
            Probe::tls(SITE_A, "b.lab"),
            Probe::tls(SITE_A, "other.lab"),
            Probe::tls(SITE_A, "a.lab.other.lab"),
            Probe::tls(SITE_A, "x.a.lab"),
            Probe::tls(SITE_A, ""),
            hello(&records(&fronted, 1000)),
            hello(&records(&fronted, 7)),
            hello(&records(&client_hello(&["a.lab", "shared.lab"], &[]), 1000)),
            hello(&records(&client_hello(&["shared.lab", "a.lab"], &[]), 1000)),
            hello(&records(&client_hello(&["a.lab\0.shared.lab"], &[]), 1000)),
            hello(&records(&client_hello(&["203.0.113.10"], &[]), 1000)),
            hello(&records(&client_hello(&["a.lab"], &[encrypted()]), 1000)),
            hello(&records(&client_hello(&["shared.lab"], &[encrypted()]), 1000)),
            hello(&records(&client_hello(&[], &[]), 1000)),
            hello(&cut),
            // What is not TLS on its port, and what only looks like it.
            hello(b"SSH-2.0-tunnel\r\n"),
            hello(&[22, 3, 1, 0, 0]),
            hello(&[0x80, 0x2e, 1, 3, 1, 0, 0x15, 0, 0, 0, 0x10]),
            hello(request("GET", "shared.lab", "/").as_bytes()),
        ],
    )?;
    stage.explains(&sandbox, "shared.lab", "did not lead to this address")?;
    stage.explains(&sandbox, "a.lab", "encrypted ClientHello")?;
    stage.lab.forget()?;
    let outcomes = stage.open(
        &sandbox,
        &[
            Probe::tls(SITE_A, "a.lab"),
            Probe::tls(SITE_A, "A.LAB"),
            Probe::tls(SITE_B, "b.lab"),
            hello(&records(&good, 1000)),
            hello(&records(&good, 7)),
        ],
    )?;
    assert!(outcomes[0].text.contains("sni=a.lab"), "{outcomes:?}");
    // What came out is what went in.
    let seen = stage.lab.seen()?;
    let whole = records(&good, 7);
    assert!(seen.connections_to(SITE_A).iter().any(|c| c.said == whole));
    Ok(())
}

#[test]
fn http_says_the_name_that_led_there() -> Result<()> {
    let Some(stage) = Stage::new()? else { return Ok(()) };
    stage.lab.zone().point("shared.lab", &[SITE_A]);
    let policy = json!({ "allow": [{ "host": "a.lab" }, { "host": "b.lab" }] });
    let sandbox = stage.sandbox(&policy)?;
    stage.open(&sandbox, &[Probe::resolve("a.lab"), Probe::resolve("b.lab")])?;
    let of = |host: &str| http(&request("GET", host, "/secret"));
    let good = request("GET", "a.lab", "/");
    let mut probes: Vec<_> = [
        "shared.lab",
        "b.lab",
        "other.lab",
        "x.a.lab",
        "a.lab.other.lab",
        "a.lab@shared.lab",
        "shared.lab@a.lab",
        "a.lab#shared.lab",
        "a.lab, shared.lab",
        "a.lab:80:80",
        "a.lab:80@shared.lab",
        "a.lab/",
        "203.0.113.10",
        "[2001:db8:1::10]",
        "0xcb00710a",
        "a.lab\0.shared.lab",
        "a.lab\u{b}",
        "",
        "a..lab",
        "\u{430}.lab",
    ]
    .map(of)
    .to_vec();
    probes.extend([
        http("GET /secret HTTP/1.1\r\n\r\n"),
        http("GET /secret HTTP/1.0\r\n\r\n"),
        http("GET /secret\r\n"),
        http("GET /secret HTTP/1.1\r\nHost: a.lab\r\nHost: shared.lab\r\n\r\n"),
        http("GET /secret HTTP/1.1\r\nHost: shared.lab\r\nHost: a.lab\r\n\r\n"),
        http("GET /secret HTTP/1.1\r\nHost : shared.lab\r\nHost: a.lab\r\n\r\n"),
        http("GET /secret HTTP/1.1\r\nHost: a.lab\r\n shared.lab\r\n\r\n"),
        http("GET http://shared.lab/secret HTTP/1.1\r\nHost: a.lab\r\n\r\n"),
        http("GET http://a.lab/secret HTTP/1.1\r\nHost: shared.lab\r\n\r\n"),
        http("CONNECT shared.lab:443 HTTP/1.1\r\nHost: a.lab\r\n\r\n"),
        http("\r\n\r\nGET /secret HTTP/1.1\r\nHost: shared.lab\r\n\r\n"),
        http("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0"),
        http("SSH-2.0-tunnel\r\n"),
    ]);
    stage.closed(&sandbox, &probes)?;
    stage.explains(&sandbox, "shared.lab", "did not lead to this address")?;

    // The first request of a connection is no licence for the second.
    stage.lab.forget()?;
    let later = request("GET", "shared.lab", "/secret-later");
    let second =
        http(&good).with("then", vec![hex(later.as_bytes())]).with("until", "secret-later");
    let at_once = http(&format!("{good}{later}")).with("until", "secret-later");
    let probes = [second, at_once].map(|probe| probe.with("timeout", 3));
    stage.refused(&sandbox, &probes)?;
    let seen = stage.lab.seen()?;
    assert!(!seen.contains("secret-later"), "{seen:?}");
    assert!(!seen.connections_to(SITE_A).is_empty(), "the first ones went out");

    stage.open(&sandbox, &[http(&good), of("A.Lab"), of("a.lab:80"), of("a.lab.")])?;
    Ok(())
}

#[test]
fn an_address_is_reached_as_long_as_a_name_leads_there() -> Result<()> {
    let Some(stage) = Stage::new()? else { return Ok(()) };
    let round = |address| vec![Record::address(address)];
    let (first, then) = (round(SITE_A), round(SITE_B));
    stage.lab.zone().set_rounds("moving.lab", 15, &[&first, &then]);
    let sandbox = stage.sandbox(&json!({ "allow": [{ "host": "moving.lab" }] }))?;
    let at = |address: &str| Probe::http(address, "moving.lab", "/");
    stage.closed(&sandbox, &[at(SITE_A), at(SITE_B)])?;
    stage.explains(&sandbox, SITE_A, "no allowed name led to this address")?;
    // Connections outlive what led to them.
    let watch = "import socket, time\n\
        s = socket.create_connection(('203.0.113.10', 5000), 10)\n\
        for i in range(1000):\n    s.sendall(b'tick\\n'); s.recv(100); time.sleep(0.2)";
    let told = Probe::dns("moving.lab", 1);
    let outcome = &stage.open(&sandbox, &[told.clone().alone(), at(SITE_A)])?[0];
    assert_eq!(outcome.text, SITE_A);
    let ttl = outcome.value["records"][0]["ttl"].as_u64().expect("a time to live");
    assert!((1..=60).contains(&ttl), "{ttl}");
    stage.closed(&sandbox, &[at(SITE_B)])?;
    stage.open(&sandbox, std::slice::from_ref(&told))?;
    sandbox.write("/root/watch.py", watch.as_bytes())?;
    let start = "python3 /root/watch.py >/root/watch.log 2>&1 </dev/null &";
    sandbox.output(start)?;
    sleep(deadline(Duration::from_secs(ttl + 3)));
    stage.closed(&sandbox, &[at(SITE_A)])?;
    stage.open(&sandbox, &[told.alone(), at(SITE_B)])?;
    stage.closed(&sandbox, &[at(SITE_A)])?;
    assert_eq!(sandbox.output("pgrep -fc [w]atch.py")?.trim(), "1");
    Ok(())
}
