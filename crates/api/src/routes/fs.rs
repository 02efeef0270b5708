//! Files, streamed both ways.

use std::io;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use pandastack_sandbox::{Chain, Download};
use pandastack_types::FileEntry;
use serde_json::{Value, json};

use crate::Api;
use crate::body::{Pieces, too_large};
use crate::error::ApiError;
use crate::extract::{Query, Target};

pub(crate) async fn read(Target(sandbox): Target, query: Query) -> Result<Response, ApiError> {
    let download = sandbox.read_file(query.path()?).await?;
    let body = stream::unfold(Some(download), |download| async {
        let mut download: Download = download?;
        match download.chunk().await {
            Ok(Some(bytes)) => Some((Ok(bytes), Some(download))),
            Ok(None) => None,
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "a download broke off");
                Some((Err(io::Error::other("the download broke off")), None))
            }
        }
    });
    let kind = [(header::CONTENT_TYPE, "application/octet-stream")];
    Ok((kind, Body::from_stream(body)).into_response())
}

pub(crate) async fn write(
    State(api): State<Api>,
    Target(sandbox): Target,
    query: Query,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let path = query.path()?;
    let limit = api.options.max_upload_bytes;
    if announced(&headers).is_some_and(|length| length > limit) {
        return Err(too_large(limit));
    }
    // From here on, leaving early drops the upload, which leaves no trace in the guest.
    let mut upload = sandbox.write_file(path.clone()).await?;
    let mut pieces = Pieces::new(body);
    let mut length: u64 = 0;
    while let Some(piece) = pieces.next_in_time().await? {
        length += piece.len() as u64;
        if length > limit {
            return Err(too_large(limit));
        }
        upload.write(piece).await?;
    }
    let bytes = upload.finish().await?;
    Ok(Json(json!({ "path": path, "bytes": bytes })))
}

fn announced(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

pub(crate) async fn remove(Target(sandbox): Target, query: Query) -> Result<StatusCode, ApiError> {
    sandbox.remove(query.path()?).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn list(Target(sandbox): Target, query: Query) -> Result<Json<Value>, ApiError> {
    let path = query.text("path").filter(|path| !path.is_empty()).unwrap_or("/").to_owned();
    let entries = sandbox.list_dir(path.clone()).await?;
    Ok(Json(json!({ "path": path, "entries": entries })))
}

pub(crate) async fn stat(
    Target(sandbox): Target,
    query: Query,
) -> Result<Json<FileEntry>, ApiError> {
    Ok(Json(sandbox.stat(query.path()?).await?))
}

pub(crate) async fn mkdir(Target(sandbox): Target, query: Query) -> Result<Json<Value>, ApiError> {
    let path = query.path()?;
    sandbox.mkdir(path.clone()).await?;
    Ok(Json(json!({ "path": path })))
}
