//! Servers that are killed: their sandboxes go on, and the next server goes on with them; what is
//! nobody's ends, and nothing outlives its time.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pandastack_tests::{
    Options, Sandbox, Server, ended_for, engine, every, holder_of, is_alive, kill, names_in, skip,
    wait_until,
};
use serde_json::{Value, json};

/// Time for a process to end that was told to.
const SOON: Duration = Duration::from_secs(5);

fn outlived(orphan_grace: u64, fork: bool) -> Result<Server> {
    let server = Server::start(Options { fork, orphan_grace, ..Options::default() })?;
    if fork {
        server.wait_for_zygotes()?;
    }
    Ok(server)
}

/// The next server of a directory.
fn next(data: &Path, fork: bool) -> Result<Server> {
    let data = Some(data.to_owned());
    Server::start(Options { fork, orphan_grace: 600, data, ..Options::default() })
}

/// Whether the machines of this host outlive their server at all.
fn unsupported() -> bool {
    engine() != "qemu"
}

const WHY: &str = "machines of this engine end with their server";

/// Starts something that counts in the guest's memory, and returns its process id there.
fn counting(sandbox: &Sandbox) -> Result<String> {
    let counter = every("0.05", "echo $i > /dev/shm/n");
    let pid = sandbox.output(&format!("{counter} >/dev/null 2>&1 </dev/null & echo $!"))?;
    let begun = || sandbox.output("cat /dev/shm/n 2>/dev/null; true").is_ok_and(|n| !n.is_empty());
    ensure!(wait_until(Duration::from_secs(20), begun), "nothing counts");
    Ok(pid.trim().to_owned())
}

fn count(sandbox: &Sandbox) -> Result<u64> {
    sandbox.output("cat /dev/shm/n")?.trim().parse().context("a number")
}

/// What everybody sees of a sandbox.
fn shown(sandbox: &Sandbox) -> Result<Value> {
    Ok(sandbox.get()?.json())
}

/// Nothing is left of a data directory's machines.
fn nothing_left(data: &Path) -> bool {
    names_in(&data.join("machines")).is_empty() && holder_of(data).is_none()
}

#[test]
fn a_sandbox_goes_on_under_the_next_server() -> Result<()> {
    if unsupported() {
        return skip(WHY);
    }
    let server = outlived(600, true)?;
    let client = server.client();
    let body = json!({
        "template": "base", "ttl_seconds": 600, "metadata": { "who": "me" },
        "egress": { "allow": [{ "host": "example.com", "ports": [443] }] },
    });
    let sandbox = client.create(&body)?;
    assert_eq!(sandbox.object["boot_mode"], "fork");
    let still = client.base()?;
    still.output("echo still > /dev/shm/still")?;
    still.pause()?;
    let counter = counting(&sandbox)?;
    sandbox.output("echo disk > /root/file")?;
    let (before, pid) = (shown(&sandbox)?, sandbox.pid()?);
    let spare = server.spare_machines()?;
    assert!(!spare.is_empty(), "a zygote at least");
    let gateway = server.gateway()?;

    let (data, keep) = server.kill()?;
    let gone = || spare.iter().chain([&gateway]).all(|pid| !is_alive(*pid));
    assert!(wait_until(SOON, gone), "what is nobody's ends with its server");
    assert!(is_alive(pid));

    let server = next(&data, true)?;
    let client = server.client();
    let (sandbox, still) = (sandbox.under(&client), still.under(&client));
    assert_eq!(shown(&sandbox)?, before);
    assert_eq!(sandbox.pid()?, pid);
    let counted = count(&sandbox)?;
    assert!(wait_until(Duration::from_secs(20), || count(&sandbox).is_ok_and(|n| n > counted)));
    assert_eq!(sandbox.output(&format!("kill -0 {counter} && cat /root/file"))?, "disk\n");
    let policy = client.get(&sandbox.path("/egress"))?.json();
    assert!(policy.to_string().contains("example.com"), "{policy}");
    assert_eq!(still.status()?, "paused");
    still.resume()?;
    assert_eq!(still.output("cat /dev/shm/still")?, "still\n");

    // Everything that a sandbox can do, it still can.
    server.wait_for_zygotes()?;
    let child = sandbox.fork(1)?.pop().context("a child")?;
    assert_eq!(child.output("cat /root/file")?, "disk\n");
    let snapshot = sandbox.snapshot()?;
    assert_eq!(client.thaw(&snapshot)?.output("cat /root/file")?, "disk\n");
    sandbox.hibernate()?;
    assert_eq!(sandbox.output("cat /root/file")?, "disk\n");

    // And once more, with a child, a woken one and one of the first server.
    let pids = [child.pid()?, sandbox.pid()?, still.pid()?];
    let (data, again) = server.kill()?;
    let server = next(&data, false)?;
    let client = server.client();
    for (sandbox, pid) in [&child, &sandbox, &still].into_iter().zip(pids) {
        let sandbox = sandbox.under(&client);
        assert_eq!((sandbox.output("echo hi")?, sandbox.pid()?), ("hi\n".to_owned(), pid));
        assert_eq!(sandbox.delete()?.status, 204);
        assert!(!is_alive(pid));
    }
    let data = server.data().to_owned();
    assert!(server.stop()?.success());
    assert!(wait_until(SOON, || nothing_left(&data)), "{:?}", holder_of(&data));
    drop((keep, again));
    Ok(())
}

#[test]
fn without_a_server_a_sandbox_ends_in_time() -> Result<()> {
    if unsupported() {
        return skip(WHY);
    }
    let server = outlived(5, false)?;
    let client = server.client();
    let timed = client.create(&json!({ "template": "base", "ttl_seconds": 600 }))?;
    let endless = client.create(&json!({ "template": "base", "persistent": true }))?;
    let (timed_pid, endless_pid) = (timed.pid()?, endless.pid()?);
    let change = client.patch(&timed.path("/lifecycle"), &json!({ "ttl_seconds": 8 }))?;
    let changed = Instant::now();
    assert_eq!(change.status, 200, "{}", change.text());
    let (data, keep) = server.kill()?;
    let killed = Instant::now();
    for (pid, from, least) in [(endless_pid, killed, 5.0), (timed_pid, changed, 8.0)] {
        assert!(wait_until(Duration::from_secs(15), || !is_alive(pid)));
        let lived = from.elapsed().as_secs_f64();
        assert!((least - 0.1..least + 1.5).contains(&lived), "{lived} s instead of {least}");
    }
    assert!(wait_until(SOON, || holder_of(&data).is_none()), "the holder has nothing to hold");
    let server = next(&data, false)?;
    let client = server.client();
    assert_eq!(client.get("/v1/sandboxes")?.json(), json!([]));
    assert_eq!(server.machine_dirs(), 0);
    assert_eq!(timed.under(&client).get()?.status, 404);
    ended_for(&client, &timed.id, &["ttl"])?;
    ended_for(&client, &endless.id, &["server_crash"])?;
    drop((server, keep));
    Ok(())
}

#[test]
fn a_holder_that_dies_is_replaced_and_nothing_outlives_both() -> Result<()> {
    if unsupported() {
        return skip(WHY);
    }
    let server = outlived(600, false)?;
    let sandbox = server.client().base()?;
    let pid = sandbox.pid()?;
    let first = server.holder().context("a holder")?;
    kill(first)?;
    let other = || server.holder().is_some_and(|holder| holder != first);
    assert!(wait_until(SOON, other), "nothing holds the machines");
    assert_eq!(sandbox.output("echo same")?, "same\n");

    let (data, keep) = server.kill()?;
    let server = next(&data, false)?;
    let sandbox = sandbox.under(&server.client());
    assert_eq!((sandbox.output("echo same")?, sandbox.pid()?), ("same\n".to_owned(), pid));

    let holder = server.holder().context("a holder")?;
    let (data, again) = server.kill()?;
    kill(holder)?;
    assert!(wait_until(SOON, || !is_alive(pid)), "a machine outlives both");
    let server = next(&data, false)?;
    assert_eq!(server.client().get("/v1/sandboxes")?.json(), json!([]));
    assert_eq!(server.machine_dirs(), 0);
    drop((server, keep, again));
    Ok(())
}

#[test]
fn what_is_deleted_or_ends_by_itself_is_not_held() -> Result<()> {
    if unsupported() {
        return skip(WHY);
    }
    let server = outlived(600, false)?;
    let client = server.client();
    let (deleted, ended) = (client.base()?, client.base()?);
    let pids = [deleted.pid()?, ended.pid()?];
    assert_eq!(deleted.delete()?.status, 204);
    kill(pids[1])?;
    assert!(wait_until(SOON, || ended.status().is_ok_and(|status| status == "failed")));
    let kept = client.base()?;
    let (data, keep) = server.kill()?;
    // Only a look: it is left alone.
    let mut doctor = std::process::Command::new(pandastack_tests::program());
    doctor.args(["--json", "doctor", "--repair", "--engine", &engine(), "--data-dir"]);
    let report: Value = serde_json::from_slice(&doctor.arg(&data).output()?.stdout)?;
    assert_eq!(report["repaired"]["running"], json!([kept.id]), "{report}");
    let server = next(&data, false)?;
    let listed = server.client().get("/v1/sandboxes")?.json();
    let ids: Vec<_> = listed.as_array().into_iter().flatten().map(|s| s["id"].clone()).collect();
    assert_eq!(ids, [json!(kept.id)]);
    assert_eq!(kept.under(&server.client()).output("echo here")?, "here\n");
    assert_eq!(fs::read_dir(data.join("machines"))?.count(), 1);
    drop((server, keep));
    Ok(())
}

#[test]
fn how_a_command_ends_that_was_cut_off_is_told() -> Result<()> {
    if unsupported() {
        return skip(WHY);
    }
    let server = outlived(600, false)?;
    let client = server.client();
    let sandbox = client.base()?;
    let body = json!({ "cmd": "touch /dev/shm/begun; sleep 3; exit 7", "timeout_seconds": 300 });
    let body = body.to_string();
    let exec = ("application/json", body.as_bytes());
    let open = client.open("POST", &sandbox.path("/exec/stream"), Some(exec))?;
    let begun = || sandbox.output("ls /dev/shm/begun 2>&1; true").is_ok_and(|o| !o.contains("No"));
    ensure!(wait_until(Duration::from_secs(20), begun), "it did not begin");
    let (data, keep) = server.kill()?;
    drop(open);
    let server = next(&data, false)?;
    let sandbox = sandbox.under(&server.client());
    let ended = || {
        let story = server.client().get(&sandbox.path("/events?follow=false"));
        story.is_ok_and(|story| {
            let text = story.text();
            ["\"exit_code\":7", "\"interrupted\":true", "sleep 3; exit 7"]
                .iter()
                .all(|part| text.contains(part))
        })
    };
    assert!(wait_until(Duration::from_secs(20), ended), "{}", server.log());
    drop((server, keep));
    Ok(())
}
