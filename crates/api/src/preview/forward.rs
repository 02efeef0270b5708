//! One request to a guest, and its answer.
//!
//! ```text
//!   slot ─▶ dial ─▶ head and body out ─▶ head of the answer ─▶ body back, as it comes
//!    │       │            │                    │
//!    503     502…504      408 (client),        502 (no HTTP), 504 (nothing)
//!                         504 (guest)
//! ```
//!
//! A connection serves one request. Nothing of a body is kept: a piece is taken from one side when
//! the other has taken the one before. An answer that breaks is broken off, never ended.

use std::error::Error as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{StatusCode, Uri, header};
use axum::response::Response;
use bytes::Bytes;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use hyper::client::conn::http1;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use pandastack_sandbox::{DialError, Port, Sandbox};
use pandastack_types::State;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::AbortOnDropHandle;

use super::address::Address;
use super::gate::In;
use super::headers::{from_guest, is_upgrade, to_guest};
use super::idle::Idle;
use super::upload::{Progress, Turn, Upload};
use super::{Peer, tunnel};
use crate::error::ApiError;

/// Bytes of an answer's head, and of what is buffered of an answer.
const BUFFER: usize = 64 << 10;
/// Most headers of an answer.
const HEADERS: usize = 128;
/// How long nothing may move on a connection. Event streams and WebSockets may be silent for long.
const SILENCE: Duration = Duration::from_secs(3600);

/// Sends a request to a guest and returns its answer once it has begun.
pub(super) async fn forward(
    (slots, patience): (&Arc<Semaphore>, Duration),
    address: &Address,
    passed: In,
    mut request: Request,
) -> Result<Response, ApiError> {
    let In { sandbox, port, rest } = passed;
    let slot = slots.clone().try_acquire_owned().map_err(|_| busy())?;
    let connection = sandbox.dial(port).await?;
    let mut http = http1::Builder::new();
    http.max_buf_size(BUFFER).max_headers(HEADERS);
    let io = TokioIo::new(Idle::new(connection, SILENCE));
    let (mut sender, driver) =
        http.handshake(io).await.map_err(|error| broken(&sandbox, port, &error))?;
    let driver = AbortOnDropHandle::new(tokio::spawn(async move {
        // Its errors come out at the request or at the body.
        let _ = driver.with_upgrades().await;
    }));

    let upgrade = is_upgrade(request.headers()).then(|| hyper::upgrade::on(&mut request));
    let progress = Progress::new();
    let request = outgoing(request, address, port, &rest, progress.clone())?;
    let response = tokio::select! {
        response = sender.send_request(request) => {
            response.map_err(|error| broken(&sandbox, port, &error))?
        }
        turn = progress.stalled(patience) => return Err(late(turn, port, patience)),
    };
    let held = Held { _driver: driver, _slot: slot };
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return switched(response, upgrade, address, port, held);
    }
    Ok(incoming(response, address, port, held))
}

/// What has to live as long as the answer.
struct Held {
    _driver: AbortOnDropHandle<()>,
    _slot: OwnedSemaphorePermit,
}

fn outgoing(
    request: Request,
    address: &Address,
    port: Port,
    rest: &str,
    progress: Progress,
) -> Result<hyper::Request<Upload>, ApiError> {
    let (head, body) = request.into_parts();
    let peer = head.extensions.get::<Peer>().map(|peer| peer.0.ip());
    let uri: Uri =
        rest.parse().map_err(|_| ApiError::bad_request("the address is not well-formed"))?;
    let mut request = hyper::Request::new(Upload::new(body, progress));
    *request.method_mut() = head.method;
    *request.uri_mut() = uri;
    *request.headers_mut() = to_guest(&head.headers, address, port, peer);
    Ok(request)
}

fn incoming(
    response: hyper::Response<Incoming>,
    address: &Address,
    port: Port,
    held: Held,
) -> Response {
    let (head, body) = response.into_parts();
    let mut headers = from_guest(&head.headers, address, port);
    // What a body says of its own length is what its reader found to be true.
    if !body.is_end_stream() {
        headers.remove(header::CONTENT_LENGTH);
    }
    let mut response = Response::new(Body::new(Relay { body, _held: held }));
    *response.status_mut() = head.status;
    *response.headers_mut() = headers;
    response
}

fn switched(
    mut response: hyper::Response<Incoming>,
    upgrade: Option<OnUpgrade>,
    address: &Address,
    port: Port,
    held: Held,
) -> Result<Response, ApiError> {
    let Some(client) = upgrade.filter(|_| is_upgrade(response.headers())) else {
        return Err(no_http(port, "it switched to a protocol that nobody asked for"));
    };
    tunnel::carry(client, hyper::upgrade::on(&mut response), held);
    let mut headers = from_guest(response.headers(), address, port);
    headers.insert(header::CONNECTION, header::HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, header::HeaderValue::from_static("websocket"));
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = headers;
    Ok(response)
}

/// The body of an answer. Dropping it ends the connection to the guest.
struct Relay {
    body: Incoming,
    _held: Held,
}

impl hyper::body::Body for Relay {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Err(error))) = &frame {
            tracing::debug!(%error, "a preview broke off");
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn busy() -> ApiError {
    let text = "this server shows as many previews as it can at once; try again soon";
    ApiError { retry_after: Some(1), ..ApiError::new(StatusCode::SERVICE_UNAVAILABLE, text) }
}

fn late(turn: Turn, port: Port, patience: Duration) -> ApiError {
    let seconds = patience.as_secs();
    match turn {
        Turn::Client => {
            let text = format!("nothing came of the request's body for {seconds} seconds");
            ApiError::new(StatusCode::REQUEST_TIMEOUT, text)
        }
        Turn::Guest => {
            let text = format!(
                "what listens on port {port} of the sandbox did not answer within {seconds} \
                 seconds; look at what it does with `pandastack sandbox exec`"
            );
            ApiError::new(StatusCode::GATEWAY_TIMEOUT, text)
        }
    }
}

/// The conversation failed before there was an answer.
fn broken(sandbox: &Arc<Sandbox>, port: Port, error: &hyper::Error) -> ApiError {
    tracing::debug!(%error, cause = ?error.source().map(ToString::to_string), "no answer");
    if !matches!(sandbox.state(), State::Running | State::Paused | State::Hibernated) {
        let text = "the sandbox ended before it answered";
        return ApiError::new(StatusCode::SERVICE_UNAVAILABLE, text);
    }
    if error.is_user() {
        return ApiError::bad_request("the request's body broke off");
    }
    if error.is_parse_too_large() {
        return no_http(port, &format!("its head is longer than {BUFFER} bytes"));
    }
    if error.is_parse() {
        return no_http(port, "its answer is not HTTP/1.1");
    }
    no_http(port, "it closed the connection without an answer")
}

fn no_http(port: Port, what: &str) -> ApiError {
    let text = format!(
        "what listens on port {port} of the sandbox does not speak HTTP as it should: {what}"
    );
    ApiError::new(StatusCode::BAD_GATEWAY, text)
}

impl From<DialError> for ApiError {
    fn from(error: DialError) -> Self {
        match &error {
            DialError::Unavailable(_) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
            }
            DialError::Refused(_) => Self::new(StatusCode::BAD_GATEWAY, error.to_string()),
            DialError::TimedOut(_) => Self::new(StatusCode::GATEWAY_TIMEOUT, error.to_string()),
            DialError::TooMany => Self {
                retry_after: Some(1),
                ..Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
            },
            DialError::Agent(_) => Self::internal(StatusCode::BAD_GATEWAY, &error),
        }
    }
}
