//! A hundred creates one after the other (forty where each takes long) and twenty at once: all answer,
//! and then nothing is left.
//!
//! `PANDASTACK_TEST_CREATES` and `PANDASTACK_TEST_AT_ONCE` are for hosts on which so many take too
//! long.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pandastack_tests::{Client, Footprint, Options, Server, groups_of, number, wait_until};

/// Time for threads and connections that idle to go.
const SETTLE: Duration = Duration::from_secs(40);

/// Control groups of all machines that there were.
type Groups = Arc<Mutex<BTreeSet<PathBuf>>>;

#[test]
fn forked_sandboxes_leave_nothing() -> Result<()> {
    leave_nothing(&Server::forking()?, "fork", 100)
}

#[test]
fn restored_sandboxes_leave_nothing() -> Result<()> {
    leave_nothing(&Server::start(Options::default())?, "snapshot", 40)
}

fn leave_nothing(server: &Server, boot_mode: &'static str, creates: usize) -> Result<()> {
    let client = server.client();
    let creates: usize = number("PANDASTACK_TEST_CREATES", creates);
    let at_once: usize = number("PANDASTACK_TEST_AT_ONCE", 20);
    let groups = Groups::default();
    // What a server keeps for good, it has after a first round of the same kind.
    all_at_once(&client, at_once, boot_mode, &groups)?;
    let before = Footprint::settled(server, SETTLE)?;
    for _ in 0..creates {
        round(&client, boot_mode, &groups)?;
    }
    all_at_once(&client, at_once, boot_mode, &groups)?;
    let back = || Footprint::of(server).is_back_at(&before);
    ensure!(wait_until(SETTLE, back), "{before:?} became {:?}", Footprint::of(server));
    eprintln!("{before:?} and then {:?}", Footprint::of(server));
    let groups = groups.lock().expect("no panic");
    let left = || groups.iter().filter(|group| group.exists()).collect::<Vec<_>>();
    ensure!(wait_until(SETTLE, || left().is_empty()), "control groups are left: {:?}", left());
    eprintln!("{} control groups came and went", groups.len());
    Ok(())
}

/// One sandbox from its create to its delete.
fn round(client: &Client, boot_mode: &str, groups: &Groups) -> Result<()> {
    let sandbox = client.base()?;
    ensure!(sandbox.output("echo x")? == "x\n", "a wrong answer");
    ensure!(sandbox.object["boot_mode"] == boot_mode, "it came by {}", sandbox.object["boot_mode"]);
    groups.lock().expect("no panic").extend(groups_of(sandbox.pid()?));
    let deleted = sandbox.delete()?;
    ensure!(deleted.status == 204, "delete answered {} {}", deleted.status, deleted.text());
    Ok(())
}

fn all_at_once(client: &Client, count: usize, boot_mode: &'static str, all: &Groups) -> Result<()> {
    let workers: Vec<_> = (0..count)
        .map(|_| {
            let (client, groups) = (client.clone(), all.clone());
            thread::spawn(move || round(&client, boot_mode, &groups))
        })
        .collect();
    for (number, worker) in workers.into_iter().enumerate() {
        worker.join().expect("no panic").with_context(|| format!("{number} of {count} at once"))?;
    }
    Ok(())
}
