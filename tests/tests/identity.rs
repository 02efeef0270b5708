//! What two copies of one frozen machine must not share, and what a guest can see of its host.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use pandastack_tests::{Options, Server};
use serde_json::json;

const RANDOM: &str = "python3 -c 'import os; print(os.getrandom(16).hex())'";

#[test]
fn two_sandboxes_share_no_identity_and_no_randomness() -> Result<()> {
    for pool in [0, 2] {
        let server = Server::start(Options { pool, ..Options::default() })?;
        let client = server.client();
        let (a, b) = (client.base()?, client.base()?);
        for line in [
            RANDOM,
            "head -c 16 /dev/urandom | od -An -tx1",
            "python3 -c 'import random; print(random.random())'",
            "hostname",
            "cat /etc/machine-id",
            "cat /proc/sys/kernel/random/boot_id",
        ] {
            let (first, second) = (a.output(line)?, b.output(line)?);
            assert!(!first.trim().is_empty(), "{line}");
            assert_ne!(first, second, "{line} with a pool of {pool}");
        }
        assert_eq!(a.output("cat /etc/hostname")?, a.output("hostname")?);
        assert_eq!(a.output("getent hosts $(hostname) | wc -l")?.trim(), "1");
    }
    Ok(())
}

/// Draws a number for whoever asks, from generators that were seeded before it was copied.
const INTERPRETER: &str = "
import random, sys, numpy
assert sys.prefix.startswith('/root/venv'), sys.prefix
random.random(), numpy.random.random()
while True:
    open('/dev/shm/ask').read()
    with open('/dev/shm/answer', 'w') as answer:
        print(random.random(), numpy.random.random(), file=answer)
";

/// The common generators of the library and of numpy, in an environment made with venv.
#[test]
fn an_interpreter_that_is_copied_begins_other_numbers() -> Result<()> {
    let server = Server::forking()?;
    let source = server.client().create(&json!({ "template": "code-interpreter" }))?;
    source.write("/root/interpreter.py", INTERPRETER.as_bytes())?;
    source.output(
        "python3 -m venv --system-site-packages --without-pip /root/venv && \
         mkfifo /dev/shm/ask /dev/shm/answer && \
         (setsid /root/venv/bin/python /root/interpreter.py >/dev/null 2>&1 </dev/null &)",
    )?;
    let ask = "timeout 50 sh -c 'echo go > /dev/shm/ask; cat /dev/shm/answer'";
    source.output(ask)?;
    let mut numbers = Vec::new();
    let mut family = source.fork(2)?;
    family.push(source);
    for sandbox in &family {
        let answer = sandbox.output(ask)?;
        numbers.extend(answer.split_whitespace().map(str::to_owned));
    }
    assert_eq!(numbers.len(), 6, "{numbers:?}");
    let different: std::collections::BTreeSet<_> = numbers.iter().collect();
    assert_eq!(different.len(), 6, "{numbers:?}");
    Ok(())
}

#[test]
fn the_wall_clock_is_right_at_once_and_after_a_pause() -> Result<()> {
    let server = Server::start(Options::default())?;
    let client = server.client();
    let sandbox = client.base()?;
    assert_clock(&sandbox)?;
    client.post(&sandbox.path("/pause"), &json!(null))?;
    std::thread::sleep(Duration::from_secs(2));
    client.post(&sandbox.path("/resume"), &json!(null))?;
    assert_clock(&sandbox)
}

/// The guest's clock at the instant of the reading lies between the request and the answer; the
/// allowance of the contract is 50 ms beyond that.
fn assert_clock(sandbox: &pandastack_tests::Sandbox) -> Result<()> {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map(|d| d.as_secs_f64());
    let before = now()?;
    let guest: f64 = sandbox.output("date +%s.%N")?.trim().parse()?;
    let after = now()?;
    assert!(guest > before - 0.05 && guest < after + 0.05, "{before} {guest} {after}");
    Ok(())
}

#[test]
fn a_guest_reaches_no_network_and_sees_nothing_of_the_host() -> Result<()> {
    let server = Server::start(Options::default())?;
    let sandbox = server.client().base()?;
    assert_eq!(sandbox.object["egress"], "none");
    assert_eq!(sandbox.object["isolation"], "emulated");
    assert_eq!(sandbox.object["engine"], "qemu");
    // The network of every sandbox is the same one, and leads to the gateway alone.
    assert_eq!(sandbox.output("ls /sys/class/net")?, "eth0\nlo\n");
    assert_eq!(sandbox.output("hostname -I")?.trim(), "198.18.0.2 fd50:616e:6461::2");
    for address in ["169.254.169.254", "10.0.0.1", "8.8.8.8", "127.0.0.1:7878"] {
        let line = format!("curl -s -m 3 http://{address}/ >/dev/null; test $? -ne 0");
        sandbox.output(&line)?;
    }
    let environment = sandbox.output("tr '\\0' '\\n' </proc/1/environ; env")?;
    for word in ["CARGO", "RUST", "PANDASTACK"] {
        assert!(!environment.contains(word), "{word} in {environment}");
    }
    let mounts = sandbox.output("cat /proc/mounts")?;
    for foreign in ["9p", "virtiofs", "fuse", "nfs"] {
        let found = mounts.lines().any(|l| l.split(' ').nth(2) == Some(foreign));
        assert!(!found, "{foreign} in {mounts}");
    }
    let host = std::fs::read_to_string("/etc/hostname").unwrap_or_default();
    let host = host.trim();
    if host.len() > 3 {
        let line = format!("grep -rlsF -e '{host}' /etc | wc -l");
        assert_eq!(sandbox.output(&line)?.trim(), "0", "the host's name in the template");
    }
    Ok(())
}

#[test]
fn the_size_that_was_asked_for_is_the_size_of_the_guest() -> Result<()> {
    let server = Server::start(Options::default())?;
    let sandbox =
        server.client().create(&json!({ "template": "base", "cpu": 2, "memory_mb": 768 }))?;
    assert_eq!(sandbox.object["cpu"], 2);
    assert_eq!(sandbox.object["memory_mb"], 768);
    assert_eq!(sandbox.output("nproc")?.trim(), "2");
    let total = "awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo";
    let total: u32 = sandbox.output(total)?.trim().parse()?;
    assert!((600..=768).contains(&total), "{total} MiB");
    Ok(())
}
