//! The network, as the domain sees it: something that serves a machine's frames under a policy.
//!
//! ```text
//!   machine there, standing still ──attach──▶ policy in force ─▶ the machine runs
//!                                     │ no ─▶ it is killed, and the create fails
//! ```
//!
//! Every start path goes through [`attach`] before the machine runs for its tenant, so that there is
//! no first frame without a policy. What a machine sent before (a parked one has run its warm-up)
//! has waited in its socket and meets the policy as well.

use std::os::fd::OwnedFd;

use async_trait::async_trait;
use pandastack_engine::{EngineError, Machine};
use pandastack_gateway::client::{Attachment, Gateway};
use pandastack_policy::Policy;
use tokio::time::timeout;

use crate::error::CreateError;
use crate::manager::Core;
use crate::sandbox::Sandbox;

pub use pandastack_gateway::client::{GatewayError, Log};

/// What serves the frames of machines. The gateway is the one implementation; tests bring another
/// that needs no process.
#[async_trait]
pub trait Network: Send + Sync {
    /// Serves the frames of a machine under a policy, which is in force when this returns.
    async fn attach(
        &self,
        frames: OwnedFd,
        policy: Policy,
        log: Log,
    ) -> Result<Box<dyn Attached>, GatewayError>;
}

/// A machine's network that is being served. Dropping it ends it.
#[async_trait]
pub trait Attached: Send + Sync {
    /// Replaces the policy. When this returns it is in force, and what it forbids is closed.
    async fn set_policy(&self, policy: Policy) -> Result<(), GatewayError>;
}

#[async_trait]
impl Network for Gateway {
    async fn attach(
        &self,
        frames: OwnedFd,
        policy: Policy,
        log: Log,
    ) -> Result<Box<dyn Attached>, GatewayError> {
        Ok(Box::new(Gateway::attach(self, frames, policy, log).await?))
    }
}

#[async_trait]
impl Attached for Attachment {
    async fn set_policy(&self, policy: Policy) -> Result<(), GatewayError> {
        Attachment::set_policy(self, policy).await
    }
}

/// Has the frames of a sandbox's machine served under `policy`.
pub(crate) async fn attach(
    core: &Core,
    sandbox: &Sandbox,
    machine: &dyn Machine,
    policy: Policy,
) -> Result<Box<dyn Attached>, CreateError> {
    let frames = machine.network().map_err(|source| {
        CreateError::Machine(EngineError::Monitor(format!("no network device: {source}")))
    })?;
    let attaching = core.network.attach(frames, policy, sandbox.egress_log.writer());
    let attached = timeout(core.config.network_deadline, attaching)
        .await
        .unwrap_or(Err(GatewayError::Deadline));
    attached.map_err(CreateError::Network)
}

/// Has a policy replaced.
pub(crate) async fn set_policy(
    core: &Core,
    link: &dyn Attached,
    policy: Policy,
) -> Result<(), GatewayError> {
    let setting = timeout(core.config.network_deadline, link.set_policy(policy));
    setting.await.unwrap_or(Err(GatewayError::Deadline))
}
