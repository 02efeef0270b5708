//! Disks that outlive sandboxes.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use pandastack_types::{VolumeMount, VolumeName, VolumeView};
use serde_json::Value;

use crate::Api;
use crate::body::Fields;
use crate::error::ApiError;
use crate::extract::Segment;

pub(crate) async fn create(
    State(api): State<Api>,
    body: Body,
) -> Result<(StatusCode, Json<VolumeView>), ApiError> {
    let fields = Fields::read(body).await?;
    let name = fields.text("name")?.ok_or_else(|| ApiError::bad_request("name is required"))?;
    let name = named(name)?;
    let view = api.manager.create_volume(name, fields.integer("size_mb")?).await?;
    Ok((StatusCode::CREATED, Json(view)))
}

pub(crate) async fn list(State(api): State<Api>) -> Json<Vec<VolumeView>> {
    Json(api.manager.volumes().await)
}

pub(crate) async fn get(
    State(api): State<Api>,
    Segment(name): Segment,
) -> Result<Json<VolumeView>, ApiError> {
    Ok(Json(api.manager.volume(&known(&name)?)?))
}

pub(crate) async fn delete(
    State(api): State<Api>,
    Segment(name): Segment,
) -> Result<StatusCode, ApiError> {
    api.manager.delete_volume(known(&name)?).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The volumes that a create asks for.
pub(super) fn asked(fields: &Fields) -> Result<Vec<VolumeMount>, ApiError> {
    let wrong = || {
        ApiError::bad_request(
            "volumes must be an array of objects with a name and, if wanted, read_only",
        )
    };
    let Some(value) = fields.value("volumes") else { return Ok(Vec::new()) };
    let read = |item: &Value| {
        let item = item.as_object().ok_or_else(wrong)?;
        let name = named(item.get("name").and_then(Value::as_str).ok_or_else(wrong)?)?;
        let read_only = match item.get("read_only") {
            None | Some(Value::Null) => false,
            Some(value) => value.as_bool().ok_or_else(wrong)?,
        };
        Ok(VolumeMount { name, read_only, clone: false })
    };
    value.as_array().ok_or_else(wrong)?.iter().map(read).collect()
}

fn named(text: &str) -> Result<VolumeName, ApiError> {
    text.parse().map_err(|error| ApiError::bad_request(format!("invalid volume: {error}")))
}

/// The name in an address. What is no name is that of no volume.
fn known(text: &str) -> Result<VolumeName, ApiError> {
    text.parse()
        .map_err(|error| ApiError::new(StatusCode::NOT_FOUND, format!("volume not found: {error}")))
}
