//! Commands whose output is streamed as server-sent events.
//!
//! The last block is `exit`, or `error` when there is no exit to tell. Without a time limit of
//! its own a command runs for as long as the client stays: a client that goes away drops the
//! answer's body and with it the command.

use std::collections::VecDeque;
use std::io;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::stream;
use pandastack_sandbox::{Execution, Output};
use serde_json::json;
use tokio::time::sleep;

use crate::body::Fields;
use crate::error::ApiError;
use crate::extract::Target;
use crate::sse::{self, PING, PING_BLOCK, Utf8Chunks};

use super::exec::command;

pub(crate) async fn stream(Target(sandbox): Target, body: Body) -> Result<Response, ApiError> {
    let command = command(&Fields::read(body).await?)?;
    let blocks = Blocks {
        execution: Some(sandbox.exec(command).await?),
        stdout: Utf8Chunks::default(),
        stderr: Utf8Chunks::default(),
        ready: VecDeque::new(),
    };
    Ok(sse::response(stream::unfold(blocks, |mut blocks| async {
        blocks.next().await.map(|block| (Ok::<_, io::Error>(block), blocks))
    })))
}

/// Turns what a command does into blocks.
struct Blocks {
    /// Gone once its last block is ready.
    execution: Option<Execution>,
    stdout: Utf8Chunks,
    stderr: Utf8Chunks,
    ready: VecDeque<Bytes>,
}

impl Blocks {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(block) = self.ready.pop_front() {
                return Some(block);
            }
            let execution = self.execution.as_mut()?;
            tokio::select! {
                output = execution.next() => match output {
                    Ok(Output::Stdout(bytes)) => {
                        let text = self.stdout.push(&bytes);
                        self.chunk("stdout", text);
                    }
                    Ok(Output::Stderr(bytes)) => {
                        let text = self.stderr.push(&bytes);
                        self.chunk("stderr", text);
                    }
                    Ok(Output::Exit(code)) => self.end("exit", &json!({ "exit_code": code })),
                    Err(error) => {
                        let error = ApiError::from(error);
                        self.end("error", &json!({ "error": error.text }));
                    }
                },
                () = sleep(PING) => return Some(PING_BLOCK),
            }
        }
    }

    fn chunk(&mut self, event: &str, text: String) {
        if !text.is_empty() {
            self.ready.push_back(sse::block(Some(event), &json!({ "chunk": text })));
        }
    }

    /// Puts out what was held back, and the last block.
    fn end(&mut self, event: &str, data: &serde_json::Value) {
        let (stdout, stderr) = (self.stdout.finish(), self.stderr.finish());
        self.chunk("stdout", stdout);
        self.chunk("stderr", stderr);
        self.ready.push_back(sse::block(Some(event), data));
        self.execution = None;
    }
}
