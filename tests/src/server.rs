//! A server process under test.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::process::{is_alive, kill, name_of, wait_until};
use crate::surroundings::{engine, program, shared_data};
use crate::{Client, descendants, seconds};

/// How to start a server.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Parked machines per template.
    pub pool: u32,
    /// Whether machines are forked; restored otherwise.
    pub fork: bool,
    /// More arguments of `serve`.
    pub args: Vec<String>,
    /// An existing data directory, for a second start on the same state.
    pub data: Option<PathBuf>,
    /// Seconds that its sandboxes outlive it when it is killed; 0 if they end with it.
    pub orphan_grace: u64,
    /// Another program than the one under test.
    pub program: Option<PathBuf>,
}

/// A running server. Dropping it kills it; its own directory goes with it. One that is dropped
/// says what it logged: test runners show that of tests that failed.
pub struct Server {
    child: Child,
    data: PathBuf,
    url: String,
    ended: bool,
    _own: Option<tempfile::TempDir>,
}

impl Server {
    /// Starts a server and waits until it answers.
    pub fn start(options: Options) -> Result<Self> {
        let server = Self::begin(options)?;
        server.wait_ready()?;
        Ok(server)
    }

    /// Starts one that is killed before it answers anybody.
    pub fn start_in_vain(options: Options) -> Result<()> {
        Self::begin(options)?.killed().map(drop)
    }

    fn begin(options: Options) -> Result<Self> {
        let (data, own) = match options.data {
            Some(data) => (data, None),
            None => {
                let own = tempfile::tempdir()?;
                (own.path().join("data"), Some(own))
            }
        };
        fs::create_dir_all(&data)?;
        let program = options.program.unwrap_or_else(program);
        for shared in ["templates", "runtime"] {
            let link = data.join(shared);
            if !link.exists() {
                symlink(shared_data().join(shared), link)?;
            }
        }
        let port = free_port()?;
        let mut child = Command::new(&program)
            .arg("serve")
            .arg("--data-dir")
            .arg(&data)
            .args(["--listen", &format!("127.0.0.1:{port}"), "--no-client-config"])
            .args(["--engine", &engine()])
            .args(["--pool", &options.pool.to_string()])
            .args(["--ready-timeout", &seconds(10).to_string()])
            .args(["--fork", if options.fork { "auto" } else { "off" }])
            .args(["--orphan-grace", &options.orphan_grace.to_string()])
            .args(&options.args)
            .env_remove("PANDASTACK_API_KEY")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let log = fs::File::create(data.join("server.log"))?;
        forward(child.stderr.take().context("stderr")?, log);
        let url = format!("http://127.0.0.1:{port}");
        Ok(Self { child, data, url, ended: false, _own: own })
    }

    /// A server that forks, with a zygote of every template. It takes `--max-sandboxes 64`.
    pub fn forking() -> Result<Self> {
        let args = ["--max-sandboxes", "64"].map(str::to_owned).to_vec();
        let server = Self::start(Options { fork: true, args, ..Options::default() })?;
        server.wait_for_zygotes()?;
        Ok(server)
    }

    fn wait_ready(&self) -> Result<()> {
        let client = Client::new(&self.url, "");
        let answers = || client.get("/healthz").is_ok_and(|a| a.status == 200);
        let settled = || answers() || !is_alive(self.pid());
        if wait_until(Duration::from_secs(30), settled) && answers() {
            return Ok(());
        }
        bail!("the server did not answer; it said:\n{}", self.log())
    }

    /// A client with the server's key.
    pub fn client(&self) -> Client {
        let key = fs::read_to_string(self.data.join("api-key")).unwrap_or_default();
        Client::new(&self.url, key.trim())
    }

    /// Where it listens.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.data.join("server.log")).unwrap_or_default()
    }

    /// Kills it without warning and keeps its data directory.
    pub fn kill(mut self) -> Result<(PathBuf, Option<tempfile::TempDir>)> {
        self.child.kill()?;
        self.child.wait()?;
        self.ended = true;
        Ok((self.data.clone(), self._own.take()))
    }

    /// Waits until it has been killed, and keeps its data directory.
    pub fn killed(mut self) -> Result<(PathBuf, Option<tempfile::TempDir>)> {
        let ended = wait_until(Duration::from_secs(30), || !is_alive(self.pid()));
        ensure!(ended, "it lives on; it said:\n{}", self.log());
        let status = self.child.wait()?;
        self.ended = true;
        ensure!(status.signal() == Some(9), "it ended with {status}; it said:\n{}", self.log());
        Ok((self.data.clone(), self._own.take()))
    }

    /// Asks it to stop and waits for its end.
    pub fn stop(self) -> Result<ExitStatus> {
        self.stop_and_look(|_| ())
    }

    /// Asks it to stop and waits for its end, and then has `look` at its data directory.
    pub fn stop_and_look(mut self, look: impl FnOnce(&Path)) -> Result<ExitStatus> {
        let status = self.terminate()?;
        look(&self.data);
        Ok(status)
    }

    /// Asks it to stop, waits for its end, which must be a good one, and keeps its data directory.
    pub fn stop_keeping(mut self) -> Result<(PathBuf, Option<tempfile::TempDir>)> {
        let status = self.terminate()?;
        ensure!(status.success(), "it ended with {status}");
        Ok((self.data.clone(), self._own.take()))
    }

    fn terminate(&mut self) -> Result<ExitStatus> {
        let pid = self.child.id().to_string();
        Command::new("kill").args(["-TERM", &pid]).status()?;
        let status = self.child.wait()?;
        self.ended = true;
        Ok(status)
    }

    /// Process ids of everything that it started: machines, the gateway, their keepers.
    pub fn processes(&self) -> Vec<u32> {
        descendants(self.pid())
    }

    /// Process id of its gateway.
    pub fn gateway(&self) -> Result<u32> {
        let named = |pid: &u32| name_of(*pid) == "panda-gateway";
        self.processes().into_iter().find(named).context("the server has no gateway")
    }

    /// Process id of what holds its machines, if anything does.
    pub fn holder(&self) -> Option<u32> {
        holder_of(&self.data)
    }

    /// Machine directories on disk.
    pub fn machine_dirs(&self) -> usize {
        self.machine_names().len()
    }

    /// Names of the machines that have a directory.
    pub fn machine_names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.data.join("machines")).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// Waits until there is a zygote for every built template.
    pub fn wait_for_zygotes(&self) -> Result<()> {
        let client = self.client();
        let templates = client.get("/v1/templates")?.json();
        let built = templates.as_array().into_iter().flatten().filter(|t| t["built"] == true);
        let wanted = built.count() as u64;
        let stats = || client.get("/v1/stats").map(|a| a.json()).unwrap_or_default();
        let there = |stats: &Value| stats["zygotes"].as_u64().is_some_and(|have| have >= wanted);
        let refused = |stats: &Value| stats["forking"]["state"] == "refused";
        let settled = || Some(stats()).is_some_and(|now| there(&now) || refused(&now));
        if wait_until(Duration::from_secs(120), settled) && there(&stats()) {
            return Ok(());
        }
        bail!("no zygotes: {}\n{}", client.get("/v1/stats")?.text(), self.log())
    }

    /// Waits until the pool of every built template is full.
    pub fn wait_for_pool(&self) -> Result<()> {
        let client = self.client();
        let full = || {
            let stats = client.get("/v1/stats").map(|a| a.json()).unwrap_or_default();
            let count = |name: &str| stats[name].as_u64();
            count("parked").is_some_and(|parked| parked > 0)
                && stats["parked"] == stats["parked_wanted"]
        };
        if wait_until(Duration::from_secs(120), full) {
            return Ok(());
        }
        bail!("the pool stays empty: {}\n{}", client.get("/v1/stats")?.text(), self.log())
    }

    /// Process ids of the machines of sandboxes.
    pub fn used_machines(&self) -> Result<Vec<u32>> {
        let client = self.client();
        let sandboxes = client.get("/v1/sandboxes")?.json();
        let ids = sandboxes.as_array().into_iter().flatten().filter_map(|s| s["id"].as_str());
        let pid = |id| {
            let metrics = client.get(&format!("/v1/sandboxes/{id}/metrics")).ok()?.json();
            metrics["pid"].as_u64()?.try_into().ok()
        };
        Ok(ids.filter_map(pid).collect())
    }

    /// Process ids of the machines that are no sandbox's.
    pub fn spare_machines(&self) -> Result<Vec<u32>> {
        let used = self.used_machines()?;
        let pids = self.machine_names().into_iter().filter_map(|name| {
            let file = self.data.join("machines").join(name).join("pid");
            fs::read_to_string(file).ok()?.trim().parse::<u32>().ok()
        });
        Ok(pids.filter(|pid| !used.contains(pid)).collect())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let holder = if self.ended { None } else { self.holder() };
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(holder) = holder {
            let _ = kill(holder);
        }
        if !self.ended {
            // Without the answers to those who only wait.
            let log = self.log();
            let waiting =
                ["/v1/stats", "/healthz"].map(|path| format!("path=\"{path}\" status=200"));
            let of_use = log.lines().filter(|line| !waiting.iter().any(|w| line.contains(w)));
            eprintln!("--- the server said:\n{}", of_use.collect::<Vec<_>>().join("\n"));
        }
    }
}

/// Process id of what holds the machines of a data directory, with a server or without.
pub fn holder_of(data: &Path) -> Option<u32> {
    let running = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = running.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok());
    pids.filter(|pid| name_of(*pid) == "panda-holder").find(|pid| {
        let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split('\0').any(|word| Path::new(word) == data)
    })
}

/// A port that nobody listens on at this moment.
fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn forward(from: impl std::io::Read + Send + 'static, mut to: fs::File) {
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            let _ = std::io::Write::write_all(&mut to, format!("{line}\n").as_bytes());
        }
    });
}
