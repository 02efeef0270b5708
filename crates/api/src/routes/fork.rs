//! Copies of running sandboxes.

use std::collections::BTreeMap;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use pandastack_sandbox::{CreateError, ForkRequest, Forked, Promoted, Sandbox};
use pandastack_types::{ForkFailure, ForkView};
use serde_json::{Value, json};

use super::sandboxes::SERVER_TIMING;
use crate::Api;
use crate::body::{self, Fields};
use crate::egress;
use crate::error::ApiError;
use crate::extract::Target;

/// One child, or some. Clients read the one they mean from `sandbox`.
pub(crate) async fn fork(
    State(api): State<Api>,
    Target(parent): Target,
    body: Body,
) -> Result<Response, ApiError> {
    let request = request(body, false).await?;
    let (mut view, timing) = children(&api, &parent, request).await?;
    view.sandbox = view.children.first().cloned();
    Ok((StatusCode::CREATED, timing, Json(view)).into_response())
}

/// Siblings that know of each other.
pub(crate) async fn fork_tree(
    State(api): State<Api>,
    Target(parent): Target,
    body: Body,
) -> Result<Response, ApiError> {
    let request = request(body, true).await?;
    if request.count.is_none() {
        return Err(ApiError::bad_request("count is required"));
    }
    let (view, timing) = children(&api, &parent, request).await?;
    Ok((StatusCode::CREATED, timing, Json(view)).into_response())
}

/// One of a tree that stays.
pub(crate) async fn promote(
    State(api): State<Api>,
    Target(winner): Target,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let fields = Fields::read(body).await?;
    let tree = fields.text("tree_id")?.filter(|tree| !tree.is_empty());
    let cleanup = fields.flag("cleanup_siblings")?.unwrap_or(false);
    let Promoted { winner, tree, deleted, failures } =
        api.manager.promote(winner.id(), tree, cleanup).await?;
    let failures: BTreeMap<String, String> =
        failures.into_iter().map(|(id, error)| (id.to_string(), error.to_string())).collect();
    Ok(Json(json!({
        "winner": winner, "tree_id": tree, "deleted": deleted, "failures": failures,
    })))
}

async fn request(body: Body, tree: bool) -> Result<ForkRequest, ApiError> {
    let text = body::text(body).await?;
    let fields = Fields::parse(&text)?;
    Ok(ForkRequest {
        count: fields.integer("count")?,
        metadata: fields.texts("metadata")?,
        ttl_seconds: fields.integer("ttl_seconds")?,
        tree,
        egress: egress::asked(&text)?,
    })
}

type Timing = [(axum::http::HeaderName, String); 1];

async fn children(
    api: &Api,
    parent: &Sandbox,
    request: ForkRequest,
) -> Result<(ForkView, Timing), ApiError> {
    let Forked { parent, tree, at, pause, children, failures, stages } =
        api.manager.fork(parent.id(), request).await?;
    let failure =
        |(index, error): (usize, CreateError)| ForkFailure { index, err: error.to_string() };
    let pause_ms = pause.as_secs_f64() * 1e3;
    let view = ForkView {
        parent_id: parent,
        tree_id: tree,
        snapshot_id: None,
        at,
        pause_ms,
        sandbox: None,
        children,
        errors: failures.into_iter().map(failure).collect(),
    };
    // Part of the stage `fork`, hence after the total.
    let timing = format!("{}, pause;dur={pause_ms:.3}", stages.server_timing());
    Ok((view, [(SERVER_TIMING, timing)]))
}
