//! What a sandbox printed and what happened to it: as it is now, or followed.
//!
//! A followed stream begins with what is kept and ends in good order when the sandbox does.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use axum::Json;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use pandastack_sandbox::{Cursor, LogLine, LogStream, Sandbox};
use pandastack_types::Event;
use serde_json::json;
use tokio::time::timeout;

use crate::error::ApiError;
use crate::extract::{Query, Target};
use crate::sse::{self, PING, PING_BLOCK};

/// Events of a request that names no number.
const DEFAULT_EVENTS: usize = 50;

pub(crate) async fn logs(Target(sandbox): Target, query: Query) -> Result<Response, ApiError> {
    let only = match query.text("stream") {
        None | Some("" | "both") => None,
        Some("stdout") => Some(LogStream::Stdout),
        Some("stderr") => Some(LogStream::Stderr),
        Some(_) => return Err(ApiError::bad_request("stream must be stdout, stderr or both")),
    };
    let tail = query.count("tail")?.unwrap_or(usize::MAX);
    let (lines, cursor) = sandbox.logs().tail(tail, only);
    if query.flag("follow")? {
        let ready = lines.iter().map(line_block).collect();
        return Ok(follow(Follow { sandbox, source: Source::Logs(only), cursor, ready }));
    }
    let mut text = String::new();
    for line in lines {
        text.push_str(&line.text);
        text.push('\n');
    }
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response())
}

pub(crate) async fn events(Target(sandbox): Target, query: Query) -> Result<Response, ApiError> {
    let tail = query.count("tail")?.unwrap_or(DEFAULT_EVENTS);
    let (events, cursor) = sandbox.history().tail(tail);
    if query.flag("follow")? {
        let ready = events.iter().map(event_block).collect();
        return Ok(follow(Follow { sandbox, source: Source::Events, cursor, ready }));
    }
    Ok(Json(json!({ "events": events })).into_response())
}

fn line_block(line: &LogLine) -> Bytes {
    let stream = match line.stream {
        LogStream::Stdout => "stdout",
        LogStream::Stderr => "stderr",
    };
    sse::block(None, &json!({ "line": line.text, "stream": stream }))
}

fn event_block(event: &Event) -> Bytes {
    sse::block(Some("event"), event)
}

/// What is followed.
enum Source {
    Logs(Option<LogStream>),
    Events,
}

/// A reader of a sandbox's lines or events.
struct Follow {
    sandbox: Arc<Sandbox>,
    source: Source,
    cursor: Cursor,
    ready: VecDeque<Bytes>,
}

fn follow(follow: Follow) -> Response {
    sse::response(stream::unfold(follow, |mut follow| async {
        follow.next().await.map(|block| (Ok::<_, io::Error>(block), follow))
    }))
}

impl Follow {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(block) = self.ready.pop_front() {
                return Some(block);
            }
            match timeout(PING, self.more()).await {
                Ok(true) => self.fetch(),
                Ok(false) => return None,
                Err(_) => return Some(PING_BLOCK),
            }
        }
    }

    async fn more(&self) -> bool {
        match self.source {
            Source::Logs(_) => self.sandbox.logs().more(self.cursor).await,
            Source::Events => self.sandbox.history().more(self.cursor).await,
        }
    }

    fn fetch(&mut self) {
        match self.source {
            Source::Logs(only) => {
                let (lines, cursor) = self.sandbox.logs().after(self.cursor);
                let wanted = |line: &&LogLine| only.is_none_or(|stream| stream == line.stream);
                self.ready.extend(lines.iter().filter(wanted).map(line_block));
                self.cursor = cursor;
            }
            Source::Events => {
                let (events, cursor) = self.sandbox.history().after(self.cursor);
                self.ready.extend(events.iter().map(event_block));
                self.cursor = cursor;
            }
        }
    }
}
