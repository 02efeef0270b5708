//! How sandboxes end, and that nothing is left of them: by a delete, by their guest, by the death
//! of their process, and by the death of the server.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use pandastack_tests::{
    Footprint, Options, Sandbox, Server, descendants, groups_of, is_alive, kill, wait_until,
};
use serde_json::json;

const SOON: Duration = Duration::from_secs(10);

fn gone(pids: &[u32]) -> bool {
    !pids.iter().any(|pid| is_alive(*pid))
}

/// Control groups of a sandbox's machine.
fn groups(sandbox: &Sandbox) -> Result<BTreeSet<PathBuf>> {
    Ok(groups_of(sandbox.pid()?))
}

/// Waits until the server has no more than it had, and these control groups are gone.
fn assert_back_at(before: &Footprint, server: &Server, groups: &BTreeSet<PathBuf>) {
    let clean =
        || Footprint::of(server).is_back_at(before) && !groups.iter().any(|group| group.exists());
    assert!(
        wait_until(Duration::from_secs(20), clean),
        "{:?} became {:?}; groups: {:?}",
        before,
        Footprint::of(server),
        groups.iter().filter(|group| group.exists()).collect::<Vec<_>>()
    );
}

/// Answers for a sandbox that has ended: clear ones, and it can be deleted once.
fn assert_explained(sandbox: &Sandbox, reason: &str) -> Result<()> {
    assert_eq!(sandbox.end_reason()?, reason);
    let answer = sandbox.try_exec("echo hi", 5)?;
    assert_eq!(answer.status, 410, "{}", answer.text());
    assert!(answer.error().contains(reason), "{}", answer.text());
    assert_eq!(sandbox.delete()?.status, 204);
    assert_eq!(sandbox.delete()?.status, 404);
    Ok(())
}

#[test]
fn a_monitor_that_dies_takes_its_own_sandbox_only() -> Result<()> {
    let server = Server::forking()?;
    let client = server.client();
    client.base()?.delete()?;
    let before = Footprint::of(&server);
    let (source, bystander) = (client.base()?, client.base()?);
    let children = source.fork(2)?;
    let mut all = BTreeSet::new();
    for sandbox in [&source, &bystander, &children[0], &children[1]] {
        all.extend(groups(sandbox)?);
    }
    let running = children[0].clone();
    let exec = std::thread::spawn(move || running.try_exec("touch /run/on; sleep 200", 200));
    let on = || children[0].output("test -e /run/on").is_ok();
    assert!(wait_until(SOON, on));
    kill(children[0].pid()?)?;
    // Who waits for it hears so, and does not wait for ever.
    let answer = exec.join().expect("no panic")?;
    assert!(answer.status >= 400, "{}", answer.text());
    assert_explained(&children[0], "machine_died")?;
    kill(source.pid()?)?;
    assert_explained(&source, "machine_died")?;
    for sandbox in [&children[1], &bystander] {
        assert_eq!(sandbox.output("echo alive")?, "alive\n");
        assert_eq!(sandbox.delete()?.status, 204);
    }
    assert_back_at(&before, &server, &all);
    Ok(())
}

#[test]
fn a_guest_that_ends_says_how() -> Result<()> {
    let server = Server::forking()?;
    let client = server.client();
    client.base()?.delete()?;
    let before = Footprint::of(&server);
    let mut all = BTreeSet::new();
    for (key, reason) in [("o", "guest_shutdown"), ("b", "guest_shutdown"), ("c", "guest_panic")] {
        let sandbox = client.base()?;
        all.extend(groups(&sandbox)?);
        let line =
            format!("echo 1 > /proc/sys/kernel/sysrq; echo {key} > /proc/sysrq-trigger; sleep 100");
        let answer = sandbox.try_exec(&line, 100)?;
        assert!(answer.status >= 400, "{key} answered {}", answer.text());
        assert_explained(&sandbox, reason)?;
    }
    assert_back_at(&before, &server, &all);
    Ok(())
}

#[test]
fn a_delete_needs_no_working_guest() -> Result<()> {
    let server = Server::forking()?;
    let client = server.client();
    client.base()?.delete()?;
    let before = Footprint::of(&server);
    let mut all = BTreeSet::new();

    let paused = client.base()?;
    all.extend(groups(&paused)?);
    paused.pause()?;
    assert_eq!(paused.delete()?.status, 204);

    let working = client.base()?;
    all.extend(groups(&working)?);
    working.output("(while :; do :; done) >/dev/null 2>&1 </dev/null &")?;
    let exec = working.clone();
    let exec = std::thread::spawn(move || exec.try_exec("touch /run/on; sleep 200", 200));
    assert!(wait_until(SOON, || working.output("test -e /run/on").is_ok()));
    assert_eq!(working.delete()?.status, 204);
    assert!(exec.join().expect("no panic")?.status >= 400);

    // A process that stands still cannot answer either.
    let stopped = client.base()?;
    all.extend(groups(&stopped)?);
    ensure!(Command::new("kill").args(["-STOP", &stopped.pid()?.to_string()]).status()?.success());
    assert_eq!(stopped.delete()?.status, 204);
    assert_eq!(stopped.get()?.status, 404);
    assert_back_at(&before, &server, &all);
    Ok(())
}

#[test]
fn nothing_outlives_a_server_that_is_killed() -> Result<()> {
    let server = Server::forking()?;
    let client = server.client();
    let source = client.base()?;
    let mut family = source.fork(2)?;
    family.push(client.base()?);
    family[2].pause()?;
    family.push(source);
    let mut all = BTreeSet::new();
    for sandbox in &family {
        all.extend(groups(sandbox)?);
    }
    let (processes, names) = (descendants(server.pid()), server.machine_names());
    assert!(processes.len() >= family.len() && names.len() >= family.len());
    let (data, keep) = server.kill()?;
    assert!(wait_until(SOON, || gone(&processes)), "processes outlive their server");

    let server = Server::start(Options { data: Some(data), fork: true, ..Options::default() })?;
    let client = server.client();
    assert!(server.machine_names().iter().all(|name| !names.contains(name)));
    assert!(!all.iter().any(|group| group.exists()), "control groups are left");
    assert_eq!(client.get("/v1/sandboxes")?.json(), json!([]));
    for sandbox in &family {
        assert_eq!(client.get(&sandbox.path(""))?.status, 404);
    }
    assert_eq!(client.base()?.output("echo again")?, "again\n");
    drop((server, keep));
    Ok(())
}

#[test]
fn a_server_that_is_stopped_ends_everything() -> Result<()> {
    let server = Server::forking()?;
    let client = server.client();
    let source = client.base()?;
    let mut all = groups(&source)?;
    for child in source.fork(2)? {
        all.extend(groups(&child)?);
    }
    let processes = descendants(server.pid());
    assert!(server.machine_dirs() > 2);
    let status = server.stop_and_look(|data| {
        assert!(wait_until(SOON, || gone(&processes)), "processes outlive their server");
        let machines = fs::read_dir(data.join("machines")).map_or(0, Iterator::count);
        assert_eq!(machines, 0, "directories are left");
        assert!(!all.iter().any(|group| group.exists()), "control groups are left");
    })?;
    ensure!(status.success(), "{status}");
    Ok(())
}
