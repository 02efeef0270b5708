//! T21: the metadata services of clouds, which give away the host's credentials, are out of reach
//! under every policy there is, and on a server whose operator has opened private networks.

use anyhow::Result;
use pandastack_tests::Options;
use serde_json::{Value, json};

use crate::guest::Probe;
use crate::stage::{SITE_A, SITE_A6, Stage, everything};

const SERVICES: [&str; 10] = [
    "169.254.169.254",
    "169.254.170.2",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "fd00:ec2::254",
    "fd20:ce::254",
    "64:ff9b::a9fe:a9fe",
    "2002:a9fe:a9fe::1",
    "::ffff:169.254.169.254",
];
const NAMES: [&str; 6] = [
    "metadata.google.internal",
    "METADATA.google.internal.",
    "x.metadata.google.internal",
    "metadata",
    "metadata.goog",
    "instance-data.ec2.internal",
];

fn probes() -> Vec<Probe> {
    let mut probes: Vec<_> = NAMES.iter().map(|name| Probe::resolve(name)).collect();
    for address in SERVICES {
        probes.push(Probe::http(address, address, "/latest/meta-data/"));
        probes.push(Probe::udp(address, 53, b"?").with("timeout", 2));
    }
    // The names of others do not help, nor does the way of a name.
    probes.push(Probe::http("169.254.169.254", "a.lab", "/"));
    probes.push(Probe::http("169.254.169.254", "metadata.google.internal", "/"));
    probes.push(Probe::tls("169.254.169.254", "a.lab"));
    probes
}

/// Everything, and the services by name once more. The API may refuse to take it.
fn insolent() -> Value {
    let mut policy = everything();
    let allow = policy["allow"].as_array_mut().expect("a list");
    for cidr in ["169.254.0.0/16", "169.254.169.254/32", "100.100.100.200/32", "fd00:ec2::254/128"]
    {
        allow.push(json!({ "cidr": cidr, "ports": ["1-65535", "1-65535/udp"] }));
    }
    allow.push(json!({ "host": "metadata.google.internal" }));
    policy
}

#[test]
fn no_policy_opens_a_metadata_service() -> Result<()> {
    let args = ["--allow-private"];
    let Some(stage) = Stage::with(&args, Options::default())? else { return Ok(()) };
    stage.lab.zone().point("meta.lab", &["169.254.169.254", "fd00:ec2::254"]);
    let sandbox = stage.plain()?;
    let probes = probes();
    stage.closed(&sandbox, &probes)?;
    for policy in [json!({ "allow": [] }), json!({ "allow": [{ "host": "a.lab" }] })] {
        stage.set(&sandbox, &policy)?;
        stage.closed(&sandbox, &probes)?;
    }
    stage.set(&sandbox, &everything())?;
    stage.closed(&sandbox, &probes)?;
    stage.explains(&sandbox, "169.254.169.254", "metadata")?;
    stage.explains(&sandbox, "metadata.google.internal", "which no policy opens")?;
    let answer = stage.try_set(&sandbox, &insolent())?;
    if answer.status == 200 {
        stage.closed(&sandbox, &probes)?;
    } else {
        assert_eq!(answer.status, 400, "{}", answer.text());
    }
    // A name that leads there leads nowhere.
    stage.lab.forget()?;
    stage.refused(
        &sandbox,
        &[Probe::resolve("meta.lab").alone(), Probe::http("169.254.169.254", "meta.lab", "/")],
    )?;
    let seen = stage.lab.seen()?;
    assert_eq!(seen.names(), ["meta.lab"]);
    assert!(seen.connections.is_empty() && seen.packets_to("169.254.169.254").is_empty());
    // Whoever tries knows that everything else was open.
    stage.open(
        &sandbox,
        &[
            Probe::http(SITE_A, "a.lab", "/"),
            Probe::udp(SITE_A, 123, b"time"),
            Probe::http(SITE_A6, "six.lab", "/"),
        ],
    )?;
    Ok(())
}
