//! What a sandbox may reach, and what it tried to.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use pandastack_policy::Policy;
use pandastack_sandbox::{Cursor, EgressLine, Sandbox};
use serde_json::json;

use crate::error::ApiError;
use crate::extract::{Query, Target};
use crate::sse::{self, Source};
use crate::{body, egress};

/// What browsers send when they take up a stream again.
const LAST_EVENT_ID: &str = "last-event-id";

/// The policy in force.
pub(crate) async fn get(Target(sandbox): Target) -> Json<Policy> {
    Json(sandbox.egress())
}

/// Replaces the policy. It is in force when this answers.
pub(crate) async fn set(Target(sandbox): Target, body: Body) -> Result<Json<Policy>, ApiError> {
    let policy = egress::policy(&body::text(body).await?)?;
    Ok(Json(sandbox.set_egress(policy).await?))
}

/// The decisions that are kept, or those and all that follow.
pub(crate) async fn log(
    Target(sandbox): Target,
    query: Query,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let follows = query.flag("follow")?;
    let after = match headers.get(LAST_EVENT_ID) {
        Some(id) if follows => Some(last_event(id.to_str().ok())?),
        _ => query.count("after")?.map(|number| number as u64),
    };
    let tail = query.count("tail")?.unwrap_or(usize::MAX);
    let (lines, cursor) =
        sandbox.egress_log().after(Cursor::behind(after.unwrap_or_default()), tail);
    if follows {
        return Ok(sse::follow(Decisions { sandbox, cursor }, lines.iter().map(line_block)));
    }
    Ok(Json(json!({ "entries": lines, "next": cursor.number() })).into_response())
}

fn last_event(id: Option<&str>) -> Result<u64, ApiError> {
    let number = id.and_then(|id| id.trim().parse().ok());
    number.ok_or_else(|| ApiError::bad_request("Last-Event-ID must be the number of an entry"))
}

fn line_block(line: &EgressLine) -> Bytes {
    sse::numbered(line.number, line)
}

/// A reader of a sandbox's decisions.
struct Decisions {
    sandbox: Arc<Sandbox>,
    cursor: Cursor,
}

impl Source for Decisions {
    async fn more(&self) -> bool {
        self.sandbox.egress_log().more(self.cursor).await
    }

    fn take(&mut self) -> Vec<Bytes> {
        let (lines, cursor) = self.sandbox.egress_log().after(self.cursor, usize::MAX);
        self.cursor = cursor;
        lines.iter().map(line_block).collect()
    }
}
