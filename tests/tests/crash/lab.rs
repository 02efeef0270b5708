//! A data directory, one server after the other on it, and what each of them must have left.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use pandastack_sandbox::fault::Point;
use pandastack_tests::{
    Answer, Client, Options, Server, every_story_ends, faulty_program, groups_of, is_alive,
    names_in, wait_until,
};
use serde_json::json;

/// Time for processes and groups of a server that was killed to go.
pub const SETTLE: Duration = Duration::from_secs(20);

pub struct Lab {
    /// `None` only while the next one starts.
    server: Option<Server>,
    /// Names in the data directory of a server that has no sandbox.
    ground: Vec<String>,
    dir: tempfile::TempDir,
}

/// What a server had when it was killed.
struct Left {
    processes: Vec<u32>,
    machines: Vec<String>,
    groups: BTreeSet<PathBuf>,
}

impl Lab {
    pub fn start(fork: bool) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut lab = Self { server: None, ground: Vec::new(), dir };
        lab.start_server(fork)?;
        lab.ground = names_in(&lab.data());
        Ok(lab)
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn server(&self) -> Result<&Server> {
        self.server.as_ref().context("a server runs")
    }

    fn start_server(&mut self, fork: bool) -> Result<()> {
        self.server = Some(Server::start(self.options(fork))?);
        Ok(())
    }

    fn options(&self, fork: bool) -> Options {
        let (data, program) = (Some(self.data()), Some(faulty_program()));
        Options { data, program, fork, ..Options::default() }
    }

    pub fn client(&self) -> Result<Client> {
        Ok(self.server()?.client())
    }

    /// Has the server die at a point while `act` is done, and starts the next one.
    pub fn strike(
        &mut self,
        point: Point,
        fork: bool,
        act: impl FnOnce(&Client) -> Result<()>,
    ) -> Result<Client> {
        let client = self.client()?;
        let mut left = self.left()?;
        arm(&self.data(), point)?;
        act(&client)?;
        self.server.take().context("a server runs")?.killed()?;
        ensure!(!self.data().join("fault").exists(), "it died elsewhere");
        left.machines.extend(names_in(&self.data().join("machines")));
        self.restart(&left, fork)
    }

    /// The same, for a point that the next server comes to when it starts.
    pub fn strike_the_next(&mut self, point: Point, fork: bool) -> Result<Client> {
        let mut left = self.left()?;
        self.server.take().context("a server runs")?.kill()?;
        left.machines.extend(names_in(&self.data().join("machines")));
        arm(&self.data(), point)?;
        Server::start_in_vain(self.options(false))?;
        ensure!(!self.data().join("fault").exists(), "it died elsewhere");
        self.restart(&left, fork)
    }

    /// The process id of the server that runs.
    pub fn pid(&self) -> Result<u32> {
        Ok(self.server()?.pid())
    }

    fn left(&self) -> Result<Left> {
        let processes = self.server()?.processes();
        let groups = processes.iter().flat_map(|pid| groups_of(*pid)).collect();
        Ok(Left { processes, machines: names_in(&self.data().join("machines")), groups })
    }

    fn restart(&mut self, left: &Left, fork: bool) -> Result<Client> {
        let alive = || left.processes.iter().filter(|pid| is_alive(**pid)).collect::<Vec<_>>();
        ensure!(wait_until(SETTLE, || alive().is_empty()), "processes are left: {:?}", alive());
        self.start_server(fork)?;
        let found = names_in(&self.data().join("machines"));
        let same: Vec<_> = left.machines.iter().filter(|name| found.contains(name)).collect();
        ensure!(same.is_empty(), "machines are left: {same:?}");
        let groups = || left.groups.iter().filter(|group| group.exists()).collect::<Vec<_>>();
        ensure!(wait_until(SETTLE, || groups().is_empty()), "groups are left: {:?}", groups());
        let named = || left.machines.iter().filter(|name| has_group(name)).collect::<Vec<_>>();
        ensure!(wait_until(SETTLE, || named().is_empty()), "groups are left: {:?}", named());
        let sockets = fs::read_to_string("/proc/net/unix")?;
        let bound = left.machines.iter().filter(|name| sockets.contains(*name)).collect::<Vec<_>>();
        ensure!(bound.is_empty(), "sockets are left: {bound:?}");
        self.client()
    }

    /// The server has these sandboxes, all of them asleep, and these snapshots: neither more nor
    /// less, in its lists and on its disk.
    pub fn has(&self, asleep: &[&str], snapshots: &[&str]) -> Result<()> {
        let client = self.client()?;
        let sorted = |ids: &[&str]| {
            let mut ids: Vec<String> = ids.iter().map(|id| (*id).to_owned()).collect();
            ids.sort();
            ids
        };
        let (asleep, snapshots) = (sorted(asleep), sorted(snapshots));
        ensure!(listed(&client.get("/v1/sandboxes")?.json()) == asleep, "sandboxes");
        let kept = client.get("/v1/snapshots")?.json();
        ensure!(listed(&kept["snapshots"]) == snapshots, "snapshots: {kept}");
        for (dir, ids) in [("hibernated", &asleep), ("snapshots", &snapshots)] {
            let found = names_in(&self.data().join(dir));
            ensure!(found == *ids, "{dir} has {found:?} and not {ids:?}");
        }
        let found = names_in(&self.data());
        ensure!(found == self.ground, "{found:?} and not {:?}", self.ground);
        Ok(())
    }

    /// Nothing of any sandbox is left.
    pub fn is_empty(&self) -> Result<()> {
        self.has(&[], &[])?;
        every_story_ends(&self.client()?).map(drop)
    }
}

/// Has the server of a data directory die at a point.
pub fn arm(data: &Path, point: Point) -> Result<()> {
    Ok(fs::write(data.join("fault"), point.name())?)
}

/// What is asked of a server that dies of it has no answer.
pub fn unanswered(answer: Result<Answer>) -> Result<()> {
    match answer {
        Err(_) => Ok(()),
        Ok(answer) => bail!("it was answered: {} {}", answer.status, answer.text()),
    }
}

fn listed(list: &serde_json::Value) -> Vec<String> {
    let ids = list.as_array().into_iter().flatten().map(|one| one["id"].clone());
    let mut ids: Vec<String> = ids
        .filter(|id| *id != json!(null))
        .filter_map(|id| id.as_str().map(str::to_owned))
        .collect();
    ids.sort();
    ids
}

/// Whether a machine has a control group, in any hierarchy.
fn has_group(machine: &str) -> bool {
    let mount = Path::new("/sys/fs/cgroup");
    let controllers = names_in(mount).into_iter().map(|name| mount.join(name));
    let mut roots = controllers.chain([mount.to_owned()]);
    roots.any(|root| root.join("pandastack").join(machine).exists())
}
