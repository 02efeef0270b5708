//! Crashes, restarts and many sandboxes: nothing outlives its owner and nothing leaks.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::Result;
use pandastack_tests::{
    Options, Server, engine, is_alive, machines_below, program, skip, wait_until,
};
use serde_json::{Value, json};

/// Machine groups of this host's control groups, by name.
fn groups() -> Vec<String> {
    let mut names = Vec::new();
    for parent in ["/sys/fs/cgroup/pandastack", "/sys/fs/cgroup/memory/pandastack"] {
        let entries = fs::read_dir(parent).into_iter().flatten().flatten();
        names.extend(
            entries
                .filter(|e| e.path().is_dir())
                .map(|e| e.file_name().to_string_lossy().into_owned()),
        );
    }
    names
}

#[test]
fn a_killed_server_leaves_no_process_and_its_next_start_no_file_and_no_record() -> Result<()> {
    let server = Server::start(Options { pool: 1, ..Options::default() })?;
    let client = server.client();
    let sandboxes = [client.base()?, client.base()?];
    sandboxes[0].output("echo busy > /root/file")?;
    assert!(machines_below(server.pid()) >= 2);
    let machines = server.processes();
    let names: Vec<String> = fs::read_dir(server.data().join("machines"))?
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    let (data, keep) = server.kill()?;
    let gone = || machines.iter().all(|pid| !is_alive(*pid));
    assert!(wait_until(Duration::from_secs(10), gone), "machines outlive their server");

    let server = Server::start(Options { data: Some(data), ..Options::default() })?;
    let client = server.client();
    assert_eq!(server.machine_dirs(), 0);
    assert_eq!(client.get("/v1/sandboxes")?.json(), json!([]));
    for sandbox in &sandboxes {
        assert_eq!(client.get(&sandbox.path(""))?.status, 404);
    }
    assert!(groups().iter().all(|group| !names.contains(group)), "{:?}", groups());
    assert_eq!(client.base()?.output("echo again")?, "again\n");
    drop((server, keep));
    Ok(())
}

#[test]
fn a_server_killed_in_the_middle_of_creates_recovers() -> Result<()> {
    let server = Server::start(Options::default())?;
    let client = server.client();
    let workers: Vec<_> = (0..4)
        .map(|_| {
            let client = client.clone();
            std::thread::spawn(move || while client.base().is_ok() {})
        })
        .collect();
    assert!(wait_until(Duration::from_secs(20), || machines_below(server.pid()) > 3));
    let machines = server.processes();
    let (data, keep) = server.kill()?;
    for worker in workers {
        let _ = worker.join();
    }
    assert!(wait_until(Duration::from_secs(10), || machines.iter().all(|pid| !is_alive(*pid))));
    let server = Server::start(Options { data: Some(data), ..Options::default() })?;
    assert_eq!(server.machine_dirs(), 0);
    assert_eq!(server.client().get("/v1/sandboxes")?.json(), json!([]));
    drop((server, keep));
    Ok(())
}

#[test]
fn a_stopped_server_ends_its_sandboxes_and_exits_well() -> Result<()> {
    let server = Server::start(Options { pool: 1, ..Options::default() })?;
    server.client().base()?;
    let machines = server.processes();
    let status = server.stop()?;
    assert!(status.success(), "{status}");
    assert!(wait_until(Duration::from_secs(5), || machines.iter().all(|pid| !is_alive(*pid))));
    Ok(())
}

#[test]
fn a_second_server_on_the_same_state_is_refused() -> Result<()> {
    let server = Server::start(Options::default())?;
    let second =
        Server::start(Options { data: Some(server.data().to_owned()), ..Options::default() });
    assert!(second.is_err());
    assert_eq!(server.client().get("/healthz")?.status, 200);
    Ok(())
}

#[test]
fn a_client_that_hangs_up_takes_its_command_with_it() -> Result<()> {
    let server = Server::start(Options::default())?;
    let client = server.client();
    let sandbox = client.base()?;
    let body = json!({ "cmd": "sleep 300", "timeout_seconds": 300 }).to_string();
    let open = client.open(
        "POST",
        &sandbox.path("/exec/stream"),
        Some(("application/json", body.as_bytes())),
    )?;
    let sleeping =
        |n: &str| sandbox.output("pgrep -c sleep; true").is_ok_and(|found| found.trim() == n);
    assert!(wait_until(Duration::from_secs(10), || sleeping("1")));
    drop(open);
    assert!(wait_until(Duration::from_secs(10), || sleeping("0")), "the command lives on");
    Ok(())
}

#[test]
fn the_ttl_is_kept() -> Result<()> {
    let server = Server::start(Options::default())?;
    let client = server.client();
    let begin = std::time::Instant::now();
    let sandbox = client.create(&json!({ "template": "base", "ttl_seconds": 3 }))?;
    let gone = || client.get(&sandbox.path("")).is_ok_and(|a| a.status == 404);
    assert!(wait_until(Duration::from_secs(10), gone));
    let lived = begin.elapsed().as_secs_f64();
    assert!((3.0..5.0).contains(&lived), "{lived} s");
    assert_eq!(machines_below(server.pid()), 0);
    Ok(())
}

#[test]
fn a_full_host_disk_is_an_error_and_not_the_end() -> Result<()> {
    let mount = tempfile::tempdir()?;
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=320m", "tmpfs"])
        .arg(mount.path())
        .status()?;
    if !mounted.success() {
        return skip("this host lets us mount no small file system to fill");
    }
    let outcome = fill_the_host_disk(mount.path());
    std::process::Command::new("umount").arg("-l").arg(mount.path()).status()?;
    outcome
}

fn fill_the_host_disk(mount: &Path) -> Result<()> {
    let data = mount.join("data");
    let args = ["--disk-reserve", "0"].map(str::to_owned).to_vec();
    let server = Server::start(Options { data: Some(data), args, ..Options::default() })?;
    let client = server.client();
    let sandbox = client.base()?;
    fs::write(mount.join("most"), vec![1u8; 280 << 20])?;
    // The guest's own disk is larger than the host's: its writes fail, it lives.
    let answer =
        sandbox.try_exec("dd if=/dev/urandom of=/root/x bs=1M count=200; sync; echo after", 120)?;
    assert_eq!(answer.status, 200, "{}", answer.text());
    // With no room left, a create is refused clearly and leaves nothing.
    fs::write(mount.join("filler"), vec![1u8; 64 << 20]).expect_err("40 MiB are not 64");
    let refused = client.post("/v1/sandboxes", &json!({ "template": "base" }))?;
    assert_eq!(refused.status, 507, "{}", refused.text());
    assert!(refused.error().contains("disk") && refused.retry_after.is_some());
    fs::remove_file(mount.join("filler"))?;
    fs::remove_file(mount.join("most"))?;
    assert_eq!(sandbox.delete()?.status, 204);
    let clean = || server.machine_dirs() == 0 && machines_below(server.pid()) == 0;
    assert!(wait_until(Duration::from_secs(10), clean));
    assert_eq!(client.base()?.output("echo room")?, "room\n");
    Ok(())
}

#[test]
fn a_directory_is_repaired_without_a_server() -> Result<()> {
    let server = Server::forking()?;
    let client = server.client();
    let (running, sleeper) = (client.base()?, client.base()?);
    sleeper.output("echo kept > /root/file")?;
    sleeper.hibernate()?;
    let (whole, damaged) = (running.snapshot()?, running.snapshot()?);
    let in_use = doctor(server.data())?;
    assert!(!in_use.status.success());
    let text = String::from_utf8_lossy(&in_use.stderr).into_owned();
    assert!(text.contains("another server is running"), "{text}");

    let machines = server.processes();
    let (data, keep) = server.kill()?;
    assert!(wait_until(Duration::from_secs(10), || machines.iter().all(|pid| !is_alive(*pid))));
    fs::write(data.join("snapshots").join(&damaged).join("snapshot.json"), "{")?;
    for again in [false, true] {
        let report: Value = serde_json::from_slice(&doctor(&data)?.stdout)?;
        let repaired = &report["repaired"];
        let ended = if again { json!([]) } else { json!([running.id]) };
        assert_eq!(repaired["ended"], ended, "{report}");
        assert_eq!(repaired["machines_removed"] == 0, again, "{report}");
        assert_eq!(repaired["hibernated"], json!([sleeper.id]), "{report}");
        assert_eq!(repaired["damaged_snapshots"], json!([damaged]), "{report}");
        assert_eq!(repaired["snapshots"], 1, "{report}");
        assert_eq!(fs::read_dir(data.join("machines"))?.count(), 0);
    }

    let args = ["--max-sandboxes", "64"].map(str::to_owned).to_vec();
    let server =
        Server::start(Options { fork: true, data: Some(data), args, ..Options::default() })?;
    let client = server.client();
    assert_eq!(sleeper.under(&client).output("cat /root/file")?, "kept\n");
    assert_eq!(client.thaw(&whole)?.output("echo hi")?, "hi\n");
    drop((server, keep));
    Ok(())
}

/// `pandastack doctor --repair` for a data directory.
fn doctor(data: &Path) -> Result<Output> {
    let mut command = Command::new(program());
    command.args(["--json", "doctor", "--repair", "--engine", &engine(), "--data-dir"]);
    Ok(command.arg(data).output()?)
}
