//! Create, commands, files, pause and resume, delete: by a fork and by a restore.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pandastack_tests::{
    Numbers, Options, Random, Sandbox, Server, deadline, engine, is_alive, wait_until,
};
use serde_json::json;

#[test]
fn a_forked_sandbox_works_from_its_create_to_its_delete() -> Result<()> {
    lives(&Server::forking()?, "fork")
}

#[test]
fn a_parked_sandbox_works_from_its_create_to_its_delete() -> Result<()> {
    let server = Server::start(Options { pool: 1, fork: true, ..Options::default() })?;
    server.wait_for_pool()?;
    lives(&server, "pool")
}

#[test]
fn a_restored_sandbox_works_from_its_create_to_its_delete() -> Result<()> {
    let server = Server::start(Options::default())?;
    lives(&server, "snapshot")?;
    // Forks are refused with a reason where the operator does not want them.
    let sandbox = server.client().base()?;
    let answer = server.client().post(&sandbox.path("/fork"), &json!({}))?;
    assert_eq!(answer.status, 501, "{}", answer.text());
    assert!(!answer.error().is_empty());
    Ok(())
}

fn lives(server: &Server, boot_mode: &str) -> Result<()> {
    let client = server.client();
    let sandbox = client.base()?;
    assert_eq!(sandbox.object["status"], "running");
    assert_eq!(sandbox.object["boot_mode"], boot_mode);
    assert_eq!(sandbox.object["engine"], engine());
    let isolation = if engine() == "kvm" { "hardware" } else { "emulated" };
    assert_eq!(sandbox.object["isolation"], isolation);
    assert_eq!(sandbox.output("echo hello")?, "hello\n");

    let result = sandbox.exec("echo out; echo err >&2; exit 7")?;
    assert_eq!(result["stdout"], "out\n");
    assert_eq!(result["stderr"], "err\n");
    assert_eq!(result["exit_code"], 7);
    assert_eq!(sandbox.exec("kill -9 $$")?["exit_code"], 128 + 9);
    assert_eq!(sandbox.output("nproc")?.trim(), sandbox.object["cpu"].to_string());

    let content = Random::new(1).bytes(300_000);
    sandbox.write("/root/dir/file", &content)?;
    let read = client.get(&sandbox.path("/fs?path=/root/dir/file"))?;
    ensure!(read.body == content, "a file came back changed");
    assert_eq!(sandbox.output("wc -c < /root/dir/file")?.trim(), "300000");
    many_at_once(&sandbox)?;

    let machine = sandbox.pid()?;
    assert!(server.processes().contains(&machine));
    assert_eq!(sandbox.delete()?.status, 204);
    assert_eq!(sandbox.get()?.status, 404);
    assert!(!is_alive(machine), "its process outlives it");
    Ok(())
}

/// Commands of one sandbox run beside each other and keep their output apart.
fn many_at_once(sandbox: &Sandbox) -> Result<()> {
    let workers: Vec<_> = (0..8)
        .map(|number| {
            let sandbox = sandbox.clone();
            thread::spawn(move || sandbox.output(&format!("seq {number} 5000 | tail -n 1000")))
        })
        .collect();
    let expected: String = (4001..=5000).map(|number| format!("{number}\n")).collect();
    for worker in workers {
        let output = worker.join().expect("no panic")?;
        ensure!(output == expected, "outputs are mixed up: {output:?}");
    }
    Ok(())
}

#[test]
fn a_paused_sandbox_stands_still_and_goes_on() -> Result<()> {
    let server = Server::start(Options::default())?;
    let client = server.client();
    let sandbox = client.base()?;
    let numbers = Numbers::start(&client, &sandbox)?;
    sandbox.output("(while :; do :; done) >/dev/null 2>&1 </dev/null &")?;
    let (machine, moment) =
        (sandbox.pid()?, deadline(Duration::from_secs(1)).min(Duration::from_secs(4)));
    ensure!(busy(machine, moment)? > moment / 8, "a busy guest is not busy");
    for _ in 0..2 {
        sandbox.pause()?;
        // Doing it twice is as good as once.
        sandbox.pause()?;
        assert_eq!(sandbox.status()?, "paused");
        let answer = sandbox.try_exec("echo hi", 10)?;
        assert_eq!(answer.status, 409, "{}", answer.text());
        // What had left the guest before may still arrive.
        let mut last = numbers.last();
        wait_until(Duration::from_secs(1), || {
            std::mem::replace(&mut last, numbers.last()) == numbers.last()
        });
        let used = busy(machine, moment)?;
        ensure!(used < moment / 20, "paused, it used {used:?} of {moment:?}");
        assert_eq!(numbers.last(), last, "a paused guest prints");
        sandbox.resume()?;
        sandbox.resume()?;
        assert_eq!(sandbox.status()?, "running");
        numbers.wait_for(3)?;
    }
    ensure!(busy(machine, moment)? > moment / 8, "a resumed guest is not busy");
    numbers.finish()?;
    Ok(())
}

/// Processor time that a process uses in a while.
fn busy(pid: u32, moment: Duration) -> Result<Duration> {
    let before = used(pid)?;
    thread::sleep(moment);
    Ok(used(pid)? - before)
}

/// `utime` and `stime` of proc_pid_stat(5), in ticks of 10 ms; a guest's time is part of the first.
fn used(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit_once(") ").context("stat")?.1.split(' ').collect();
    let ticks = fields[11].parse::<u32>()? + fields[12].parse::<u32>()?;
    Ok(Duration::from_millis(10) * ticks)
}
