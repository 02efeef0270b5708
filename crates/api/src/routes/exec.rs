//! Commands that are collected: the answer is one JSON object.
//!
//! Clients give up on a connection that is silent for 30 seconds, so a long command needs an
//! answer that begins before its end: spaces, which JSON allows before the object. But then its
//! status has gone out as 200, and a time limit can no longer become the 504 that libraries
//! turn into their timeout error. Hence:
//!
//! ```text
//!   limit ≤ 28 s   the status waits for the command
//!   longer         it waits for PATIENCE, then spaces     25 s ─ ' ' ─ 10 s ─ ' ' ─ … JSON
//! ```
//!
//! When the limit of the second kind passes, the object says so in every way it can: what was
//! printed so far, `exit_code` 124 as `timeout(1)` has it, `timed_out`, and the text in `error`.
//! Libraries that know `timed_out` raise their error, others show a failed command with its
//! output. Any other failure breaks the connection off, because an object without a result would
//! be taken for a success.

use std::io;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use pandastack_sandbox::{Chain, Collected, Command, ExecError, Execution};
use pandastack_types::{ExecOutput, ExecRequest};
use serde_json::json;
use tokio::time::{sleep, timeout};

use crate::Api;
use crate::body::Fields;
use crate::error::ApiError;
use crate::extract::Target;

/// Longest time limit whose passing can still be told by the status.
const HELD: Duration = Duration::from_secs(28);
/// How long the status of other commands is held.
const PATIENCE: Duration = Duration::from_secs(25);
/// Pause between two spaces.
const BETWEEN: Duration = Duration::from_secs(10);
/// The exit status of a command whose time limit passed.
pub(crate) const TIMED_OUT: i32 = 124;

pub(crate) async fn exec(
    State(api): State<Api>,
    Target(sandbox): Target,
    body: Body,
) -> Result<Response, ApiError> {
    let config = api.manager.config();
    let command = command(&Fields::read(body).await?)?.or_timeout(config.exec_timeout);
    let held = command.timeout().is_some_and(|limit| limit <= HELD);
    let mut execution = sandbox.exec(command).await?;
    let mut collected = Collected::new(config.max_output_bytes);
    let code = if held {
        execution.collect(&mut collected).await?
    } else {
        match timeout(PATIENCE, execution.collect(&mut collected)).await {
            Ok(code) => code?,
            Err(_) => return Ok(trickle(execution, collected)),
        }
    };
    let output = collected.finish(code, execution.elapsed());
    Ok(Json(output).into_response())
}

/// Reads a command from the members of a request.
pub(crate) fn command(fields: &Fields) -> Result<Command, ApiError> {
    let text = |name| fields.text(name).map(|text| text.map(str::to_owned));
    let request = ExecRequest {
        cmd: text("cmd")?,
        argv: fields.list("argv")?,
        timeout_seconds: fields.integer("timeout_seconds")?,
        env: fields.texts("env")?,
        cwd: text("cwd")?,
        user: text("user")?,
        stdin: text("stdin")?,
    };
    Ok(Command::try_from(request)?)
}

/// An answer that has begun: spaces until the command has ended, then the object.
fn trickle(execution: Execution, collected: Collected) -> Response {
    let running = Some((execution, collected, Duration::ZERO));
    let body = stream::unfold(running, |running| async {
        let (mut execution, mut collected, pause) = running?;
        let ended = tokio::select! {
            ended = execution.collect(&mut collected) => ended,
            () = sleep(pause) => {
                let space = Ok(Bytes::from_static(b" "));
                return Some((space, Some((execution, collected, BETWEEN))));
            }
        };
        Some((last(ended, collected, execution.elapsed()), None))
    });
    ([(header::CONTENT_TYPE, "application/json")], Body::from_stream(body)).into_response()
}

fn last(
    ended: Result<i32, ExecError>,
    collected: Collected,
    took: Duration,
) -> Result<Bytes, io::Error> {
    let object = match ended {
        Ok(code) => serde_json::to_vec(&collected.finish(code, took)),
        Err(error @ ExecError::Timeout(_)) => {
            serde_json::to_vec(&late(collected.finish(TIMED_OUT, took), &error.to_string()))
        }
        Err(error) => {
            tracing::warn!(error = %Chain(&error), "a long command was lost");
            return Err(io::Error::other("the command was lost"));
        }
    };
    object.map(Bytes::from).map_err(io::Error::other)
}

/// The object of a command whose time limit passed after the status was sent.
fn late(output: ExecOutput, text: &str) -> serde_json::Value {
    let separator =
        if output.stderr.is_empty() || output.stderr.ends_with('\n') { "" } else { "\n" };
    json!({
        "stdout": output.stdout,
        "stderr": format!("{}{separator}{text}\n", output.stderr),
        "exit_code": output.exit_code,
        "duration_ms": output.duration_ms,
        "truncated": output.truncated,
        "timed_out": true,
        "error": text,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_time_limit_keeps_the_output_and_says_so() {
        let error = ExecError::Timeout(Duration::from_secs(60));
        let object = last(Err(error), Collected::new(10), Duration::from_secs(60)).unwrap();
        let object: serde_json::Value = serde_json::from_slice(&object).unwrap();
        assert_eq!(object["exit_code"], 124);
        assert_eq!(object["timed_out"], true);
        assert_eq!(object["stderr"], "exec timeout: command exceeded 60 seconds\n");
    }

    #[test]
    fn another_late_failure_is_no_object() {
        assert!(last(Err(ExecError::TooMany), Collected::new(1), Duration::ZERO).is_err());
    }

    #[test]
    fn hostile_commands_are_refused() {
        for text in [
            "",
            r#"{"cmd":""}"#,
            r#"{"cmd":5}"#,
            r#"{"cmd":"x","timeout_seconds":-1}"#,
            r#"{"cmd":"x","timeout_seconds":0}"#,
            r#"{"cmd":"x","timeout_seconds":1.5}"#,
            r#"{"cmd":"x","timeout_seconds":99999999999999999999}"#,
            r#"{"cmd":"x","env":{"A B":"c"}}"#,
            r#"{"argv":["a\u0000b"]}"#,
            r#"{"cmd":"x","user":"a:b"}"#,
        ] {
            let error = command(&Fields::parse(text.as_bytes()).unwrap()).unwrap_err();
            assert_eq!(error.status.as_u16(), 400, "{text}");
        }
    }
}
