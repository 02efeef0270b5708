//! `pandastack sandbox …`: the sandboxes of a running server.

mod classes;
mod cp;
mod egress;
mod exec;
mod fork;
mod logs;
mod manage;
mod ports;

use clap::Subcommand;
use http::Method;
use pandastack_types::{SandboxId, SandboxView};

use crate::cli::Context;
use crate::client::Client;
use crate::status::Status;
use crate::{config, prefix};

pub use manage::{CreateArgs, create};

/// Work with the sandboxes of a running server
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// Create a sandbox and print its id
    #[command(after_help = manage::CREATE_EXAMPLES)]
    Create(CreateArgs),
    /// List the sandboxes
    #[command(
        visible_alias = "list",
        after_help = "Examples:\n  pandastack sandbox ls\n  pandastack sandbox ls --json"
    )]
    Ls,
    /// Show one sandbox
    #[command(after_help = "Examples:\n  pandastack sandbox get 1b9d\n  \
                            pandastack sandbox get 1b9d --json")]
    Get(One),
    /// Run a command in a sandbox, with our standard streams attached to it
    #[command(after_help = exec::EXAMPLES)]
    Exec(exec::Args),
    /// Copy files and directories between this host and a sandbox
    #[command(after_help = cp::EXAMPLES)]
    Cp(cp::Args),
    /// End sandboxes and delete everything of them
    #[command(
        visible_alias = "rm",
        after_help = "Examples:\n  pandastack sandbox kill 1b9d\n  \
                      pandastack sandbox kill 1b9d 77aa"
    )]
    Kill(Several),
    /// Show what a sandbox has printed
    #[command(after_help = logs::EXAMPLES)]
    Logs(logs::Args),
    /// List the ports of a sandbox: what listens there, and what is exposed
    #[command(after_help = ports::EXAMPLES)]
    Ports(One),
    /// List a port of a sandbox, and say whether it is public
    #[command(after_help = ports::EXPOSE_EXAMPLES)]
    Expose(ports::ExposeArgs),
    /// Take a port off the list; it is private again
    #[command(after_help = "Example:\n  pandastack sandbox unexpose 1b9d 8000")]
    Unexpose(ports::Named),
    /// Make an address of a port that opens it for a while, without a key
    #[command(after_help = ports::URL_EXAMPLES)]
    Url(ports::UrlArgs),
    /// Make a sandbox stand still; its memory is kept
    #[command(after_help = "Example:\n  pandastack sandbox pause 1b9d")]
    Pause(One),
    /// Let a paused sandbox run on
    #[command(after_help = "Example:\n  pandastack sandbox resume 1b9d")]
    Resume(One),
    /// Make files of a sandbox, which cost no memory; whoever uses it wakes it
    #[command(after_help = manage::HIBERNATE_EXAMPLES)]
    Hibernate(One),
    /// Make a machine of a hibernated sandbox again, before somebody uses it
    #[command(after_help = "Example:\n  pandastack sandbox wake 1b9d")]
    Wake(One),
    /// Make copies of a running sandbox: its memory, processes and files of this instant
    #[command(after_help = fork::EXAMPLES)]
    Fork(fork::Args),
    /// Keep a sandbox as it is now on disk, to make others of it
    #[command(after_help = manage::SNAPSHOT_EXAMPLES)]
    Snapshot(One),
    /// Show or change what a sandbox may reach
    #[command(after_help = egress::EXAMPLES)]
    Egress(egress::Args),
    /// Show what a sandbox tried to reach, and what was decided
    #[command(after_help = egress::LOG_EXAMPLES)]
    EgressLog(egress::LogArgs),
    /// Set how long a sandbox may live
    #[command(after_help = "Examples:\n  pandastack sandbox ttl 1b9d 3600\n  \
                            pandastack sandbox ttl 1b9d 0   # no limit")]
    Ttl(manage::TtlArgs),
}

/// A sandbox.
#[derive(clap::Args, Clone, Debug)]
pub struct One {
    /// Its id, or a beginning of it that no other has
    #[arg(value_name = "ID")]
    id: String,
}

/// Some sandboxes.
#[derive(clap::Args, Clone, Debug)]
pub struct Several {
    /// Their ids, or beginnings of them that no others have
    #[arg(value_name = "ID", required = true)]
    ids: Vec<String>,
}

/// Does what the command line says.
pub async fn run(command: Command, context: Context) -> anyhow::Result<Status> {
    let client = Client::new(&config::endpoint()?)?;
    match command {
        Command::Create(args) => manage::create_and_print(&client, &args, context).await,
        Command::Ls => manage::list(&client, context).await,
        Command::Get(one) => manage::get(&client, &one.id, context).await,
        Command::Exec(args) => exec::run(&client, args, context).await,
        Command::Cp(args) => cp::run(&client, args, context).await,
        Command::Kill(several) => manage::kill(&client, &several.ids, context).await,
        Command::Logs(args) => logs::run(&client, args, context).await,
        Command::Ports(one) => ports::list(&client, &one, context).await,
        Command::Expose(args) => ports::expose(&client, &args, context).await,
        Command::Unexpose(named) => ports::unexpose(&client, &named).await,
        Command::Url(args) => ports::url(&client, &args, context).await,
        Command::Pause(one) => manage::act(&client, &one.id, "pause").await,
        Command::Resume(one) => manage::act(&client, &one.id, "resume").await,
        Command::Hibernate(one) => manage::act(&client, &one.id, "hibernate").await,
        Command::Wake(one) => manage::act(&client, &one.id, "wake").await,
        Command::Fork(args) => fork::run(&client, &args, context).await,
        Command::Snapshot(one) => manage::snapshot(&client, &one.id, context).await,
        Command::Egress(args) => egress::run(&client, args).await,
        Command::EgressLog(args) => egress::log(&client, args, context).await,
        Command::Ttl(args) => manage::set_ttl(&client, &args, context).await,
    }
}

/// Ends the sandbox `id`.
pub async fn delete(client: &Client, id: SandboxId) -> anyhow::Result<()> {
    Ok(client.act(Method::DELETE, &format!("/v1/sandboxes/{id}")).await?)
}

/// The sandbox that `text` means: a whole id, or the beginning of exactly one.
async fn resolve(client: &Client, text: &str) -> anyhow::Result<SandboxId> {
    if let Ok(id) = text.parse() {
        return Ok(id);
    }
    let all: Vec<SandboxView> = client.get("/v1/sandboxes").await?;
    prefix::meant("sandbox", text, all.iter().map(|view| view.id))
}
