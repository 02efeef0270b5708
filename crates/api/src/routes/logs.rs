//! What a sandbox printed and what happened to it: as it is now, or followed.
//!
//! A followed stream begins with what is kept and ends in good order when the sandbox does.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;
use pandastack_sandbox::{Cursor, LogLine, LogStream, MAX_STORY, Sandbox};
use pandastack_store::StoreError;
use pandastack_types::Event;
use serde_json::{Value, json};

use crate::Api;
use crate::error::ApiError;
use crate::extract::{Query, Segment, Target};
use crate::sse::{self, Source};

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
        let ready: Vec<_> = lines.iter().map(line_block).collect();
        return Ok(sse::follow(Lines { sandbox, only, cursor }, ready));
    }
    let mut text = String::new();
    for line in lines {
        text.push_str(&line.text);
        text.push('\n');
    }
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response())
}

/// What happened to a sandbox lately. Of one that is gone: its state changes, as long as they are
/// remembered.
pub(crate) async fn events(
    State(api): State<Api>,
    Segment(id): Segment,
    query: Query,
) -> Result<Response, ApiError> {
    let tail = query.count("tail")?.unwrap_or(DEFAULT_EVENTS);
    let Target(sandbox) = match Target::named(&id, &api) {
        Ok(found) => found,
        Err(missing) => {
            let Ok(id) = id.parse() else { return Err(missing) };
            let events = api.manager.story(id, tail).map_err(journal)?;
            if events.is_empty() {
                return Err(missing);
            }
            if query.flag("follow")? {
                let blocks: Vec<_> = events.iter().map(event_block).map(Ok).collect();
                return Ok(sse::response(stream::iter(blocks)));
            }
            return Ok(Json(json!({ "events": events })).into_response());
        }
    };
    let (events, cursor) = sandbox.history().tail(tail);
    if query.flag("follow")? {
        let ready: Vec<_> = events.iter().map(event_block).collect();
        return Ok(sse::follow(Events { sandbox, cursor }, ready));
    }
    Ok(Json(json!({ "events": events })).into_response())
}

/// State changes of all sandboxes, also of those that are gone.
pub(crate) async fn all_events(
    State(api): State<Api>,
    query: Query,
) -> Result<Json<Value>, ApiError> {
    let after = query.count("after")?.map(|number| number as u64);
    let count = query.count("tail")?.unwrap_or(DEFAULT_EVENTS).min(MAX_STORY as usize);
    // Who asks for none wants to know where to go on from.
    let fetched = if after.is_none() { count.max(1) } else { count };
    let mut entries = api.manager.stories(after, fetched).map_err(journal)?;
    let next = entries.last().map(|entry| entry.number).or(after).unwrap_or_default();
    entries.truncate(count);
    let events: Vec<_> = entries.into_iter().map(|entry| entry.event).collect();
    Ok(Json(json!({ "events": events, "next": next })))
}

fn journal(error: StoreError) -> ApiError {
    ApiError::internal(StatusCode::INTERNAL_SERVER_ERROR, &error)
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

/// A reader of a sandbox's lines.
struct Lines {
    sandbox: Arc<Sandbox>,
    only: Option<LogStream>,
    cursor: Cursor,
}

impl Source for Lines {
    async fn more(&self) -> bool {
        self.sandbox.logs().more(self.cursor).await
    }

    fn take(&mut self) -> Vec<Bytes> {
        let (lines, cursor) = self.sandbox.logs().after(self.cursor);
        self.cursor = cursor;
        let wanted = |line: &&LogLine| self.only.is_none_or(|stream| stream == line.stream);
        lines.iter().filter(wanted).map(line_block).collect()
    }
}

/// A reader of a sandbox's events.
struct Events {
    sandbox: Arc<Sandbox>,
    cursor: Cursor,
}

impl Source for Events {
    async fn more(&self) -> bool {
        self.sandbox.history().more(self.cursor).await
    }

    fn take(&mut self) -> Vec<Bytes> {
        let (events, cursor) = self.sandbox.history().after(self.cursor);
        self.cursor = cursor;
        events.iter().map(event_block).collect()
    }
}
