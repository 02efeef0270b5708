//! The server's end of the gateway: starts it, and starts it again.
//!
//! ```text
//!   Gateway::start ─▶ running ── process ends ──▶ a new process, the same networks
//!                        │                              ▲
//!     attach, set_policy, detach ── answers ──┘         └─ frames and policies are kept here
//! ```
//!
//! The invariant: **what is written down here is at least as closed as what is in force.** A policy
//! that could not be put in force is the one that the next process gets; in between nobody reads the
//! guest's frames, so nothing goes anywhere.

mod launch;
mod link;

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use pandastack_jail::Cgroups;
use pandastack_policy::Policy;
use pandastack_types::EgressEntry;
use tokio::sync::{RwLock, watch};

use self::link::Link;
use crate::control::{NetworkId, Request};

pub use self::launch::Parts;
pub use crate::control::Settings;

/// How long the gateway may take to answer.
const ANSWER: Duration = Duration::from_secs(5);
/// How long a request waits for a gateway that is being started again.
const RESTART: Duration = Duration::from_secs(5);
/// Pause before another start after one that failed, or that ended at once.
const PAUSE: Duration = Duration::from_millis(200);

/// Takes the lines of one network's egress log. Must not block.
pub type Log = Arc<dyn Fn(Vec<EgressEntry>) + Send + Sync>;

/// Why the gateway did not do something.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// It could not be started.
    #[error("the gateway cannot be started")]
    Start(#[source] std::io::Error),
    /// It is not there at the moment; it is being started again.
    #[error("the gateway is not there")]
    Gone,
    /// It did not answer in time.
    #[error("the gateway did not answer in time")]
    Deadline,
    /// It refused.
    #[error("the gateway refused: {0}")]
    Refused(String),
}

/// The gateway of a server. Dropping the last one ends it.
#[derive(Clone)]
pub struct Gateway(Arc<Owner>);

/// A gateway that may have ended: for those who look after it and must not keep it.
pub struct WeakGateway(Weak<Owner>);

impl WeakGateway {
    /// The gateway, if somebody still has it.
    pub fn upgrade(&self) -> Option<Gateway> {
        self.0.upgrade().map(Gateway)
    }
}

struct Owner {
    shared: Arc<Shared>,
    supervisor: tokio::task::JoinHandle<()>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        // With the link goes the control socket, and with that the process.
        self.supervisor.abort();
        self.shared.link.send_replace(None);
    }
}

/// What is known of all networks.
struct Shared {
    networks: Mutex<HashMap<NetworkId, Network>>,
    next: AtomicU64,
    settings: Mutex<Settings>,
    link: watch::Sender<Option<Arc<Link>>>,
    /// Held for writing while a new process is told what the old one knew.
    steady: RwLock<()>,
    pid: AtomicU32,
}

/// What a process is told about a network.
#[derive(Clone)]
struct Network {
    frames: Arc<OwnedFd>,
    policy: Policy,
    log: Log,
}

/// A network that is being served. Dropping it ends it.
pub struct Attachment {
    shared: Arc<Shared>,
    id: NetworkId,
}

impl Gateway {
    /// Starts the gateway. `dir` keeps the file system of its jail. Must be called in a Tokio runtime.
    pub async fn start(
        dir: &Path,
        parts: &'static Parts,
        settings: Settings,
    ) -> Result<Self, GatewayError> {
        let launcher = launch::Launcher::prepare(dir, parts, Cgroups::find());
        let launcher = launcher.map_err(GatewayError::Start)?;
        let shared = Arc::new(Shared {
            networks: Mutex::default(),
            next: AtomicU64::new(1),
            settings: Mutex::new(settings),
            link: watch::Sender::new(None),
            steady: RwLock::new(()),
            pid: AtomicU32::new(0),
        });
        let first = shared.clone().begin(&launcher).await?;
        let supervisor = tokio::spawn(shared.clone().supervise(launcher, first));
        Ok(Self(Arc::new(Owner { shared, supervisor })))
    }

    /// The same for somebody who must not keep it.
    pub fn downgrade(&self) -> WeakGateway {
        WeakGateway(Arc::downgrade(&self.0))
    }

    /// Its process at this moment.
    pub fn pid(&self) -> u32 {
        self.0.shared.pid.load(Ordering::Relaxed)
    }

    /// Replaces the settings, for every network.
    pub async fn set_settings(&self, settings: Settings) -> Result<(), GatewayError> {
        let shared = &self.0.shared;
        *lock(&shared.settings) = settings.clone();
        shared.ask(Request::Settings(settings)).await
    }

    /// Serves the frames of a machine under a policy, which is in force when this returns. If the
    /// gateway dies, the next one gets the same frames and the policy of that moment.
    pub async fn attach(
        &self,
        frames: OwnedFd,
        policy: Policy,
        log: Log,
    ) -> Result<Attachment, GatewayError> {
        let shared = self.0.shared.clone();
        let id = shared.next.fetch_add(1, Ordering::Relaxed);
        let frames = Arc::new(frames);
        let network = Network { frames: frames.clone(), policy: policy.clone(), log };
        let link = shared.link().await?;
        // Not known before this, or a process that starts meanwhile would be told of it twice.
        let _steady = shared.steady.read().await;
        lock(&shared.networks).insert(id, network);
        // From here on dropping it forgets the network.
        let attachment = Attachment { shared: shared.clone(), id };
        answer(&link, Request::Attach { network: id, policy }, Some(&frames)).await?;
        Ok(attachment)
    }
}

impl Attachment {
    /// Replaces the policy. When this returns it is in force, and what it forbids is closed. After
    /// an error either of the two policies may be in force, and the new one will be.
    pub async fn set_policy(&self, policy: Policy) -> Result<(), GatewayError> {
        if let Some(network) = lock(&self.shared.networks).get_mut(&self.id) {
            network.policy = policy.clone();
        }
        self.shared.ask(Request::Policy { network: self.id, policy }).await
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        lock(&self.shared.networks).remove(&self.id);
        if let Some(link) = &*self.shared.link.borrow() {
            link.tell(Request::Detach { network: self.id });
        }
    }
}

impl Shared {
    /// Asks, waiting for a process if there is none at the moment.
    async fn ask(&self, request: Request) -> Result<(), GatewayError> {
        let link = self.link().await?;
        let _steady = self.steady.read().await;
        answer(&link, request, None).await
    }

    /// The way to a process, which may be on its way.
    async fn link(&self) -> Result<Arc<Link>, GatewayError> {
        let link = async {
            let mut link = self.link.subscribe();
            let there = link.wait_for(Option::is_some).await.map_err(|_| GatewayError::Gone)?;
            let there = there.clone();
            there.ok_or(GatewayError::Gone)
        };
        tokio::time::timeout(RESTART, link).await.map_err(|_| GatewayError::Gone)?
    }

    /// Starts a process and tells it everything that is known.
    async fn begin(
        self: Arc<Self>,
        launcher: &launch::Launcher,
    ) -> Result<Arc<Link>, GatewayError> {
        let (socket, process) = launcher.launch().await.map_err(GatewayError::Start)?;
        let pid = process.pid();
        let logs = self.clone();
        let deliver = move |network, entries| {
            let log = lock(&logs.networks).get(&network).map(|network| network.log.clone());
            if let Some(log) = log {
                log(entries);
            }
        };
        let link = Link::new(socket, process, deliver).map_err(GatewayError::Start)?;
        let _alone = self.steady.write().await;
        let settings = lock(&self.settings).clone();
        link.ask(Request::Settings(settings), None).await?;
        let networks = lock(&self.networks).clone();
        for (&id, network) in &networks {
            let policy = network.policy.clone();
            let request = Request::Attach { network: id, policy };
            link.ask(request, Some(network.frames.as_fd())).await?;
        }
        let link = Arc::new(link);
        self.pid.store(pid, Ordering::Relaxed);
        self.link.send_replace(Some(link.clone()));
        // Who ended a network meanwhile found nobody to tell.
        let gone = |id: &&NetworkId| !lock(&self.networks).contains_key(*id);
        for &network in networks.keys().filter(gone) {
            link.tell(Request::Detach { network });
        }
        Ok(link)
    }

    /// Starts another process whenever one ends.
    async fn supervise(self: Arc<Self>, launcher: launch::Launcher, mut link: Arc<Link>) {
        loop {
            link.closed().await;
            self.link.send_replace(None);
            tracing::error!(
                said = link.complaints(),
                "the gateway ended; sandboxes have no network until it is there again"
            );
            drop(link);
            link = loop {
                tokio::time::sleep(PAUSE).await;
                match self.clone().begin(&launcher).await {
                    Ok(link) => break link,
                    Err(error) => {
                        let error = &error as &dyn std::error::Error;
                        tracing::error!(error, "the gateway cannot be started again");
                    }
                }
            };
            tracing::info!("the gateway is there again");
        }
    }
}

/// Asks a process. One that ended is told of every network when it is started again.
async fn answer(link: &Link, request: Request, with: Option<&OwnedFd>) -> Result<(), GatewayError> {
    let answered = link.ask(request, with.map(AsFd::as_fd));
    tokio::time::timeout(ANSWER, answered).await.unwrap_or(Err(GatewayError::Deadline))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
