//! Create, first exec, second exec, destroy; restored from disk, taken from the pool and forked.
//!
//! Every figure counts from the moment the create request is sent. `echo` and `python` are
//! measured in sandboxes of their own, so that neither profits from the other.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use pandastack_tests::{Client, Options, Sandbox, Server, wait_until};
use serde_json::{Value, json};

use super::{publish, stats::Samples};

/// How much to measure.
#[derive(Args, Clone)]
pub struct Plan {
    /// Samples of each kind
    #[arg(short, default_value_t = 100)]
    n: usize,
    /// Template to use
    #[arg(long, default_value = "base")]
    template: String,
    /// Parked machines in the pool runs
    #[arg(long, default_value_t = 4)]
    pool: u32,
    /// Write the report to docs/benchmarks
    #[arg(long)]
    docs: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self { n: 100, template: "base".into(), pool: 4, docs: false }
    }
}

/// The command of the sample.
const PYTHON: &str = "python3 -c 'print(sum(range(100)))'";

/// What is run first in a new sandbox, and what it must print.
const FIRST: [(&str, &str, &str); 2] = [("echo", "echo hi", "hi\n"), ("python", PYTHON, "4950\n")];

/// Runs the whole matrix.
pub fn run(plan: &Plan) -> Result<()> {
    let mut table = String::new();
    let mut figures = json!({ "template": plan.template, "n": plan.n });
    for mode in [Mode::Restore, Mode::Pool(plan.pool), Mode::Fork] {
        let name = mode.name();
        for clients in [1, 4] {
            let server = mode.server(&[])?;
            let bench = Bench { plan, mode, clients, client: server.client() };
            let (samples, stages) = bench.run()?;
            table += &format!("\n## {name}, {clients} at a time\n\n{}", samples.table("ms"));
            table +=
                &format!("\nStages of create, as the server saw them:\n\n{}", stages.table("ms"));
            figures[format!("{name}_c{clients}")] =
                json!({ "ms": samples.json(), "stages_ms": stages.json() });
            server.stop()?;
        }
        let memory = memory(plan, mode)?;
        table += &format!("\n## Memory, {name}\n\n{}", memory.table("MiB per sandbox"));
        figures[format!("{name}_mib")] = memory.json();
    }
    publish("create", &table, figures, plan.docs)
}

/// Where a sandbox comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// The bake's files.
    Restore,
    /// A machine that was restored, warmed up and parked, one of so many.
    Pool(u32),
    /// A fork of the template's zygote.
    Fork,
}

impl Mode {
    pub(super) fn name(self) -> &'static str {
        match self {
            Mode::Restore => "restore",
            Mode::Pool(_) => "pool",
            Mode::Fork => "fork",
        }
    }

    /// The `boot_mode` of its sandboxes.
    fn boot_mode(self) -> &'static str {
        match self {
            Mode::Restore => "snapshot",
            Mode::Pool(_) => "pool",
            Mode::Fork => "fork",
        }
    }

    /// A server that makes all of its sandboxes this way.
    pub(super) fn server(self, args: &[&str]) -> Result<Server> {
        let pool = if let Mode::Pool(pool) = self { pool } else { 0 };
        let fork = self == Mode::Fork;
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        let server = Server::start(Options { pool, fork, args, ..Options::default() })?;
        if fork {
            server.wait_for_zygotes()?;
        }
        Ok(server)
    }
}

/// One cell of the matrix.
struct Bench<'a> {
    plan: &'a Plan,
    mode: Mode,
    clients: usize,
    client: Client,
}

impl Bench<'_> {
    fn run(&self) -> Result<(Samples, Samples)> {
        // The first create of a server loads the template's memory; it is not what is measured.
        self.wait_for_pool()?;
        self.sample(FIRST[0], &mut Samples::default(), &mut Samples::default())?;
        let (mut samples, mut stages) = (Samples::default(), Samples::default());
        for first in FIRST {
            // All clients of a round start together; with a pool, each finds a parked machine.
            for _ in 0..self.plan.n.div_ceil(self.clients) {
                self.wait_for_pool()?;
                let round = thread::scope(|scope| {
                    let workers: Vec<_> = (0..self.clients)
                        .map(|_| {
                            scope.spawn(|| {
                                let (mut own, mut own_stages) = Default::default();
                                self.sample(first, &mut own, &mut own_stages)?;
                                Ok::<(Samples, Samples), anyhow::Error>((own, own_stages))
                            })
                        })
                        .collect();
                    workers.into_iter().map(|w| w.join().expect("a worker")).collect::<Vec<_>>()
                });
                for outcome in round {
                    let (own, own_stages) = outcome?;
                    samples.merge(own);
                    stages.merge(own_stages);
                }
            }
            eprintln!("{} c={} {}: done", self.mode.name(), self.clients, first.0);
        }
        Ok((samples, stages))
    }

    /// One sandbox from the request to its end.
    fn sample(
        &self,
        (name, command, expected): (&str, &str, &str),
        samples: &mut Samples,
        stages: &mut Samples,
    ) -> Result<()> {
        let begin = Instant::now();
        let sandbox = self.client.create(&json!({ "template": self.plan.template }))?;
        samples.add("create → agent ready", ms(begin));
        ensure!(sandbox.output(command)? == expected, "wrong output of {command}");
        samples.add(&format!("create → first {name}"), ms(begin));
        let again = Instant::now();
        sandbox.output(command)?;
        samples.add(&format!("second {name}"), ms(again));
        let end = Instant::now();
        sandbox.delete()?;
        samples.add("destroy", ms(end));
        let came = &sandbox.object["boot_mode"];
        ensure!(*came == self.mode.boot_mode(), "a sandbox came by {came}");
        add_stages(sandbox.server_timing.as_deref(), stages);
        Ok(())
    }

    /// With a pool, a sample is taken once all of it is parked again: how fast it fills is another
    /// question. Several clients then find a machine each.
    fn wait_for_pool(&self) -> Result<()> {
        let full = || {
            let stats = self.client.get("/v1/stats").map(|a| a.json()).unwrap_or_default();
            stats["parked"].as_u64() == stats["parked_wanted"].as_u64()
        };
        ensure!(wait_until(Duration::from_secs(120), full), "the pool stays empty");
        Ok(())
    }
}

/// Reads `Server-Timing: name;dur=1.5, …` (W3C Server Timing).
pub(super) fn add_stages(timing: Option<&str>, stages: &mut Samples) {
    for entry in timing.iter().flat_map(|text| text.split(',')) {
        if let Some((name, duration)) = entry.trim().split_once(";dur=")
            && let Ok(duration) = duration.parse()
        {
            stages.add(name, duration);
        }
    }
}

pub(super) fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// Memory of idle sandboxes: their proportional share of what is resident, before and after they
/// were used, and what the host has less of for each of them, kernel memory included.
fn memory(plan: &Plan, mode: Mode) -> Result<Samples> {
    const SANDBOXES: usize = 20;
    let server = mode.server(&[])?;
    let client = server.client();
    let create = || client.create(&json!({ "template": plan.template }));
    create()?.delete()?;
    let before = available_mib()?;
    let sandboxes = (0..SANDBOXES).map(|_| create()).collect::<Result<Vec<_>>>()?;
    let mut samples = Samples::default();
    samples.add("marginal, idle", (before - available_mib()?) / SANDBOXES as f64);
    for sandbox in &sandboxes {
        samples.add("PSS, idle", pss_mib(&client, sandbox)?);
    }
    for (name, line) in [("PSS, after one echo", "echo hi"), ("PSS, after one python", PYTHON)] {
        for sandbox in &sandboxes {
            sandbox.output(line)?;
        }
        for sandbox in &sandboxes {
            samples.add(name, pss_mib(&client, sandbox)?);
        }
    }
    server.stop()?;
    Ok(samples)
}

fn pss_mib(client: &Client, sandbox: &Sandbox) -> Result<f64> {
    let metrics: Value = client.get(&sandbox.path("/metrics"))?.json();
    let bytes = metrics["host_pss_bytes"].as_f64().context("host_pss_bytes")?;
    Ok(bytes / f64::from(1 << 20))
}

/// `MemAvailable` of proc_meminfo(5).
fn available_mib() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.split_whitespace().next()).context("MemAvailable")?;
    Ok(kib.parse::<f64>()? / 1024.0)
}
