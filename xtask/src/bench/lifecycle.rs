//! A sandbox's whole life: create, fork, pause, resume, hibernate, wake, delete; one client, eight,
//! and fifty at once.
//!
//! Times are taken from outside, up to the first command that succeeds where there is one. Stages
//! are what the server says of the same operations: in `Server-Timing`, or in the sandbox's events.

use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Args;
use pandastack_tests::{Client, Sandbox};
use serde_json::{Value, json};

use super::create::{Mode, add_stages, ms};
use super::{publish, stats::Samples};

/// How much to measure.
#[derive(Args, Clone)]
pub struct Plan {
    /// Samples of each kind
    #[arg(short, default_value_t = 50)]
    n: usize,
    /// Creates at once in a burst
    #[arg(long, default_value_t = 50)]
    burst: usize,
    /// Bursts
    #[arg(long, default_value_t = 3)]
    bursts: usize,
    /// Template to use
    #[arg(long, default_value = "base")]
    template: String,
    /// Write the report to docs/benchmarks
    #[arg(long)]
    docs: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self { n: 50, burst: 50, bursts: 3, template: "base".into(), docs: false }
    }
}

/// What one part of the benchmark found: times from outside, and stages from inside.
#[derive(Default)]
struct Found {
    samples: Samples,
    stages: Samples,
}

/// Runs all of it.
pub fn run(plan: &Plan) -> Result<()> {
    let most = plan.burst.max(64).to_string();
    let server = Mode::Fork.server(&["--max-sandboxes", &most])?;
    let bench = Bench { plan, client: server.client() };
    // The first one translates code that all later ones share.
    bench.create(&mut Found::default())?.delete()?;
    let (mut table, mut figures) = (String::new(), json!({ "template": plan.template }));
    let mut report = |title: &str, found: &Found| {
        table += &format!("\n## {title}\n\n{}", found.samples.table("ms"));
        if !found.stages.is_empty() {
            table += &format!("\nStages, as the server saw them:\n\n{}", found.stages.table("ms"));
        }
        figures[title] = json!({ "ms": found.samples.json(), "stages_ms": found.stages.json() });
        eprintln!("{title}: done");
    };
    report("Create and delete, one at a time", &bench.creates(1, plan.n)?);
    report("Create and delete, eight at a time", &bench.creates(8, plan.n.div_ceil(8))?);
    let burst = bench.creates(plan.burst, plan.bursts)?;
    report(&format!("Create and delete, {} at once", plan.burst), &burst);
    for children in [1, 10] {
        let forks = bench.forks(children, plan.n)?;
        report(&format!("Fork, children: {children}"), &forks);
    }
    report("Pause and resume", &bench.pauses()?);
    let (hibernates, wakes) = bench.naps()?;
    report("Hibernate", &hibernates);
    report("Wake", &wakes);
    server.stop()?;
    publish("lifecycle", &table, figures, plan.docs)
}

struct Bench<'a> {
    plan: &'a Plan,
    client: Client,
}

impl Bench<'_> {
    /// A sandbox that has run a command.
    fn create(&self, found: &mut Found) -> Result<Sandbox> {
        let begin = Instant::now();
        let sandbox =
            self.client.create(&json!({ "template": self.plan.template, "ttl_seconds": 0 }))?;
        answers(&sandbox)?;
        found.samples.add("create → first exec", ms(begin));
        add_stages(sandbox.server_timing.as_deref(), &mut found.stages);
        Ok(sandbox)
    }

    /// So many clients, each of which creates a sandbox in every round, all at the same time; then
    /// all delete theirs.
    fn creates(&self, clients: usize, rounds: usize) -> Result<Found> {
        let mut all = Found::default();
        for _ in 0..rounds {
            let sandboxes = at_once(vec![(); clients], |()| {
                let mut found = Found::default();
                let sandbox = self.create(&mut found)?;
                Ok((sandbox, found))
            })?;
            let (sandboxes, founds): (Vec<_>, Vec<_>) = sandboxes.into_iter().unzip();
            founds.into_iter().for_each(|found| all.merge(found));
            for took in at_once(sandboxes, |sandbox| delete(&sandbox))? {
                all.samples.add("delete", took);
            }
        }
        Ok(all)
    }

    /// Forks of a sandbox that writes to its disk before each.
    fn forks(&self, children: usize, rounds: usize) -> Result<Found> {
        let source = self.create(&mut Found::default())?;
        let mut found = Found::default();
        for round in 0..rounds {
            source.output(&format!("echo {round} >> /root/rounds; sync"))?;
            let begin = Instant::now();
            let tree = source.fork_tree(children)?;
            answers(tree.children.first().context("a child")?)?;
            found.samples.add("fork → first exec of the first child", ms(begin));
            tree.children.iter().try_for_each(answers)?;
            found.samples.add("fork → every child has run one", ms(begin));
            add_stages(tree.server_timing.as_deref(), &mut found.stages);
            for child in &tree.children {
                found.samples.add("delete", delete(child)?);
            }
        }
        source.delete()?;
        Ok(found)
    }

    fn pauses(&self) -> Result<Found> {
        let sandbox = self.create(&mut Found::default())?;
        let mut found = Found::default();
        for _ in 0..self.plan.n {
            let begin = Instant::now();
            sandbox.pause()?;
            found.samples.add("pause", ms(begin));
            let begin = Instant::now();
            sandbox.resume()?;
            found.samples.add("resume", ms(begin));
            answers(&sandbox)?;
            found.samples.add("resume → first exec", ms(begin));
        }
        sandbox.delete()?;
        Ok(found)
    }

    /// Sleeps of a sandbox that has 16 MiB of memory that it has touched, and writes a little each
    /// time.
    fn naps(&self) -> Result<(Found, Found)> {
        let sandbox = self.create(&mut Found::default())?;
        sandbox.output("head -c 16M /dev/urandom > /dev/shm/touched; sync")?;
        let (mut sleeps, mut wakes) = (Found::default(), Found::default());
        for round in 0..self.plan.n {
            sandbox.output(&format!("echo {round} >> /root/rounds; sync"))?;
            let begin = Instant::now();
            sandbox.hibernate()?;
            sleeps.samples.add("hibernate", ms(begin));
            self.add_last_stages(&sandbox, &mut sleeps.stages)?;
            let begin = Instant::now();
            sandbox.wake()?;
            wakes.samples.add("wake", ms(begin));
            answers(&sandbox)?;
            wakes.samples.add("wake → first exec", ms(begin));
            self.add_last_stages(&sandbox, &mut wakes.stages)?;
        }
        sandbox.delete()?;
        Ok((sleeps, wakes))
    }

    /// Adds the stages of what the sandbox did last, from its events.
    fn add_last_stages(&self, sandbox: &Sandbox, stages: &mut Samples) -> Result<()> {
        let events = self.client.get(&sandbox.path("/events?tail=5"))?.json();
        let of_stages = |event: &&Value| event["type"] == "sandbox.stages";
        let last = events["events"].as_array().into_iter().flatten().rfind(of_stages);
        let pairs = last.and_then(|event| event["payload"].as_array()).context("no stages")?;
        for pair in pairs {
            let name = pair[0].as_str().context("a stage has a name")?;
            stages.add(name, pair[1].as_f64().context("microseconds")? / 1e3);
        }
        Ok(())
    }
}

impl Found {
    fn merge(&mut self, other: Found) {
        self.samples.merge(other.samples);
        self.stages.merge(other.stages);
    }
}

fn answers(sandbox: &Sandbox) -> Result<()> {
    ensure!(sandbox.output("echo hi")? == "hi\n", "{} is wrong", sandbox.id);
    Ok(())
}

fn delete(sandbox: &Sandbox) -> Result<f64> {
    let begin = Instant::now();
    let answer = sandbox.delete()?;
    ensure!(answer.status == 204, "delete answered {} {}", answer.status, answer.text());
    Ok(ms(begin))
}

/// Does something for all of them, each in a thread of its own.
fn at_once<T: Send, R: Send>(
    items: Vec<T>,
    work: impl Fn(T) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    thread::scope(|scope| {
        let work = &work;
        let workers: Vec<_> =
            items.into_iter().map(|item| scope.spawn(move || work(item))).collect();
        workers.into_iter().map(|worker| worker.join().expect("a worker")).collect()
    })
}
