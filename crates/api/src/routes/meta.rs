//! About the server itself.

use axum::Json;
use serde_json::{Value, json};

pub(crate) async fn healthz() -> Json<Value> {
    Json(json!({ "status": "ok" }))
}

pub(crate) async fn version() -> Json<Value> {
    Json(json!({ "service": "pandastack-api", "version": env!("CARGO_PKG_VERSION") }))
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
