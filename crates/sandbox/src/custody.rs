//! Machines that outlive their server, and how the next one goes on with them.
//!
//! ```text
//!   ready, woken ─▶ held (see `pandastack_holder`) ─▶ released with the end of the machine
//!                     │ the server is killed
//!                     ▼
//!   next start: record says running or paused ─▶ engine ─▶ network ─▶ agent ─▶ goes on
//!                     │ any other               └──────────┴───────────┴─ no ─▶ ended, server_crash
//!                     ▼
//!                   ended
//! ```
//!
//! The invariant: **a machine is held exactly while it is a sandbox's.** Zygotes, parked machines
//! and those that are still being made are not, and end with their server, as does everything where
//! nothing is held. Two outcomes are legal after a crash, and there is no third: a sandbox goes on
//! with its memory, processes, policy and clocks as they were, or it has ended and nothing of it is
//! left. What is told of it in between is the record's: a pause that was journalled and not done is
//! done.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pandastack_engine::agent::{AgentClient, AgentError, Detached, Ended, Identity};
use pandastack_engine::{EngineError, Kept, Machine};
use pandastack_holder::{Held, Hold, Holder, Until};
use pandastack_proto::Token;
use pandastack_store::SandboxRecord;
use pandastack_types::{EndReason, SandboxId, State, TtlMode, VolumeMount};
use rustix::process::{Signal, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::timeout;

use crate::boot::{self, Housed};
use crate::error::{Chain, CreateError, StartError};
use crate::fault::{self, Point};
use crate::limits::Limits;
use crate::machines::MachineDir;
use crate::manager::Core;
use crate::network;
use crate::owner::{Owner, SET_CLOCK};
use crate::recovery;
use crate::sandbox::{Busy, Live, Sandbox, Status};
use crate::sync::lock;

/// Most ends that are told of at a time: what an agent keeps.
const ENDS: usize = 64;
/// Most characters of a command that is told of.
const COMMAND: usize = 200;
/// How often a guest is asked for the ends of commands that nobody waits for.
const LOOK: Duration = Duration::from_millis(500);

/// How machines outlive a server that is killed.
#[derive(Clone, Copy, Debug)]
pub struct Outliving {
    /// Starts the process that holds them, for the server of this directory. It calls
    /// [`pandastack_holder::serve`] with a socket to the server and a listener.
    pub launch: fn(&Path, OwnedFd, OwnedFd) -> io::Result<Child>,
    /// How long those live without a server that have no time to live.
    pub grace: Duration,
}

/// What is held of a server's machines.
pub(crate) struct Custody {
    holder: Holder,
    grace: Duration,
}

/// What is written down of a machine, for the next server. It is kept in memory only: the token is
/// in it.
#[derive(Serialize, Deserialize)]
struct Note {
    sandbox: SandboxId,
    engine: String,
    machine: String,
    token: Token,
    machine_id: String,
    boot_id: String,
    boot_mode: String,
    took_ms: u64,
    since_unix_ms: u64,
    volumes: Vec<VolumeMount>,
}

/// A machine that another server left running.
pub(crate) struct Remains {
    name: String,
    note: Note,
    descriptors: Vec<OwnedFd>,
}

impl Remains {
    /// Its name: that of its directory.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Those among what is held that can be read, by their sandboxes.
    pub(crate) fn of(held: Vec<Held>) -> HashMap<SandboxId, Self> {
        let read = |Held { name, note, descriptors }: Held| {
            let note: Note = serde_json::from_str(&note).ok()?;
            Some((note.sandbox, Self { name, note, descriptors }))
        };
        held.into_iter().filter_map(read).collect()
    }
}

impl Custody {
    /// Takes over what the last server of the instance directory had held. Without it the machines
    /// of this one end with it, which is said and no reason not to start.
    pub(crate) fn open(instance: &Path, outliving: Outliving) -> (Option<Self>, Vec<Held>) {
        match Holder::open(instance, Box::new(outliving.launch)) {
            Ok((holder, held)) => (Some(Self { holder, grace: outliving.grace }), held),
            Err(error) => {
                tracing::error!(%error, "sandboxes will end with this server if it is killed");
                (None, Vec::new())
            }
        }
    }

    /// Lets go of a machine that is no sandbox's any more.
    pub(crate) fn release(&self, name: &str) {
        drop(self.holder.found(name));
    }

    fn until(&self, limits: &Limits) -> Until {
        match (limits.ttl_mode, limits.deadline, limits.ttl_seconds) {
            (TtlMode::Wall, Some(deadline), _) => {
                let end = SystemTime::now() + deadline.saturating_duration_since(Instant::now());
                Until::Time(unix_ms(end))
            }
            (TtlMode::Idle, _, ttl @ 1..) => Until::After(Duration::from_secs(ttl)),
            _ => Until::After(self.grace),
        }
    }
}

fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

impl Core {
    /// Has the machine of a sandbox held from now on.
    pub(crate) fn hold(&self, sandbox: &Sandbox, housed: &Housed) {
        let live = lock(&sandbox.live).clone();
        let (Some(custody), Some(live)) = (&self.custody, live) else { return };
        let held = live.machine.kept().and_then(|kept| {
            let Some(Kept { note, descriptors }) = kept else { return Ok(None) };
            let boot = *lock(&sandbox.boot);
            let note = Note {
                sandbox: sandbox.id(),
                engine: self.engine.name().to_owned(),
                machine: note,
                token: live.identity.token,
                machine_id: live.identity.machine_id.clone(),
                boot_id: live.identity.boot_id.clone(),
                boot_mode: boot.mode.to_owned(),
                took_ms: u64::try_from(boot.took.as_millis()).unwrap_or(u64::MAX),
                since_unix_ms: unix_ms(SystemTime::now()),
                volumes: sandbox.birth.volumes.clone(),
            };
            let note = serde_json::to_string(&note)?;
            let until = custody.until(&lock(&sandbox.limits));
            custody.holder.hold(housed.dir.name(), note, descriptors, until).map(Some)
        });
        match held {
            Ok(hold) => *lock(&sandbox.hold) = hold,
            Err(error) => {
                let id = sandbox.id();
                tracing::warn!(sandbox = %id, %error, "it will end with this server if that is killed");
            }
        }
    }

    /// The limits of a sandbox have changed.
    pub(crate) fn hold_until(&self, sandbox: &Sandbox) {
        let Some(custody) = &self.custody else { return };
        let until = custody.until(&lock(&sandbox.limits));
        let told = lock(&sandbox.hold).as_ref().map_or(Ok(()), |hold| hold.set_until(until));
        if let Err(error) = told {
            let id = sandbox.id();
            tracing::warn!(sandbox = %id, %error, "its limits are not known to the holder");
        }
    }

    /// Goes on with a sandbox that another server left, or ends it.
    pub(crate) async fn go_on(self: &Arc<Self>, record: SandboxRecord, remains: Remains) {
        let (id, state, name) = (record.id, record.state, remains.name.clone());
        let pidfd = remains.descriptors.first().and_then(|pidfd| pidfd.try_clone().ok());
        let hold = self.custody.as_ref().map(|custody| custody.holder.found(&name));
        let error = match self.adopt(record, remains, hold).await {
            Ok(()) => return tracing::info!(sandbox = %id, %state, "goes on under this server"),
            Err(error) => error,
        };
        let why: &dyn std::error::Error = match &error {
            CreateError::Machine(why) => why,
            other => other,
        };
        tracing::warn!(sandbox = %id, error = %Chain(why), "ended with its server");
        if let Some(pidfd) = pidfd {
            // The only failure is that it has ended.
            let _ = pidfd_send_signal(&pidfd, Signal::KILL);
        }
        let core = self.clone();
        let ending = tokio::task::spawn_blocking(move || {
            core.engine.clear(&name);
            recovery::end(&core.store, id, state, Some(EndReason::ServerCrash))?;
            // Who has them next waits for the end of this machine's process.
            Ok::<_, StartError>(core.store.detach(id)?)
        });
        match ending.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!(sandbox = %id, error = %Chain(&error), "not recorded")
            }
            Err(error) => tracing::error!(sandbox = %id, %error, "not recorded"),
        }
    }

    async fn adopt(
        self: &Arc<Self>,
        record: SandboxRecord,
        remains: Remains,
        hold: Option<Hold>,
    ) -> Result<(), CreateError> {
        let Remains { name, note, descriptors } = remains;
        // Dropped on the way out of a failure, after the machine.
        let dir = MachineDir::existing(&self.machines, name);
        let refused = |why: &str| CreateError::Machine(EngineError::NotAdopted(why.to_owned()));
        if note.engine != self.engine.name() {
            return Err(refused("it is another engine's"));
        }
        let ancestor = self.ancestor_of(&record.template, record.size);
        let ancestor = ancestor.ok_or_else(|| refused("its template is not here"))?;
        let deadline = self.config.ready_deadline;
        let kept = Kept { note: note.machine, descriptors };
        let machine = timeout(deadline, self.engine.adopt(dir.path(), kept)).await;
        let machine = machine.unwrap_or(Err(EngineError::Deadline("taking over a machine")));
        let machine: Arc<dyn Machine> = Arc::from(machine.map_err(CreateError::Machine)?);
        let housed = Housed { machine: machine.clone(), dir };
        fault::point(Point::AdoptTaken);

        let (state, now) = (record.state, Instant::now());
        let boot_mode = boot::mode_named(&note.boot_mode);
        let (sandbox, mailbox) = self.remember(record, ancestor, note.volumes, boot_mode);
        lock(&sandbox.boot).took = Duration::from_millis(note.took_ms);

        // Nobody has read its frames since its last gateway ended: none goes anywhere before this.
        let link = network::attach(self, &sandbox, &*machine, sandbox.egress()).await?;
        fault::point(Point::AdoptAttached);
        machine.agent().set_token(note.token);
        if state == State::Paused {
            machine.pause().await.map_err(CreateError::Machine)?;
            sandbox.clock.pause(now);
        } else {
            machine.run().await.map_err(CreateError::Machine)?;
            let answered = async {
                machine.agent().hello(deadline).await?;
                // Also the proof that it obeys us.
                timeout(SET_CLOCK, machine.agent().set_clock(SystemTime::now()))
                    .await
                    .unwrap_or(Err(AgentError::Deadline(SET_CLOCK)))
            };
            answered.await.map_err(|error| CreateError::Machine(error.into()))?;
        }
        fault::point(Point::AdoptAnswered);
        let identity = Identity {
            token: note.token,
            hostname: sandbox.hostname(),
            machine_id: note.machine_id,
            boot_id: note.boot_id,
            entropy: Vec::new(),
        };
        let lived = unix_ms(SystemTime::now()).saturating_sub(note.since_unix_ms);
        let since = now.checked_sub(Duration::from_millis(lived)).unwrap_or(now);
        let agent = machine.agent().clone();
        *lock(&sandbox.live) = Some(Live { machine, identity, since });
        *lock(&sandbox.hold) = hold;
        self.hold_until(&sandbox);
        sandbox.publish(Status { state, reason: None });
        sandbox.history.push("sandbox.adopted", json!({}));
        self.register(sandbox.clone())?;
        self.tasks.spawn(follow(sandbox.clone(), agent));
        let owner = Owner { core: self.clone(), sandbox, mailbox, link: Some(link) };
        self.tasks.spawn(owner.run(Some(housed)));
        Ok(())
    }
}

/// Tells how commands end that ran when the last server was killed, until none is left. They are a
/// use of the sandbox meanwhile.
async fn follow(sandbox: Arc<Sandbox>, agent: AgentClient) {
    let mut status = sandbox.status.subscribe();
    let _busy = Busy::new(sandbox.clone());
    let mut seen = 0;
    loop {
        // A guest that stands still tells nothing, and one that has gone never will.
        let runs = status.wait_for(|status| status.state != State::Paused).await;
        if !runs.is_ok_and(|status| status.state == State::Running) {
            return;
        }
        match agent.detached(seen).await {
            Ok(Detached { running, ended }) => {
                for Ended { number, command, status } in ended.into_iter().take(ENDS) {
                    seen = number;
                    // A guest's text, which may be longer than what was asked for.
                    let cmd: String = command.chars().take(COMMAND).collect();
                    let payload = json!({
                        "exit_code": status.code, "timed_out": status.timed_out, "cmd": cmd,
                        "interrupted": true,
                    });
                    sandbox.history.push("exec.ended", payload);
                }
                if running == 0 {
                    return;
                }
            }
            // It was paused in the middle of the question.
            Err(AgentError::Deadline(_)) => {}
            Err(_) => return,
        }
        tokio::select! {
            () = agent.closed() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}
