//! T30: a public name that leads to a private place, at once or at the second question.

use anyhow::Result;
use pandastack_tests::lab::{HOST_PUBLIC, HOST_V4, HOST_V6, Record};
use serde_json::json;

use crate::guest::Probe;
use crate::stage::{SITE_A, SITE_B, Stage};

#[test]
fn names_do_not_lead_to_private_places() -> Result<()> {
    let Some(stage) = Stage::new()? else { return Ok(()) };
    let sandbox = stage.sandbox(&json!({ "allow": [{ "host": "*" }] }))?;
    let own = [HOST_V4.to_string(), HOST_PUBLIC.to_string(), HOST_V6.to_string()];
    let mut bad: Vec<&str> = "127.0.0.1 127.1.2.3 0.0.0.0 0.1.2.3 10.0.0.5 172.16.0.1 192.168.1.1 \
         100.64.0.1 169.254.169.254 169.254.1.1 198.18.0.1 198.18.0.2 224.0.0.251 240.0.0.1 \
         255.255.255.255 ::1 :: ::ffff:10.0.0.5 ::ffff:127.0.0.1 ::10.0.0.5 64:ff9b::a00:5 \
         64:ff9b::7f00:1 64:ff9b:1::1 2002:a00:5:: fe80::1 fec0::1 fd00::1 fd50:616e:6461::2 ff02::1"
        .split_whitespace()
        .collect();
    bad.extend(own.iter().map(String::as_str));
    let mut names = Vec::new();
    for (index, address) in bad.iter().enumerate() {
        let name = format!("bad{index}.lab");
        stage.lab.zone().point(&name, &[address]);
        names.push(name);
    }
    let probes: Vec<_> = names
        .iter()
        .zip(&bad)
        .flat_map(|(name, address)| {
            [Probe::resolve(name).alone(), Probe::http(address, name, "/").with("timeout", 2)]
        })
        .collect();
    stage.lab.forget()?;
    let outcomes = stage.attempt(&sandbox, &probes)?;
    for (pair, address) in outcomes.chunks(2).zip(&bad) {
        assert!(!pair[0].ok, "{address} was told: {:?}", pair[0]);
        // The guest's own loopback is its own, and nobody listens there.
        assert!(!pair[1].ok, "{address} was reached: {:?}", pair[1]);
    }
    let seen = stage.lab.seen()?;
    assert!(seen.connections.is_empty(), "{:?}", seen.connections);
    let others = seen.packets.iter().filter(|packet| packet.port != Some(53));
    assert_eq!(others.count(), 0, "{:?}", seen.packets);
    assert!(names.iter().all(|name| seen.names().contains(&name.as_str())), "all were asked");
    stage.explains(&sandbox, "bad4.lab", "private")?;
    stage.explains(&sandbox, "bad0.lab", "loopback")?;

    // Of a mixed answer the public part is told.
    stage.lab.zone().point("mixed.lab", &["10.0.0.5", SITE_A, "169.254.169.254"]);
    let outcomes = stage.open(
        &sandbox,
        &[Probe::resolve("mixed.lab").alone(), Probe::http(SITE_A, "mixed.lab", "/")],
    )?;
    assert_eq!(outcomes[0].text, SITE_A);
    Ok(())
}

#[test]
fn a_name_that_moves_to_a_private_place_leads_nowhere() -> Result<()> {
    let Some(stage) = Stage::new()? else { return Ok(()) };
    let round =
        |addresses: &[&str]| addresses.iter().map(|a| Record::address(a)).collect::<Vec<_>>();
    let rounds = [round(&[SITE_A]), round(&["10.0.0.5"]), round(&["127.0.0.1"])];
    let rounds: Vec<&[Record]> = rounds.iter().map(Vec::as_slice).collect();
    stage.lab.zone().set_rounds("moving.lab", 0, &rounds);
    let sandbox = stage.sandbox(&json!({ "allow": [{ "host": "moving.lab" }] }))?;
    let ask = Probe::dns("moving.lab", 1).alone();
    let outcomes = stage.open(&sandbox, &[ask.clone(), Probe::http(SITE_A, "moving.lab", "/")])?;
    assert_eq!(outcomes[0].text, SITE_A);
    for _ in 0..2 {
        let outcomes =
            stage.attempt(&sandbox, &[ask.clone(), Probe::http("10.0.0.5", "moving.lab", "/")])?;
        assert!(!outcomes[1].ok && !outcomes[0].text.contains("10.0.0.5"), "{outcomes:?}");
        assert!(!outcomes[0].text.contains("127.0.0.1"), "{outcomes:?}");
    }
    assert!(stage.lab.seen()?.packets_to("10.0.0.5").is_empty());
    Ok(())
}

#[test]
fn aliases_are_followed_where_no_rule_denies_them() -> Result<()> {
    let Some(stage) = Stage::new()? else { return Ok(()) };
    let zone = stage.lab.zone();
    zone.set("alias.lab", &[Record::alias("cdn.other.net")]);
    zone.point("cdn.other.net", &[SITE_B]);
    zone.set("denied.lab", &[Record::alias("evil.other.net")]);
    zone.point("evil.other.net", &[SITE_A]);
    zone.set("inside.lab", &[Record::alias("metadata.google.internal")]);
    zone.point("metadata.google.internal", &["203.0.113.12"]);
    zone.set("loop.lab", &[Record::alias("loop.lab")]);
    let sandbox = stage.sandbox(&json!({
        "allow": [{ "host": "*.lab" }], "deny": [{ "host": "evil.other.net" }],
    }))?;
    stage.refused(
        &sandbox,
        &[
            Probe::resolve("denied.lab"),
            Probe::resolve("inside.lab"),
            Probe::resolve("loop.lab"),
            // The end of an alias is nobody's name here.
            Probe::resolve("cdn.other.net"),
        ],
    )?;
    stage.closed(&sandbox, &[Probe::http(SITE_A, "denied.lab", "/")])?;
    let outcomes = stage.open(
        &sandbox,
        &[Probe::resolve("alias.lab").alone(), Probe::http(SITE_B, "alias.lab", "/")],
    )?;
    assert_eq!(outcomes[0].text, SITE_B);
    stage.closed(&sandbox, &[Probe::http(SITE_B, "cdn.other.net", "/")])?;
    Ok(())
}
