//! Commands with standard input: both directions flow at once, in plain HTTP/1.1.
//!
//! ```text
//!   request body   {"cmd":…} \n  stdin bytes …                  (its end closes stdin)
//!   answer         [channel u8][length u32 BE][bytes] …         (begins at once)
//!                  1 stdout  2 stderr  3 exit, JSON  4 error, JSON
//! ```
//!
//! Frame 3 or 4 is the last one. A body that breaks off instead of ending is a client that went
//! away: the command is killed and the answer broken off. Input is read only as fast as the
//! command takes it, and output produced only as fast as the client reads it.

use std::io;
use std::pin::Pin;

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::stream;
use pandastack_sandbox::{ExecError, Execution, Output, Stdin};
use serde_json::json;

use crate::body::{Fields, Pieces};
use crate::error::ApiError;
use crate::extract::Target;

use super::exec::{TIMED_OUT, command};

const CONTENT_TYPE: &str = "application/vnd.pandastack.attach";

const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const EXIT: u8 = 3;
const ERROR: u8 = 4;

pub(crate) async fn attach(Target(sandbox): Target, body: Body) -> Result<Response, ApiError> {
    let mut pieces = Pieces::new(body);
    let (line, rest) = pieces.line().await?;
    let command = command(&Fields::parse(&line)?)?.attached();
    let execution = sandbox.exec(command).await?;
    let input = Box::pin(feed(execution.stdin(), rest, pieces));
    let running = Some(Running { execution, input: Some(input) });
    let frames = stream::unfold(running, |running| async {
        let mut running = running?;
        Some(match running.next().await {
            Ok((frame, true)) => (Ok(frame), None),
            Ok((frame, false)) => (Ok(frame), Some(running)),
            Err(gone) => (Err(gone), None),
        })
    });
    Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], Body::from_stream(frames)).into_response())
}

type Feed = Pin<Box<dyn Future<Output = Result<(), ApiError>> + Send>>;

struct Running {
    execution: Execution,
    /// Gone once the input has ended.
    input: Option<Feed>,
}

impl Running {
    /// The next frame, and whether it is the last one.
    async fn next(&mut self) -> Result<(Bytes, bool), io::Error> {
        loop {
            let fed = tokio::select! {
                output = self.execution.next() => return Ok(frame_of(output)),
                fed = drive(&mut self.input), if self.input.is_some() => fed,
            };
            self.input = None;
            fed.map_err(|error| io::Error::new(io::ErrorKind::ConnectionAborted, error.text))?;
        }
    }
}

async fn drive(input: &mut Option<Feed>) -> Result<(), ApiError> {
    match input {
        Some(input) => input.await,
        None => Ok(()),
    }
}

/// Writes the rest of a request's body to a command.
async fn feed(stdin: Stdin, rest: Bytes, mut pieces: Pieces) -> Result<(), ApiError> {
    if !rest.is_empty() {
        stdin.write(rest).await;
    }
    while let Some(piece) = pieces.next().await? {
        stdin.write(piece).await;
    }
    stdin.close();
    Ok(())
}

fn frame_of(output: Result<Output, ExecError>) -> (Bytes, bool) {
    let exit = |code: i32, timed_out: bool| json!({ "exit_code": code, "timed_out": timed_out });
    match output {
        Ok(Output::Stdout(bytes)) => (frame(STDOUT, &bytes), false),
        Ok(Output::Stderr(bytes)) => (frame(STDERR, &bytes), false),
        Ok(Output::Exit(code)) => (frame(EXIT, exit(code, false).to_string().as_bytes()), true),
        Err(ExecError::Timeout(_)) => {
            (frame(EXIT, exit(TIMED_OUT, true).to_string().as_bytes()), true)
        }
        Err(error) => {
            let text = json!({ "error": ApiError::from(error).text }).to_string();
            (frame(ERROR, text.as_bytes()), true)
        }
    }
}

/// A frame. Its bytes come out of one message of the agent, so their number fits.
fn frame(channel: u8, bytes: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(5 + bytes.len());
    frame.put_u8(channel);
    frame.put_u32(bytes.len() as u32);
    frame.put_slice(bytes);
    frame.freeze()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn frames_say_their_channel_and_length() {
        let (bytes, last) = frame_of(Ok(Output::Stderr(Bytes::from_static(b"oops"))));
        assert_eq!((&bytes[..], last), (&b"\x02\0\0\0\x04oops"[..], false));
        let (bytes, last) = frame_of(Err(ExecError::Timeout(Duration::from_secs(1))));
        assert_eq!((bytes[0], last), (EXIT, true));
        assert_eq!(&bytes[5..], br#"{"exit_code":124,"timed_out":true}"#);
        let (bytes, last) = frame_of(Err(ExecError::TooMany));
        assert_eq!((bytes[0], last), (ERROR, true));
    }
}
