//! Whether machines may be forked on this host: proved once, before anything relies on it.
//!
//! ```text
//!   Off        the operator said so
//!   Unproven ──prove()──▶ Proven | Refused(why)      for the rest of the server's life
//! ```
//!
//! Forking depends on more of the host than can be looked up (kernel, emulator, how both were
//! built), and one that goes wrong may go wrong silently. So nothing is forked before the engine
//! has forked a machine of its own and compared both sides.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pandastack_engine::{Bake, Engine, EngineError};
use tokio::sync::OnceCell;
use tokio::time::timeout;

use crate::error::Chain;
use crate::machines::{MachineDir, new_name};

/// Time for the proof: a restore, a few forks and a few commands on a host that may be slow.
const PROOF: Duration = Duration::from_secs(120);

/// Whether this server forks machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Forking {
    /// No, its operator does not want it.
    Off,
    /// Nothing has needed it yet.
    Unproven,
    /// Yes.
    Proven,
    /// No, because it does not work here, for this reason.
    Refused(String),
}

impl Forking {
    /// The word for it in answers.
    pub fn as_str(&self) -> &'static str {
        match self {
            Forking::Off => "off",
            Forking::Unproven => "unproven",
            Forking::Proven => "proven",
            Forking::Refused(_) => "refused",
        }
    }

    /// Why not, where it does not work.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Forking::Refused(reason) => Some(reason),
            Forking::Off | Forking::Unproven | Forking::Proven => None,
        }
    }
}

/// Finds out and remembers.
pub(crate) struct Prover {
    engine: Arc<dyn Engine>,
    /// Where machines live; recovery removes what a proof that was cut short leaves there.
    machines: PathBuf,
    allowed: bool,
    outcome: OnceCell<Result<(), String>>,
}

impl Prover {
    pub(crate) fn new(engine: Arc<dyn Engine>, machines: PathBuf, allowed: bool) -> Self {
        Self { engine, machines, allowed, outcome: OnceCell::new() }
    }

    /// What is known so far.
    pub(crate) fn state(&self) -> Forking {
        match self.outcome.get() {
            _ if !self.allowed => Forking::Off,
            None => Forking::Unproven,
            Some(Ok(())) => Forking::Proven,
            Some(Err(reason)) => Forking::Refused(reason.clone()),
        }
    }

    /// What is known, after the proof on a machine of `bake` if there was none yet. Callers at
    /// the same time share one proof; one that is dropped leaves it to the next caller.
    pub(crate) async fn prove(&self, bake: &Bake) -> Forking {
        if self.allowed {
            self.outcome.get_or_init(|| self.try_it(bake)).await;
        }
        self.state()
    }

    async fn try_it(&self, bake: &Bake) -> Result<(), String> {
        let outcome = match MachineDir::create(&self.machines, new_name()) {
            Ok(scratch) => {
                let proof = timeout(PROOF, self.engine.prove_fork(bake, scratch.path())).await;
                match proof {
                    Ok(Ok(())) => Ok(()),
                    Ok(Err(EngineError::NoFork(why))) => Err(why),
                    Ok(Err(error)) => Err(Chain(&error).to_string()),
                    Err(_) => Err(format!("the proof took more than {} s", PROOF.as_secs())),
                }
            }
            Err(error) => Err(format!("no place for the proof: {error}")),
        };
        match &outcome {
            Ok(()) => tracing::info!("machines can be forked here: sandboxes are forks"),
            Err(reason) => tracing::warn!(
                reason,
                "machines cannot be forked here: sandboxes are restored and parked instead"
            ),
        }
        outcome
    }
}
