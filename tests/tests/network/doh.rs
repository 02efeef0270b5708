//! T24: DNS in HTTP and in TLS goes to the gateway or nowhere, under rules for names.

use anyhow::Result;
use pandastack_tests::lab::A;
use serde_json::json;

use crate::guest::Probe;
use crate::hello::{client_hello, records};
use crate::stage::{SITE_A, Stage};

const RESOLVERS: [&str; 7] = [
    "dns.google",
    "cloudflare-dns.com",
    "mozilla.cloudflare-dns.com",
    "one.one.one.one",
    "dns.quad9.net",
    "doh.opendns.com",
    "abc123.dns.nextdns.io",
];

#[test]
fn the_web_has_no_resolvers_in_it() -> Result<()> {
    let Some(mut stage) = Stage::new()? else { return Ok(()) };
    stage.lab.begin_tls(&["*.lab"])?;
    let sandbox = stage.sandbox(&json!({ "allow": [{ "host": "*" }] }))?;
    let mut probes: Vec<_> = RESOLVERS.iter().map(|name| Probe::resolve(name)).collect();
    probes.extend(RESOLVERS.iter().map(|name| Probe::dns(name, A)));
    // They have well-known addresses, and these are not anybody's to use without a name.
    for address in ["8.8.8.8", "1.1.1.1", "9.9.9.9", "2606:4700:4700::1111"] {
        probes.push(Probe::tls(address, "dns.google"));
        probes.push(Probe::tcp(address, 853, b"hello"));
        probes.push(Probe::tcp(address, 53, b"hello"));
    }
    stage.closed(&sandbox, &probes)?;
    stage.explains(&sandbox, "dns.google", "resolver")?;

    // A site that anybody may visit may also answer questions.
    stage.open(&sandbox, &[Probe::resolve("a.lab")])?;
    let http = |text: &str| Probe::tcp(SITE_A, 80, text.as_bytes()).with("until", "received=");
    let of_tls = client_hello(&["a.lab"], &[(16, b"\0\x04\x03dot".to_vec())]);
    stage.closed(
        &sandbox,
        &[
            http(
                "POST /dns-query HTTP/1.1\r\nHost: a.lab\r\nContent-Type: application/dns-message\r\n\
                 Content-Length: 4\r\n\r\nxxxx",
            ),
            http(
                "POST /other HTTP/1.1\r\nhost: a.lab\r\ncontent-type: Application/DNS-Message; x=y\r\n\
                 content-length: 4\r\n\r\nxxxx",
            ),
            http(
                "GET /dns-query?dns=AAABAAABAAAAAAAAA3d3dwdleGFtcGxlA2NvbQAAAQAB HTTP/1.1\r\n\
                 Host: a.lab\r\nAccept: application/dns-message\r\n\r\n",
            ),
            http("GET /dns-query?dns=AAABAAABAAAA HTTP/1.1\r\nHost: a.lab\r\n\r\n"),
            http("GET /resolve HTTP/1.1\r\nHost: a.lab\r\nAccept: application/dns-json\r\n\r\n"),
            Probe::tcp(SITE_A, 853, &records(&of_tls, 1000)).with("until", "\u{16}\u{3}\u{3}"),
            Probe::tcp(SITE_A, 443, &records(&of_tls, 1000)).with("until", "\u{16}\u{3}\u{3}"),
            Probe::tls(SITE_A, "dns.google"),
            Probe::tls(SITE_A, "cloudflare-dns.com"),
            Probe::http(SITE_A, "dns.google", "/resolve?name=a.lab"),
        ],
    )?;
    stage.explains(&sandbox, "a.lab", "resolver")?;
    stage.open(
        &sandbox,
        &[Probe::http(SITE_A, "a.lab", "/dns-queries"), Probe::tls(SITE_A, "a.lab")],
    )?;
    // Who names one exactly means it.
    stage.set(&sandbox, &json!({ "allow": [{ "host": "dns.google" }] }))?;
    stage.open(&sandbox, &[Probe::resolve("dns.google")])?;
    Ok(())
}
