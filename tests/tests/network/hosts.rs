//! T25, T34: one parser of names. What a rule says is understood or refused, whoever misspells a
//! field is told, and what a guest writes is what a rule means or nothing.

use anyhow::Result;
use serde_json::{Value, json};

use crate::guest::{Probe, hex, request};
use crate::stage::{SITE_A, Stage};

#[test]
fn rules_are_understood_or_refused() -> Result<()> {
    let Some(stage) = Stage::new()? else { return Ok(()) };
    let sandbox = stage.sandbox(&json!({ "allow": [{ "host": "a.lab" }] }))?;
    let hosts = [
        "",
        ".",
        "a..lab",
        ".a.lab",
        "a.lab..",
        "a.lab\0",
        "a.lab\0.evil.lab",
        "a.lab\r\n",
        "a.lab\nevil.lab",
        " a.lab",
        "a.lab ",
        "a.lab/",
        "a.lab/path",
        "a.lab:80",
        "http://a.lab",
        "user@a.lab",
        "a.lab@evil.lab",
        "a.lab#evil.lab",
        "a.lab?x",
        "a_lab%2eevil",
        "b\u{fc}cher.lab",
        "\u{430}.lab",
        "a\u{3002}lab",
        "*.*.lab",
        "a.*.lab",
        "*a.lab",
        "**",
        "-a.lab",
        "203.0.113.10",
        "203.0.113.10.",
        "3405803786",
        "0xcb00710a",
        "0313.0.0161.012",
        "203.0.28938",
        "::1",
        "[2001:db8:1::10]",
        "fe80::1%eth0",
        "1.2.3.4.5",
    ];
    let label = "a".repeat(64);
    let name = ["abcdefghij"; 26].join(".");
    for host in hosts.into_iter().chain([&*label, &*name]) {
        let answer = stage.try_set(&sandbox, &json!({ "allow": [{ "host": host }] }))?;
        assert_eq!(answer.status, 400, "{host:?}: {}", answer.text());
        assert!(answer.error().contains("egress/allow/0/host"), "{host:?}: {}", answer.error());
        let deny = json!({ "allow": [], "deny": [{ "host": host }] });
        assert_eq!(stage.try_set(&sandbox, &deny)?.status, 400, "{host:?}");
        let body = json!({ "template": "base", "egress": { "allow": [{ "host": host }] } });
        assert_eq!(stage.client.post("/v1/sandboxes", &body)?.status, 400, "{host:?}");
    }
    assert_eq!(stage.client.get("/v1/sandboxes")?.json().as_array().map(Vec::len), Some(1));
    // One spelling of each.
    for (host, spelled) in [
        ("A.Lab", "a.lab"),
        ("a.lab.", "a.lab"),
        ("*.A.LAB", "*.a.lab"),
        ("xn--bcher-kva.lab", "xn--bcher-kva.lab"),
    ] {
        stage.set(&sandbox, &json!({ "allow": [{ "host": host }] }))?;
        let shown = stage.client.get(&sandbox.path("/egress"))?.json();
        assert_eq!(shown["allow"][0]["host"], spelled);
    }
    Ok(())
}

#[test]
fn unknown_fields_are_refused_and_change_nothing() -> Result<()> {
    let Some(stage) = Stage::new()? else { return Ok(()) };
    let policy = json!({ "allow": [{ "host": "a.lab" }] });
    let sandbox = stage.sandbox(&policy)?;
    let rule = json!([{ "host": "*" }]);
    let bad = [
        json!({ "Allow": rule }),
        json!({ "ALLOW": rule }),
        json!({ "alow": rule }),
        json!({ "allow": rule, "Deny": [] }),
        json!({ "allow": rule, "denny": [] }),
        json!({ "allow": rule, "allowed": [] }),
        json!({ "allow": rule, "Log": true }),
        json!({ "allow": rule, "bandwith": {} }),
        json!({ "allow": rule, "bandwidth": { "Up_bytes_per_second": 5000 } }),
        json!({ "allow": rule, "max_conections": 5 }),
        json!({ "allow": rule, "maxConnections": 5 }),
        json!({ "allow": rule, "default": "allow" }),
        json!({ "allow": [{ "Host": "*" }] }),
        json!({ "allow": [{ "host": "*", "port": 443 }] }),
        json!({ "allow": [{ "host": "*", "Ports": [443] }] }),
        json!({ "allow": [{ "host": "*", "method": "GET" }] }),
        json!({ "allow": [{ "host": "*", "path": "/x" }] }),
        json!({ "allow": [{ "host": "*", "cidr": "0.0.0.0/0" }] }),
        json!({ "allow": [{}] }),
        json!({ "allow": [{ "host": "*", "ports": [] }] }),
        json!({ "allow": "*" }),
        json!({ "allow": null }),
        json!({ "allow": ["*"] }),
        json!({ "allow": { "host": "*" } }),
        json!({}),
        json!([]),
        json!(null),
        json!(true),
        json!("all"),
        json!("None"),
        json!(""),
    ];
    let check = |answer: pandastack_tests::Answer, what: &str| {
        assert_eq!(answer.status, 400, "{what}: {}", answer.text());
        assert!(answer.error().contains("egress"), "{what}: {}", answer.error());
    };
    for body in &bad {
        check(stage.try_set(&sandbox, body)?, &body.to_string());
        let create = json!({ "template": "base", "egress": body });
        check(stage.client.post("/v1/sandboxes", &create)?, &create.to_string());
    }
    // What serde_json's values cannot say: the same field twice.
    for text in [
        r#"{"allow":[],"allow":[{"host":"*"}]}"#,
        r#"{"allow":[{"host":"a.lab","host":"*"}]}"#,
        "{\"allow\":[{\"host\":\"a.lab\"}]",
        "",
    ] {
        let body = Some(("application/json", text.as_bytes()));
        let answer = stage.client.send("PUT", &sandbox.path("/egress"), body)?;
        assert_eq!(answer.status, 400, "{text}: {}", answer.text());
    }
    for field in ["Egress", "EGRESS", "egres", "egress_policy", "network", "allow_internet_access"]
    {
        let create = json!({ "template": "base", field: "none" });
        check(stage.client.post("/v1/sandboxes", &create)?, field);
    }
    let twice = r#"{"template":"base","egress":"none","egress":{"allow":[{"host":"*"}]}}"#;
    let body = Some(("application/json", twice.as_bytes()));
    check(stage.client.send("POST", "/v1/sandboxes", body)?, twice);

    assert_eq!(stage.client.get("/v1/sandboxes")?.json().as_array().map(Vec::len), Some(1));
    assert_eq!(stage.client.get(&sandbox.path("/egress"))?.json(), policy);
    stage.closed(&sandbox, &[Probe::resolve("other.lab")])?;
    stage.open(&sandbox, &[Probe::resolve("a.lab").alone(), Probe::http(SITE_A, "a.lab", "/")])?;
    let answer = stage.try_set(&sandbox, &json!({ "Allow": [] }))?;
    assert!(answer.error().contains("did you mean \"allow\""), "{}", answer.error());
    Ok(())
}

#[test]
fn what_a_guest_writes_is_a_name_that_a_rule_means_or_nothing() -> Result<()> {
    let Some(stage) = Stage::new()? else { return Ok(()) };
    let sandbox = stage.sandbox(&json!({ "allow": [{ "host": "*.google.lab" }] }))?;
    let labels = |labels: &[&[u8]]| {
        let hex: Vec<_> = labels.iter().map(|label| hex(label)).collect();
        Probe::dns("", 1).with("name", Value::from(hex)).with("timeout", 2)
    };
    stage.closed(
        &sandbox,
        &[
            labels(&[b"evil.lab\0", b"google", b"lab"]),
            labels(&[b"evil\0.google.lab"]),
            labels(&[b"evil", b"lab\0.google.lab"]),
            labels(&[b"x.google.lab"]),
            labels(&[b"x", b"google.lab"]),
            labels(&[b"x@y", b"google", b"lab"]),
            labels(&[b"x/y", b"google", b"lab"]),
            labels(&[b"x y", b"google", b"lab"]),
            labels(&[b"x\r\n", b"google", b"lab"]),
            labels(&["\u{fc}".as_bytes(), b"google", b"lab"]),
            labels(&[b"-x", b"google", b"lab"]),
            labels(&[b"google", b"lab"]),
            labels(&[b"x", b"google", b"lab", b"evil"]),
            labels(&[b"203", b"0", b"113", b"10"]),
            // Numbers are addresses to the system, in each of their spellings; nobody is asked.
            Probe::http("203.0.113.10", "x.google.lab", "/"),
            Probe::http("0xcb00710a", "x.google.lab", "/"),
            Probe::http("3405803786", "x.google.lab", "/"),
            Probe::http("0313.0.0161.012", "x.google.lab", "/"),
        ],
    )?;
    let outcomes = stage.open(
        &sandbox,
        &[
            labels(&[b"X", b"GooGLE", b"lab"]).alone(),
            Probe::tcp("203.0.113.99", 80, request("GET", "x.google.lab", "/").as_bytes())
                .with("until", "received="),
        ],
    )?;
    assert!(outcomes[1].text.contains("host=x.google.lab"), "{outcomes:?}");
    Ok(())
}
