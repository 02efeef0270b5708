//! What a client finds after its server was killed: of the outcomes that are legal, one.

use std::sync::atomic::Ordering;

use anyhow::{Context, Result, bail, ensure};
use pandastack_tests::{Answer, ended_for, wait_until};
use serde_json::Value;

use crate::actor::{Actor, NOTICE};
use crate::operation::{Act, Operation};
use crate::reference::{Life, Model, Snapshot};
use crate::world::outlives;

impl Actor<'_> {
    /// Looks at what a killed server left. Begins again if the next one is killed as well.
    pub(crate) fn reconcile(&mut self, in_flight: Option<&Operation>) -> Result<()> {
        loop {
            let (client, generation) = self.world.client()?;
            (self.client, self.generation) = (client, generation);
            let found = self.find(in_flight);
            match found {
                Ok((model, snapshot)) => {
                    self.model = model;
                    self.snapshots.extend(snapshot);
                    return Ok(());
                }
                Err(error) if self.world.generation() == generation => {
                    return Err(error.context("after the server was killed"));
                }
                Err(_) => {}
            }
        }
    }

    /// The model as the server that runs has it, and a snapshot that was not known.
    fn find(&self, in_flight: Option<&Operation>) -> Result<(Model, Option<String>)> {
        let mut model = self.model.clone();
        for (number, sandbox) in model.sandboxes.iter_mut().enumerate() {
            if sandbox.life == Life::Gone {
                continue;
            }
            let act = match in_flight {
                Some(Operation::On { sandbox, act }) if *sandbox == number => Some(act),
                _ => None,
            };
            let legal = sandbox.after_crash(act, outlives());
            let path = format!("/v1/sandboxes/{}", self.sandboxes[number]);
            let answer = self.settled(&path)?;
            let life = match (answer.status, answer.json()["status"].as_str()) {
                (404, _) => Life::Gone,
                (200, Some("hibernated")) => Life::Hibernated,
                (200, Some("running")) => Life::Running,
                (200, Some("paused")) => Life::Paused,
                _ => bail!("{path} answers {} {}", answer.status, answer.text()),
            };
            let open = act.is_some_and(is_open);
            // An earlier look, cut short by another kill, may have deleted what is open.
            let is_legal = legal.contains(&life) || open && life == Life::Gone;
            ensure!(is_legal, "{path} is {life:?} after {act:?}, not {legal:?}");
            if life == Life::Gone {
                let of_crash = legal.contains(&life).then(|| reasons(sandbox.life, act));
                let mut reasons = of_crash.unwrap_or_default();
                reasons.extend(open.then_some("deleted"));
                ended_for(&self.client, &self.sandboxes[number], &reasons)?;
            } else if open && (life != Life::Hibernated || act == Some(&Act::Expire)) {
                ensure!(matches!(self.client.delete(&path)?.status, 204 | 404));
                sandbox.life = Life::Gone;
                continue;
            } else if let Some(Act::SetTtl { ttl }) = act {
                let shown = answer.json()["ttl_seconds"].as_u64().unwrap_or_default();
                ensure!([*ttl, sandbox.ttl].contains(&shown), "{}", answer.text());
                sandbox.ttl = shown;
            }
            if matches!(life, Life::Running | Life::Paused) {
                self.world.survivors.fetch_add(1, Ordering::SeqCst);
            }
            sandbox.life = life;
            if life != Life::Gone {
                self.look(&path, 200, life, sandbox.ttl)?;
            }
        }
        self.forget_strangers(in_flight)?;
        let found = self.find_snapshots(&mut model, in_flight)?;
        Ok((model, found))
    }

    /// A sandbox that is not on its way out: its second may be about to pass.
    fn settled(&self, path: &str) -> Result<Answer> {
        let stopping = |answer: &Answer| answer.json()["status"] == "stopping";
        let over = || self.client.get(path).map_or(true, |answer| !stopping(&answer));
        ensure!(wait_until(NOTICE, over), "{path} is stopping");
        self.client.get(path)
    }

    /// A server that is killed may have made what was asked of it and not said so: such a sandbox
    /// goes. Without that there is none.
    fn forget_strangers(&self, in_flight: Option<&Operation>) -> Result<()> {
        let listed = self.client.get("/v1/sandboxes")?.json();
        let own = |one: &&Value| one["metadata"]["client"] == *self.name();
        let ids = listed.as_array().into_iter().flatten().filter(own);
        let ids = ids.filter_map(|one| one["id"].as_str().map(str::to_owned));
        let strangers: Vec<String> = ids.filter(|id| !self.sandboxes.contains(id)).collect();
        let most = match in_flight {
            Some(Operation::Create { .. } | Operation::Restore { .. }) => 1,
            Some(Operation::On { act: Act::Fork { children }, .. }) => *children,
            _ => 0,
        };
        // Again, if another server was killed before it had deleted them.
        let forgiven = self.world.generation() != self.generation;
        ensure!(forgiven || strangers.len() <= most, "{strangers:?} came of {in_flight:?}");
        for id in strangers {
            ensure!(matches!(
                self.client.delete(&format!("/v1/sandboxes/{id}"))?.status,
                204 | 404
            ));
        }
        Ok(())
    }

    fn find_snapshots(
        &self,
        model: &mut Model,
        in_flight: Option<&Operation>,
    ) -> Result<Option<String>> {
        for (number, snapshot) in model.snapshots.iter_mut().enumerate() {
            let path = format!("/v1/snapshots/{}", self.snapshots[number]);
            let there = self.client.get(&path)?.status == 200;
            let deleted = in_flight == Some(&Operation::DeleteSnapshot { snapshot: number });
            ensure!(there == snapshot.there || deleted && !there, "{path} is there: {there}");
            snapshot.there = there;
        }
        let Some(Operation::On { sandbox, act: Act::Snapshot }) = in_flight else {
            return Ok(None);
        };
        let path = format!("/v1/snapshots?sandbox_id={}", self.sandboxes[*sandbox]);
        let list = self.client.get(&path)?.json();
        let list = list["snapshots"].as_array().context("a list")?;
        let ids = list.iter().filter_map(|one| one["id"].as_str().map(str::to_owned));
        let mut unknown: Vec<String> = ids.filter(|id| !self.snapshots.contains(id)).collect();
        ensure!(unknown.len() <= 1, "{unknown:?} of one request");
        if !unknown.is_empty() {
            let content = self.model.sandboxes[*sandbox].content.clone();
            model.snapshots.push(Snapshot { content, there: true });
        }
        Ok(unknown.pop())
    }
}

/// Whether a sandbox that lives on may still come to what was asked of it, or not, at any time: a
/// command goes on in the guest, and a second may be about to pass.
fn is_open(act: &Act) -> bool {
    use Act::{Check, Expire, Hold, KillMachine, WriteFile};
    matches!(act, Check | Hold { .. } | WriteFile { .. } | Expire | KillMachine)
}

/// What may be said of a sandbox that did not outlive its server.
fn reasons(life: Life, act: Option<&Act>) -> Vec<&'static str> {
    let mut reasons = vec![if life == Life::Failed { "machine_died" } else { "server_crash" }];
    reasons.extend(match act {
        Some(Act::Delete) => Some("deleted"),
        Some(Act::Expire) => Some("ttl"),
        Some(Act::KillMachine) => Some("machine_died"),
        _ => None,
    });
    reasons
}
