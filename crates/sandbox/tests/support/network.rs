//! A network without a gateway: it does what the test says, and notes what came when.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use pandastack_policy::Policy;
use pandastack_sandbox::{Attached, GatewayError, Log, Network};
use pandastack_types::EgressEntry;
use rustix::net::{RecvFlags, recv};

use super::{FakeEngine, Knobs};

/// What the network says to what it is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mood {
    #[default]
    Willing,
    Refuses,
    Gone,
    /// Answers that it did not answer in time.
    Late,
    /// Never answers at all.
    Silent,
    /// Does it after a while.
    Slow,
}

impl Mood {
    async fn answer(self) -> Result<(), GatewayError> {
        match self {
            Mood::Willing => Ok(()),
            Mood::Refuses => Err(GatewayError::Refused("by the test".to_owned())),
            Mood::Gone => Err(GatewayError::Gone),
            Mood::Late => Err(GatewayError::Deadline),
            Mood::Silent => std::future::pending().await,
            Mood::Slow => {
                tokio::time::sleep(Duration::from_millis(200)).await;
                Ok(())
            }
        }
    }
}

/// How the network of a test behaves, and what it has seen.
#[derive(Default)]
pub struct Moods {
    pub attach: Mutex<Mood>,
    pub set: Mutex<Mood>,
    /// Machines that are attached, with the policy in force.
    pub in_force: Mutex<HashMap<String, String>>,
    logs: Mutex<HashMap<String, Log>>,
}

pub struct FakeNetwork {
    pub moods: Arc<Moods>,
    knobs: Arc<Knobs>,
}

impl FakeNetwork {
    /// The network of this engine's machines.
    pub fn of(engine: &FakeEngine) -> Arc<Self> {
        Arc::new(Self { moods: Arc::default(), knobs: engine.knobs.clone() })
    }

    /// The policy that a machine is under; none where it is not attached.
    pub fn in_force(&self, machine: &str) -> Option<String> {
        self.moods.in_force.lock().unwrap().get(machine).cloned()
    }

    /// Decides something about a machine.
    pub fn decide(&self, machine: &str, entries: Vec<EgressEntry>) {
        let log = self.moods.logs.lock().unwrap()[machine].clone();
        log(entries);
    }
}

#[async_trait]
impl Network for FakeNetwork {
    async fn attach(
        &self,
        frames: OwnedFd,
        policy: Policy,
        log: Log,
    ) -> Result<Box<dyn Attached>, GatewayError> {
        let machine = sender(&frames);
        let policy = serde_json::to_string(&policy).unwrap();
        self.knobs.note(&machine, format!("attach {policy}"));
        let mood = *self.moods.attach.lock().unwrap();
        mood.answer().await?;
        self.moods.in_force.lock().unwrap().insert(machine.clone(), policy);
        self.moods.logs.lock().unwrap().insert(machine.clone(), log);
        let (moods, knobs) = (self.moods.clone(), self.knobs.clone());
        Ok(Box::new(FakeLink { machine, moods, knobs, _frames: frames }))
    }
}

struct FakeLink {
    machine: String,
    moods: Arc<Moods>,
    knobs: Arc<Knobs>,
    _frames: OwnedFd,
}

#[async_trait]
impl Attached for FakeLink {
    async fn set_policy(&self, policy: Policy) -> Result<(), GatewayError> {
        let policy = serde_json::to_string(&policy).unwrap();
        self.knobs.note(&self.machine, format!("policy {policy}"));
        let mood = *self.moods.set.lock().unwrap();
        mood.answer().await?;
        self.moods.in_force.lock().unwrap().insert(self.machine.clone(), policy);
        Ok(())
    }
}

impl Drop for FakeLink {
    fn drop(&mut self) {
        self.knobs.note(&self.machine, "detach".to_owned());
        self.moods.in_force.lock().unwrap().remove(&self.machine);
    }
}

/// Which machine is at the other end: its first frame, sent when it was made, says so. It stays
/// where it is, for the next one who attaches it.
fn sender(frames: &OwnedFd) -> String {
    let mut frame = [0; 64];
    let (_, length) = recv(frames, frame.as_mut_slice(), RecvFlags::PEEK).unwrap();
    String::from_utf8(frame[..length].to_vec()).unwrap()
}
