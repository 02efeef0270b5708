//! Who runs the sandbox of a `run`: a server that is there already, or one of our own.

use std::convert::Infallible;
use std::future;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use http::Method;
use pandastack_api::RateLimits;
use pandastack_types::{Lifecycle, SandboxId, SizeLimits, TemplateName};
use tokio::net::TcpListener;

use super::instance::Instance;
use super::{Args, HEALTH_DEADLINE};
use crate::api_key::ApiKey;
use crate::client::Client;
use crate::config::{self, Endpoint, Source};
use crate::dirs;
use crate::previews::Previews;
use crate::sandbox;
use crate::serve::ReserveArgs;
use crate::server::{Server, ServerOptions};
use crate::workshop::{Asked, Workshop};

/// How long a running server keeps the sandbox of a `run` that it hears nothing of. Renewed
/// while the command runs, so a killed `run` leaks nothing and a long one is not cut short.
const LEASE: Duration = Duration::from_secs(120);
/// How often the lease is renewed.
const RENEWAL: Duration = Duration::from_secs(30);

/// Who runs the sandbox.
pub enum Host {
    /// A server that was there already.
    Remote(Client),
    /// A server inside this process.
    Own {
        /// Talks to it.
        client: Client,
        /// The server.
        server: Server,
        /// Its directory.
        instance: Instance,
    },
}

impl Host {
    /// Finds a running server, or starts one and builds the template it needs.
    pub async fn find(args: &Args) -> anyhow::Result<Self> {
        if !args.local {
            let endpoint = config::endpoint()?;
            if let Some(client) = running(&endpoint).await? {
                return Ok(Self::Remote(client));
            }
        }
        Self::start(args).await
    }

    async fn start(args: &Args) -> anyhow::Result<Self> {
        let data_dir = args.data_dir.clone().map_or_else(dirs::default_data_dir, Ok)?;
        let workshop = Workshop::open(&data_dir, args.machines).await?;
        let template: TemplateName = args.template.parse()?;
        let recipe = workshop.recipe(&template)?;
        let asked = Asked { cpu: args.cpu, memory_mb: args.memory, disk_mb: args.disk };
        workshop.ready(recipe, asked).await?;

        let instance = Instance::create(&data_dir)?;
        let key = ApiKey::ephemeral()?;
        let listener = TcpListener::bind("127.0.0.1:0").await.context("cannot listen")?;
        let options = ServerOptions {
            instance_dir: instance.path().to_owned(),
            jail: workshop.confinement.grade(),
            // For one sandbox, making a machine to fork costs more than it saves.
            fork: false,
            pool: 0,
            max_sandboxes: None,
            // For whoever has the host to himself.
            size_limits: SizeLimits::POSSIBLE,
            reserves: ReserveArgs::default(),
            size_classes: None,
            default_ttl_seconds: None,
            idle_timeout_seconds: None,
            ready_timeout: None,
            orphan_grace: None,
            network: args.network.clone(),
            rate_limits: RateLimits::default(),
            previews: Previews::default(),
        };
        let server = Server::start(&workshop, options, &key, listener).await?;
        let client = Client::new(&Endpoint {
            url: server.url().to_owned(),
            token: Some(key.secret().to_owned()),
            source: Source::Default,
        })?;
        Ok(Self::Own { client, server, instance })
    }

    /// Talks to the server.
    pub fn client(&self) -> &Client {
        match self {
            Self::Remote(client) | Self::Own { client, .. } => client,
        }
    }

    /// How long the sandbox may live without news of us; zero for as long as it wants.
    pub fn lease(&self) -> Duration {
        match self {
            Self::Remote(_) => LEASE,
            Self::Own { .. } => Duration::ZERO,
        }
    }

    /// Renews the lease of the sandbox `id` for as long as it is polled.
    pub async fn keep(&self, id: SandboxId) -> Infallible {
        let Self::Remote(client) = self else { return future::pending().await };
        let change = serde_json::json!({"ttl_seconds": LEASE.as_secs()});
        let path = format!("/v1/sandboxes/{id}/lifecycle");
        loop {
            tokio::time::sleep(RENEWAL).await;
            let renewed = client.send::<Lifecycle>(Method::PATCH, &path, &change).await;
            if let Err(error) = renewed {
                tracing::warn!(%error, "the sandbox's time could not be extended");
            }
        }
    }

    /// Deletes the sandbox, and stops the server if it is ours.
    pub async fn close(self, id: Option<SandboxId>) -> anyhow::Result<()> {
        match (self, id) {
            (Self::Remote(client), Some(id)) => sandbox::delete(&client, id).await,
            (Self::Remote(_), None) => Ok(()),
            (Self::Own { server, instance, .. }, _) => {
                server.stop().await;
                drop(instance);
                Ok(())
            }
        }
    }
}

/// A client of the configured server. One that the user named in the environment must be there;
/// any other may as well not be.
async fn running(endpoint: &Endpoint) -> anyhow::Result<Option<Client>> {
    if endpoint.source == Source::Environment {
        let client = Client::new(endpoint)?;
        let healthy = client.is_healthy(10 * HEALTH_DEADLINE).await;
        ensure!(
            healthy,
            "no server answers at {}, which PANDASTACK_API names; unset it to do without one",
            client.url(),
        );
        return Ok(Some(client));
    }
    let Ok(client) = Client::new(endpoint) else { return Ok(None) };
    let usable = endpoint.token.is_some() && client.is_healthy(HEALTH_DEADLINE).await;
    Ok(usable.then_some(client))
}
