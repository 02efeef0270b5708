//! The server, wired: the one way from a data directory to an API that answers. `serve` runs it
//! until it is told to stop, `run` for one command.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use pandastack_api::{Api, KeyRing, RateLimits};
use pandastack_sandbox::{Config, Manager, Outliving};
use pandastack_store::Store;
use pandastack_types::{JailLevel, SizeLimits};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::api_key::ApiKey;
use crate::hold;
use crate::network::{self, NetworkArgs};
use crate::previews::Previews;
use crate::serve::ReserveArgs;
use crate::workshop::Workshop;

/// What an operator may choose.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Directory of records and machines; one server at a time.
    pub instance_dir: PathBuf,
    /// How much of the jail machines are in.
    pub jail: JailLevel,
    /// Whether machines are forked where that is proved to work.
    pub fork: bool,
    /// Parked machines per template.
    pub pool: usize,
    /// Most sandboxes at a time; the domain's default when absent.
    pub max_sandboxes: Option<usize>,
    /// The largest sandbox that anybody may have.
    pub size_limits: SizeLimits,
    /// What of the host they leave alone.
    pub reserves: ReserveArgs,
    /// Size classes that stay although nobody uses them; the domain's default when absent.
    pub size_classes: Option<usize>,
    /// Seconds of life of a sandbox whose creator named none; the domain's default when absent.
    pub default_ttl_seconds: Option<u64>,
    /// Seconds without use after which a persistent sandbox hibernates whose creator said nothing of
    /// it; the domain's default when absent.
    pub idle_timeout_seconds: Option<u64>,
    /// In which a new sandbox must answer; the domain's default when absent.
    pub ready_timeout: Option<Duration>,
    /// How long sandboxes without a time to live outlive this server if it is killed; all end with
    /// it when absent.
    pub orphan_grace: Option<Duration>,
    /// What sandboxes may be let to reach.
    pub network: NetworkArgs,
    /// How often clients may ask.
    pub rate_limits: RateLimits,
    /// What of sandboxes is shown.
    pub previews: Previews,
}

impl ServerOptions {
    fn config(&self) -> Config {
        let defaults = Config::new(self.instance_dir.clone());
        Config {
            jail: self.jail,
            forking: self.fork,
            pool_size: self.pool,
            max_sandboxes: self.max_sandboxes.unwrap_or(defaults.max_sandboxes),
            size_limits: self.size_limits,
            memory_reserve_mb: self.reserves.memory_reserve.unwrap_or(defaults.memory_reserve_mb),
            disk_reserve_mb: self.reserves.disk_reserve.unwrap_or(defaults.disk_reserve_mb),
            size_classes: self.size_classes.unwrap_or(defaults.size_classes),
            default_ttl_seconds: self.default_ttl_seconds.unwrap_or(defaults.default_ttl_seconds),
            idle_timeout_seconds: self
                .idle_timeout_seconds
                .unwrap_or(defaults.idle_timeout_seconds),
            outliving: self.orphan_grace.map(|grace| Outliving { launch: hold::launch, grace }),
            ready_deadline: self.ready_timeout.unwrap_or(defaults.ready_deadline),
            ..defaults
        }
    }
}

/// A server that answers.
pub struct Server {
    manager: Arc<Manager>,
    url: String,
    stop: oneshot::Sender<()>,
    answering: JoinHandle<std::io::Result<()>>,
}

impl Server {
    /// Cleans up after a server that was killed, and answers on `listener` from now on.
    pub async fn start(
        workshop: &Workshop,
        options: ServerOptions,
        key: &ApiKey,
        listener: TcpListener,
    ) -> anyhow::Result<Self> {
        let address = listener.local_addr().context("cannot listen")?;
        let config = options.config();
        private_dir(&options.instance_dir)?;
        let store = Store::open(&options.instance_dir.join("records.sqlite"))?;
        let templates = Arc::new(workshop.catalog.clone());
        let runtime = &workshop.runtime_dir;
        let network = Arc::new(network::start(runtime, options.network, address).await?);
        let engine = workshop.engine.clone();
        let manager = Manager::start(config, engine, network, templates, store.clone()).await?;
        // After the manager has taken the directory: the keys of a server that runs in it are
        // not ours to replace.
        let keys = key_ring(store, key)?;
        manager.prime();
        let api_options = pandastack_api::Options {
            preview_hosts: options.previews.hosts,
            preview_secret: options.previews.secret,
            rate_limits: options.rate_limits,
            ..pandastack_api::Options::default()
        };
        let api = Api::new(manager.clone(), keys, api_options)?;
        let (stop, stopped) = oneshot::channel::<()>();
        let answering = tokio::spawn(pandastack_api::serve(listener, api, async {
            let _ = stopped.await;
        }));
        Ok(Self { manager, url: url(address), stop, answering })
    }

    /// Where clients of this host find it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What it runs.
    pub fn manager(&self) -> &Arc<Manager> {
        &self.manager
    }

    /// Ends every sandbox, then answers what is still under way, and returns when nothing is
    /// left.
    pub async fn stop(self) {
        self.manager.shutdown().await;
        // Streams of sandboxes have ended by now; only slow readers are left, and the API gives
        // those a few seconds.
        let _ = self.stop.send(());
        match self.answering.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the API did not end well"),
            Err(error) => tracing::warn!(%error, "the API did not end well"),
        }
    }
}

/// Label of the key that a server is started with.
const OWN_KEY: &str = "server";

/// The kept keys, with `key` in place of the one that the server was started with before.
fn key_ring(store: Store, key: &ApiKey) -> anyhow::Result<KeyRing> {
    let keys = KeyRing::new(store);
    for old in keys.list()?.iter().filter(|old| old.label == OWN_KEY) {
        keys.revoke(&old.prefix)?;
    }
    keys.add(key.secret(), OWN_KEY)
        .with_context(|| format!("the API key {} cannot be used", key.origin()))?;
    Ok(keys)
}

/// The URL for clients of this host: a wildcard address is reached over loopback.
fn url(mut address: SocketAddr) -> String {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    format!("http://{address}")
}

/// Makes a directory that only its owner can look into. One that exists keeps its permissions.
fn private_dir(path: &std::path::Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot create {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_address_is_reached_over_loopback() {
        let url = |text: &str| url(text.parse().unwrap());
        assert_eq!(url("0.0.0.0:7878"), "http://127.0.0.1:7878");
        assert_eq!(url("[::]:7878"), "http://[::1]:7878");
        assert_eq!(url("10.0.0.1:80"), "http://10.0.0.1:80");
    }
}
