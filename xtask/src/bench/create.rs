//! Create, first exec, second exec, destroy; restored from disk and taken from the pool.
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
    for (mode, pool) in [("snapshot", 0), ("pool", plan.pool)] {
        for clients in [1, 4] {
            let options = Options { pool, ..Options::default() };
            let server = Server::start(options)?;
            let bench = Bench { plan, mode, pool, clients, client: server.client() };
            let (samples, stages) = bench.run()?;
            table += &format!("\n## {mode}, {clients} at a time\n\n{}", samples.table("ms"));
            table +=
                &format!("\nStages of create, as the server saw them:\n\n{}", stages.table("ms"));
            figures[format!("{mode}_c{clients}")] =
                json!({ "ms": samples.json(), "stages_ms": stages.json() });
            server.stop()?;
        }
        let memory = memory(plan, pool)?;
        table += &format!("\n## Memory, {mode}\n\n{}", memory.table("MiB per sandbox"));
        figures[format!("{mode}_mib")] = memory.json();
    }
    publish("create", &table, figures, plan.docs)
}

/// One cell of the matrix.
struct Bench<'a> {
    plan: &'a Plan,
    mode: &'a str,
    pool: u32,
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
            eprintln!("{} c={} {}: done", self.mode, self.clients, first.0);
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
        if self.pool > 0 {
            ensure!(sandbox.object["boot_mode"] == "pool", "a create missed the pool");
        }
        add_stages(&sandbox, stages);
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
fn add_stages(sandbox: &Sandbox, stages: &mut Samples) {
    for entry in sandbox.server_timing.iter().flat_map(|text| text.split(',')) {
        if let Some((name, duration)) = entry.trim().split_once(";dur=")
            && let Ok(duration) = duration.parse()
        {
            stages.add(name, duration);
        }
    }
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// Proportional memory of idle sandboxes, before and after a first python.
fn memory(plan: &Plan, pool: u32) -> Result<Samples> {
    const SANDBOXES: usize = 8;
    let server = Server::start(Options { pool, ..Options::default() })?;
    let client = server.client();
    let create = || client.create(&json!({ "template": plan.template }));
    let sandboxes = (0..SANDBOXES).map(|_| create()).collect::<Result<Vec<_>>>()?;
    let mut samples = Samples::default();
    let pss = |sandbox: &Sandbox| -> Result<f64> {
        let metrics: Value = client.get(&sandbox.path("/metrics"))?.json();
        let bytes = metrics["host_pss_bytes"].as_f64().context("host_pss_bytes")?;
        Ok(bytes / f64::from(1 << 20))
    };
    for sandbox in &sandboxes {
        samples.add("idle", pss(sandbox)?);
    }
    for sandbox in &sandboxes {
        sandbox.output(PYTHON)?;
    }
    for sandbox in &sandboxes {
        samples.add("after one python", pss(sandbox)?);
    }
    server.stop()?;
    Ok(samples)
}
