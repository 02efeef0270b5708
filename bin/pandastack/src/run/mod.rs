//! `pandastack run`: one throwaway sandbox for one command.
//!
//! ```text
//!  a server? ──yes──▶ its API ──┐
//!      └─no──▶ one of our own ──┴─▶ create ─▶ attach ─▶ delete ─▶ the command's exit status
//! ```
//!
//! Whatever happens in between, the sandbox is deleted: on every way out, by the lease that a
//! server is given for it when this process is killed, and together with a server of our own.

mod host;
mod instance;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use pandastack_types::{ExecOutput, SandboxId, SandboxView, VolumeMount};
use serde::Serialize;

use crate::attach::Input;
use crate::cli::Context;
use crate::egress::EgressArgs;
use crate::engines::MachineArgs;
use crate::exec::{Options, Outcome, millis, perform};
use crate::network::NetworkArgs;
use crate::output;
use crate::sandbox::{CreateArgs, create};
use crate::signals::Signals;
use crate::status::Status;
use host::Host;
pub use instance::Instance;

/// Examples.
pub const EXAMPLES: &str = "\
Examples:
  pandastack run -- echo hello
  pandastack run --template code-interpreter -- python3 -c 'print(sum(range(100)))'
  pandastack run --timeout 10 --memory 1024 -- sh -c 'make test'
  pandastack run --allow pypi.org:443 --allow files.pythonhosted.org:443 -- pip install six
  pandastack run --volume data -- sh -c 'date >> /volumes/data/log'
  pandastack run --egress policy.json -- ./job
  tar c . | pandastack run -- sh -c 'tar x && ./build.sh && tar c out' > out.tar

No server is needed: without one, the command brings its own for as long as it runs. The exit
status is the command's own; 124 when it ran into its timeout, 125 when PandaStack itself failed.";

/// How long a server may take to say that it is there.
pub const HEALTH_DEADLINE: Duration = Duration::from_millis(500);

/// A command and the sandbox for it.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// The template that the sandbox is a copy of
    #[arg(long, value_name = "NAME", default_value = "base")]
    pub template: String,
    /// vCPUs [default: the template's]
    #[arg(long, value_name = "N")]
    pub cpu: Option<i64>,
    /// Guest memory in MiB [default: the template's]
    #[arg(long, value_name = "MB", alias = "memory-mb")]
    pub memory: Option<i64>,
    /// Writable disk in MiB, not less than the template's [default: the template's]
    #[arg(long, value_name = "MB", alias = "disk-mb")]
    pub disk: Option<i64>,
    /// A volume of a running server, at /volumes/NAME, to be written to or, with `:ro`, only read;
    /// may be repeated
    #[arg(
        long,
        value_name = "NAME[:ro]",
        value_parser = crate::volume::mount,
        conflicts_with = "local"
    )]
    pub volume: Vec<VolumeMount>,
    #[command(flatten)]
    pub egress: EgressArgs,
    #[command(flatten)]
    pub options: Options,
    /// Do not use a running server even if there is one
    #[arg(long)]
    pub local: bool,
    #[command(flatten)]
    pub machines: MachineArgs,
    #[command(flatten)]
    pub network: NetworkArgs,
    /// Where templates are kept without a server [default: the system's for root, else the user's]
    #[arg(long, value_name = "DIR", env = "PANDASTACK_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// The command and its arguments; no shell is involved
    #[arg(value_name = "CMD", trailing_var_arg = true, required = true)]
    pub command: Vec<String>,
}

/// The report of `--json`.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    output: ExecOutput,
    timed_out: bool,
    sandbox: SandboxId,
    template: String,
    engine: String,
    isolation: &'static str,
    jail: &'static str,
    timings: Timings,
}

/// Where the time went, in milliseconds.
#[derive(Serialize)]
struct Timings {
    /// To have a server, and its template if that had to be built.
    host_ms: u64,
    /// From the request for a sandbox to its answer.
    create_ms: u64,
    /// From the command's start to its exit.
    exec_ms: u64,
    /// To end the sandbox.
    delete_ms: u64,
    /// Everything.
    total_ms: u64,
}

/// A command that has come to its end, and its sandbox, which has not yet.
struct Done {
    view: SandboxView,
    outcome: Outcome,
    create: Duration,
}

pub async fn run(args: Args, context: Context) -> anyhow::Result<Status> {
    let start = Instant::now();
    let mut signals = Signals::listen()?;
    let host = signals.unless_interrupted(Host::find(&args)).await?;
    let host_ready = start.elapsed();
    let mut sandbox = None;
    let done =
        signals.unless_interrupted(run_in_sandbox(&host, &args, context, &mut sandbox)).await;
    let deleting = Instant::now();
    let deleted = signals.cleaning_up(host.close(sandbox)).await;
    let done = done?;
    // The command's result counts more than a sandbox that its server has to end by itself.
    if let Err(error) = deleted {
        tracing::warn!(error = format!("{error:#}"), "the sandbox could not be deleted");
    }
    if context.json {
        let timings = Timings {
            host_ms: millis(host_ready),
            create_ms: millis(done.create),
            exec_ms: done.outcome.duration_ms(),
            delete_ms: millis(deleting.elapsed()),
            total_ms: millis(start.elapsed()),
        };
        output::json(&done.report(timings))?;
    }
    Ok(done.outcome.status())
}

/// Creates the sandbox, tells the caller through `sandbox`, and runs the command in it.
async fn run_in_sandbox(
    host: &Host,
    args: &Args,
    context: Context,
    sandbox: &mut Option<SandboxId>,
) -> anyhow::Result<Done> {
    let start = Instant::now();
    let wanted = CreateArgs {
        template: args.template.clone(),
        from_snapshot: None,
        cpu: args.cpu,
        memory: args.memory,
        disk: args.disk,
        ttl: Some(host.lease().as_secs()),
        persistent: false,
        idle_timeout: None,
        metadata: vec![("created_by".to_owned(), "pandastack run".to_owned())],
        volume: args.volume.clone(),
        egress: args.egress.clone(),
    };
    // Given up while it waits, the request is undone by the server.
    let view = create(host.client(), &wanted).await?;
    *sandbox = Some(view.id);
    let create = start.elapsed();
    let request = args.options.for_argv(args.command.clone());
    let input = Input::choose(args.options.no_stdin);
    let command = perform(host.client(), view.id, &request, input, context.json);
    let outcome = tokio::select! {
        outcome = command => outcome?,
        never = host.keep(view.id) => match never {},
    };
    Ok(Done { view, outcome, create })
}

impl Done {
    fn report(&self, timings: Timings) -> Report {
        Report {
            output: self.outcome.output(),
            timed_out: self.outcome.timed_out(),
            sandbox: self.view.id,
            template: self.view.template.to_string(),
            engine: self.view.engine.clone(),
            isolation: self.view.isolation.as_str(),
            jail: self.view.jail.as_str(),
            timings,
        }
    }
}
