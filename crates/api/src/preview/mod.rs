//! Previews: HTTP servers in sandboxes, as seen from outside.
//!
//! ```text
//!   request ─▶ address ─▶ gate ─▶ dial ─▶ headers ─▶ forward ─▶ headers ─▶ answer
//!                │          │                          │
//!                │ none     │ 401, 403                 └ 101 ─▶ tunnel
//!                ▼          ▼
//!               API      refused
//! ```
//!
//! There are three ways to a port, and each request takes exactly one:
//!
//! * **site** `http://{port}-{id}.{host}/…`: an origin of its own, so whole web applications work;
//! * **path** `/v1/sandboxes/{id}/proxy/{port}/…`: for programs that hold the API key;
//! * **link** `/p/{token}/…`: an address that carries its own permission, for a while.
//!
//! Four invariants:
//!
//! * **The API and a preview are never confused.** [`address`] looks at a request once, before any
//!   route; whatever names a sandbox in its host goes to that sandbox or is refused, and whatever it
//!   says in its path is not looked at again. The agent has no HTTP port, so no path leads to it.
//! * **A port is private.** Who gets in is decided in [`gate`] and nowhere else.
//! * **A guest learns nothing that opens anything.** Keys, tokens and cookies of ours end at
//!   [`headers`], as does what a client says about where it comes from.
//! * **A guest's answer is hostile.** Its head is bounded, its body is never kept, and no header of
//!   it has effects beyond the sandbox: see [`headers`].

mod address;
mod cookies;
mod forward;
mod gate;
mod headers;
mod idle;
mod site;
mod token;
mod tunnel;
mod upload;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tokio::sync::Semaphore;

use crate::error::ApiError;
use crate::guard::Guard;
use crate::{Api, auth};
use address::Way;

pub(crate) use address::names_a_sandbox;
pub(crate) use site::{Base, Site};
pub use site::{InvalidPreviewHost, PreviewHost};
pub use token::PreviewSecret;
pub(crate) use token::{Claims, LINK, Signer, scrubbed};

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// What the front needs to know.
#[derive(Clone)]
pub(crate) struct Previews {
    api: Api,
    guard: Guard,
    /// Previews at a time: fewer than connections, so that the API stays reachable.
    slots: Arc<Semaphore>,
}

impl Previews {
    pub(crate) fn new(api: Api, guard: Guard) -> Self {
        let slots = (api.options.max_connections / 2).max(1);
        Self { api, guard, slots: Arc::new(Semaphore::new(slots)) }
    }

    async fn answer(&self, request: Request, next: Next) -> Result<Response, ApiError> {
        let head = (request.method(), request.uri(), request.headers());
        let Some(address) = address::of(head.1, head.2, &self.api.site)? else {
            return Ok(next.run(request).await);
        };
        if address.way != Way::Site {
            self.guard.check_name(head.1, head.2)?;
        }
        if head.0 == axum::http::Method::CONNECT {
            let text = "this server connects to nothing on behalf of others";
            return Err(ApiError::new(StatusCode::METHOD_NOT_ALLOWED, text));
        }
        let passed = match gate::pass(&self.api, &address, &request) {
            Ok(gate::Passed::In(passed)) => passed,
            Ok(gate::Passed::Redirect(response)) => return Ok(response),
            // Whoever is let in is the guest's business; who guesses is ours.
            Err(refusal) if refusal.status == StatusCode::UNAUTHORIZED => {
                return Err(auth::stranger(&self.api, &request, refusal));
            }
            Err(refusal) => return Err(refusal),
        };
        let patience = self.api.options.preview_patience;
        forward::forward((&self.slots, patience), &address, passed, request).await
    }
}

/// The middleware: takes what is a preview out of the requests.
pub(crate) async fn front(
    State(previews): State<Previews>,
    request: Request,
    next: Next,
) -> Response {
    previews.answer(request, next).await.unwrap_or_else(IntoResponse::into_response)
}
