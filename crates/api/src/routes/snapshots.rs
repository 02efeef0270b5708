//! Sandboxes kept on disk.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use pandastack_types::{SnapshotId, SnapshotList, SnapshotView};

use crate::Api;
use crate::error::ApiError;
use crate::extract::{Query, Segment, Target};

/// Takes a snapshot. There is nothing to be said about it, so the body is ignored.
pub(crate) async fn take(
    State(api): State<Api>,
    Target(sandbox): Target,
) -> Result<(StatusCode, Json<SnapshotView>), ApiError> {
    let view = api.manager.snapshot(sandbox.id()).await?;
    Ok((StatusCode::CREATED, Json(view)))
}

pub(crate) async fn list(State(api): State<Api>, uri: Uri) -> Result<Json<SnapshotList>, ApiError> {
    let query = Query::of(&uri)?;
    let sandbox = match query.text("sandbox_id").filter(|id| !id.is_empty()).map(str::parse) {
        None => None,
        Some(Ok(id)) => Some(id),
        // What is no id names no sandbox, and that has no snapshots.
        Some(Err(_)) => return Ok(Json(SnapshotList { snapshots: Vec::new() })),
    };
    Ok(Json(SnapshotList { snapshots: api.manager.snapshots(sandbox).await }))
}

pub(crate) async fn get(
    State(api): State<Api>,
    Segment(id): Segment,
) -> Result<Json<SnapshotView>, ApiError> {
    Ok(Json(api.manager.find_snapshot(parse(&id)?)?))
}

pub(crate) async fn delete(
    State(api): State<Api>,
    Segment(id): Segment,
) -> Result<StatusCode, ApiError> {
    api.manager.delete_snapshot(parse(&id)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The snapshot that a text names. What is no id names none.
pub(super) fn parse(id: &str) -> Result<SnapshotId, ApiError> {
    id.parse().map_err(|error| {
        ApiError::new(StatusCode::NOT_FOUND, format!("snapshot not found: {error}"))
    })
}
