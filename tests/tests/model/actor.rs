//! One client: does what its plan says and compares with the model.
//!
//! What a client has is its alone, so every answer is predicted exactly, however much the others do
//! meanwhile. Only where the server is killed under an operation there are two legal outcomes:
//! `aftermath` finds out which of them it is.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pandastack_tests::{Answer, Client, Random, ended_for, holder, kill, seconds, wait_until};
use serde_json::{Value, json};

use crate::guest;
use crate::operation::{Act, Operation};
use crate::plan;
use crate::reference::{Content, Life, Model};
use crate::world::World;

/// Operations that a failure tells of.
const TOLD: usize = 40;
/// Time to notice that a machine is dead or a life over.
pub(crate) const NOTICE: Duration = Duration::from_secs(20);

/// A client and what it knows.
pub struct Actor<'world> {
    pub(crate) world: &'world World,
    number: usize,
    random: Random,
    pub(crate) client: Client,
    pub(crate) generation: usize,
    pub(crate) model: Model,
    /// Their ids, by the model's numbers.
    pub(crate) sandboxes: Vec<String>,
    pub(crate) snapshots: Vec<String>,
    told: VecDeque<(Option<usize>, String)>,
    /// What was done, and how long it took.
    pub done: Vec<(String, Duration)>,
}

impl<'world> Actor<'world> {
    pub fn new(world: &'world World, seed: u64, number: usize) -> Result<Self> {
        let (client, generation) = world.client()?;
        // Seeds that are alike make plans that are not.
        let mixed = (seed.wrapping_add(1) << 8 | number as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut random = Random::new(mixed);
        for _ in 0..8 {
            random.draw();
        }
        let (sandboxes, snapshots) = (Vec::new(), Vec::new());
        let (told, done) = (VecDeque::new(), Vec::new());
        let model = Model::default();
        Ok(Self {
            world,
            number,
            random,
            client,
            generation,
            model,
            sandboxes,
            snapshots,
            told,
            done,
        })
    }

    /// Does so many operations, or fewer if another client found a difference.
    pub fn run(&mut self, operations: usize) -> Result<()> {
        for step in 0..operations {
            if self.world.stopped.load(Ordering::SeqCst) {
                return Ok(());
            }
            let operation = plan::next(&self.model, &mut self.random);
            let begin = Instant::now();
            self.step(step, &operation)?;
            self.done.push((operation.kind(), begin.elapsed()));
        }
        Ok(())
    }

    /// Everything that is there is what it should be; afterwards nothing is.
    pub fn finish(&mut self) -> Result<()> {
        self.step(usize::MAX, &Operation::List)?;
        for snapshot in self.model.kept().collect::<Vec<_>>() {
            let restored = self.model.sandboxes.len();
            // Again, if another client killed the server meanwhile.
            while self.model.sandboxes.len() == restored {
                self.step(usize::MAX, &Operation::Restore { snapshot, ttl: 20_000 })?;
            }
            for operation in [
                Operation::On { sandbox: restored, act: Act::Check },
                Operation::On { sandbox: restored, act: Act::Delete },
                Operation::DeleteSnapshot { snapshot },
            ] {
                self.step(usize::MAX, &operation)?;
            }
        }
        for sandbox in self.model.alive().collect::<Vec<_>>() {
            for act in [Act::Resume, Act::Check, Act::Delete] {
                self.step(usize::MAX, &Operation::On { sandbox, act })?;
            }
        }
        Ok(())
    }

    fn step(&mut self, step: usize, operation: &Operation) -> Result<()> {
        if self.told.len() == TOLD {
            self.told.pop_front();
        }
        self.told.push_back((operation.sandbox(), format!("{step}: {operation}")));
        self.attempt(operation).with_context(|| self.story(step, operation))
    }

    /// What its sandboxes are labelled with; copies inherit it.
    pub(crate) fn name(&self) -> String {
        self.number.to_string()
    }

    /// What led to a failure: the last operations, those of the same sandbox marked.
    fn story(&self, step: usize, operation: &Operation) -> String {
        let own = operation.sandbox();
        let lines = self.told.iter().map(|(sandbox, line)| {
            let mark = if own.is_some() && *sandbox == own { "*" } else { " " };
            format!("\n  {mark} {line}")
        });
        let id = own.and_then(|number| self.sandboxes.get(number)).cloned().unwrap_or_default();
        let lines: String = lines.collect();
        format!(
            "client {}, step {step}: {operation} ({id}); its last operations:{lines}",
            self.number
        )
    }

    fn attempt(&mut self, operation: &Operation) -> Result<()> {
        if self.world.generation() != self.generation {
            self.reconcile(None)?;
        }
        if *operation == Operation::KillServer {
            self.world.kill_server()?;
            return self.reconcile(None);
        }
        let mut after = self.model.clone();
        let status = after.does(operation);
        match self.perform(operation, status, &after) {
            Ok(made) => {
                self.model = after;
                self.sandboxes.extend(made.sandboxes);
                self.snapshots.extend(made.snapshot);
                let (have, know) = (self.sandboxes.len(), self.model.sandboxes.len());
                ensure!(have == know, "{have} sandboxes, and {know} in the model");
                Ok(())
            }
            Err(error) if self.world.generation() == self.generation => Err(error),
            Err(_) => self.reconcile(Some(operation)),
        }
    }

    /// Does an operation, which must answer with `status` and leave what is in `after`.
    fn perform(&self, operation: &Operation, status: u16, after: &Model) -> Result<Made> {
        match operation {
            Operation::Create { ttl } => {
                let metadata = json!({ "client": self.name() });
                let body = json!({ "template": "base", "ttl_seconds": ttl, "metadata": metadata });
                self.create(status, body, true)
            }
            Operation::Restore { snapshot, ttl } => {
                let snapshot = &self.snapshots[*snapshot];
                let metadata = json!({ "client": self.name() });
                let body =
                    json!({ "from_snapshot": snapshot, "ttl_seconds": ttl, "metadata": metadata });
                self.create(status, body, false)
            }
            Operation::DeleteSnapshot { snapshot } => {
                let path = format!("/v1/snapshots/{}", self.snapshots[*snapshot]);
                answered(&self.client.delete(&path)?, status)?;
                Ok(Made::default())
            }
            Operation::List => self.compare_lists().map(|()| Made::default()),
            Operation::KillServer => Ok(Made::default()),
            Operation::On { sandbox, act } => {
                let path = format!("/v1/sandboxes/{}", self.sandboxes[*sandbox]);
                self.act(&path, *sandbox, act, status, after)
            }
        }
    }

    fn create(&self, status: u16, body: Value, is_new: bool) -> Result<Made> {
        let answer = self.client.post("/v1/sandboxes", &body)?;
        answered(&answer, status)?;
        if status != 201 {
            return Ok(Made::default());
        }
        let object = answer.json();
        ensure!(object["ttl_seconds"] == body["ttl_seconds"], "{object}");
        let id = object["id"].as_str().context("a sandbox has an id")?.to_owned();
        if is_new {
            let path = format!("/v1/sandboxes/{id}");
            answered(&self.exec(&path, &guest::start())?, 200)?;
        }
        Ok(Made { sandboxes: vec![id], snapshot: None })
    }

    fn exec(&self, path: &str, cmd: &str) -> Result<Answer> {
        let body = json!({ "cmd": cmd, "timeout_seconds": seconds(90) });
        self.client.post(&format!("{path}/exec"), &body)
    }

    fn act(&self, path: &str, own: usize, act: &Act, status: u16, after: &Model) -> Result<Made> {
        let sandbox = &after.sandboxes[own];
        let order = |name: &str| -> Result<Answer> {
            let answer = self.client.post(&format!("{path}/{name}"), &Value::Null)?;
            answered(&answer, status)?;
            Ok(answer)
        };
        match act {
            Act::Check => {
                let answer = self.exec(path, &guest::check())?;
                answered(&answer, status)?;
                if status == 200 {
                    let content = said(&answer)?;
                    ensure!(content == sandbox.content, "{content:?}, not {:?}", sandbox.content);
                }
            }
            Act::Hold { value } => {
                let answer = self.exec(path, &holder::hold(*value))?;
                answered(&answer, status)?;
                if status == 200 {
                    let Content { held, asked, .. } = said(&answer)?;
                    let wanted = (sandbox.content.held, sandbox.content.asked);
                    ensure!((held, asked) == wanted, "{held} {asked}, not {wanted:?}");
                }
            }
            Act::WriteFile { file, value } => {
                let file = format!("{path}/fs?path={}/{file}", guest::DIR);
                answered(&self.client.put(&file, value.to_string().as_bytes())?, status)?;
            }
            Act::ReadFile { file } => {
                let answer = self.client.get(&format!("{path}/fs?path={}/{file}", guest::DIR))?;
                answered(&answer, status)?;
                if status == 200 {
                    let wanted = sandbox.content.files[file].to_string();
                    ensure!(answer.text() == wanted, "{:?}, not {wanted}", answer.text());
                }
            }
            Act::Pause => drop(order("pause")?),
            Act::Resume => drop(order("resume")?),
            Act::Hibernate => drop(order("hibernate")?),
            Act::Wake => drop(order("wake")?),
            Act::Snapshot => {
                let made = order("snapshots")?.json();
                let snapshot = (status == 201).then(|| {
                    made["id"].as_str().map(str::to_owned).context("a snapshot has an id")
                });
                return Ok(Made { snapshot: snapshot.transpose()?, ..Made::default() });
            }
            Act::Fork { children } => return self.fork(path, *children, status),
            Act::SetTtl { ttl } => {
                let body = json!({ "ttl_seconds": ttl });
                answered(&self.client.patch(&format!("{path}/lifecycle"), &body)?, status)?;
            }
            Act::Expire => {
                let body = json!({ "ttl_seconds": 1 });
                answered(&self.client.patch(&format!("{path}/lifecycle"), &body)?, status)?;
                if status == 200 {
                    self.comes_to(path, |answer| answer.status == 404)?;
                    ended_for(&self.client, &self.sandboxes[own], &["ttl"])?;
                }
            }
            Act::Look => self.look(path, status, sandbox.life, sandbox.ttl)?,
            Act::Delete => answered(&self.client.delete(path)?, status)?,
            // Nobody asks the API for this.
            Act::KillMachine if status == 200 => {
                let metrics = self.client.get(&format!("{path}/metrics"))?.json();
                kill(metrics["pid"].as_u64().context("a machine has a process")?.try_into()?)?;
                self.comes_to(path, |answer| answer.json()["status"] == "failed")?;
            }
            Act::KillMachine => {}
        }
        Ok(Made::default())
    }

    fn fork(&self, path: &str, children: usize, status: u16) -> Result<Made> {
        let answer =
            self.client.post(&format!("{path}/fork-tree"), &json!({ "count": children }))?;
        answered(&answer, status)?;
        if status != 201 {
            return Ok(Made::default());
        }
        let object = answer.json();
        let list = object["children"].as_array().context("children")?;
        let ids = list.iter().filter_map(|child| child["id"].as_str().map(str::to_owned));
        let sandboxes: Vec<String> = ids.collect();
        ensure!(sandboxes.len() == children, "{object}");
        Ok(Made { sandboxes, snapshot: None })
    }

    pub(crate) fn look(&self, path: &str, status: u16, life: Life, ttl: u64) -> Result<()> {
        let answer = self.client.get(path)?;
        answered(&answer, status)?;
        if status != 200 {
            return Ok(());
        }
        let object = answer.json();
        ensure!(object["status"] == life.as_str(), "{object}");
        ensure!(object["ttl_seconds"] == ttl, "{object}");
        let reason = if life == Life::Failed { json!("machine_died") } else { Value::Null };
        ensure!(object["end_reason"] == reason, "{object}");
        let lifecycle = self.client.get(&format!("{path}/lifecycle"))?;
        ensure!(lifecycle.json()["ttl_seconds"] == ttl, "{}", lifecycle.text());
        Ok(())
    }

    /// The lists have what this client has, and nothing that it has no more.
    fn compare_lists(&self) -> Result<()> {
        let listed = self.client.get("/v1/sandboxes")?.json();
        for (id, sandbox) in self.sandboxes.iter().zip(&self.model.sandboxes) {
            let found = listed.as_array().context("a list")?.iter().find(|one| one["id"] == **id);
            let status = found.map_or("gone", |one| one["status"].as_str().unwrap_or_default());
            ensure!(status == sandbox.life.as_str(), "{id} is {status}, not {:?}", sandbox.life);
        }
        let listed = self.client.get("/v1/snapshots")?.json();
        for (id, snapshot) in self.snapshots.iter().zip(&self.model.snapshots) {
            let list = listed["snapshots"].as_array().context("a list")?;
            let there = list.iter().any(|one| one["id"] == **id);
            ensure!(there == snapshot.there, "snapshot {id} is there: {there}");
        }
        Ok(())
    }

    fn comes_to(&self, path: &str, done: impl Fn(&Answer) -> bool) -> Result<()> {
        // A server that is gone does not come to anything.
        let seen = || match self.client.get(path) {
            Ok(answer) => done(&answer),
            Err(_) => true,
        };
        ensure!(wait_until(NOTICE, seen), "it is {}", self.client.get(path)?.text());
        ensure!(done(&self.client.get(path)?), "it was, and is not any more");
        Ok(())
    }
}

/// What an operation made.
#[derive(Default)]
struct Made {
    sandboxes: Vec<String>,
    snapshot: Option<String>,
}

fn answered(answer: &Answer, status: u16) -> Result<()> {
    ensure!(answer.status == status, "{} {}, not {status}", answer.status, answer.text());
    Ok(())
}

fn said(answer: &Answer) -> Result<Content> {
    let result = answer.json();
    ensure!(result["exit_code"] == 0, "{result}");
    guest::read(result["stdout"].as_str().unwrap_or_default())
}
