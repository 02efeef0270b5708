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
    Client, Options, Server, every_story_ends, groups_of, is_alive, names_in, wait_until,
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
        Ok(Self { inner: Mutex::new(inner), generation, stopped: AtomicBool::new(false) })
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
        let processes = server.processes();
        let machines = server.machine_names();
        inner.groups.extend(processes.iter().flat_map(|pid| groups_of(*pid)));
        self.generation.fetch_add(1, Ordering::SeqCst);
        let (data, own) = server.kill()?;
        inner.keep = inner.keep.take().or(own);
        let left = || processes.iter().filter(|pid| is_alive(**pid)).collect::<Vec<_>>();
        ensure!(wait_until(SETTLE, || left().is_empty()), "processes are left: {:?}", left());
        let server = Server::start(Options { data: Some(data), ..options() })?;
        let found = server.machine_names();
        let same: Vec<_> = machines.iter().filter(|name| found.contains(name)).collect();
        ensure!(same.is_empty(), "directories of machines are left: {same:?}");
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

fn options() -> Options {
    let args = ["--max-sandboxes", "64"].map(str::to_owned).to_vec();
    Options { fork: true, args, ..Options::default() }
}
