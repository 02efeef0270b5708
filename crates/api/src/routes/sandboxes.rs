//! Sandboxes and their lifecycle.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use pandastack_sandbox::{LifecycleChange, NewSandbox};
use pandastack_types::{Lifecycle, Metrics, SandboxView};
use serde_json::{Value, json};

use super::snapshots;
use crate::Api;
use crate::body::Fields;
use crate::error::ApiError;
use crate::extract::Target;

/// The template of a request that names none.
const DEFAULT_TEMPLATE: &str = "code-interpreter";

pub(super) const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

pub(crate) async fn create(State(api): State<Api>, body: Body) -> Result<Response, ApiError> {
    let request = new_sandbox(&Fields::read(body).await?)?;
    let created = api.manager.create(request).await?;
    let timing = [(SERVER_TIMING, created.stages.server_timing())];
    Ok((StatusCode::CREATED, timing, Json(created.view)).into_response())
}

fn new_sandbox(fields: &Fields) -> Result<NewSandbox, ApiError> {
    // An empty text or list asks for nothing.
    if fields.value("volumes").is_some_and(|value| *value != json!([])) {
        let text = "volumes is not supported by this server yet";
        return Err(ApiError::new(StatusCode::NOT_IMPLEMENTED, text));
    }
    let from_snapshot = fields.text("from_snapshot")?.filter(|id| !id.is_empty());
    let from_snapshot = from_snapshot.map(snapshots::parse).transpose()?;
    // Libraries send their default template along with a snapshot.
    let template = fields.text("template")?.filter(|_| from_snapshot.is_none());
    let template = template.unwrap_or(DEFAULT_TEMPLATE);
    let template = template
        .parse()
        .map_err(|error| ApiError::bad_request(format!("unknown template: {error}")))?;
    Ok(NewSandbox {
        template,
        cpu: fields.integer("cpu")?.or(fields.integer("vcpus")?),
        memory_mb: fields.integer("memory_mb")?,
        metadata: fields.texts("metadata")?,
        ttl_seconds: fields.integer("ttl_seconds")?,
        persistent: fields.flag("persistent")?.unwrap_or(false),
        from_snapshot,
    })
}

pub(crate) async fn list(State(api): State<Api>) -> Json<Vec<SandboxView>> {
    Json(api.manager.list())
}

pub(crate) async fn get(Target(sandbox): Target) -> Json<SandboxView> {
    Json(sandbox.view())
}

pub(crate) async fn delete(Target(sandbox): Target) -> Result<StatusCode, ApiError> {
    sandbox.delete().await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn lifecycle(Target(sandbox): Target) -> Json<Lifecycle> {
    Json(sandbox.lifecycle())
}

pub(crate) async fn change_lifecycle(
    Target(sandbox): Target,
    body: Body,
) -> Result<Json<Lifecycle>, ApiError> {
    let fields = Fields::read(body).await?;
    let change = LifecycleChange {
        ttl_seconds: fields.integer("ttl_seconds")?,
        persistent: fields.flag("persistent")?,
    };
    if change == LifecycleChange::default() {
        return Err(ApiError::bad_request("ttl_seconds or persistent is required"));
    }
    Ok(Json(sandbox.change(change).await?))
}

pub(crate) async fn pause(Target(sandbox): Target) -> Result<StatusCode, ApiError> {
    sandbox.pause().await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn resume(Target(sandbox): Target) -> Result<StatusCode, ApiError> {
    sandbox.resume().await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(crate) async fn metrics(Target(sandbox): Target) -> Result<Json<Metrics>, ApiError> {
    Ok(Json(sandbox.metrics()?))
}

/// What listens in the guest. Nothing leads there from outside yet, hence no address.
pub(crate) async fn ports(Target(sandbox): Target) -> Result<Json<Vec<Value>>, ApiError> {
    let ports = sandbox.ports().await?.into_iter().map(
        |port| json!({ "port": port, "listening": true, "source": "detected", "proxy_url": "" }),
    );
    Ok(Json(ports.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<NewSandbox, ApiError> {
        new_sandbox(&Fields::parse(text.as_bytes()).unwrap())
    }

    #[test]
    fn what_both_libraries_and_the_bench_clients_send_is_understood() {
        assert_eq!(read("").unwrap().template.as_str(), "code-interpreter");
        let full = read(
            r#"{"template":"base","vcpus":2,"memory_mb":1024,"metadata":{"a":"b"},
                "ttl_seconds":300,"persistent":true,"disk_gb":9,"args":[1],
                "from_snapshot":null,"volumes":[]}"#,
        )
        .unwrap();
        assert_eq!((full.cpu, full.memory_mb), (Some(2), Some(1024)));
        assert_eq!((full.ttl_seconds, full.persistent), (Some(300), true));
        assert_eq!(full.metadata["a"], "b");
    }

    #[test]
    fn what_is_not_there_yet_is_said_so() {
        let error = read(r#"{"volumes":[{"name":"v"}]}"#).unwrap_err();
        assert_eq!(error.status, StatusCode::NOT_IMPLEMENTED);
        assert!(error.text.contains("not supported by this server yet"), "{error:?}");
    }

    #[test]
    fn a_snapshot_takes_the_place_of_the_template() {
        let text = r#"{"template":"../x","from_snapshot":"1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed"}"#;
        assert!(read(text).unwrap().from_snapshot.is_some());
        assert!(read(r#"{"from_snapshot":""}"#).unwrap().from_snapshot.is_none());
        let unknown = read(r#"{"from_snapshot":"../../etc"}"#).unwrap_err();
        assert_eq!(unknown.status, StatusCode::NOT_FOUND);
    }

    #[test]
    fn hostile_members_are_refused() {
        for text in [
            r#"{"template":"../x"}"#,
            r#"{"template":1}"#,
            r#"{"from_snapshot":1}"#,
            r#"{"cpu":"2"}"#,
            r#"{"memory_mb":1.5}"#,
            r#"{"ttl_seconds":9223372036854775808}"#,
            r#"{"metadata":{"a":1}}"#,
            r#"{"metadata":[]}"#,
            r#"{"persistent":1}"#,
        ] {
            assert_eq!(read(text).unwrap_err().status, StatusCode::BAD_REQUEST, "{text}");
        }
    }
}
