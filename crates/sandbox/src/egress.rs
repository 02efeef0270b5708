//! What a sandbox may reach, and what it tried to: its policy and its egress log.
//!
//! The policy that is shown is the one in force. It changes in one place, the owner:
//!
//! ```text
//!   set ─▶ recorded ─▶ taken by the network ─▶ shown
//!             ▲            ▼ no, or no answer: nobody knows which policy is in force
//!             │         cut off, then attached anew under the new one ─▶ shown
//!             │            ▼ no
//!             └──────── "none": nothing reaches it and it reaches nothing
//! ```
//!
//! So neither what is shown nor what is recorded is ever more open than what is in force, but for
//! the moment of a change; and whoever forks meanwhile waits for its end. A change that fails
//! closes the network, also where it was to open it: who wanted less must not be left with more.

use std::sync::Arc;

use pandastack_engine::Machine;
use pandastack_policy::Policy;
use pandastack_types::EgressEntry;
use serde::Serialize;
use serde_json::json;
use time::OffsetDateTime;

use crate::error::{Chain, CreateError, LifecycleError};
use crate::manager::Core;
use crate::network::{self, Attached, Log};
use crate::ring::{Cursor, Ring};
use crate::sandbox::Sandbox;

/// Bytes of decisions kept per sandbox.
const KEPT: usize = 256 << 10;
/// The same of a sandbox that has ended by itself.
const LAST_WORDS: usize = 16 << 10;
/// What an entry costs besides its texts.
const OVERHEAD: usize = 160;

/// A decision and its number: 1 for the first of a sandbox, then without gaps. Whoever sees a gap
/// was too slow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EgressLine {
    /// Its place in the log: what to ask for those after it.
    pub number: u64,
    /// The decision.
    #[serde(flatten)]
    pub entry: EgressEntry,
}

/// The decisions about one sandbox, as many of the last as fit.
#[derive(Clone, Debug)]
pub struct EgressLog(Arc<Ring<EgressLine>>);

impl EgressLog {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Ring::new(KEPT)))
    }

    /// The last `count` decisions after `cursor`, oldest first, and the place after them.
    pub fn after(&self, cursor: Cursor, count: usize) -> (Vec<EgressLine>, Cursor) {
        let (mut lines, next) = self.0.after(cursor);
        lines.drain(..lines.len().saturating_sub(count));
        (lines, next)
    }

    /// Waits for a decision after `cursor`; `false` when the sandbox has ended.
    pub async fn more(&self, cursor: Cursor) -> bool {
        self.0.more(cursor).await
    }

    /// What the network writes with.
    pub(crate) fn writer(&self) -> Log {
        let ring = self.0.clone();
        Arc::new(move |entries| {
            for entry in entries {
                ring.push_numbered(cost(&entry), |number| EgressLine { number, entry });
            }
        })
    }

    /// Nothing comes any more. Of a sandbox that ended by itself a little is kept, since many are
    /// remembered.
    pub(crate) fn close(&self) {
        self.0.shrink(LAST_WORDS);
        self.0.close();
    }
}

fn cost(entry: &EgressEntry) -> usize {
    let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    OVERHEAD + text(&entry.name) + text(&entry.rule) + entry.reason.len()
}

/// Changes what a sandbox may reach. `link` is its network; none if it was cut off before.
pub(crate) async fn set(
    core: &Core,
    sandbox: &Sandbox,
    machine: &dyn Machine,
    link: &mut Option<Box<dyn Attached>>,
    policy: Policy,
) -> Result<(), LifecycleError> {
    record(core, sandbox, &policy)?;
    if !taken(core, sandbox, link, &policy).await {
        *link = None;
        match network::attach(core, sandbox, machine, policy.clone()).await {
            Ok(anew) => *link = Some(anew),
            Err(error) => {
                let none = Policy::default();
                if let Err(error) = record(core, sandbox, &none) {
                    tracing::error!(sandbox = %sandbox.id(), error = %Chain(&error), "not recorded");
                }
                show(sandbox, none);
                return Err(LifecycleError::CutOff(Box::new(error)));
            }
        }
    }
    show(sandbox, policy);
    Ok(())
}

/// Changes what a sandbox may reach that has no machine: it is in force before it has one.
pub(crate) fn set_unattached(
    core: &Core,
    sandbox: &Sandbox,
    policy: Policy,
) -> Result<(), LifecycleError> {
    record(core, sandbox, &policy)?;
    show(sandbox, policy);
    Ok(())
}

/// Whether the network says that a policy is in force.
async fn taken(
    core: &Core,
    sandbox: &Sandbox,
    link: &Option<Box<dyn Attached>>,
    policy: &Policy,
) -> bool {
    let Some(link) = link else { return false };
    let set = network::set_policy(core, &**link, policy.clone()).await;
    if let Err(error) = &set {
        let error = Chain(error);
        tracing::warn!(sandbox = %sandbox.id(), %error, "it is taken off the network, to be attached anew");
    }
    set.is_ok()
}

/// A child's policy is its parent's of the instant of the copy, which may have changed since the
/// child was recorded.
pub(crate) fn inherit(core: &Core, sandbox: &Sandbox, policy: Policy) -> Result<(), CreateError> {
    if policy != sandbox.egress() {
        let at = OffsetDateTime::now_utc();
        core.store.set_egress(sandbox.id(), &policy, at).map_err(CreateError::Journal)?;
        sandbox.show_egress(policy);
    }
    Ok(())
}

fn record(core: &Core, sandbox: &Sandbox, policy: &Policy) -> Result<(), LifecycleError> {
    let at = OffsetDateTime::now_utc();
    core.store.set_egress(sandbox.id(), policy, at).map_err(LifecycleError::Journal)
}

fn show(sandbox: &Sandbox, policy: Policy) {
    let payload = json!({ "allow": policy.allow().len(), "deny": policy.deny().len() });
    sandbox.show_egress(policy);
    sandbox.history.push("sandbox.egress", payload);
}
