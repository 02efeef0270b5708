//! About the server itself.

use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};

use crate::Api;

pub(crate) async fn healthz() -> Json<Value> {
    Json(json!({ "status": "ok" }))
}

pub(crate) async fn version() -> Json<Value> {
    Json(json!({ "service": "pandastack-api", "version": env!("CARGO_PKG_VERSION") }))
}

/// How busy the server is.
pub(crate) async fn stats(State(api): State<Api>) -> Json<Value> {
    let parking = api.manager.parking();
    let forking = api.manager.forking();
    Json(json!({
        "sandboxes": api.manager.list().len(),
        "parked": parking.parked,
        "parked_wanted": parking.wanted,
        "zygotes": parking.zygotes,
        "forking": { "state": forking.as_str(), "reason": forking.reason() },
    }))
}

/// One user: whoever holds a key.
pub(crate) async fn me() -> Json<Value> {
    let org = json!({ "id": "local", "name": "local" });
    Json(json!({
        "user_id": "local",
        "email": "",
        "current_org": "local",
        "orgs": [org],
        "auth_method": "api_key",
    }))
}
