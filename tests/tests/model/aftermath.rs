//! What a client finds after its server was killed: of the outcomes that are legal, one.

use anyhow::{Context, Result, bail, ensure};
use pandastack_tests::ended_for;

use crate::actor::Actor;
use crate::operation::{Act, Operation};
use crate::reference::{Life, Model, Snapshot};

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
            let legal = sandbox.after_crash(act);
            let path = format!("/v1/sandboxes/{}", self.sandboxes[number]);
            let answer = self.client.get(&path)?;
            let life = match answer.status {
                404 => Life::Gone,
                200 if answer.json()["status"] == "hibernated" => Life::Hibernated,
                _ => bail!("{path} answers {} {}", answer.status, answer.text()),
            };
            ensure!(legal.contains(&life), "{path} is {life:?} after {act:?}, not {legal:?}");
            match (life, act) {
                (Life::Hibernated, Some(Act::Expire)) => {
                    // Its second may be about to pass, or was never given to it.
                    ensure!(matches!(self.client.delete(&path)?.status, 204 | 404));
                    sandbox.life = Life::Gone;
                    continue;
                }
                (Life::Hibernated, Some(Act::SetTtl { ttl })) => {
                    let shown = answer.json()["ttl_seconds"].as_u64().unwrap_or_default();
                    ensure!([*ttl, sandbox.ttl].contains(&shown), "{}", answer.text());
                    sandbox.ttl = shown;
                }
                (Life::Gone, _) => {
                    let reasons = reasons(sandbox.life, act);
                    ended_for(&self.client, &self.sandboxes[number], &reasons)?;
                }
                _ => {}
            }
            sandbox.life = life;
            if life == Life::Hibernated {
                self.look(&path, 200, life, sandbox.ttl)?;
            }
        }
        let found = self.find_snapshots(&mut model, in_flight)?;
        Ok((model, found))
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
