//! Sandboxes and their lifecycle.

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use pandastack_policy::Policy;
use pandastack_sandbox::{LifecycleChange, NewSandbox};
use pandastack_types::{Lifecycle, Metrics, SandboxView, TtlMode};
use serde_json::{Value, json};

use super::{snapshots, volumes};
use crate::Api;
use crate::body::{self, Fields};
use crate::egress;
use crate::error::ApiError;
use crate::extract::Target;
use crate::idempotency;

/// The template of a request that names none.
const DEFAULT_TEMPLATE: &str = "code-interpreter";

/// Marks an answer that was given before.
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

pub(super) const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

pub(crate) async fn create(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let key = idempotency::key(&headers)?;
    let text = body::text(body).await?;
    let request = new_sandbox(&Fields::parse(&text)?, egress::asked(&text)?)?;
    let mut timing = None;
    let made = async {
        let created = api.manager.create(request).await?;
        timing = Some([(SERVER_TIMING, created.stages.server_timing())]);
        let mut answer = serde_json::to_value(&created.view).unwrap_or_default();
        if let Ok(sandbox) = api.manager.get(created.view.id) {
            // Once, to whoever made it: everybody else who may know it asks for it.
            answer["traffic_token"] = super::ports::traffic_token(&api, &sandbox).into();
        }
        Ok(answer)
    };
    let (answer, again) = match key {
        Some(key) => api.idempotency.once(key, &text, made).await?,
        None => (made.await?, false),
    };
    let again = again.then_some([(REPLAYED, "true")]);
    Ok((StatusCode::CREATED, timing, again, Json(answer)).into_response())
}

fn new_sandbox(fields: &Fields, egress: Option<Policy>) -> Result<NewSandbox, ApiError> {
    // An empty text asks for nothing.
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
        disk_mb: disk_mb(fields)?,
        metadata: fields.texts("metadata")?,
        ttl_seconds: fields.integer("ttl_seconds")?,
        ttl_mode: ttl_mode(fields)?.unwrap_or_default(),
        persistent: fields.flag("persistent")?.unwrap_or(false),
        idle_timeout: fields.integer("idle_timeout")?,
        from_snapshot,
        volumes: volumes::asked(fields)?,
        egress,
    })
}

/// Older clients count the disk in GiB.
fn disk_mb(fields: &Fields) -> Result<Option<i64>, ApiError> {
    let legacy = fields.integer("disk_gb")?.map(|gb| gb.saturating_mul(1024));
    Ok(fields.integer("disk_mb")?.or(legacy))
}

fn ttl_mode(fields: &Fields) -> Result<Option<TtlMode>, ApiError> {
    let Some(text) = fields.text("ttl_mode")? else { return Ok(None) };
    let refused = |()| ApiError::bad_request("ttl_mode must be wall or idle");
    text.parse().map(Some).map_err(refused)
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
        ttl_mode: ttl_mode(&fields)?,
        persistent: fields.flag("persistent")?,
        idle_timeout: fields.integer("idle_timeout")?,
    };
    if change == LifecycleChange::default() {
        return Err(ApiError::bad_request(
            "ttl_seconds, ttl_mode, persistent or idle_timeout is required",
        ));
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

pub(crate) async fn hibernate(Target(sandbox): Target) -> Result<Json<Value>, ApiError> {
    sandbox.hibernate().await?;
    Ok(Json(json!({ "status": "hibernated" })))
}

pub(crate) async fn wake(Target(sandbox): Target) -> Result<Json<Value>, ApiError> {
    sandbox.wake().await?;
    Ok(Json(json!({ "status": "running" })))
}

pub(crate) async fn metrics(Target(sandbox): Target) -> Result<Json<Metrics>, ApiError> {
    Ok(Json(sandbox.metrics()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<NewSandbox, ApiError> {
        let text = text.as_bytes();
        new_sandbox(&Fields::parse(text).unwrap(), egress::asked(text)?)
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
        assert_eq!(full.disk_mb, Some(9 * 1024));
        assert_eq!(read(r#"{"disk_mb":1,"disk_gb":9}"#).unwrap().disk_mb, Some(1));
        assert!(read(&format!(r#"{{"disk_gb":{}}}"#, i64::MIN)).unwrap().disk_mb < Some(0));
        assert_eq!((full.ttl_seconds, full.persistent), (Some(300), true));
        assert_eq!(full.metadata["a"], "b");
    }

    #[test]
    fn volumes_are_read_only_if_they_say_so() {
        let text = r#"{"volumes":[{"name":"v"},{"name":"w","read_only":true,"mount":"/x"}]}"#;
        let volumes = read(text).unwrap().volumes;
        let read: Vec<_> = volumes.iter().map(|v| (v.name.as_str(), v.read_only)).collect();
        assert_eq!(read, [("v", false), ("w", true)]);
        assert!(volumes.iter().all(|volume| !volume.clone), "a client does not say that");
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
            r#"{"disk_mb":"9"}"#,
            r#"{"disk_gb":0.5}"#,
            r#"{"ttl_seconds":9223372036854775808}"#,
            r#"{"metadata":{"a":1}}"#,
            r#"{"metadata":[]}"#,
            r#"{"persistent":1}"#,
            r#"{"volumes":{}}"#,
            r#"{"volumes":["v"]}"#,
            r#"{"volumes":[{"read_only":true}]}"#,
            r#"{"volumes":[{"name":"../v"}]}"#,
            r#"{"volumes":[{"name":"v","read_only":1}]}"#,
        ] {
            assert_eq!(read(text).unwrap_err().status, StatusCode::BAD_REQUEST, "{text}");
        }
    }
}
