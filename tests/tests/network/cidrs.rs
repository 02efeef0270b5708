//! T33: networks at their boundaries. T37: UDP, and QUIC with it, is where a rule says so.

use anyhow::{Context, Result};
use pandastack_tests::Options;
use serde_json::json;

use crate::guest::Probe;
use crate::stage::{PLACE, SITE_A, SITE_A6, SITE_B, Stage, everything};

fn to(address: &str) -> Probe {
    Probe::http(address, "nobody", "/")
}

#[test]
fn networks_are_exact_at_their_boundaries() -> Result<()> {
    let Some(stage) = Stage::new()? else { return Ok(()) };
    let sandbox = stage.plain()?;
    // What is allowed; what is in it; what is not.
    for (cidr, inside, outside) in [
        ("203.0.113.10/32", &[SITE_A][..], &[SITE_B, "203.0.113.9", PLACE, SITE_A6][..]),
        ("203.0.113.10/31", &[SITE_A, SITE_B], &["203.0.113.9", "203.0.113.12"]),
        ("203.0.113.8/31", &["203.0.113.8", "203.0.113.9"], &[SITE_A, "203.0.113.7"]),
        ("203.0.113.0/24", &["203.0.113.0", "203.0.113.255"], &["203.0.112.255", "203.0.114.0"]),
        // Ends at the last address of all.
        ("192.0.0.0/2", &[SITE_A, "223.255.255.254"], &["191.255.255.255", SITE_A6]),
        ("128.0.0.0/1", &[SITE_A, "128.0.0.1"], &["126.255.255.255", "255.255.255.255"]),
        ("0.0.0.0/0", &[SITE_A, "1.0.0.1", "126.255.255.255"], &[SITE_A6, "10.0.0.5", "240.0.0.1"]),
        ("::/0", &[SITE_A6, "2606:4700::1111"], &[SITE_A, "fd00::1", "64:ff9b::a00:5"]),
        ("2001:db8:1::10/128", &[SITE_A6], &["2001:db8:1::11", SITE_A]),
        (
            "2001:db8:1::/48",
            &[SITE_A6, "2001:db8:1:ffff::1"],
            &["2001:db8:2::", "2001:db8:0:ffff::1"],
        ),
    ] {
        stage.set(&sandbox, &json!({ "allow": [{ "cidr": cidr }] }))?;
        stage.split(&sandbox, to, (inside, outside)).with_context(|| cidr.to_owned())?;
    }
    // A hole in a network, and a name that leads into the hole.
    stage.set(
        &sandbox,
        &json!({
            "allow": [{ "cidr": "203.0.113.0/24" }, { "host": "b.lab" }],
            "deny": [{ "cidr": "203.0.113.11/32" }],
        }),
    )?;
    stage.refused(&sandbox, &[Probe::resolve("b.lab")])?;
    stage.closed(&sandbox, &[to(SITE_B), Probe::http(SITE_B, "b.lab", "/")])?;
    stage.explains(&sandbox, SITE_B, "by deny/0")?;
    stage.open(&sandbox, &[to(SITE_A)])?;
    for (cidr, write) in [
        ("203.0.113.10/24", "203.0.113.0/24"),
        ("203.0.113.10", "203.0.113.10/32"),
        ("255.255.255.255/0", "0.0.0.0/0"),
        ("203.0.113.0/33", "0 to 32"),
        ("203.0.113.0/+8", "0 to 32"),
        ("0xcb.0.113.0/24", "an address and a prefix"),
        ("203.0.113/24", "an address and a prefix"),
    ] {
        let answer = stage.try_set(&sandbox, &json!({ "allow": [{ "cidr": cidr }] }))?;
        assert_eq!(answer.status, 400, "{cidr}: {}", answer.text());
        assert!(answer.error().contains(write), "{cidr}: {}", answer.error());
    }
    Ok(())
}

#[test]
fn ports_and_protocols_are_those_of_the_rule() -> Result<()> {
    let Some(stage) = Stage::new()? else { return Ok(()) };
    let sandbox = stage.sandbox(&json!({ "allow": [
        { "host": "a.lab", "ports": [80, "123/udp", "5000-5001"] },
        { "cidr": "198.51.100.0/24", "ports": ["123/udp"] },
        { "host": "b.lab" },
    ] }))?;
    stage.open(&sandbox, &[Probe::resolve("a.lab"), Probe::resolve("b.lab")])?;
    let quic = [0xc0, 0, 0, 0, 1, 8, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0x44, 0xb0];
    stage.closed(
        &sandbox,
        &[
            Probe::udp(SITE_A, 443, &quic).with("timeout", 2),
            Probe::udp(SITE_B, 443, &quic).with("timeout", 2),
            Probe::udp(PLACE, 443, &quic).with("timeout", 2),
            Probe::udp(SITE_A, 5000, b"said").with("timeout", 2),
            Probe::udp(SITE_B, 123, b"said").with("timeout", 2),
            Probe::tcp(SITE_A, 443, b"said"),
            Probe::tcp(SITE_A, 22, b"said"),
            Probe::tcp(SITE_A, 5002, b"said"),
            Probe::tcp(PLACE, 123, b"said"),
            Probe::tcp(PLACE, 80, b"said"),
        ],
    )?;
    stage.explains(&sandbox, SITE_A, "QUIC")?;
    stage.explains(&sandbox, SITE_A, "other ports")?;
    stage.explains(&sandbox, SITE_B, "UDP is only where a rule names the port")?;
    stage.open(
        &sandbox,
        &[
            Probe::http(SITE_A, "a.lab", "/"),
            Probe::udp(SITE_A, 123, b"said"),
            Probe::udp(PLACE, 123, b"said"),
            Probe::tcp(SITE_A, 5000, b"said\n").with("until", "said"),
            Probe::tcp(SITE_B, 22, b"").with("until", "hello from"),
        ],
    )?;
    // By name there is no QUIC, whatever ports a rule has; by address it is anybody's.
    let policy = |ports: &str| json!({ "allow": [{ "host": "a.lab", "ports": [ports] }] });
    let answer = stage.try_set(&sandbox, &policy("1-65535/udp"))?;
    assert_eq!(answer.status, 400, "{}", answer.text());
    assert!(answer.error().contains("QUIC"), "{}", answer.error());
    stage.set(&sandbox, &policy("1-442/udp"))?;
    stage.open(&sandbox, &[Probe::resolve("a.lab").alone(), Probe::udp(SITE_A, 123, b"said")])?;
    stage.closed(&sandbox, &[Probe::udp(SITE_A, 443, &quic).with("timeout", 2)])?;
    let policy = json!({ "allow": [{ "cidr": "198.51.100.7/32", "ports": ["443/udp"] }] });
    stage.set(&sandbox, &policy)?;
    stage.open(&sandbox, &[Probe::udp(PLACE, 443, &quic)])?;
    Ok(())
}

#[test]
fn private_networks_take_the_operators_switch_and_a_network_of_their_own() -> Result<()> {
    let mut named = everything();
    let allow = named["allow"].as_array_mut().expect("a list");
    allow.push(json!({ "cidr": "10.0.0.0/24" }));
    let private = ["10.0.0.5", "10.0.1.5", "192.168.1.1", "172.16.0.1", "fd00::1"].map(to);
    for (args, open) in [(&[][..], false), (&["--allow-private"][..], true)] {
        let Some(stage) = Stage::with(args, Options::default())? else { return Ok(()) };
        stage.lab.zone().point("inner.lab", &["10.0.0.5"]);
        let sandbox = stage.sandbox(&everything())?;
        stage.closed(&sandbox, &private)?;
        stage.explains(&sandbox, "10.0.0.5", "a private address")?;
        stage.refused(&sandbox, &[Probe::resolve("inner.lab")])?;
        stage.set(&sandbox, &named)?;
        stage.closed(&sandbox, &private[1..])?;
        if open {
            stage.open(&sandbox, &[to("10.0.0.5"), Probe::resolve("inner.lab")])?;
        } else {
            stage.closed(&sandbox, &private[..1])?;
            stage.refused(&sandbox, &[Probe::resolve("inner.lab")])?;
        }
        stage.open(&sandbox, &[to(SITE_A)])?;
    }
    Ok(())
}
