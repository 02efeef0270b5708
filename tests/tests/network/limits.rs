//! Limits of connections and of speed, and what guests that hold everything up cost the gateway.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pandastack_tests::{Sandbox, own_memory, seconds, wait_until};
use serde_json::{Value, json};

use crate::guest::Probe;
use crate::stage::{PLACE, SITE_A, Stage};

fn python(stage: &Stage, sandbox: &Sandbox, program: &str) -> Result<Value> {
    let body = json!({ "argv": ["python3", "-c", program], "timeout_seconds": seconds(120) });
    let answer = stage.client.post(&sandbox.path("/exec"), &body)?;
    ensure!(answer.status == 200, "{} {}", answer.status, answer.text());
    let result = answer.json();
    ensure!(result["exit_code"] == 0, "{result}");
    Ok(serde_json::from_str(result["stdout"].as_str().context("its output")?)?)
}

#[test]
fn connections_are_counted() -> Result<()> {
    let Some(stage) = Stage::new()? else { return Ok(()) };
    let rules = json!([{ "cidr": "198.51.100.0/24", "ports": ["1-65535", "123/udp"] }]);
    let sandbox = stage.sandbox(&json!({ "allow": rules, "max_connections": 10 }))?;
    let program = "import json, socket\n\
        held, refused = [], 0\n\
        for i in range(25):\n\
        \x20   try:\n\
        \x20       s = socket.create_connection(('198.51.100.7', 5000), 5); s.settimeout(5)\n\
        \x20       assert s.recv(100); held.append(s)\n\
        \x20   except OSError: refused += 1\n\
        first = len(held)\n\
        for s in held[:4]: s.close()\n\
        import time; time.sleep(0.5)\n\
        again = 0\n\
        for i in range(8):\n\
        \x20   try:\n\
        \x20       s = socket.create_connection(('198.51.100.7', 5000), 5); s.settimeout(5)\n\
        \x20       assert s.recv(100); held.append(s); again += 1\n\
        \x20   except OSError: pass\n\
        print(json.dumps([first, refused, again]))";
    let counts = python(&stage, &sandbox, program)?;
    assert_eq!(counts, json!([10, 15, 4]));
    let log = stage.log(&sandbox)?;
    let told = |line: &Value| line["reason"].as_str().is_some_and(|r| r.contains("connections"));
    assert!(log.iter().any(|line| line["verdict"] == "deny" && told(line)), "{log:#?}");
    let seen = stage.lab.seen()?;
    assert_eq!(seen.packets_to(PLACE).len(), 14, "no more than that was even tried");
    // The limit goes up at run time, and it is this sandbox's alone.
    stage.set(&sandbox, &json!({ "allow": rules, "max_connections": 20 }))?;
    assert_eq!(python(&stage, &sandbox, program)?[0], 20);
    let other = stage.sandbox(&json!({ "allow": rules }))?;
    assert_eq!(python(&stage, &other, program)?[0], 25);
    Ok(())
}

#[test]
fn speed_is_limited_in_both_directions() -> Result<()> {
    const LIMIT: u64 = 200_000;
    let Some(stage) = Stage::new()? else { return Ok(()) };
    let rules = json!([{ "cidr": "198.51.100.0/24" }]);
    let limited = json!({
        "allow": rules,
        "bandwidth": { "up_bytes_per_second": LIMIT, "down_bytes_per_second": LIMIT },
    });
    let sandbox = stage.sandbox(&limited)?;
    // Two connections share the limit. What counts is the time between, not before.
    let down = "import json, socket, threading, time\n\
        got = [0]\n\
        def take():\n\
        \x20   s = socket.create_connection(('198.51.100.7', 5002), 10)\n\
        \x20   while True:\n\
        \x20       part = len(s.recv(65536)); got[0] += part\n\
        for i in range(2): threading.Thread(target=take, daemon=True).start()\n\
        time.sleep(1); a, t = got[0], time.monotonic(); time.sleep(4)\n\
        print(json.dumps((got[0] - a) / (time.monotonic() - t)), flush=True)\n\
        import os; os._exit(0)";
    let near = |rate: f64| (0.7..=1.3).contains(&(rate / LIMIT as f64));
    let rate = python(&stage, &sandbox, down)?.as_f64().context("a rate")?;
    ensure!(near(rate), "down: {rate} of {LIMIT} bytes a second");

    let up = "import socket\n\
        s = socket.create_connection(('198.51.100.7', 5001), 10)\n\
        while True: s.sendall(bytes(65536))";
    sandbox.write("/root/up.py", up.as_bytes())?;
    sandbox.output("for i in 1 2; do python3 /root/up.py >/dev/null 2>&1 </dev/null & done")?;
    let heard = || -> Result<u64> {
        Ok(stage
            .lab
            .seen()?
            .connections
            .values()
            .filter(|c| c.to.port() == 5001)
            .map(|c| c.received)
            .sum())
    };
    let both = || {
        stage.lab.seen().is_ok_and(|s| {
            s.connections.values().filter(|c| c.to.port() == 5001 && c.received > 0).count() == 2
        })
    };
    ensure!(wait_until(Duration::from_secs(20), both), "nothing goes up");
    std::thread::sleep(Duration::from_secs(1));
    let measure = |time: Duration| -> Result<f64> {
        let (before, begin) = (heard()?, Instant::now());
        std::thread::sleep(time);
        Ok((heard()? - before) as f64 / begin.elapsed().as_secs_f64())
    };
    let rate = measure(Duration::from_secs(4))?;
    ensure!(near(rate), "up: {rate} of {LIMIT} bytes a second");
    // Without a limit it is the machine's, at once and for the same connections.
    stage.set(&sandbox, &json!({ "allow": rules }))?;
    std::thread::sleep(Duration::from_millis(500));
    let rate = measure(Duration::from_secs(2))?;
    ensure!(rate > 4.0 * LIMIT as f64, "without a limit: {rate} bytes a second");
    Ok(())
}

#[test]
fn nobody_makes_the_gateway_hold_much() -> Result<()> {
    let Some(stage) = Stage::new()? else { return Ok(()) };
    let sandbox = stage.sandbox(&json!({ "allow": [
        { "host": "a.lab" }, { "cidr": "198.51.100.0/24", "ports": ["1-65535", "123/udp"] },
    ] }))?;
    stage.open(&sandbox, &[Probe::resolve("a.lab")])?;
    let before = own_memory(stage.server.gateway()?)?;
    // Peers that never read, a guest that never reads, and heads that never end, a byte at a time.
    let program = "import json, resource, socket, threading, time\n\
        resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))\n\
        held, sent = [], 0\n\
        def connect(a, p):\n\
        \x20   s = socket.create_connection((a, p), 20); held.append(s); return s\n\
        for i in range(100):\n\
        \x20   s = connect('198.51.100.7', 5003); s.setblocking(False)\n\
        for i in range(100): connect('198.51.100.7', 5002)\n\
        slow = [connect('203.0.113.10', 80) for i in range(100)]\n\
        end = time.monotonic() + 8\n\
        while time.monotonic() < end:\n\
        \x20   for s in held[:100]:\n\
        \x20       try: sent += s.send(bytes(65536))\n\
        \x20       except OSError: pass\n\
        \x20   for s in slow:\n\
        \x20       try: s.send(b'G')\n\
        \x20       except OSError: pass\n\
        \x20   time.sleep(0.2)\n\
        print(json.dumps(sent), flush=True)\n\
        time.sleep(600)";
    sandbox.write("/root/hold.py", program.as_bytes())?;
    sandbox.output("python3 /root/hold.py >/root/held 2>&1 </dev/null &")?;
    let held = || sandbox.output("cat /root/held").is_ok_and(|text| text.ends_with('\n'));
    ensure!(wait_until(Duration::from_secs(90), held), "it does not come to an end");
    let after = own_memory(stage.server.gateway()?)?;
    let grown = after.saturating_sub(before) >> 10;
    eprintln!("300 connections that stand still: {grown} KiB, from {} KiB", before >> 10);
    // Not more than its buffers: 16 KiB in each direction, and some wide ones.
    ensure!(grown < 40 << 10, "{grown} KiB");
    // Others do not notice, and when it is gone so is what was held.
    let other = stage.sandbox(&json!({ "allow": [{ "host": "a.lab" }] }))?;
    let begin = Instant::now();
    stage.open(&other, &[Probe::resolve("a.lab").alone(), Probe::http(SITE_A, "a.lab", "/")])?;
    ensure!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    assert_eq!(sandbox.delete()?.status, 204);
    let gone = || {
        stage.lab.seen().is_ok_and(|seen| {
            seen.connections_to(PLACE).iter().all(|c| c.closed || c.to.port() == 5003)
        })
    };
    ensure!(wait_until(Duration::from_secs(10), gone), "connections outlive their sandbox");
    Ok(())
}

#[test]
fn a_flood_of_refusals_is_counted_and_not_kept() -> Result<()> {
    let Some(stage) = Stage::new()? else { return Ok(()) };
    let sandbox = stage.plain()?;
    let flood = "import json, socket, time\n\
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); n = 0\n\
        end = time.monotonic() + 5\n\
        while time.monotonic() < end:\n\
        \x20   for i in range(50):\n\
        \x20       try: s.sendto(b'x', ('203.0.113.%d' % (n % 250), 1000 + n % 5000)); n += 1\n\
        \x20       except OSError: pass\n\
        print(json.dumps(n))";
    let before = own_memory(stage.server.gateway()?)?;
    let sent = python(&stage, &sandbox, flood)?.as_u64().context("a count")?;
    let log = stage.log(&sandbox)?;
    let unshown: u64 = log.iter().filter_map(|line| line["unshown"].as_u64()).sum();
    eprintln!("{sent} datagrams, {} lines, {unshown} unshown", log.len());
    assert!(log.len() < 5000 && !log.is_empty());
    let grown = own_memory(stage.server.gateway()?)?.saturating_sub(before) >> 10;
    ensure!(grown < 8 << 10, "{grown} KiB");
    crate::stage::nothing(&stage.lab.seen()?)?;
    // The log is of use afterwards.
    std::thread::sleep(Duration::from_secs(2));
    stage.closed(&sandbox, &[Probe::resolve("late.lab")])?;
    stage.explains(&sandbox, "late.lab", "no rule allows this name")
}
