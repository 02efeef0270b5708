//! Snapshots over the API.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::atomic::Ordering;

use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use support::Server;

async fn take(server: &Server, sandbox: &str) -> Value {
    // Both libraries send nothing.
    let answer = server.call(Method::POST, &format!("{sandbox}/snapshots"), "").await;
    assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
    answer.json()
}

#[tokio::test]
async fn the_life_of_a_snapshot() {
    let server = Server::forking().await;
    let sandbox = server.sandbox().await;
    server.call(Method::PUT, &format!("{sandbox}/fs?path=/f"), "content").await;
    let view = take(&server, &sandbox).await;
    assert!(sandbox.ends_with(view["sandbox_id"].as_str().unwrap()));
    assert_eq!((&view["template"], &view["memory_mb"]), (&json!("base"), &json!(512)));
    assert!(view["size_bytes"].as_u64().unwrap() > 0);
    assert!(view["created_at"].is_string());
    let second = take(&server, &sandbox).await;
    let path = format!("/v1/snapshots/{}", view["id"].as_str().unwrap());
    assert_eq!(server.get(&path).await.json(), view);
    let all = json!({ "snapshots": [second, view] });
    assert_eq!(server.get("/v1/snapshots").await.json(), all);
    let own = format!("/v1/snapshots?sandbox_id={}", view["sandbox_id"].as_str().unwrap());
    assert_eq!(server.get(&own).await.json(), all);
    for nobody in ["x", "00000000-0000-4000-8000-000000000000", "%2e%2e%2f"] {
        let answer = server.get(&format!("/v1/snapshots?sandbox_id={nobody}")).await;
        assert_eq!(answer.json(), json!({ "snapshots": [] }));
    }

    assert_eq!(server.call(Method::DELETE, &sandbox, "").await.status, StatusCode::NO_CONTENT);
    // Both libraries send a template along; this one does not even exist.
    let request = json!({ "template": "nothing", "from_snapshot": view["id"] });
    let answer = server.post("/v1/sandboxes", &request).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
    assert!(answer.headers.contains_key("server-timing"));
    let made = answer.json();
    assert_eq!((&made["from_snapshot"], &made["template"]), (&view["id"], &json!("base")));
    let made = format!("/v1/sandboxes/{}", made["id"].as_str().unwrap());
    assert_eq!(server.get(&format!("{made}/fs?path=/f")).await.body, "content");

    assert_eq!(server.call(Method::DELETE, &path, "").await.status, StatusCode::NO_CONTENT);
    for answer in [
        server.call(Method::DELETE, &path, "").await,
        server.get(&path).await,
        server.post("/v1/sandboxes", &request).await,
    ] {
        assert_eq!(answer.status, StatusCode::NOT_FOUND);
        assert!(answer.error().contains("not found"), "{answer:?}");
    }
}

#[tokio::test]
async fn hostile_names_lead_nowhere() {
    let server = Server::forking().await;
    let sandbox = server.sandbox().await;
    take(&server, &sandbox).await;
    for id in ["x", "..", "..%2f..%2fmachines", "%2e%2e", "%00", "SNAPSHOTS"] {
        for method in [Method::GET, Method::DELETE] {
            let answer = server.call(method, &format!("/v1/snapshots/{id}"), "").await;
            assert!(matches!(answer.status.as_u16(), 400 | 404), "{id}: {answer:?}");
            answer.error();
        }
    }
    for id in [json!("../machines"), json!("/etc"), json!("x\u{0}"), json!("a".repeat(5000))] {
        let answer = server.post("/v1/sandboxes", &json!({ "from_snapshot": id })).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{id}");
    }
    for id in [json!(1), json!([]), json!({})] {
        let answer = server.post("/v1/sandboxes", &json!({ "from_snapshot": id })).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{id}");
        assert!(answer.error().contains("from_snapshot"));
    }
    let path = "/v1/sandboxes/00000000-0000-4000-8000-000000000000/snapshots";
    assert_eq!(server.call(Method::POST, path, "").await.status, StatusCode::NOT_FOUND);
    assert_eq!(
        server.call(Method::PUT, "/v1/snapshots", "").await.status,
        StatusCode::METHOD_NOT_ALLOWED
    );
    assert_eq!(server.world.manager.snapshots(None).await.len(), 1);
    assert_eq!(server.world.manager.list().len(), 1);
}

#[tokio::test]
async fn a_sandbox_sleeps_and_wakes() {
    let server = Server::forking().await;
    let sandbox = server.sandbox().await;
    for (verb, status) in [
        ("hibernate", "hibernated"),
        ("stop", "hibernated"),
        ("wake", "running"),
        ("start", "running"),
        ("hibernate", "hibernated"),
    ] {
        let answer = server.call(Method::POST, &format!("{sandbox}/{verb}"), "").await;
        assert_eq!(answer.status, StatusCode::OK, "{verb}");
        assert_eq!(answer.json(), json!({ "status": status }));
        assert_eq!(server.get(&sandbox).await.json()["status"], status);
    }
    let answer = server.call(Method::POST, &format!("{sandbox}/pause"), "").await;
    assert_eq!(answer.status, StatusCode::CONFLICT);
    assert!(answer.error().contains("wake it first"), "{answer:?}");
    let answer = server.post(&format!("{sandbox}/exec"), &json!({ "cmd": "echo here" })).await;
    assert_eq!(answer.json()["stdout"], "here\n");
    assert_eq!(server.get(&sandbox).await.json()["boot_mode"], "wake");

    server.call(Method::POST, &format!("{sandbox}/hibernate"), "").await;
    server.world.engine.knobs.other_host.store(true, Ordering::SeqCst);
    for route in ["wake", "exec"] {
        let answer = server.post(&format!("{sandbox}/{route}"), &json!({ "cmd": "true" })).await;
        assert_eq!(answer.status, StatusCode::CONFLICT, "{answer:?}");
    }
    server.world.engine.knobs.other_host.store(false, Ordering::SeqCst);
    server.world.engine.knobs.broken.store(true, Ordering::SeqCst);
    let answer = server.post(&format!("{sandbox}/exec"), &json!({ "cmd": "true" })).await;
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(answer.error().contains("could not be woken"), "{answer:?}");
    let answer = server.call(Method::DELETE, &sandbox, "").await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn what_cannot_be_done_is_said_so() {
    let server = Server::start().await;
    let sandbox = server.sandbox().await;
    for route in ["snapshots", "hibernate"] {
        let answer = server.call(Method::POST, &format!("{sandbox}/{route}"), "").await;
        assert_eq!(answer.status, StatusCode::NOT_IMPLEMENTED);
        assert!(answer.error().contains("--fork auto"), "{answer:?}");
    }

    let server = Server::forking().await;
    let sandbox = server.sandbox().await;
    let id = take(&server, &sandbox).await["id"].clone();
    server.world.engine.knobs.snapshot_broken.store(true, Ordering::SeqCst);
    let answer = server.call(Method::POST, &format!("{sandbox}/snapshots"), "").await;
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR);
    answer.error();
    server.world.engine.knobs.other_host.store(true, Ordering::SeqCst);
    let answer = server.post("/v1/sandboxes", &json!({ "from_snapshot": id })).await;
    assert_eq!(answer.status, StatusCode::CONFLICT);
    assert!(answer.error().contains("cannot be used"), "{answer:?}");
    assert!(!answer.headers.contains_key("retry-after"));
    let volumes = json!({ "from_snapshot": id, "volumes": [{ "name": "v" }] });
    let answer = server.post("/v1/sandboxes", &volumes).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert!(answer.error().contains("from_snapshot"), "{answer:?}");
}
