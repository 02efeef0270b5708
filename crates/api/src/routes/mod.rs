//! The routes.

mod attach;
mod egress;
mod exec;
mod fork;
mod fs;
mod logs;
mod meta;
mod ports;
mod sandboxes;
mod snapshots;
mod stream;
mod templates;
mod volumes;

use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{any, delete, get, post};
use axum::{Router, middleware::Next, response::Response};

use crate::error::ApiError;
use crate::guard::Guard;
use crate::preview::Previews;
use crate::{Api, access, auth, body, guard, preview};

/// Routes of the contract that this server does not have yet. Named, so that clients hear that
/// and not that their sandbox is missing.
const NOT_YET: [&str; 8] = [
    "/v1/sandboxes/{id}/repl",
    "/v1/sandboxes/{id}/repl/sessions",
    "/v1/sandboxes/{id}/mcp",
    "/v1/sandboxes/{id}/exec/ws",
    "/v1/sandboxes/{id}/exec/pty",
    "/v1/me/tokens",
    "/v1/templates/build",
    "/v1/templates/builds",
];

/// Everything, with its guards around it.
pub(crate) fn router(api: Api, guard: Guard) -> Router {
    let mut routes = Router::new()
        .route("/healthz", get(meta::healthz))
        .route("/version", get(meta::version))
        .route("/v1/version", get(meta::version))
        .route("/v1/me", get(meta::me))
        .route("/v1/stats", get(meta::stats))
        .route("/v1/templates", get(templates::list))
        .route("/v1/templates/{name}", get(templates::get))
        .route("/v1/sandboxes", post(sandboxes::create).get(sandboxes::list))
        .route("/v1/sandboxes/{id}", get(sandboxes::get).delete(sandboxes::delete))
        .route(
            "/v1/sandboxes/{id}/lifecycle",
            get(sandboxes::lifecycle).patch(sandboxes::change_lifecycle),
        )
        .route("/v1/sandboxes/{id}/pause", post(sandboxes::pause))
        .route("/v1/sandboxes/{id}/resume", post(sandboxes::resume))
        .route("/v1/sandboxes/{id}/hibernate", post(sandboxes::hibernate))
        .route("/v1/sandboxes/{id}/stop", post(sandboxes::hibernate))
        .route("/v1/sandboxes/{id}/wake", post(sandboxes::wake))
        .route("/v1/sandboxes/{id}/start", post(sandboxes::wake))
        .route("/v1/sandboxes/{id}/fork", post(fork::fork))
        .route("/v1/sandboxes/{id}/fork-tree", post(fork::fork_tree))
        .route("/v1/sandboxes/{id}/promote", post(fork::promote))
        .route("/v1/sandboxes/{id}/snapshots", post(snapshots::take))
        .route("/v1/snapshots", get(snapshots::list))
        .route("/v1/snapshots/{id}", get(snapshots::get).delete(snapshots::delete))
        .route("/v1/volumes", post(volumes::create).get(volumes::list))
        .route("/v1/volumes/{name}", get(volumes::get).delete(volumes::delete))
        .route("/v1/sandboxes/{id}/metrics", get(sandboxes::metrics))
        .route("/v1/sandboxes/{id}/ports", get(ports::list).post(ports::expose))
        .route("/v1/sandboxes/{id}/ports/{port}", delete(ports::close))
        .route("/v1/sandboxes/{id}/preview-token", post(ports::sign))
        .route("/v1/sandboxes/{id}/traffic-token", get(ports::traffic).post(ports::rotate))
        .route("/v1/sandboxes/{id}/logs", get(logs::logs))
        .route("/v1/sandboxes/{id}/events", get(logs::events))
        .route("/v1/events", get(logs::all_events))
        .route("/v1/sandboxes/{id}/egress", get(egress::get).put(egress::set))
        .route("/v1/sandboxes/{id}/egress/log", get(egress::log))
        .route("/v1/sandboxes/{id}/exec", post(exec::exec))
        .route("/v1/sandboxes/{id}/exec/stream", post(stream::stream))
        .route("/v1/sandboxes/{id}/exec/attach", post(attach::attach))
        .route("/v1/sandboxes/{id}/fs", get(fs::read).put(fs::write).delete(fs::remove))
        .route("/v1/sandboxes/{id}/fs/dir", get(fs::list))
        .route("/v1/sandboxes/{id}/fs/stat", get(fs::stat))
        .route("/v1/sandboxes/{id}/fs/mkdir", post(fs::mkdir));
    for path in NOT_YET {
        routes = routes.route(path, any(not_yet));
    }
    routes
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .layer(from_fn_with_state(api.clone(), auth::check))
        .layer(from_fn_with_state(guard.clone(), guard::check))
        .layer(from_fn(body::read_small))
        .layer(from_fn_with_state(Previews::new(api.clone(), guard), preview::front))
        .layer(from_fn(sane_head))
        .layer(from_fn(access::log))
        .with_state(api)
}

async fn unknown() -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "no such route")
}

async fn wrong_method() -> ApiError {
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "this route does not take that method")
}

async fn not_yet() -> ApiError {
    ApiError::new(StatusCode::NOT_IMPLEMENTED, "not supported by this server yet")
}

/// Longest address, in bytes: a path in a guest is at most 4096 bytes, each up to three here.
const MAX_ADDRESS: usize = 16 << 10;

/// Refuses addresses that no route needs.
async fn sane_head(request: Request, next: Next) -> Result<Response, ApiError> {
    let uri = request.uri();
    let length = uri.path_and_query().map_or(0, |address| address.as_str().len());
    if length > MAX_ADDRESS {
        return Err(ApiError::new(StatusCode::URI_TOO_LONG, "the address is too long"));
    }
    Ok(next.run(request).await)
}
