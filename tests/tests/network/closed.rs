//! T26: what nobody opened is closed. A sandbox needs no flag to be safe, an empty list allows
//! nothing, and whoever wonders why finds a line in the egress log.

use anyhow::Result;
use pandastack_tests::lab::A;
use serde_json::json;

use crate::guest::Probe;
use crate::stage::{PLACE, SITE_A, SITE_A6, Stage, everything};

fn probes() -> Vec<Probe> {
    vec![
        Probe::resolve("a.lab"),
        Probe::dns("a.lab", A),
        Probe::dns_at("8.8.8.8", 53, "a.lab", A).with("timeout", 2),
        Probe::http(SITE_A, "a.lab", "/"),
        Probe::tls(SITE_A, "a.lab"),
        Probe::tcp(SITE_A, 22, b"said"),
        Probe::tcp(PLACE, 5000, b"said"),
        Probe::http(SITE_A6, "six.lab", "/"),
        Probe::http("169.254.169.254", "169.254.169.254", "/latest/meta-data/"),
        Probe::udp(SITE_A, 123, b"time").with("timeout", 2),
        Probe::udp(SITE_A6, 123, b"time").with("timeout", 2),
        Probe::ping("8.8.8.8", b"anybody").with("timeout", 2),
        Probe::ping("2001:4860:4860::8888", b"anybody").with("timeout", 2),
    ]
}

#[test]
fn a_sandbox_needs_no_flag_to_be_safe() -> Result<()> {
    let Some(stage) = Stage::new()? else { return Ok(()) };
    let sandbox = stage.plain()?;
    assert_eq!(sandbox.object["egress"], "none");
    assert_eq!(stage.client.get(&sandbox.path("/egress"))?.json(), json!("none"));
    stage.closed(&sandbox, &probes())?;
    for (about, words) in [
        ("a.lab", "no rule allows this name"),
        (SITE_A, "no allowed name led to this address"),
        (SITE_A, "UDP is only where a rule names the port"),
        (SITE_A6, "no allowed name led to this address"),
        ("169.254.169.254", "metadata"),
        ("8.8.8.8", "ping reaches nothing else"),
    ] {
        stage.explains(&sandbox, about, words)?;
    }
    for line in stage.log(&sandbox)? {
        assert_eq!(line["verdict"], "deny", "{line}");
        let reason = line["reason"].as_str().unwrap_or_default();
        assert!(reason.len() > 10 && reason.len() < 200 && !reason.contains('\n'), "{line}");
        assert!(line["time"].is_string() && line["kind"].is_string(), "{line}");
    }
    // The tools that people reach for say so at once and do not hang.
    stage.lab.forget()?;
    for line in [
        "curl -sS --max-time 20 http://a.lab/",
        "curl -sS --max-time 20 https://203.0.113.10/",
        "curl -sS --max-time 20 http://169.254.169.254/latest/meta-data/",
        "curl -sS --max-time 20 -g http://[2001:db8:1::10]/",
        "ping -c 1 -W 1 8.8.8.8",
        "git ls-remote https://a.lab/x.git",
    ] {
        let begin = std::time::Instant::now();
        let result = sandbox.exec(line)?;
        assert_ne!(result["exit_code"], 0, "{line}: {result}");
        let text = format!("{}{}", result["stderr"], result["stdout"]);
        assert!(!text.contains("timed out"), "{line}: {text} after {:?}", begin.elapsed());
    }
    crate::stage::nothing(&stage.lab.seen()?)?;
    // The same attempts are not hopeless by themselves.
    stage.set(&sandbox, &everything())?;
    stage.open(
        &sandbox,
        &[
            Probe::resolve("a.lab"),
            Probe::http(SITE_A, "a.lab", "/"),
            Probe::tcp(SITE_A, 22, b"said").with("until", "said"),
            Probe::tcp(PLACE, 5000, b"said").with("until", "said"),
            Probe::http(SITE_A6, "six.lab", "/"),
            Probe::udp(SITE_A, 123, b"time"),
            Probe::udp(SITE_A6, 123, b"time"),
        ],
    )?;
    assert!(sandbox.output("curl -sS --max-time 20 http://a.lab/path")?.contains("target=/path"));
    Ok(())
}

#[test]
fn an_empty_list_is_nothing() -> Result<()> {
    let Some(stage) = Stage::new()? else { return Ok(()) };
    let sandbox = stage.sandbox(&json!({ "allow": [] }))?;
    let probes = probes();
    stage.closed(&sandbox, &probes)?;
    for nothing in [
        json!({ "allow": [], "deny": [] }),
        json!({ "allow": [], "deny": [{ "host": "evil.lab" }] }),
        json!({ "allow": [{ "host": "a.lab" }], "deny": [{ "host": "a.lab" }] }),
        json!({ "allow": [{ "cidr": "203.0.113.0/24" }], "deny": [{ "cidr": "0.0.0.0/0" }] }),
        json!({ "allow": [{ "host": "*" }], "deny": [{ "host": "*" }] }),
        json!("none"),
    ] {
        stage.set(&sandbox, &nothing)?;
        stage.closed(&sandbox, &probes)?;
    }
    stage.set(&sandbox, &json!({ "allow": [{ "host": "a.lab" }] }))?;
    stage.open(&sandbox, &[Probe::resolve("a.lab").alone(), Probe::http(SITE_A, "a.lab", "/")])?;
    Ok(())
}
