//! T31, T32: a policy holds on every way that a sandbox comes to be, and before the first packet.
//!
//! | way | |
//! |---|---|
//! | cold | restored from the template, with no machine standing ready |
//! | parked | a machine that stood ready |
//! | forked | of the template's zygote, and of a running or paused sandbox |
//! | woken | from a snapshot, and after hibernation; also after the server was killed |
//! | resumed | after a pause |
//! | changed | by a request while it runs |
//! | taken over | by the next server, after the first one was killed under it |

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pandastack_tests::{Options, Sandbox, engine, seconds, skip, wait_until};
use serde_json::{Value, json};

use crate::guest::Probe;
use crate::stage::{PLACE, SITE_A, SITE_B, Stage, everything, nothing};

fn policy() -> Value {
    json!({ "allow": [{ "host": "a.lab" }, { "cidr": "198.51.100.0/24", "ports": [80, "123/udp"] }] })
}

/// What is closed under [`policy`], of every kind.
fn closed() -> Vec<Probe> {
    vec![
        Probe::resolve("b.lab"),
        Probe::resolve("secret.a.lab"),
        Probe::http(SITE_B, "b.lab", "/"),
        Probe::http(SITE_B, "a.lab", "/"),
        Probe::tcp(PLACE, 22, b"said"),
        Probe::http("169.254.169.254", "a.lab", "/"),
        Probe::http("10.0.0.5", "a.lab", "/"),
        Probe::http("2001:db8:1::10", "a.lab", "/"),
        Probe::udp("8.8.8.8", 53, b"said").with("timeout", 2),
        Probe::udp(PLACE, 443, b"said").with("timeout", 2),
        Probe::ping("8.8.8.8", b"said").with("timeout", 2),
    ]
}

fn open() -> Vec<Probe> {
    vec![
        Probe::resolve("a.lab").alone(),
        Probe::http(SITE_A, "a.lab", "/"),
        Probe::http(PLACE, "any", "/"),
        Probe::udp(PLACE, 123, b"said"),
    ]
}

/// The whole of [`policy`] holds, and is shown.
fn holds(stage: &Stage, sandbox: &Sandbox, way: &str) -> Result<()> {
    let check = || {
        let shown = stage.client.get(&sandbox.path("/egress"))?.json();
        ensure!(shown == policy(), "{shown}");
        stage.closed(sandbox, &closed())?;
        stage.open(sandbox, &open())?;
        stage.explains(sandbox, "b.lab", "no rule allows this name")
    };
    check().with_context(|| format!("a sandbox that was {way}"))
}

/// Nothing is open, and that is shown.
fn shut(stage: &Stage, sandbox: &Sandbox, way: &str) -> Result<()> {
    let check = || {
        let shown = stage.client.get(&sandbox.path("/egress"))?.json();
        ensure!(shown == "none", "{shown}");
        stage.closed(sandbox, &[closed(), open()].concat())
    };
    check().map(drop).with_context(|| format!("a closed sandbox that was {way}"))
}

/// A sandbox of a snapshot; with a policy of its own, if there is one.
fn thaw(stage: &Stage, snapshot: &str, egress: Option<&Value>) -> Result<Sandbox> {
    let mut body = json!({ "from_snapshot": snapshot, "ttl_seconds": seconds(600) });
    if let Some(egress) = egress {
        body["egress"] = egress.clone();
    }
    stage.client.create(&body)
}

#[test]
fn a_policy_holds_for_what_is_restored_paused_and_changed() -> Result<()> {
    let Some(stage) = Stage::new()? else { return Ok(()) };
    let sandbox = stage.sandbox(&policy())?;
    assert_eq!(sandbox.object["boot_mode"], "snapshot");
    assert_eq!(sandbox.object["egress"], policy());
    holds(&stage, &sandbox, "restored cold")?;
    shut(&stage, &stage.plain()?, "restored cold")?;
    sandbox.pause()?;
    sandbox.resume()?;
    holds(&stage, &sandbox, "paused and resumed")?;
    stage.set(&sandbox, &json!("none"))?;
    shut(&stage, &sandbox, "closed at run time")?;
    stage.set(&sandbox, &everything())?;
    stage.set(&sandbox, &policy())?;
    holds(&stage, &sandbox, "opened wide and tightened")?;
    // A policy that is set while nothing runs.
    sandbox.pause()?;
    stage.set(&sandbox, &json!("none"))?;
    sandbox.resume()?;
    shut(&stage, &sandbox, "closed while it was paused")
}

#[test]
fn a_policy_holds_for_what_stood_ready() -> Result<()> {
    let options = Options { pool: 2, ..Options::default() };
    let Some(stage) = Stage::with(&[], options)? else { return Ok(()) };
    stage.server.wait_for_pool()?;
    let (sandbox, plain) = (stage.sandbox(&policy())?, stage.plain()?);
    assert_eq!([&sandbox, &plain].map(|made| &made.object["boot_mode"]), ["pool"; 2]);
    holds(&stage, &sandbox, "parked")?;
    shut(&stage, &plain, "parked")
}

#[test]
fn a_policy_holds_for_what_is_forked_and_woken() -> Result<()> {
    let Some(stage) = Stage::forking()? else { return Ok(()) };
    let sandbox = stage.sandbox(&policy())?;
    assert_eq!(sandbox.object["boot_mode"], "fork");
    holds(&stage, &sandbox, "forked of the zygote")?;
    shut(&stage, &stage.plain()?, "forked of the zygote")?;

    let children = sandbox.fork(2)?;
    holds(&stage, &children[0], "forked of a running sandbox")?;
    // The source keeps its own, and a child's policy is the child's.
    stage.set(&children[1], &json!("none"))?;
    shut(&stage, &children[1], "forked and then closed")?;
    holds(&stage, &sandbox, "the source of a fork")?;
    holds(&stage, &children[1].fork_with(&policy())?, "forked of a closed one and opened")?;
    let closed = sandbox.fork_with(&json!("none"))?;
    shut(&stage, &closed, "forked of an open one and closed")?;
    sandbox.pause()?;
    let child = sandbox.fork(1)?.remove(0);
    holds(&stage, &child, "forked of a paused sandbox")?;
    sandbox.resume()?;
    holds(&stage, &sandbox, "resumed after a fork")?;

    let snapshot = sandbox.snapshot()?;
    holds(&stage, &sandbox, "the source of a snapshot")?;
    holds(&stage, &thaw(&stage, &snapshot, None)?, "woken from a snapshot")?;
    shut(&stage, &thaw(&stage, &snapshot, Some(&json!("none")))?, "woken and closed")?;
    let tight = closed.snapshot()?;
    shut(&stage, &thaw(&stage, &tight, None)?, "woken from a closed snapshot")?;
    holds(&stage, &thaw(&stage, &tight, Some(&policy()))?, "woken from a closed one and opened")?;

    sandbox.hibernate()?;
    holds(&stage, &sandbox, "woken from hibernation")?;
    closed.hibernate()?;
    shut(&stage, &closed, "woken from hibernation, closed")?;
    sandbox.hibernate()?;
    stage.set(&sandbox, &json!("none"))?;
    shut(&stage, &sandbox, "closed while it was hibernated")?;
    stage.set(&sandbox, &policy())?;
    closed.hibernate()?;
    sandbox.hibernate()?;

    let stage = stage.restart()?;
    holds(&stage, &sandbox.under(&stage.client), "woken by another server")?;
    shut(&stage, &closed.under(&stage.client), "woken by another server, closed")?;
    holds(&stage, &thaw(&stage, &snapshot, None)?, "woken after the server was killed")?;
    shut(&stage, &thaw(&stage, &tight, None)?, "woken after the server was killed")?;
    Ok(())
}

#[test]
fn a_policy_holds_for_what_is_taken_over() -> Result<()> {
    if engine() != "qemu" {
        return skip("machines of this engine end with their server");
    }
    let options = || Options { orphan_grace: 600, ..Options::default() };
    let Some(stage) = Stage::with(&[], options())? else { return Ok(()) };
    let (sandbox, plain) = (stage.sandbox(&policy())?, stage.plain()?);
    let paused = stage.sandbox(&policy())?;
    paused.pause()?;
    stage.open(&sandbox, &open())?;

    let stage = stage.next(options())?;
    let [sandbox, plain, paused] = [&sandbox, &plain, &paused].map(|old| old.under(&stage.client));
    holds(&stage, &sandbox, "taken over")?;
    shut(&stage, &plain, "taken over")?;
    paused.resume()?;
    holds(&stage, &paused, "taken over while it was paused")?;
    stage.set(&sandbox, &json!("none"))?;
    shut(&stage, &sandbox, "taken over and then closed")?;
    // What was said last is what the one after that finds.
    let stage = stage.next(options())?;
    shut(&stage, &sandbox.under(&stage.client), "taken over twice, closed")?;
    holds(&stage, &paused.under(&stage.client), "taken over twice")
}

/// Tries every way out, as fast as it can, from many threads, for ever.
const HAMMER: &str = r#"
import os, socket, threading, time
def udp():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); n = 0
    while True:
        n += 1
        for to in [("8.8.8.8", 53), ("203.0.113.10", 123), ("169.254.169.254", 80)]:
            try: s.sendto(b"hammer", to)
            except OSError: pass
        if n % 5 == 0: time.sleep(0.01)
def tcp(address):
    while True:
        try:
            s = socket.create_connection((address, 80), 1)
            s.sendall(b"GET /hammer HTTP/1.1\r\nHost: a.lab\r\nConnection: close\r\n\r\n"); s.recv(99)
        except OSError: time.sleep(0.01)
def held(address):
    while True:
        try:
            s = socket.create_connection((address, 5000), 1)
            while True: s.sendall(b"hammer\n"); s.recv(99)
        except OSError: time.sleep(0.01)
def dns():
    q = b"\x12\x34\x01\0\0\1\0\0\0\0\0\0\6hammer\3lab\0\0\1\0\1"
    while True:
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(0.05)
        try: s.sendto(q, ("198.18.0.1", 53)); s.recv(512)
        except OSError: pass
        s.close()
for f, args in [(udp, ()), (tcp, ("203.0.113.10",)), (tcp, ("198.51.100.7",)),
                (held, ("203.0.113.11",)), (dns, ())]:
    threading.Thread(target=f, args=args).start()
"#;

#[test]
fn a_policy_is_in_force_before_the_first_packet() -> Result<()> {
    let Some(stage) = Stage::forking()? else { return Ok(()) };
    let source = stage.sandbox(&everything())?;
    source.write("/root/hammer.py", HAMMER.as_bytes())?;
    source.output("python3 /root/hammer.py >/dev/null 2>&1 </dev/null &")?;
    // It gets out by every way as long as it may.
    let everywhere = || {
        stage.lab.seen().is_ok_and(|seen| {
            ["8.8.8.8", SITE_A, PLACE, SITE_B].iter().all(|to| !seen.packets_to(to).is_empty())
                && seen.names().contains(&"hammer.lab")
        })
    };
    ensure!(wait_until(Duration::from_secs(30), everywhere), "it does not hammer");
    let snapshot = source.snapshot()?;

    // Shut while it hammers: what is under way is over when the answer comes.
    for _ in 0..3 {
        stage.set(&source, &everything())?;
        std::thread::sleep(Duration::from_millis(300));
        stage.set(&source, &json!("none"))?;
        stage.lab.forget()?;
        std::thread::sleep(Duration::from_millis(500));
        nothing(&stage.lab.seen()?).context("after it was closed")?;
    }
    source.pause()?;
    stage.set(&source, &everything())?;
    stage.lab.forget()?;

    // Its copies hammer from their first instruction on, and are shut before it.
    let few = json!({ "allow": [{ "host": "other.lab" }] });
    for _ in 0..3 {
        for way in ["forked and shut", "forked and nearly shut", "woken and shut"] {
            let copy = match way {
                "forked and shut" => source.fork_with(&json!("none"))?,
                "forked and nearly shut" => source.fork_with(&few)?,
                _ => thaw(&stage, &snapshot, Some(&json!("none")))?,
            };
            copy.pause()?;
            copy.resume()?;
            // It did try.
            let tried = || stage.explains(&copy, SITE_A, "denied").is_ok();
            ensure!(wait_until(Duration::from_secs(20), tried), "{way}: it does not hammer");
            nothing(&stage.lab.seen()?).context(way)?;
            copy.delete()?;
        }
    }
    // And each could have.
    let copy = source.fork_with(&few)?;
    stage.set(&copy, &everything())?;
    let out = || stage.lab.seen().is_ok_and(|seen| !seen.packets_to(SITE_A).is_empty());
    ensure!(wait_until(Duration::from_secs(20), out), "the copies do not hammer");
    Ok(())
}
