//! One id and one log line per request.

use std::panic::AssertUnwindSafe;
use std::time::Instant;

use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use uuid::Uuid;

use crate::error::ApiError;
use crate::preview::scrubbed;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest id that is taken over from a client.
const MAX_ID: usize = 64;

/// The middleware. Neither the query nor the token of a link is logged: either opens something.
pub(crate) async fn log(request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = request_id(request.headers().get(REQUEST_ID));
    let method = request.method().clone();
    let path = scrubbed(request.uri().path()).to_owned();
    // A panic is a bug; it costs its request, not the connection's others.
    let response = AssertUnwindSafe(next.run(request)).catch_unwind().await;
    let mut response = response.unwrap_or_else(|_| {
        tracing::error!(%method, path, "a handler panicked");
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal error").into_response()
    });
    tracing::info!(
        target: "pandastack::access",
        %method,
        path,
        status = response.status().as_u16(),
        ms = started.elapsed().as_secs_f64() * 1e3,
        request_id = id.to_str().unwrap_or_default(),
        "request"
    );
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// The client's id if it is fit for a log line, or a new one.
fn request_id(sent: Option<&HeaderValue>) -> HeaderValue {
    let fit = |id: &&HeaderValue| {
        let bytes = id.as_bytes();
        (1..=MAX_ID).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
    };
    sent.filter(fit).cloned().unwrap_or_else(|| {
        // Hexadecimal digits are a valid header value.
        HeaderValue::from_str(&Uuid::new_v4().simple().to_string())
            .unwrap_or(HeaderValue::from_static("-"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fit_ids_are_kept_and_others_replaced() {
        let kept = HeaderValue::from_static("abc-123");
        assert_eq!(request_id(Some(&kept)), kept);
        let long = "x".repeat(MAX_ID + 1);
        for unfit in ["", "a b", "a\tb", long.as_str()] {
            let sent = HeaderValue::from_str(unfit).unwrap();
            let id = request_id(Some(&sent));
            assert_ne!(id, sent);
            assert_eq!(id.len(), 32);
        }
        assert_ne!(request_id(None), request_id(None));
    }
}
