//! The server that all clients share, and its violent ends.
//!
//! Invariant: the generation is counted up *before* a server is killed. So a client whose operation
//! went wrong asks for the generation: if it is still its own, nothing excuses the failure.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pandastack_tests::{
    Client, Options, Server, engine, every_story_ends, groups_of, is_alive, name_of, names_in,
    wait_until,
};
use serde_json::json;

/// Time for processes and groups of a server that ended to go.
const SETTLE: Duration = Duration::from_secs(20);

/// One server after the other, on one data directory.
pub struct World {
    inner: Mutex<Inner>,
    generation: AtomicUsize,
    /// Somebody found a difference: the others need not go on.
    pub stopped: AtomicBool,
    /// How often a sandbox with a machine went on under the next server.
    pub survivors: AtomicUsize,
}

struct Inner {
    /// `None` only if a start failed.
    server: Option<Server>,
    /// The data directory goes with it.
    keep: Option<tempfile::TempDir>,
    /// Every control group that a machine was seen in.
    groups: BTreeSet<std::path::PathBuf>,
}

impl World {
    pub fn start() -> Result<Self> {
        let server = Server::start(options())?;
        let inner = Inner { server: Some(server), keep: None, groups: BTreeSet::new() };
        let generation = AtomicUsize::new(0);
        let (stopped, survivors) = (AtomicBool::new(false), AtomicUsize::new(0));
        Ok(Self { inner: Mutex::new(inner), generation, stopped, survivors })
    }

    /// The number of the server that runs, or that is about to be killed.
    pub fn generation(&self) -> usize {
        self.generation.load(Ordering::SeqCst)
    }

    /// A client of the server that runs, and that server's number. Waits while one is started.
    pub fn client(&self) -> Result<(Client, usize)> {
        let inner = self.inner.lock().expect("no panic");
        let server = inner.server.as_ref().context("no server could be started")?;
        Ok((server.client(), self.generation()))
    }

    /// Kills the server, whatever it is doing, and starts another one on what it left.
    pub fn kill_server(&self) -> Result<()> {
        let mut inner = self.inner.lock().expect("no panic");
        let server = inner.server.take().context("no server could be started")?;
        // Those of sandboxes go on. Who has one cannot be asked of a server that is so busy, so what
        // is nobody's is looked for afterwards: under the next server it is not there.
        let processes = server.processes();
        inner.groups.extend(processes.iter().flat_map(|pid| groups_of(*pid)));
        self.generation.fetch_add(1, Ordering::SeqCst);
        let (data, own) = server.kill()?;
        inner.keep = inner.keep.take().or(own);
        let server = Server::start(Options { data: Some(data), ..options() })?;
        let used = server.used_machines()?;
        // Keepers of machines that go on, and what holds these.
        let stays = |pid: u32| ["panda-keeper", "panda-holder"].contains(&&*name_of(pid));
        let over = |pid: &&u32| is_alive(**pid) && !used.contains(pid) && !stays(**pid);
        let left = || processes.iter().filter(over).collect::<Vec<_>>();
        ensure!(wait_until(SETTLE, || left().is_empty()), "processes are left: {:?}", left());
        inner.server = Some(server);
        Ok(())
    }

    /// The end, when every client has deleted what it had: nothing is left of anything.
    pub fn finish(self) -> Result<()> {
        let Inner { server, keep, mut groups } = self.inner.into_inner().expect("no panic");
        let server = server.context("no server could be started")?;
        let client = server.client();
        for (path, empty) in
            [("/v1/sandboxes", json!([])), ("/v1/snapshots", json!({ "snapshots": [] }))]
        {
            let list = client.get(path)?.json();
            ensure!(list == empty, "{path} has {list}");
        }
        let survivors = self.survivors.into_inner();
        eprintln!("sandboxes with machines went on {survivors} times under the next server");
        let ended = every_story_ends(&client)?;
        eprintln!("{ended} sandboxes in the journal, and all of them have ended");
        let processes = server.processes();
        groups.extend(processes.iter().flat_map(|pid| groups_of(*pid)));
        let mut left = Vec::new();
        let status = server.stop_and_look(|data| {
            left.extend(
                ["machines", "hibernated", "snapshots"].map(|dir| names_in(&data.join(dir))),
            );
        })?;
        ensure!(status.success(), "the server ended with {status}");
        ensure!(left.iter().all(Vec::is_empty), "files are left: {left:?}");
        let gone = || processes.iter().all(|pid| !is_alive(*pid));
        ensure!(wait_until(SETTLE, gone), "processes are left");
        let left = || groups.iter().filter(|group| group.exists()).collect::<Vec<_>>();
        ensure!(wait_until(SETTLE, || left().is_empty()), "control groups are left: {:?}", left());
        drop(keep);
        Ok(())
    }
}

/// Whether machines outlive their server.
pub fn outlives() -> bool {
    engine() == "qemu"
}

fn options() -> Options {
    let args = ["--max-sandboxes", "64"].map(str::to_owned).to_vec();
    Options { fork: true, args, orphan_grace: 600, ..Options::default() }
}
