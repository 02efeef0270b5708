//! From a bake to a machine that answers: the steps that a create and the pool share.
//!
//! ```text
//!   fresh:   restore ─▶ run ─▶ resume(identity)            a sandbox
//!   ahead:   restore [─▶ run ─▶ warm-up ─▶ pause] ─▶ (pool)  nobody's: parked, or a zygote;
//!                                                          runs if that warms it
//!   parked:             (pool) ─▶ run ─▶ resume(identity)  a sandbox
//!   zygote:  (pool) ─▶ fork ─▶ run ─▶ resume(identity)     a sandbox
//!   child:  sandbox ─▶ fork ─▶ run ─▶ resume(identity)     a sandbox
//! ```
//!
//! The acknowledged resume is what makes a machine somebody's: until then it has the random
//! numbers, the clock and the token of its template, which every copy shares. A machine that
//! does not acknowledge is killed by whoever holds it. Before it runs as a sandbox its frames are
//! attached to the network (see `network`); nobody's machines have no network at all.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pandastack_engine::agent::{AgentError, ExecEvent, Identity};
use pandastack_engine::{Bake, Engine, EngineError, Machine};
use pandastack_policy::Policy;
use pandastack_proto::{ExecSpec, Token};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::error::CreateError;
use crate::machines::{MachineDir, new_name};
use crate::snapshot::Lease;
use crate::stages::Stages;

/// Time for one warm-up line in a parked machine.
const WARM_UP: Duration = Duration::from_secs(60);

/// The contract's word for a machine that was restored from files.
pub(crate) const RESTORED: &str = "snapshot";
/// The contract's word for a machine that was restored from its sandbox's own files.
pub(crate) const WOKEN: &str = "wake";

/// One of the contract's words, as another server wrote it down.
pub(crate) fn mode_named(word: &str) -> &'static str {
    let words = ["pool", "fork", RESTORED, WOKEN];
    words.into_iter().find(|known| *known == word).unwrap_or(RESTORED)
}

/// A machine with the directory it lives in. Dropped in this order: the process, then its files.
pub(crate) struct Housed {
    pub(crate) machine: Arc<dyn Machine>,
    pub(crate) dir: MachineDir,
}

/// A copy of a sandbox's machine.
pub(crate) struct Copied {
    pub(crate) housed: Housed,
    /// What the copied sandbox could reach at that instant, for a child that inherits it.
    pub(crate) inherited: Option<Policy>,
}

/// What a create starts from.
pub(crate) enum Source {
    /// A parked machine.
    Parked(Housed),
    /// A zygote to be forked, with the name that the fork will have. Its bake is there for the
    /// case that the zygote turns out to be dead.
    Zygote(Arc<Housed>, Arc<Bake>, String),
    /// A bake, with the name that its machine will have.
    Bake(Arc<Bake>, String),
    /// A snapshot and its lease, with the token that its guest obeys and the name that its machine
    /// will have.
    Snapshot(Arc<Bake>, Lease, Token, String),
    /// A fork of another sandbox, with the name that it will have. It comes when that sandbox's
    /// owner has made it.
    Child(String, oneshot::Receiver<Copied>),
}

impl Source {
    /// The machine's name, known before the machine exists.
    pub(crate) fn name(&self) -> &str {
        match self {
            Source::Parked(housed) => housed.dir.name(),
            Source::Zygote(_, _, name)
            | Source::Bake(_, name)
            | Source::Snapshot(_, _, _, name)
            | Source::Child(name, _) => name,
        }
    }

    /// The contract's word for how the machine came to be.
    pub(crate) fn boot_mode(&self) -> &'static str {
        match self {
            Source::Parked(_) => "pool",
            Source::Zygote(..) | Source::Child(..) => "fork",
            Source::Bake(..) | Source::Snapshot(..) => RESTORED,
        }
    }

    /// A source that restores `bake`.
    pub(crate) fn restore(bake: Arc<Bake>) -> Self {
        Source::Bake(bake, new_name())
    }

    /// A source that restores a snapshot.
    pub(crate) fn thaw(snapshot: Arc<Bake>, token: Token, lease: Lease) -> Self {
        Source::Snapshot(snapshot, lease, token, new_name())
    }

    /// A source that forks the zygote of `bake`.
    pub(crate) fn fork(bake: Arc<Bake>, zygote: Arc<Housed>) -> Self {
        Source::Zygote(zygote, bake, new_name())
    }
}

/// Restores a machine that stands still.
pub(crate) async fn restore(
    engine: &dyn Engine,
    machines: &Path,
    bake: &Bake,
    name: String,
) -> Result<Housed, CreateError> {
    let dir = MachineDir::create(machines, name).map_err(CreateError::Directory)?;
    let machine = engine.restore(bake, dir.path()).await.map_err(CreateError::Machine)?;
    Ok(Housed { machine: Arc::from(machine), dir })
}

/// Copies of a machine.
pub(crate) struct Copies {
    pub(crate) machines: Vec<Housed>,
    /// How long the original stood still.
    pub(crate) pause: Duration,
}

/// Copies of a sandbox's machine, as its owner hands them out.
pub(crate) struct Litter {
    pub(crate) copies: Copies,
    /// What the sandbox could reach at that instant.
    pub(crate) egress: Policy,
}

/// Makes one copy of a machine per name. They stand still; all or none.
pub(crate) async fn fork(
    machine: &dyn Machine,
    machines: &Path,
    names: Vec<String>,
    deadline: Duration,
) -> Result<Copies, CreateError> {
    let dirs: io::Result<Vec<MachineDir>> =
        names.into_iter().map(|name| MachineDir::create(machines, name)).collect();
    let dirs = dirs.map_err(CreateError::Directory)?;
    let paths: Vec<&Path> = dirs.iter().map(MachineDir::path).collect();
    let forked = timeout(deadline, machine.fork(&paths)).await;
    let forked = forked.unwrap_or(Err(EngineError::Deadline("the fork")));
    let forked = forked.map_err(CreateError::Machine)?;
    let housed = |(machine, dir)| Housed { machine: Arc::from(machine), dir };
    let machines = forked.machines.into_iter().zip(dirs).map(housed).collect();
    Ok(Copies { machines, pause: forked.pause })
}

/// Forks a machine once.
pub(crate) async fn fork_one(
    parent: &Housed,
    machines: &Path,
    name: String,
    deadline: Duration,
) -> Result<Housed, CreateError> {
    let mut forked = fork(&*parent.machine, machines, vec![name], deadline).await?;
    let none = || CreateError::Machine(EngineError::Ended("it was not forked".to_owned()));
    forked.machines.pop().ok_or_else(none)
}

/// Makes a machine somebody's: runs it and waits for its agent to acknowledge `identity`.
pub(crate) async fn adopt(
    machine: &dyn Machine,
    identity: &Identity,
    deadline: Duration,
    stages: &mut Stages,
) -> Result<(), CreateError> {
    machine.set_background(false);
    let ready = async {
        machine.run().await.map_err(CreateError::Machine)?;
        stages.mark("run");
        machine.agent().resume(identity, deadline).await.map_err(|error| match error {
            AgentError::Deadline(_) => CreateError::NotReady(deadline),
            error => CreateError::Machine(error.into()),
        })?;
        stages.mark("handshake");
        Ok(())
    };
    timeout(deadline, ready).await.unwrap_or(Err(CreateError::NotReady(deadline)))
}

/// Restores a machine, and, where that warms it, lets it do what tenants do first and stops it
/// again.
pub(crate) async fn park(
    engine: &dyn Engine,
    machines: &Path,
    bake: &Bake,
    deadline: Duration,
) -> Result<Housed, CreateError> {
    let housed = restore(engine, machines, bake, new_name()).await?;
    if !engine.warms_by_running() {
        return Ok(housed);
    }
    housed.machine.set_background(true);
    let warm = warm_up(&*housed.machine, &bake.image.warm_up, deadline).await;
    if let Err(error) = warm {
        housed.machine.kill().await;
        return Err(CreateError::Machine(error));
    }
    Ok(housed)
}

async fn warm_up(
    machine: &dyn Machine,
    lines: &[String],
    deadline: Duration,
) -> Result<(), EngineError> {
    machine.run().await?;
    machine.agent().hello(deadline).await?;
    // A rehearsal: what a guest does to become somebody is translated now and not while a client
    // waits. Nobody ever learns this identity, and the next one replaces all of it.
    machine.agent().resume(&Identity::random("parked")?, deadline).await?;
    for line in lines {
        let ran = timeout(WARM_UP, run_line(machine, line)).await;
        ran.map_err(|_| EngineError::Deadline("a warm-up line"))??;
    }
    machine.pause().await
}

/// Runs one line to its end. Its output and status do not matter, that it ran does.
async fn run_line(machine: &dyn Machine, line: &str) -> Result<(), EngineError> {
    let spec = ExecSpec { shell: Some(line.to_owned()), ..ExecSpec::default() };
    let mut session = machine.agent().exec(spec).await?;
    while let Some(event) = session.next().await? {
        if let ExecEvent::Exit(_) = event {
            break;
        }
    }
    Ok(())
}
