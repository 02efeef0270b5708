//! `pandastack sandbox exec`.

use pandastack_types::{ExecOutput, SandboxId};
use serde::Serialize;

use super::resolve;
use crate::attach::Input;
use crate::cli::Context;
use crate::client::Client;
use crate::exec::{Options, perform};
use crate::output;
use crate::status::Status;

/// Examples.
pub const EXAMPLES: &str = "\
Examples:
  pandastack sandbox exec 1b9d -- ls -l /root
  pandastack sandbox exec 1b9d --shell 'cd /tmp && tar c .' > tmp.tar
  echo 'print(6*7)' | pandastack sandbox exec 1b9d --timeout 10 -- python3 -

The exit status is the command's own; 124 when it ran into its timeout, 125 when PandaStack
itself failed.";

/// A command for a sandbox.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// The sandbox's id, or a beginning of it that no other has
    id: String,
    #[command(flatten)]
    options: Options,
    /// Run this line with the guest's shell, instead of CMD
    #[arg(long, value_name = "LINE", conflicts_with = "command")]
    shell: Option<String>,
    /// The command and its arguments; no shell is involved
    #[arg(value_name = "CMD", trailing_var_arg = true, required_unless_present = "shell")]
    command: Vec<String>,
}

/// The report of `--json`.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    output: ExecOutput,
    timed_out: bool,
    sandbox: SandboxId,
}

pub async fn run(client: &Client, args: Args, context: Context) -> anyhow::Result<Status> {
    let id = resolve(client, &args.id).await?;
    let request = match args.shell {
        Some(line) => args.options.for_shell(line),
        None => args.options.for_argv(args.command),
    };
    let input = Input::choose(args.options.no_stdin);
    let outcome = perform(client, id, &request, input, context.json).await?;
    if context.json {
        let timed_out = outcome.timed_out();
        output::json(&Report { output: outcome.output(), timed_out, sandbox: id })?;
    }
    Ok(outcome.status())
}
