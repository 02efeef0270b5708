//! A machine of the kvm engine: what is done to it, one thing at a time, each to its end.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use pandastack_vmm::control::End;
use tokio::sync::Mutex;

use super::client::{Client, Over};
use super::fork::{Body, Copy, Cradle, Family};
use super::laps::Laps;
use super::monitor::Monitor;
use super::snapshot;
use crate::agent::AgentClient;
use crate::process::Life;
use crate::to_its_end::to_its_end;
use crate::{After, EngineError, Exit, Forked, Machine, Stages, Usage, VolumeSource};

/// A machine.
pub(super) struct KvmMachine {
    controls: Arc<Controls>,
    life: Life,
    /// The gateway's end of the network device.
    net: OwnedFd,
}

/// What a machine is controlled through.
struct Controls {
    family: Arc<Family>,
    client: Client,
    agent: AgentClient,
    /// Held by whatever is being done to the machine as a whole.
    body: Mutex<Body>,
}

impl KvmMachine {
    /// Takes over a monitor with a machine, and watches over it from now on. `original` is the
    /// agent of the machine that it was copied from.
    pub fn adopt(family: Arc<Family>, copy: Copy, original: Option<&AgentClient>) -> Self {
        let Copy { monitor: Monitor { process, client }, ways, body } = copy;
        let agent = match original {
            Some(original) => AgentClient::connect_copy(ways.agent, original),
            None => AgentClient::connect(ways.agent),
        };
        let life = Life::watch(process, last_words(client.over()));
        let controls = Controls { family, client, agent, body: Mutex::new(body) };
        Self { controls: Arc::new(controls), life, net: ways.net }
    }
}

/// How the guest ended, if it did so by itself.
async fn last_words(over: impl Future<Output = Over>) -> Option<Exit> {
    match over.await {
        Over::Guest(End::PowerOff | End::Reset) => Some(Exit::GuestShutdown),
        Over::Guest(End::Panic | End::Crash) => Some(Exit::GuestPanic),
        // Its process is gone, or about to be; that is what counts.
        Over::Closed => None,
        Over::Broken(why) => {
            tracing::warn!(why, "a monitor broke the protocol: ending its machine");
            Some(Exit::Died)
        }
    }
}

impl Controls {
    async fn make_ready(self: Arc<Self>) -> Result<Stages, EngineError> {
        to_its_end(async move {
            let _body = self.body.lock().await;
            let mut laps = Laps::new();
            laps.lap_of(&self.client.make_ready().await?, "answer");
            let stages = laps.finish();
            tracing::debug!(?stages, "is ready");
            Ok(stages)
        })
        .await
    }

    async fn run(self: Arc<Self>) -> Result<Stages, EngineError> {
        to_its_end(async move {
            let mut body = self.body.lock().await;
            body.runs();
            let mut laps = Laps::new();
            laps.lap_of(&self.client.run().await?, "answer");
            let stages = laps.finish();
            tracing::debug!(?stages, "runs");
            Ok(stages)
        })
        .await
    }

    async fn pause(self: Arc<Self>) -> Result<(), EngineError> {
        to_its_end(async move {
            let mut body = self.body.lock().await;
            self.client.pause().await?;
            body.stands();
            Ok(())
        })
        .await
    }

    /// Puts a volume into a slot.
    async fn attach(
        self: Arc<Self>,
        slot: usize,
        source: VolumeSource,
    ) -> Result<u64, EngineError> {
        to_its_end(async move {
            let mut body = self.body.lock().await;
            body.attach(&self.client, slot, source).await
        })
        .await
    }

    /// Makes one copy per directory.
    async fn fork(self: Arc<Self>, dirs: Vec<PathBuf>) -> Result<Forked, EngineError> {
        to_its_end(async move {
            let mut body = self.body.lock().await;
            let mut laps = Laps::new();
            self.family.host.generations.allow(body.generation, dirs.len())?;
            let cradles = dirs.iter().map(|dir| Cradle::make(&self.family, dir, &body));
            let mut cradles = cradles.collect::<Result<Vec<_>, _>>()?.into_iter();
            let Some(first) = cradles.next() else { return Ok(Forked::default()) };
            laps.lap("cradle");
            let (first, pause) = body.fork(&self.client, first, After::GoesOn, &mut laps).await?;
            let stages = laps.finish();
            tracing::debug!(?stages, "forked");
            drop(body);
            let mut copies = vec![first];
            for cradle in cradles {
                let copy = copies[0].again(cradle).await?;
                copies.push(copy);
            }
            let adopt = |copy| {
                let copy = KvmMachine::adopt(self.family.clone(), copy, Some(&self.agent));
                Box::new(copy) as Box<dyn Machine>
            };
            Ok(Forked { machines: copies.into_iter().map(adopt).collect(), pause, stages })
        })
        .await
    }

    /// Writes a copy into `out`.
    async fn snapshot(
        self: Arc<Self>,
        scratch: PathBuf,
        out: PathBuf,
        then: After,
    ) -> Result<(), EngineError> {
        to_its_end(async move {
            let mut body = self.body.lock().await;
            let cradle = Cradle::make(&self.family, &scratch, &body)?.readable();
            let (copy, pause) = body.fork(&self.client, cradle, then, &mut Laps::new()).await?;
            drop(body);
            tracing::debug!(?pause, "copied for a snapshot");
            let saved = snapshot::save(&self.family, &copy, &out).await;
            copy.monitor.process.end().await;
            saved
        })
        .await
    }
}

#[async_trait]
impl Machine for KvmMachine {
    fn agent(&self) -> &AgentClient {
        &self.controls.agent
    }

    fn pid(&self) -> u32 {
        self.life.pid()
    }

    fn network(&self) -> io::Result<OwnedFd> {
        self.net.try_clone()
    }

    fn set_background(&self, background: bool) {
        self.life.set_background(background);
    }

    async fn make_ready(&self) -> Result<Stages, EngineError> {
        self.controls.clone().make_ready().await
    }

    async fn attach(&self, slot: usize, volume: VolumeSource) -> Result<u64, EngineError> {
        self.controls.clone().attach(slot, volume).await
    }

    async fn run(&self) -> Result<Stages, EngineError> {
        self.controls.clone().run().await
    }

    async fn pause(&self) -> Result<(), EngineError> {
        self.controls.clone().pause().await
    }

    async fn fork(&self, dirs: &[&Path]) -> Result<Forked, EngineError> {
        let dirs = dirs.iter().map(|dir| (*dir).to_owned()).collect();
        self.controls.clone().fork(dirs).await
    }

    async fn snapshot(&self, scratch: &Path, out: &Path, then: After) -> Result<(), EngineError> {
        self.controls.clone().snapshot(scratch.to_owned(), out.to_owned(), then).await
    }

    async fn kill(&self) {
        self.life.kill().await;
    }

    async fn exited(&self) -> Exit {
        self.life.exited().await
    }

    fn usage(&self) -> Option<Usage> {
        self.life.usage()
    }
}
