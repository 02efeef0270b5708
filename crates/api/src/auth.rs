//! Checking the key of a request.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;

use crate::error::ApiError;
use crate::extract::Query;
use crate::{Api, KeyError};

/// Routes that tell nothing and need no key.
const PUBLIC: [&str; 2] = ["/healthz", "/version"];

/// The middleware: lets nothing but [`PUBLIC`] through without a valid key, unknown routes
/// included.
pub(crate) async fn check(
    State(api): State<Api>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    if !PUBLIC.contains(&request.uri().path()) {
        let key = key_of(&request)?;
        let known = api.keys.verify(&key).map_err(unreadable)?;
        if !known {
            return Err(refusal("invalid API key"));
        }
    }
    Ok(next.run(request).await)
}

fn key_of(request: &Request) -> Result<String, ApiError> {
    if let Some(key) = bearer(request.headers()) {
        return Ok(key.to_owned());
    }
    let query = takes_key_in_query(request).then(|| Query::of(request.uri())).transpose()?;
    query.and_then(|query| query.text("access_token").map(str::to_owned)).ok_or_else(no_key)
}

/// The answer to a request without a key.
pub(crate) fn no_key() -> ApiError {
    refusal("an API key is required: Authorization: Bearer pds_…")
}

pub(crate) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, key) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

/// Event streams of browsers cannot send headers. Only those may have the key in the address,
/// where other programs keep it in their logs.
fn takes_key_in_query(request: &Request) -> bool {
    let path = request.uri().path();
    let stream = ["/logs", "/events", "/egress/log"].iter().any(|end| path.ends_with(end));
    request.method() == Method::GET && path.starts_with("/v1/sandboxes/") && stream
}

fn refusal(text: &str) -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, text)
}

pub(crate) fn unreadable(error: KeyError) -> ApiError {
    tracing::error!(error = %pandastack_sandbox::Chain(&error), "cannot check a key");
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "cannot check the API key")
}
