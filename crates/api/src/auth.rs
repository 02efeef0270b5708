//! Checking the key of a request.

use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;

use crate::error::ApiError;
use crate::extract::Query;
use crate::keyring::KeyId;
use crate::preview::Peer;
use crate::{Api, KeyError};

/// Routes that tell nothing and need no key.
const PUBLIC: [&str; 2] = ["/healthz", "/version"];

/// The middleware: lets nothing but [`PUBLIC`] through without a valid key, unknown routes
/// included, and of each key and each stranger only so much.
pub(crate) async fn check(
    State(api): State<Api>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    if !PUBLIC.contains(&request.uri().path()) {
        match caller(&api, &request)? {
            Ok(key) => api.rates.key(key)?,
            Err(refusal) => return Err(stranger(&api, &request, refusal)),
        }
    }
    Ok(next.run(request).await)
}

/// Whose request it is, or why it is nobody's.
fn caller(api: &Api, request: &Request) -> Result<Result<KeyId, ApiError>, ApiError> {
    let Some(key) = key_of(request)? else { return Ok(Err(no_key())) };
    let known = api.keys.identify(&key).map_err(unreadable)?;
    Ok(known.ok_or_else(|| refusal("invalid API key")))
}

/// What a stranger is told: `refusal`, as long as it does not ask too often.
pub(crate) fn stranger(api: &Api, request: &Request, refusal: ApiError) -> ApiError {
    let peer = request.extensions().get::<Peer>();
    let limited = peer.map(|peer| api.rates.keyless(peer.0.ip()));
    limited.and_then(Result::err).unwrap_or(refusal)
}

fn key_of(request: &Request) -> Result<Option<String>, ApiError> {
    if let Some(key) = bearer(request.headers()) {
        return Ok(Some(key.to_owned()));
    }
    let query = takes_key_in_query(request).then(|| Query::of(request.uri())).transpose()?;
    Ok(query.and_then(|query| query.text("access_token").map(str::to_owned)))
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
