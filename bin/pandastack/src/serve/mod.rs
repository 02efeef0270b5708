//! `pandastack serve`: the server, until it is told to stop.

mod announce;
mod builds;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use clap::builder::FalseyValueParser;
use pandastack_api::RateLimits;
use pandastack_types::{Size, SizeLimits};
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::net::TcpListener;

use crate::api_key::ApiKey;
use crate::cli::Context;
use crate::config::{self, DEFAULT_LISTEN};
use crate::dirs;
use crate::engines::MachineArgs;
use crate::network::NetworkArgs;
use crate::previews::{PreviewArgs, Previews};
use crate::server::{Server, ServerOptions};
use crate::signals::Signals;
use crate::status::Status;
use crate::terminal;
use crate::workshop::Workshop;
use announce::Announcement;

/// Examples.
pub const EXAMPLES: &str = "\
Examples:
  pandastack serve
  pandastack serve --data-dir /srv/panda --listen 127.0.0.1:9000 --pool 4
  pandastack serve --listen 0.0.0.0:7878 --api-key-file /etc/pandastack/key
  pandastack serve --preview-host https://preview.example.com

The first start mints an API key into DATA_DIR/api-key and leads the clients of this user to this
server. Ctrl-C stops: persistent sandboxes hibernate, the others end; a second Ctrl-C stops at once.";

/// How the server runs.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Where templates and records are kept [default: the system's for root, else the user's]
    #[arg(long, value_name = "DIR", env = "PANDASTACK_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Where to listen. Beyond loopback only with an explicit key
    #[arg(long, value_name = "ADDRESS", env = "PANDASTACK_LISTEN", default_value = DEFAULT_LISTEN)]
    listen: SocketAddr,
    /// Machines that stand ready for each template
    #[arg(long, value_name = "N", env = "PANDASTACK_POOL", default_value_t = 2)]
    pool: usize,
    /// Whether sandboxes are forks of a running machine; off restores each from its file
    #[arg(long, value_enum, env = "PANDASTACK_FORK", default_value_t = ForkChoice::Auto)]
    fork: ForkChoice,
    #[command(flatten)]
    machines: MachineArgs,
    #[command(flatten)]
    network: NetworkArgs,
    /// Most sandboxes at a time [default: 64]
    #[arg(long, value_name = "N", env = "PANDASTACK_MAX_SANDBOXES")]
    max_sandboxes: Option<usize>,
    #[command(flatten)]
    sizes: SizeArgs,
    #[command(flatten)]
    reserves: ReserveArgs,
    /// Seconds of life of a sandbox that asks for none; 0 for no limit [default: 3600]
    #[arg(long, value_name = "SECONDS", env = "PANDASTACK_DEFAULT_TTL")]
    default_ttl: Option<u64>,
    /// Seconds without use after which a persistent sandbox hibernates that asks for nothing else; 0
    /// for never [default: 0]
    #[arg(long, value_name = "SECONDS", env = "PANDASTACK_IDLE_TIMEOUT")]
    idle_timeout: Option<u64>,
    /// Seconds in which a new sandbox must answer, or its create fails: more for a slow host
    /// [default: 10]
    #[arg(
        long,
        value_name = "SECONDS",
        env = "PANDASTACK_READY_TIMEOUT",
        value_parser = clap::value_parser!(u64).range(1..=3600)
    )]
    ready_timeout: Option<u64>,
    /// Seconds that a sandbox without a time to live outlives this server if it is killed, waiting
    /// for the next one; those with one live until then. 0 ends all with the server
    #[arg(long, value_name = "SECONDS", env = "PANDASTACK_ORPHAN_GRACE", default_value_t = 600)]
    orphan_grace: u64,
    #[command(flatten)]
    rates: RateArgs,
    #[command(flatten)]
    previews: PreviewArgs,
    /// Leave the client configuration of this user alone
    #[arg(long, env = "PANDASTACK_NO_CLIENT_CONFIG", value_parser = FalseyValueParser::new())]
    no_client_config: bool,
    /// Take the API key from this file instead of minting one (PANDASTACK_API_KEY works as well)
    #[arg(long, value_name = "FILE", env = "PANDASTACK_API_KEY_FILE")]
    api_key_file: Option<PathBuf>,
}

/// What of the host sandboxes leave alone.
#[derive(clap::Args, Clone, Copy, Debug, Default)]
pub struct ReserveArgs {
    /// Host memory in MiB that a create must leave free [default: 512]
    #[arg(long, value_name = "MB", env = "PANDASTACK_MEMORY_RESERVE")]
    pub memory_reserve: Option<u64>,
    /// Host disk in MiB that a create must leave free [default: 512]
    #[arg(long, value_name = "MB", env = "PANDASTACK_DISK_RESERVE")]
    pub disk_reserve: Option<u64>,
}

/// How often clients may ask.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct RateArgs {
    /// Most API requests a second with one key, five seconds' worth at once; 0 for no limit
    #[arg(long, value_name = "N", env = "PANDASTACK_RATE_LIMIT", default_value_t = RateLimits::default().key)]
    rate_limit: u32,
    /// The same without a valid key, from one address
    #[arg(
        long, value_name = "N", env = "PANDASTACK_RATE_LIMIT_KEYLESS",
        default_value_t = RateLimits::default().keyless
    )]
    rate_limit_keyless: u32,
}

impl RateArgs {
    fn limits(self) -> RateLimits {
        RateLimits { key: self.rate_limit, keyless: self.rate_limit_keyless }
    }
}

/// How large sandboxes may be.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct SizeArgs {
    /// Most vCPUs of one sandbox, at most 8
    #[arg(
        long, value_name = "N", env = "PANDASTACK_MAX_CPU", default_value_t = SizeLimits::default().cpu,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(Size::MAX_CPU))
    )]
    max_cpu: u32,
    /// Most guest memory of one sandbox in MiB, at most 3072
    #[arg(
        long, value_name = "MB", env = "PANDASTACK_MAX_MEMORY",
        default_value_t = SizeLimits::default().memory_mb, alias = "max-memory-mb",
        value_parser = clap::value_parser!(u32)
            .range(i64::from(Size::MIN_MEMORY_MB)..=i64::from(Size::MAX_MEMORY_MB))
    )]
    max_memory: u32,
    /// Most writable disk of one sandbox in MiB, at most 65536
    #[arg(
        long, value_name = "MB", env = "PANDASTACK_MAX_DISK",
        default_value_t = SizeLimits::default().disk_mb, alias = "max-disk-mb",
        value_parser = clap::value_parser!(u32)
            .range(i64::from(Size::MIN_DISK_MB)..=i64::from(Size::MAX_DISK_MB))
    )]
    max_disk: u32,
    /// Sizes besides the templates' own that stay prepared although nobody uses them
    #[arg(long, value_name = "N", env = "PANDASTACK_SIZE_CLASSES", default_value_t = 16)]
    size_classes: usize,
}

impl SizeArgs {
    fn limits(self) -> SizeLimits {
        SizeLimits { cpu: self.max_cpu, memory_mb: self.max_memory, disk_mb: self.max_disk }
            .possible()
    }
}

/// Ways to make machines.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForkChoice {
    /// Fork where a proof at the start shows that it works, else restore
    Auto,
    /// Restore; sandboxes cannot be forked or snapshotted then
    Off,
}

/// Lets this process have as many descriptors as it may: a sandbox takes more than twenty, and the usual
/// soft limit is 1024.
fn raise_descriptors() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

pub async fn run(args: Args, context: Context) -> anyhow::Result<Status> {
    let mut signals = Signals::listen()?;
    raise_descriptors();
    let data_dir = args.data_dir.clone().map_or_else(dirs::default_data_dir, Ok)?;
    let variable = std::env::var("PANDASTACK_API_KEY").ok();
    let explicit = ApiKey::explicit(args.api_key_file.as_deref(), variable)?;
    check_reach(args.listen, explicit.as_ref())?;
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("cannot listen on {}", args.listen))?;
    let workshop = Workshop::open(&data_dir, args.machines).await?;
    let key = match explicit {
        Some(key) => key,
        None => ApiKey::own(&data_dir.join("api-key"))?,
    };
    let options = ServerOptions {
        instance_dir: data_dir.clone(),
        jail: workshop.confinement.grade(),
        fork: args.fork == ForkChoice::Auto,
        pool: args.pool,
        max_sandboxes: args.max_sandboxes,
        size_limits: args.sizes.limits(),
        reserves: args.reserves,
        size_classes: Some(args.sizes.size_classes),
        default_ttl_seconds: args.default_ttl,
        idle_timeout_seconds: args.idle_timeout,
        ready_timeout: args.ready_timeout.map(Duration::from_secs),
        orphan_grace: Some(args.orphan_grace).filter(|grace| *grace > 0).map(Duration::from_secs),
        network: args.network.clone(),
        rate_limits: args.rates.limits(),
        previews: Previews::of(&args.previews, &data_dir.join("preview-secret"))?,
    };
    let server = Server::start(&workshop, options, &key, listener).await?;
    Announcement::new(&workshop, &server, &args, &data_dir, &key).print(context)?;
    if !args.no_client_config {
        lead_clients_here(server.url(), &key);
    }
    let builds = builds::start(&workshop, server.manager().clone());
    let signal = signals.next().await;
    tracing::info!(?signal, "stopping");
    terminal::line(
        "stopping: persistent sandboxes hibernate, the others end; once more to stop at once",
    );
    signals
        .cleaning_up(async {
            builds.stop().await;
            server.stop().await;
        })
        .await;
    Ok(Status::SUCCESS)
}

/// A server that others can reach must not depend on a key that its operator has not chosen.
fn check_reach(listen: SocketAddr, explicit: Option<&ApiKey>) -> anyhow::Result<()> {
    if !listen.ip().is_loopback() && explicit.is_none() {
        bail!(
            "{listen} can be reached from other hosts: choose the API key yourself with \
             --api-key-file or PANDASTACK_API_KEY, or listen on 127.0.0.1"
        );
    }
    Ok(())
}

/// Writes the configuration of this user's clients. They can do without, so a failure is a note.
fn lead_clients_here(url: &str, key: &ApiKey) {
    let written =
        dirs::client_config().and_then(|path| Ok((config::write(&path, url, key.secret())?, path)));
    match written {
        Ok((config::Written::Yes, path)) => {
            tracing::info!(path = %path.display(), "clients of this user find this server");
        }
        Ok((config::Written::Foreign(other), path)) => terminal::line(&format!(
            "note: {} leads to {other} and was left alone; for this server set \
             PANDASTACK_API={url} and PANDASTACK_API_KEY to the key {}",
            path.display(),
            key.origin(),
        )),
        Err(error) => terminal::line(&format!("note: clients are not configured: {error:#}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_loopback_only_with_an_explicit_key() {
        let key = ApiKey::explicit(None, Some("k".repeat(24))).unwrap();
        for (listen, needs_key) in [
            ("127.0.0.1:7878", false),
            ("127.9.9.9:1", false),
            ("[::1]:7878", false),
            ("0.0.0.0:7878", true),
            ("[::]:7878", true),
            ("192.168.1.1:80", true),
        ] {
            let listen = listen.parse().unwrap();
            assert_eq!(check_reach(listen, None).is_err(), needs_key, "{listen}");
            assert!(check_reach(listen, key.as_ref()).is_ok());
        }
    }
}
