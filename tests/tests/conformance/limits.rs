//! What a guest cannot take from its host, and what it can do to itself.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pandastack_tests::{Sandbox, Server, descendants, groups_of, skip, wait_until};
use serde_json::json;

/// What a machine's process may have besides its guest's memory, MiB.
const PROCESS_MB: u64 = 256;

fn assert_calm(server: &Server, sandbox: &Sandbox, machine: u32) -> Result<()> {
    assert_eq!(sandbox.output("echo calm")?, "calm\n");
    assert_eq!(sandbox.pid()?, machine, "another machine answers");
    assert_eq!(server.client().get("/healthz")?.status, 200);
    Ok(())
}

#[test]
fn a_guest_has_the_size_that_was_asked_for() -> Result<()> {
    let server = Server::forking()?;
    let sandbox = server.client().base()?;
    let (cpu, memory_mb) = (&sandbox.object["cpu"], sandbox.object["memory_mb"].as_u64());
    assert_eq!(sandbox.output("nproc")?.trim(), cpu.to_string());
    let memory_mb = memory_mb.context("memory_mb")?;
    let total = "awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo";
    let total: u64 = sandbox.output(total)?.trim().parse()?;
    ensure!(total <= memory_mb && total > memory_mb * 3 / 4, "{total} of {memory_mb} MiB");
    Ok(())
}

#[test]
fn a_guest_that_wants_more_memory_than_it_has_kills_its_own() -> Result<()> {
    let server = Server::forking()?;
    let sandbox = server.client().base()?;
    let machine = sandbox.pid()?;
    let hog = "python3 -c 'a = []\nwhile True: a.append(bytearray(b\"x\") * (8 << 20))'";
    let result = sandbox.exec(hog)?;
    // Killed by the guest's kernel, or told by it that there is no more.
    ensure!([json!(137), json!(1)].contains(&result["exit_code"]), "{result}");
    let usage = server.client().get(&sandbox.path("/metrics"))?.json();
    let resident = usage["host_rss_bytes"].as_u64().context("host_rss_bytes")? >> 20;
    let memory_mb = sandbox.object["memory_mb"].as_u64().context("memory_mb")?;
    ensure!(resident < memory_mb + PROCESS_MB, "its process has {resident} MiB");
    assert_calm(&server, &sandbox, machine)
}

#[test]
fn a_guest_full_of_processes_is_one_process_of_the_host() -> Result<()> {
    let server = Server::forking()?;
    let sandbox = server.client().base()?;
    let (machine, before) = (sandbox.pid()?, descendants(server.pid()).len());
    let threads = || fs::read_dir(format!("/proc/{machine}/task")).map_or(0, Iterator::count);
    let few = threads();
    // As many as its kernel lets it have.
    let bomb = "n=0; while (sleep 1000 &) 2>/dev/null; do n=$((n+1)); [ $n -ge 400 ] && break; done; \
                pgrep -c sleep";
    let result = sandbox.exec(bomb)?;
    let started: u32 = result["stdout"].as_str().unwrap_or_default().trim().parse().unwrap_or(0);
    ensure!(started > 50, "{result}");
    assert_eq!(descendants(server.pid()).len(), before);
    ensure!(threads() <= few + 4, "{few} threads became {}", threads());
    assert_calm(&server, &sandbox, machine)?;

    // One that never stops ends with its command. Ten seconds are enough on any host.
    let bomb = json!({ "cmd": ":(){ :|:& };: ; sleep 1000", "timeout_seconds": 10 });
    let answer = server.client().post(&sandbox.path("/exec"), &bomb)?;
    assert!(answer.status >= 500 && answer.error().contains("timeout"), "{}", answer.text());
    assert_eq!(descendants(server.pid()).len(), before);
    assert_calm(&server, &sandbox, machine)
}

#[test]
fn a_guest_that_fills_its_disk_gets_its_space_back() -> Result<()> {
    let server = Server::forking()?;
    let sandbox = server.client().base()?;
    let machine = sandbox.pid()?;
    // What was taken before it was refused stays taken until the file is removed.
    let line = "fallocate -l 100G /root/big; echo $?; rm /root/big; \
                df --output=avail -m /root | tail -n 1";
    let output = sandbox.output(line)?;
    let (refused, free) = output.trim().split_once('\n').context("two lines")?;
    ensure!(refused != "0", "100 GiB fit");
    ensure!(free.trim().parse::<u64>()? > 512, "{free} MiB are free");
    assert_calm(&server, &sandbox, machine)
}

/// The last wall: were a monitor taken over, its group bounds what it takes.
#[test]
fn a_machine_has_a_control_group_with_ceilings() -> Result<()> {
    let server = Server::forking()?;
    let client = server.client();
    let source = client.base()?;
    let child = source.fork(1)?.remove(0);
    let (own, its) = (groups_of(source.pid()?), groups_of(child.pid()?));
    if own.is_empty() {
        return skip("this host lets the server make no control groups");
    }
    assert!(!its.is_empty() && own.is_disjoint(&its), "{own:?} and {its:?}");
    for groups in [own, its] {
        let ceiling = |names: [&str; 2]| -> Option<u64> {
            let files = groups.iter().flat_map(|dir| names.map(|name| dir.join(name)));
            files.filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok()).min()
        };
        let memory = ceiling(["memory.max", "memory.limit_in_bytes"]).context("no memory limit")?;
        let memory_mb = source.object["memory_mb"].as_u64().context("memory_mb")?;
        ensure!((memory >> 20) >= memory_mb && (memory >> 20) < memory_mb + 2048, "{memory}");
        let pids = ceiling(["pids.max", "pids.max"]).context("no limit of processes")?;
        ensure!(pids < 1024, "{pids} processes");
    }
    let answers = || child.output("echo calm").is_ok();
    assert!(wait_until(Duration::from_secs(5), answers));
    Ok(())
}
