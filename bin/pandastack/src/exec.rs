//! One command in a sandbox, as `run` and `sandbox exec` take and report it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use clap::Args;
use pandastack_types::{ExecOutput, ExecRequest, SandboxId};

use crate::attach::{Exit, Input, Kept, Output, attach};
use crate::cli::key_value;
use crate::client::Client;
use crate::status::Status;

/// How a command runs.
#[derive(Args, Clone, Debug, Default)]
pub struct Options {
    /// Kill the command and all its children after this many seconds; exit status 124
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(i64).range(1..))]
    pub timeout: Option<i64>,
    /// Add a variable to its environment; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = key_value)]
    pub env: Vec<(String, String)>,
    /// Its working directory in the guest [default: the user's home]
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<String>,
    /// The guest's user who runs it [default: root]
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// Give it an empty standard input instead of ours
    #[arg(short = 'n', long)]
    pub no_stdin: bool,
}

impl Options {
    /// The request for an exact argument vector, without a shell.
    pub fn for_argv(&self, argv: Vec<String>) -> ExecRequest {
        ExecRequest { argv: Some(argv), ..self.request() }
    }

    /// The request for a line of the guest's shell.
    pub fn for_shell(&self, line: String) -> ExecRequest {
        ExecRequest { cmd: Some(line), ..self.request() }
    }

    fn request(&self) -> ExecRequest {
        ExecRequest {
            timeout_seconds: self.timeout,
            env: self.env.iter().cloned().collect::<BTreeMap<_, _>>(),
            cwd: self.cwd.clone(),
            user: self.user.clone(),
            ..ExecRequest::default()
        }
    }
}

/// A command that has come to its end.
#[derive(Clone, Debug)]
pub struct Outcome {
    exit: Exit,
    kept: Kept,
    duration: Duration,
}

impl Outcome {
    /// Milliseconds from the request to the exit.
    pub fn duration_ms(&self) -> u64 {
        millis(self.duration)
    }

    /// Whether its deadline ended it.
    pub fn timed_out(&self) -> bool {
        self.exit.timed_out
    }

    /// The status to exit with.
    pub fn status(&self) -> Status {
        if self.exit.timed_out {
            Status::TIMED_OUT
        } else {
            Status::of_command(self.exit.exit_code)
        }
    }

    /// What it printed, for a report.
    pub fn output(&self) -> ExecOutput {
        ExecOutput {
            stdout: String::from_utf8_lossy(&self.kept.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&self.kept.stderr).into_owned(),
            exit_code: self.exit.exit_code,
            duration_ms: self.duration_ms(),
            truncated: self.kept.truncated,
        }
    }
}

/// Runs `request` in the sandbox `id`. Its output passes through to ours, or is kept for a
/// report when `keep` is set.
pub async fn perform(
    client: &Client,
    id: SandboxId,
    request: &ExecRequest,
    input: Input,
    keep: bool,
) -> anyhow::Result<Outcome> {
    let start = Instant::now();
    let mut output = if keep { Output::Keep(Kept::default()) } else { Output::through() };
    let exit = attach(client, id, request, input, &mut output).await?;
    let duration = start.elapsed();
    let kept = match output {
        Output::Keep(kept) => kept,
        Output::Through { .. } => Kept::default(),
    };
    if exit.timed_out && !keep {
        let limit = request.timeout_seconds.unwrap_or_default();
        eprintln!("pandastack: the command was killed: it ran longer than {limit} s");
    }
    Ok(Outcome { exit, kept, duration })
}

/// Whole milliseconds of `duration`.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
