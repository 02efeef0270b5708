//! Running commands.
//!
//! ```text
//!   exec() ─▶ Execution ── next() ─▶ Output … ─▶ Exit
//!                │   │
//!                │   └─ time limit passed ─▶ Timeout, the process tree is killed
//!                └───── dropped ───────────▶ the process tree is killed
//! ```
//!
//! The time limit is kept here and not in the guest: it is the sandbox's own time, which stands
//! still while the sandbox is paused. Output that nobody takes makes the command wait, so the
//! server's memory is bounded by what its callers collect.

use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pandastack_engine::agent::{AgentError, ErrorCode, ExecEvent, ExecSession, ExecStdin};
use pandastack_proto::MAX_DATA;
use pandastack_types::{ExecOutput, State};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::error::{ExecError, InvalidRequest};
use crate::logs::{LineWriter, LogStream};
use crate::request::{Command, Input};
use crate::sandbox::{Busy, Sandbox, Status};

/// Time for everything of a command that was killed to go: a little more than its agent waits.
const DYING: Duration = Duration::from_secs(7);
/// The published Python SDK gives up when it has heard nothing for 30 seconds.
const SILENCE: Duration = Duration::from_secs(29);

/// What a command does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Bytes of its standard output.
    Stdout(Bytes),
    /// Bytes of its standard error.
    Stderr(Bytes),
    /// It ended with this status, or with 128 + the signal's number. Nothing follows.
    Exit(i32),
}

/// A running command. Dropping it kills the command with all of its descendants.
pub struct Execution {
    session: ExecSession,
    limit: Limit,
    stdout: LineWriter,
    stderr: LineWriter,
    started: Instant,
    sandbox: Arc<Sandbox>,
    _busy: Busy,
}

impl Sandbox {
    /// Starts a command. Returns at once; a command that cannot start says so in
    /// [`Execution::next`].
    pub async fn exec(self: &Arc<Self>, command: Command) -> Result<Execution, ExecError> {
        let (agent, busy) = self.guest().await?;
        let Command { mut spec, input, timeout } = command;
        spec.stdin = input != Input::None;
        let limit = Limit::new(self, timeout);
        let session = match agent.exec(spec).await {
            Ok(session) => session,
            Err(error) => return Err(explain(self, error).await),
        };
        if let Input::Text(text) = input {
            tokio::spawn(feed(session.stdin(), text.into()));
        }
        self.history.push("exec.started", json!({}));
        Ok(Execution {
            session,
            limit,
            stdout: LineWriter::new(LogStream::Stdout),
            stderr: LineWriter::new(LogStream::Stderr),
            started: Instant::now(),
            sandbox: self.clone(),
            _busy: busy,
        })
    }
}

impl Execution {
    /// What the command does next. Not to be called after [`Output::Exit`] or an error. Safe to
    /// use in `select!`.
    pub async fn next(&mut self) -> Result<Output, ExecError> {
        let event = tokio::select! {
            event = self.session.next() => event,
            timeout = self.limit.passed() => {
                self.end(timeout).await;
                return Err(ExecError::Timeout(timeout));
            }
        };
        match event {
            Ok(Some(ExecEvent::Stdout(bytes))) => {
                self.stdout.write(&self.sandbox.logs, &bytes);
                Ok(Output::Stdout(bytes))
            }
            Ok(Some(ExecEvent::Stderr(bytes))) => {
                self.stderr.write(&self.sandbox.logs, &bytes);
                Ok(Output::Stderr(bytes))
            }
            Ok(Some(ExecEvent::Exit(status))) => {
                let took = self.started.elapsed().as_millis() as u64;
                let payload = json!({ "exit_code": status.code, "duration_ms": took });
                self.sandbox.history.push("exec.ended", payload);
                Ok(Output::Exit(status.code))
            }
            Ok(None) => Err(explain(&self.sandbox, AgentError::Closed).await),
            Err(error) => Err(explain(&self.sandbox, error).await),
        }
    }

    /// Kills the command, and waits for its last process: until then there may be no room for
    /// another command. Not so long that a client which has waited since the beginning gives up.
    async fn end(&mut self, limit: Duration) {
        let heard = limit >= SILENCE;
        let patience = if heard { DYING } else { DYING.min(SILENCE - limit) };
        self.session.kill();
        let gone = async {
            while let Ok(Some(event)) = self.session.next().await {
                if matches!(event, ExecEvent::Exit(_)) {
                    break;
                }
            }
        };
        let _ = timeout(patience, gone).await;
    }

    /// Runs the command to its end. What it printed is in `collected` also after an error.
    /// Output beyond the collector's limit is dropped, and the command goes on.
    pub async fn collect(&mut self, collected: &mut Collected) -> Result<i32, ExecError> {
        loop {
            match self.next().await? {
                Output::Stdout(bytes) => collected.stdout.append(&bytes, collected.max),
                Output::Stderr(bytes) => collected.stderr.append(&bytes, collected.max),
                Output::Exit(code) => return Ok(code),
            }
        }
    }

    /// Its standard input, for a command made with [`Command::attached`].
    pub fn stdin(&self) -> Stdin {
        Stdin(self.session.stdin())
    }

    /// Time since its start.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

impl Drop for Execution {
    fn drop(&mut self) {
        self.stdout.finish(&self.sandbox.logs);
        self.stderr.finish(&self.sandbox.logs);
    }
}

/// The standard input of a running command.
pub struct Stdin(ExecStdin);

impl Stdin {
    /// Writes all of `bytes`, waiting while the command does not read. Bytes for a command that
    /// has ended go nowhere.
    pub async fn write(&self, bytes: Bytes) {
        // An error is the end of the command, which its execution reports.
        let _ = self.0.write(bytes).await;
    }

    /// Ends the input.
    pub fn close(&self) {
        self.0.close();
    }
}

/// The output of a command, in memory and bounded.
#[derive(Clone, Debug)]
pub struct Collected {
    stdout: Kept,
    stderr: Kept,
    /// Most bytes per stream.
    max: usize,
}

#[derive(Clone, Debug, Default)]
struct Kept {
    bytes: Vec<u8>,
    truncated: bool,
}

impl Kept {
    fn append(&mut self, bytes: &[u8], max: usize) {
        let room = bytes.len().min(max.saturating_sub(self.bytes.len()));
        self.bytes.extend_from_slice(&bytes[..room]);
        self.truncated |= room < bytes.len();
    }
}

impl Collected {
    /// A collector that keeps at most `max` bytes of each stream.
    pub fn new(max: usize) -> Self {
        Self { stdout: Kept::default(), stderr: Kept::default(), max }
    }

    /// The result of the command.
    pub fn finish(self, exit_code: i32, took: Duration) -> ExecOutput {
        ExecOutput {
            truncated: self.stdout.truncated || self.stderr.truncated,
            stdout: text(self.stdout.bytes),
            stderr: text(self.stderr.bytes),
            exit_code,
            duration_ms: took.as_millis() as u64,
        }
    }
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// Writes a text to a command and ends its input.
async fn feed(stdin: ExecStdin, text: Bytes) {
    let mut rest = text;
    while !rest.is_empty() {
        let piece = rest.split_to(rest.len().min(MAX_DATA));
        if stdin.write(piece).await.is_err() {
            return;
        }
    }
    stdin.close();
}

/// A command's time limit, in the sandbox's own time.
struct Limit {
    sandbox: Arc<Sandbox>,
    status: watch::Receiver<Status>,
    timeout: Option<Duration>,
    start: Duration,
}

impl Limit {
    fn new(sandbox: &Arc<Sandbox>, timeout: Option<Duration>) -> Self {
        Self {
            sandbox: sandbox.clone(),
            status: sandbox.status.subscribe(),
            timeout,
            start: sandbox.clock.ran(Instant::now()),
        }
    }

    /// Returns the limit once it has passed.
    async fn passed(&mut self) -> Duration {
        let Some(timeout) = self.timeout else { return pending().await };
        loop {
            let ran = self.sandbox.clock.ran(Instant::now()) - self.start;
            let Some(left) = timeout.checked_sub(ran).filter(|left| !left.is_zero()) else {
                return timeout;
            };
            let paused = self.status.borrow_and_update().state == State::Paused;
            tokio::select! {
                () = tokio::time::sleep(left), if !paused => {}
                // The sandbox holds the sender, so this is never an error.
                _ = self.status.changed() => {}
            }
        }
    }
}

/// What a failure of the agent means to whoever wanted to run a command.
async fn explain(sandbox: &Sandbox, error: AgentError) -> ExecError {
    match error {
        AgentError::Closed | AgentError::Protocol(_) => match sandbox.explanation().await {
            Some(ended) => ended.into(),
            None => ExecError::Agent(error),
        },
        AgentError::Remote { code: ErrorCode::Unauthorized, .. } => ExecError::Agent(error),
        AgentError::Remote { message, .. } => ExecError::Refused(message),
        AgentError::TooLarge { .. } => InvalidRequest::Field(error.to_string()).into(),
        AgentError::TooMany => ExecError::TooMany,
        AgentError::Deadline(_) | AgentError::Entropy => ExecError::Agent(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collected_output_is_bounded_per_stream_and_says_so() {
        let mut collected = Collected::new(4);
        collected.stdout.append(b"abc", 4);
        collected.stdout.append(b"def", 4);
        collected.stderr.append(b"ok", 4);
        let output = collected.finish(0, Duration::from_millis(7));
        assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("abcd", "ok"));
        assert!(output.truncated);
        assert_eq!(output.duration_ms, 7);
    }

    #[test]
    fn bytes_that_are_not_utf8_are_replaced() {
        let mut collected = Collected::new(10);
        collected.stdout.append(b"a\xFFb", 10);
        assert_eq!(collected.finish(0, Duration::ZERO).stdout, "a\u{FFFD}b");
    }
}
