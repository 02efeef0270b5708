//! Time in a guest: right at once after whatever was done to it, and never running backwards.

use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use pandastack_tests::{Options, Sandbox, Server, deadline, wait_until};

/// How long a sandbox stands still, or lies on disk, before its clock is looked at.
const ASIDE: Duration = Duration::from_secs(3);

/// The guest's clock at the instant of the reading lies between the request and the answer; the
/// allowance of the contract is 50 ms beyond that.
fn assert_right(sandbox: &Sandbox, when: &str) -> Result<()> {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map(|d| d.as_secs_f64());
    let allowance = deadline(Duration::from_millis(50)).as_secs_f64().min(1.0);
    let before = now()?;
    let guest: f64 = sandbox.output("date +%s.%N")?.trim().parse()?;
    let after = now()?;
    ensure!(
        guest > before - allowance && guest < after + allowance,
        "{when}: the guest says {guest} between {before} and {after}"
    );
    Ok(())
}

/// Seconds since the guest's boot.
fn uptime(sandbox: &Sandbox) -> Result<f64> {
    let text = sandbox.output("cut -d ' ' -f 1 /proc/uptime")?;
    text.trim().parse().context("an uptime")
}

#[test]
fn the_wall_clock_is_right_after_a_restore_and_a_pause() -> Result<()> {
    let server = Server::start(Options::default())?;
    let sandbox = server.client().base()?;
    assert_right(&sandbox, "after a restore")?;
    sandbox.pause()?;
    thread::sleep(ASIDE);
    sandbox.resume()?;
    assert_right(&sandbox, "after a pause")
}

/// A guest that gave its counter up lives by a tick: hundreds of interrupts a second for nothing.
#[test]
fn a_guest_counts_time_with_its_processor() -> Result<()> {
    let server = Server::start(Options::default())?;
    let sandbox = server.client().base()?;
    let source = "cat /sys/devices/system/clocksource/clocksource0/current_clocksource";
    let source = sandbox.output(source)?;
    ensure!(["tsc", "kvm-clock"].contains(&source.trim()), "its clock is {source}");
    Ok(())
}

#[test]
fn the_wall_clock_is_right_after_forks_and_snapshots() -> Result<()> {
    let server = Server::forking()?;
    let client = server.client();
    let sandbox = client.base()?;
    assert_right(&sandbox, "after a fork of the zygote")?;
    let children = sandbox.fork(2)?;
    assert_right(&sandbox, "in a parent")?;
    for child in &children {
        assert_right(child, "in a child")?;
    }
    sandbox.pause()?;
    let snapshot = sandbox.snapshot()?;
    thread::sleep(ASIDE);
    assert_right(&sandbox.fork(1)?[0], "in a child of a paused parent")?;
    assert_right(&client.thaw(&snapshot)?, "after a snapshot")
}

/// A machine that waits in the pool does not live meanwhile.
#[test]
fn a_parked_machine_does_not_age() -> Result<()> {
    let server = Server::start(Options { pool: 1, fork: true, ..Options::default() })?;
    server.wait_for_pool()?;
    let young = uptime(&server.client().base()?)?;
    server.wait_for_pool()?;
    let aside = deadline(ASIDE).min(5 * ASIDE);
    thread::sleep(aside);
    let sandbox = server.client().base()?;
    assert_eq!(sandbox.object["boot_mode"], "pool");
    assert_right(&sandbox, "after a while in the pool")?;
    let aged = uptime(&sandbox)? - young;
    ensure!(aged.abs() < aside.as_secs_f64() / 2.0, "it aged by {aged} s");
    Ok(())
}

/// A timer that was set before goes off after, and the monotonic clock is never behind what a
/// program has seen of it.
#[test]
fn timers_and_the_monotonic_clock_go_on_in_every_copy() -> Result<()> {
    let server = Server::forking()?;
    let client = server.client();
    let sandbox = client.base()?;
    // Long enough to be copied meanwhile.
    let nap = deadline(Duration::from_secs(4)).as_secs().min(20);
    sandbox.output(&format!("(sleep {nap}; touch /dev/shm/woke) >/dev/null 2>&1 </dev/null &"))?;
    let (before, began) = (uptime(&sandbox)?, Instant::now());
    let mut copies = sandbox.fork(2)?;
    let snapshot = sandbox.snapshot()?;
    copies.push(client.thaw(&snapshot)?);
    copies.push(sandbox);
    for copy in &copies {
        let now = uptime(copy)?;
        let most = before + began.elapsed().as_secs_f64() + 2.0;
        ensure!(now >= before && now < most, "an uptime of {now} s came after {before} s");
    }
    for (number, copy) in copies.iter().enumerate() {
        let woke = || copy.output("test -e /dev/shm/woke").is_ok();
        ensure!(wait_until(Duration::from_secs(20), woke), "copy {number} sleeps on");
    }
    Ok(())
}
