//! Requests that are wrong, each with a clear answer and nothing left behind.

use anyhow::Result;
use pandastack_tests::{Answer, Options, Server, machines_below};
use serde_json::{Value, json};

fn assert_refused(answer: &Answer, status: u16, about: &str) {
    assert_eq!(answer.status, status, "{about}: {}", answer.text());
    assert!(!answer.error().is_empty(), "{about}: a flat error, not {}", answer.text());
}

#[test]
fn bad_creates_are_refused_before_anything_exists() -> Result<()> {
    let server = Server::start(Options::default())?;
    let client = server.client();
    let bodies: Vec<Value> = vec![
        json!({ "template": "no-such-template" }),
        json!({ "template": "../base" }),
        json!({ "template": "" }),
        json!({ "template": 5 }),
        json!({ "template": ["base"] }),
        json!({ "template": "base", "ttl_seconds": -1 }),
        json!({ "template": "base", "ttl_seconds": "soon" }),
        json!({ "template": "base", "ttl_seconds": 1.5 }),
        json!({ "template": "base", "ttl_seconds": u64::MAX }),
        json!({ "template": "base", "cpu": 0 }),
        json!({ "template": "base", "cpu": -1 }),
        json!({ "template": "base", "cpu": 4096 }),
        json!({ "template": "base", "memory_mb": 1 }),
        json!({ "template": "base", "memory_mb": i64::MIN }),
        json!({ "template": "base", "memory_mb": 1e30 }),
        json!({ "template": "base", "metadata": { "a": 1 } }),
        json!({ "template": "base", "metadata": [] }),
        json!({ "template": "base", "persistent": "yes" }),
        json!([]),
        json!("base"),
    ];
    for body in bodies {
        assert_refused(&client.post("/v1/sandboxes", &body)?, 400, &body.to_string());
    }
    for text in
        ["{", "", "null", "{\"template\":\"base\",}", "\u{0}", "{\"template\":\"ba\\ud800se\"}"]
    {
        let answer =
            client.send("POST", "/v1/sandboxes", Some(("application/json", text.as_bytes())))?;
        assert!(
            answer.status == 400 || (text.is_empty() && answer.status == 201),
            "{text:?}: {}",
            answer.text()
        );
        if answer.status == 201 {
            client.delete(&format!(
                "/v1/sandboxes/{}",
                answer.json()["id"].as_str().unwrap_or_default()
            ))?;
        }
    }
    let huge = format!("{{\"template\":\"base\",\"x\":\"{}\"}}", "x".repeat(8 << 20));
    let body = Some(("application/json", huge.as_bytes()));
    // The server does not read on once it knows; a client that is still writing may then see a
    // broken connection instead of the answer.
    if let Ok(answer) = client.send("POST", "/v1/sandboxes", body) {
        assert_refused(&answer, 413, "8 MiB of JSON");
    }
    assert_eq!(client.get("/v1/sandboxes")?.json(), json!([]));
    assert_eq!(machines_below(server.pid()), 0);
    assert_eq!(server.machine_dirs(), 0);
    Ok(())
}

#[test]
fn unknown_things_are_not_found() -> Result<()> {
    let server = Server::start(Options::default())?;
    let client = server.client();
    let nobody = "/v1/sandboxes/00000000-0000-4000-8000-000000000000";
    for rest in
        ["", "/lifecycle", "/fs?path=/x", "/fs/dir", "/fs/stat?path=/x", "/logs", "/metrics"]
    {
        assert_refused(&client.get(&format!("{nobody}{rest}"))?, 404, rest);
    }
    for rest in ["/exec", "/exec/stream"] {
        let answer = client.post(&format!("{nobody}{rest}"), &json!({ "cmd": "true" }))?;
        assert_refused(&answer, 404, rest);
    }
    for rest in ["/pause", "/resume"] {
        assert_refused(&client.post(&format!("{nobody}{rest}"), &json!(null))?, 404, rest);
    }
    assert_refused(&client.delete(nobody)?, 404, "delete");
    for id in ["x", "..", "%2e%2e", "%00", "1b9d6bcdbbfd4b2d9b5dab8dfbbd4bed"] {
        let answer = client.get(&format!("/v1/sandboxes/{id}"))?;
        assert!((400..500).contains(&answer.status), "{id}: {}", answer.text());
    }
    assert_refused(&client.get("/v1/templates/nothing")?, 404, "template");
    assert_refused(&client.get("/v1/nothing")?, 404, "route");
    assert_refused(&client.send("PUT", "/v1/sandboxes", Some(("text/plain", b"")))?, 405, "method");
    Ok(())
}

#[test]
fn only_the_key_opens_the_api() -> Result<()> {
    let server = Server::start(Options::default())?;
    let client = server.client();
    for key in ["", "x", "pds_", "pds_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"] {
        let answer = client.with_key(key).get("/v1/sandboxes")?;
        assert_refused(&answer, 401, key);
        assert!(answer.json()["detail"].is_string());
    }
    assert_eq!(client.with_key("").get("/healthz")?.json()["status"], "ok");
    assert_eq!(client.get("/v1/sandboxes")?.status, 200);
    Ok(())
}

#[test]
fn bad_execs_and_paths_are_refused_and_the_sandbox_lives_on() -> Result<()> {
    let server = Server::start(Options::default())?;
    let client = server.client();
    let sandbox = client.base()?;
    for body in [
        json!({}),
        json!({ "cmd": "" }),
        json!({ "cmd": 5 }),
        json!({ "cmd": ["ls"] }),
        json!({ "cmd": "true", "timeout_seconds": -1 }),
        json!({ "cmd": "true", "timeout_seconds": 0 }),
        json!({ "cmd": "true", "timeout_seconds": 1e300 }),
        json!({ "cmd": "true", "timeout_seconds": "1" }),
        json!({ "cmd": "a\u{0}b" }),
        json!({ "argv": [] }),
        json!({ "cmd": "true", "env": { "A=B": "x" } }),
        json!({ "cmd": "true", "env": { "A": "x\u{0}" } }),
    ] {
        for rest in ["/exec", "/exec/stream"] {
            assert_refused(&client.post(&sandbox.path(rest), &body)?, 400, &body.to_string());
        }
    }
    assert_refused(&client.get(&sandbox.path("/fs"))?, 400, "no path");
    assert_refused(&client.get(&sandbox.path("/fs?path="))?, 400, "empty path");
    assert_refused(&client.get(&sandbox.path("/fs?path=%00"))?, 400, "NUL");
    assert_refused(&client.get(&sandbox.path("/fs?path=/missing"))?, 404, "missing");
    assert_refused(&client.get(&sandbox.path("/fs/stat?path=/missing"))?, 404, "missing");
    assert_refused(&client.get(&sandbox.path("/fs/dir?path=/missing"))?, 404, "missing");
    assert_refused(&client.get(&sandbox.path("/fs?path=/etc"))?, 400, "a directory");
    assert_refused(&client.get(&sandbox.path("/fs?path=/dev/zero"))?, 400, "a device");
    for body in
        [json!({ "ttl_seconds": -1 }), json!({ "ttl_seconds": "x" }), json!({ "persistent": 1 })]
    {
        assert_refused(&client.patch(&sandbox.path("/lifecycle"), &body)?, 400, &body.to_string());
    }
    assert_eq!(sandbox.output("echo fine")?, "fine\n");
    Ok(())
}
