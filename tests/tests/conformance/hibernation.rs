//! Hibernation: what runs in a sandbox that was files for a while has not noticed.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pandastack_tests::{Options, Sandbox, Server, is_alive, number, seconds, wait_until};
use serde_json::json;

/// Counts in its memory and into a file that it holds open, whenever it is asked.
const COUNTER: &str = "
count = 0
held = open('/root/held', 'a+')
while True:
    open('/dev/shm/ask').read()
    count += 1
    held.write(f'{count}\\n')
    held.flush()
    held.seek(0)
    with open('/dev/shm/answer', 'w') as answer:
        print(count, len(held.readlines()), file=answer)
";
const ASK: &str = "timeout 50 sh -c 'echo go > /dev/shm/ask; cat /dev/shm/answer'";

fn start_counter(sandbox: &Sandbox) -> Result<()> {
    sandbox.write("/root/counter.py", COUNTER.as_bytes())?;
    sandbox.output(
        "mkfifo /dev/shm/ask /dev/shm/answer && \\
         (setsid python3 /root/counter.py >/dev/null 2>&1 </dev/null &)",
    )?;
    Ok(())
}

/// Has it count once, and compares.
fn count(sandbox: &Sandbox, expected: usize) -> Result<()> {
    let answer = sandbox.output(ASK)?;
    ensure!(answer.trim() == format!("{expected} {expected}"), "{answer:?}, not {expected}");
    Ok(())
}

fn files_of(server: &Server, sandbox: &Sandbox) -> PathBuf {
    server.data().join("hibernated").join(&sandbox.id)
}

/// `PANDASTACK_TEST_NAPS` says how often.
#[test]
fn nothing_is_lost_however_often_it_sleeps() -> Result<()> {
    let server = Server::forking()?;
    let sandbox = server.client().base()?;
    start_counter(&sandbox)?;
    let names = "cat /etc/machine-id /proc/sys/kernel/random/boot_id /etc/hostname";
    let before = sandbox.output(names)?;
    count(&sandbox, 1)?;
    let machines = server.processes().len();
    let naps = number("PANDASTACK_TEST_NAPS", 200_usize);
    for nap in 0..naps {
        let step = format!("nap {nap} of {naps}");
        let pid = sandbox.pid()?;
        sandbox.hibernate().context(step.clone())?;
        ensure!(sandbox.status()? == "hibernated" && !is_alive(pid), "{step}");
        ensure!(files_of(&server, &sandbox).exists(), "{step}: no files");
        // Woken by request, or by use.
        if nap % 2 == 0 {
            sandbox.wake().context(step.clone())?;
        }
        count(&sandbox, nap + 2).context(step.clone())?;
        ensure!(sandbox.status()? == "running", "{step}");
        ensure!(!files_of(&server, &sandbox).exists(), "{step}: files are left");
        if nap % 5 == 0 {
            sandbox.pause()?;
            sandbox.resume()?;
        }
    }
    assert_eq!(sandbox.output(names)?, before, "it is the same machine");
    let clock: f64 = sandbox.output("date +%s.%N")?.trim().parse()?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs_f64();
    ensure!((clock - now).abs() < seconds(2) as f64, "its clock is {clock}, not {now}");
    assert_eq!(server.processes().len(), machines);
    assert_eq!(sandbox.delete()?.status, 204);
    Ok(())
}

#[test]
fn it_wakes_as_it_fell_asleep_also_while_copies_of_an_earlier_time_live() -> Result<()> {
    let server = Server::forking()?;
    let sandbox = server.client().base()?;
    start_counter(&sandbox)?;
    count(&sandbox, 1)?;
    sandbox.hibernate()?;
    // It wakes for that, and the child has the memory that was read from the files.
    let child = sandbox.fork(1)?.pop().context("a child")?;
    for expected in 2..5 {
        count(&sandbox, expected)?;
        sandbox.hibernate()?;
        sandbox.wake()?;
    }
    count(&sandbox, 5)?;
    count(&child, 2)?;
    Ok(())
}

#[test]
fn a_server_that_stops_or_dies_keeps_what_is_files() -> Result<()> {
    let server = Server::forking()?;
    let client = server.client();
    let body = json!({ "template": "base", "persistent": true, "metadata": { "name": "kept" } });
    let (kept, asleep) = (client.create(&body)?, client.base()?);
    for sandbox in [&kept, &asleep] {
        start_counter(sandbox)?;
        count(sandbox, 1)?;
    }
    asleep.hibernate()?;
    let (data, first) = server.stop_keeping()?;
    let server = Server::start(Options { data: Some(data), fork: true, ..Options::default() })?;
    let client = server.client();
    for sandbox in [kept.under(&client), asleep.under(&client)] {
        assert_eq!(sandbox.status()?, "hibernated");
    }
    assert_eq!(kept.under(&client).get()?.json()["metadata"]["name"], "kept");
    count(&kept.under(&client), 2)?;
    // One runs, one sleeps, when the server is killed.
    let (data, second) = server.kill()?;
    let server = Server::start(Options { data: Some(data), fork: true, ..Options::default() })?;
    let client = server.client();
    assert_eq!(kept.under(&client).get()?.status, 404, "its machine died with the server");
    count(&asleep.under(&client), 2)?;
    drop((first, second));
    Ok(())
}

#[test]
fn one_that_is_not_used_costs_disk_alone() -> Result<()> {
    let server = Server::forking()?;
    let client = server.client();
    let body = json!({ "template": "base", "idle_timeout": seconds(2) });
    let sandbox = client.create(&body)?;
    sandbox.output("echo kept > /dev/shm/file")?;
    let asleep = || sandbox.status().is_ok_and(|status| status == "hibernated");
    ensure!(wait_until(Duration::from_secs(20), asleep), "it does not hibernate");
    let bytes: u64 = fs::read_dir(files_of(&server, &sandbox))?
        .flatten()
        .filter_map(|entry| {
            use std::os::unix::fs::MetadataExt;
            let metadata = entry.metadata().ok()?;
            (metadata.nlink() == 1).then_some(metadata.blocks() * 512)
        })
        .sum();
    let memory = sandbox.object["memory_mb"].as_u64().context("memory_mb")? << 20;
    ensure!(bytes < memory / 4, "{bytes} bytes of its own");
    // Looking at it wakes nobody.
    for path in ["", "/lifecycle", "/events", "/egress", "/egress/log", "/logs"] {
        assert_eq!(client.get(&sandbox.path(path))?.status, 200, "{path}");
    }
    ensure!(asleep(), "somebody woke it");
    assert_eq!(sandbox.output("cat /dev/shm/file")?, "kept\n");
    assert_eq!(sandbox.get()?.json()["boot_mode"], "wake");
    Ok(())
}
