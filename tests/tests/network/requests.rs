//! T22: rules for methods and paths hold for every request of a connection, however it is written.

use anyhow::Result;
use pandastack_tests::lab::Seen;
use serde_json::json;

use crate::guest::{Probe, hex, request};
use crate::stage::{SITE_A, SITE_B, Stage};

/// Bytes to site A.
fn raw(text: &str) -> Probe {
    Probe::tcp(SITE_A, 80, text.as_bytes()).with("until", "received=")
}

fn said(seen: &Seen) -> String {
    let said = seen.connections.values().map(|c| String::from_utf8_lossy(&c.said).into_owned());
    said.collect()
}

#[test]
fn requests_that_no_rule_allows_do_not_go_out() -> Result<()> {
    let Some(stage) = Stage::new()? else { return Ok(()) };
    let sandbox = stage.sandbox(&json!({ "allow": [
        { "host": "a.lab", "methods": ["GET"], "paths": ["/public", "/bucket/own/"] },
        { "host": "a.lab", "methods": ["PUT"], "paths": ["/upload"] },
        { "host": "b.lab" },
    ] }))?;
    stage.open(&sandbox, &[Probe::resolve("a.lab"), Probe::resolve("b.lab")])?;
    let of = |method: &str, path: &str| raw(&request(method, "a.lab", path));
    stage.closed(
        &sandbox,
        &[
            of("GET", "/private"),
            of("GET", "/"),
            of("GET", "/publicity"),
            of("GET", "/public/../private"),
            of("GET", "/public/%2e%2e/private"),
            of("GET", "/public%2f..%2fprivate"),
            of("GET", "//public"),
            of("GET", "/public\\..\\private"),
            of("GET", "/bucket/other/key"),
            of("GET", "/bucket/own"),
            of("GET", "http://b.lab/public"),
            of("GET", "http://a.lab/private"),
            of("POST", "/public"),
            of("get", "/public"),
            of("PUT", "/public"),
            of("GET", "/upload"),
            of("DELETE", "/upload"),
            of("CONNECT", "b.lab:443"),
            of("OPTIONS", "*"),
            // What cannot be read is not let through.
            Probe::tls(SITE_A, "a.lab"),
            Probe::tcp(SITE_A, 5000, b"anything"),
            raw("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        ],
    )?;
    stage.explains(&sandbox, "a.lab", "no rule allows this method and path")?;
    let outcomes = stage.open(
        &sandbox,
        &[
            of("GET", "/public"),
            of("GET", "/public/file?x=/private"),
            of("GET", "/bucket/own/key"),
            of("PUT", "/upload"),
            // Rules add up: the other name has every request.
            Probe::tcp(SITE_B, 80, request("DELETE", "b.lab", "/x").as_bytes())
                .with("until", "received="),
        ],
    )?;
    assert!(outcomes[0].text.contains("target=/public "), "{outcomes:?}");
    Ok(())
}

#[test]
fn a_connection_that_began_well_is_read_to_its_end() -> Result<()> {
    let Some(stage) = Stage::new()? else { return Ok(()) };
    let policy =
        json!({ "allow": [{ "host": "a.lab", "methods": ["GET", "POST"], "paths": ["/public"] }] });
    let sandbox = stage.sandbox(&policy)?;
    stage.open(&sandbox, &[Probe::resolve("a.lab")])?;
    let good = request("GET", "a.lab", "/public");
    let bad = request("GET", "a.lab", "/private-smuggled");
    let post = |fields: &str, body: &str| {
        format!("POST /public HTTP/1.1\r\nHost: a.lab\r\n{fields}\r\n\r\n{body}")
    };
    let pairs = [
        // One after the other, at once and later.
        format!("{good}{bad}"),
        format!("{}{bad}", post("Content-Length: 4", "body")),
        format!("{}{bad}", post("Transfer-Encoding: chunked", "4\r\nbody\r\n0\r\n\r\n")),
        // Two readers, two opinions.
        post(
            &format!("Content-Length: {}\r\nTransfer-Encoding: chunked", 5 + bad.len()),
            &format!("0\r\n\r\n{bad}"),
        ),
        post(
            &format!("Transfer-Encoding: chunked\r\nContent-Length: {}", 5 + bad.len()),
            &format!("0\r\n\r\n{bad}"),
        ),
        post(&format!("Transfer-Encoding: xchunked\r\nContent-Length: {}", bad.len()), &bad),
        post(&format!("Transfer-Encoding : chunked\r\nContent-Length: {}", bad.len()), &bad),
        post(
            &format!("Transfer-Encoding:\tchunked\r\n\tfolded: x\r\nContent-Length: {}", bad.len()),
            &bad,
        ),
        post(&format!("Content-Length: 0\r\nContent-Length: {}", bad.len()), &bad),
        post(&format!("Content-Length: +{}", bad.len()), &bad),
        post(&format!("Content-Length: 0, {}", bad.len()), &bad),
        post(&format!("Content-Length : {}", bad.len()), &bad),
        post("Transfer-Encoding: chunked", &format!("0;x=\n{bad}\r\n\r\n")),
        format!("GET /public HTTP/1.1\r\nHost: a.lab\r\nX: y\n\n{bad}"),
        format!("GET /public HTTP/1.1\nHost: a.lab\n\n{bad}"),
        format!("GET /public\r\n{bad}"),
        format!("GET /public HTTP/1.1\r\nHost: a.lab\r\n x: y\r\n\r\n{bad}"),
        format!(
            "GET /public HTTP/1.1\r\nHost: a.lab\r\nUpgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n{bad}"
        ),
        format!(
            "GET /public HTTP/1.1\r\nHost: a.lab\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n{bad}"
        ),
    ];
    stage.lab.forget()?;
    let mut probes: Vec<_> =
        pairs.iter().map(|text| raw(text).with("until", "never").with("timeout", 3)).collect();
    let later = raw(&good).with("then", vec![hex(bad.as_bytes())]);
    probes.push(later.with("until", "never").with("timeout", 3));
    stage.attempt(&sandbox, &probes)?;
    let seen = stage.lab.seen()?;
    assert!(!seen.contains("smuggled"), "{}", said(&seen));
    assert!(said(&seen).contains("GET /public"), "the good ones before them went out");

    // Well-formed requests in a row do go through, by each kind of body.
    stage.lab.forget()?;
    let row = format!(
        "{good}{}{}{}",
        post("Content-Length: 4", "body"),
        post("Transfer-Encoding: chunked", "4\r\nbody\r\n0\r\n\r\n")
            .replace("/public", "/public/c"),
        request("GET", "a.lab", "/public/last")
            .replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n"),
    );
    let outcomes = stage.open(&sandbox, &[raw(&row).with("until", "target=/public ")])?;
    let arrived = || stage.lab.seen().is_ok_and(|seen| said(&seen).contains("/public/last"));
    assert!(
        pandastack_tests::wait_until(std::time::Duration::from_secs(5), arrived),
        "{outcomes:?}"
    );
    Ok(())
}
