//! Forks, as both published client libraries ask for them.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::atomic::Ordering;

use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use support::Server;
use support::world::eventually;

fn ids(children: &Value) -> Vec<&str> {
    children.as_array().unwrap().iter().map(|child| child["id"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn an_empty_request_gets_one_child() {
    let server = Server::forking().await;
    let path = server.sandbox().await;
    // What the Python library sends, the TypeScript one, and the command line client.
    for body in ["", "{}", r#"{"count":1,"mode":"warm"}"#] {
        let answer = server.call(Method::POST, &format!("{path}/fork"), body).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
        let timing = answer.headers["server-timing"].to_str().unwrap();
        for stage in ["admission", "journal", "fork", "handshake", "total", "pause"] {
            assert!(timing.contains(&format!("{stage};dur=")), "{timing}");
        }
        let view = answer.json();
        let parent = view["parent_id"].as_str().unwrap();
        assert!(path.ends_with(parent));
        assert_eq!(view["children"], json!([view["sandbox"]]));
        assert_eq!(view["snapshot_id"], Value::Null);
        assert!(view["at"].is_string());
        assert_eq!(view["pause_ms"], 2.0);
        assert_eq!(view.get("tree_id"), None);
        assert_eq!(view.get("errors"), None);
        let child = &view["sandbox"];
        assert_eq!((&child["status"], &child["boot_mode"]), (&json!("running"), &json!("fork")));
        assert_eq!((&child["template"], &child["memory_mb"]), (&json!("base"), &json!(512)));
        assert_eq!(child["metadata"], json!({ "fork_parent_id": parent }));
        let own = format!("/v1/sandboxes/{}", child["id"].as_str().unwrap());
        assert_eq!(server.get(&own).await.json(), *child);
    }
}

#[tokio::test]
async fn a_tree_has_its_children_in_order() {
    let server = Server::forking().await;
    let path = server.sandbox().await;
    let request = json!({
        "count": 4,
        "metadata": { "explore_ttl": "600", "name": "x", "fork_tree_role": "root" },
    });
    let answer = server.post(&format!("{path}/fork-tree"), &request).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
    assert!(answer.headers.contains_key("server-timing"));
    let view = answer.json();
    let children = view["children"].as_array().unwrap();
    assert_eq!(children.len(), 4);
    assert_eq!(view.get("sandbox"), None);
    for (index, child) in children.iter().enumerate() {
        let expected = json!({
            "explore_ttl": "600",
            "name": "x",
            "fork_tree_id": view["tree_id"],
            "fork_parent_id": view["parent_id"],
            "fork_index": index.to_string(),
            "fork_tree_role": "child",
        });
        assert_eq!(child["metadata"], expected);
        assert_eq!(child["ttl_seconds"], 600);
    }
    for id in ids(&view["children"]) {
        let answer = server.call(Method::DELETE, &format!("/v1/sandboxes/{id}"), "").await;
        assert_eq!(answer.status, StatusCode::NO_CONTENT);
    }
}

#[tokio::test]
async fn a_partial_success_names_what_is_missing() {
    let server = Server::with(
        |config| {
            config.forking = true;
            config.ready_deadline = std::time::Duration::from_millis(300);
        },
        Default::default(),
    )
    .await;
    let path = server.sandbox().await;
    server.world.engine.knobs.first_fork_deaf.store(true, Ordering::SeqCst);
    let view = server.post(&format!("{path}/fork-tree"), &json!({ "count": 3 })).await.json();
    assert_eq!(view["children"][0]["metadata"]["fork_index"], "1");
    assert_eq!(view["errors"].as_array().unwrap().len(), 1);
    assert_eq!(view["errors"][0]["index"], 0);
    assert!(view["errors"][0]["err"].as_str().unwrap().contains("not ready"), "{view}");
    let none = server.post(&format!("{path}/fork"), &json!({})).await;
    assert_eq!(none.status, StatusCode::INTERNAL_SERVER_ERROR, "no child is an error");
    none.error();
}

#[tokio::test]
async fn hostile_forks_are_refused_with_a_reason() {
    let server = Server::forking().await;
    let path = server.sandbox().await;
    let fork = format!("{path}/fork");
    let tree = format!("{path}/fork-tree");
    let cases = [
        (&fork, "[]", "JSON object"),
        (&fork, "{", "invalid JSON"),
        (&fork, r#"{"count":0}"#, "count must be 1 to 100"),
        (&fork, r#"{"count":-1}"#, "count must be 1 to 100"),
        (&fork, r#"{"count":101}"#, "count must be 1 to 100"),
        (&fork, r#"{"count":1.5}"#, "count must be a whole number"),
        (&fork, r#"{"count":"2"}"#, "count must be a whole number"),
        (&fork, r#"{"count":99999999999999999999}"#, "count"),
        (&fork, r#"{"metadata":[]}"#, "metadata"),
        (&fork, r#"{"metadata":{"a":1}}"#, "metadata"),
        (&fork, r#"{"metadata":{"":"x"}}"#, "metadata key"),
        (&fork, r#"{"ttl_seconds":-1}"#, "ttl_seconds"),
        (&tree, "", "count is required"),
        (&tree, r#"{"count":null}"#, "count is required"),
        (&tree, r#"{"count":101}"#, "count must be 1 to 100"),
        (&tree, r#"{"count":1,"metadata":{"explore_ttl":"1e3"}}"#, "explore_ttl"),
        (&tree, r#"{"count":1,"metadata":{"explore_ttl":"-5"}}"#, "ttl_seconds"),
        (&tree, r#"{"count":1,"metadata":{"explore_ttl":5}}"#, "metadata"),
    ];
    for (path, body, reason) in cases {
        let answer = server.call(Method::POST, path, body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{body}");
        assert!(answer.error().contains(reason), "{body}: {answer:?}");
    }
    assert_eq!(server.world.manager.list().len(), 1);
    assert_eq!(server.get(&fork).await.status, StatusCode::METHOD_NOT_ALLOWED);
    for id in ["x", "00000000-0000-4000-8000-000000000000"] {
        for route in ["fork", "fork-tree"] {
            let path = format!("/v1/sandboxes/{id}/{route}");
            let answer = server.post(&path, &json!({ "count": 1 })).await;
            assert_eq!(answer.status, StatusCode::NOT_FOUND);
            assert!(answer.error().contains("not found"), "{answer:?}");
        }
    }
}

#[tokio::test]
async fn refusals_are_those_of_creates_and_commands() {
    let server = Server::with(
        |config| {
            config.forking = true;
            config.max_sandboxes = 2;
        },
        Default::default(),
    )
    .await;
    let path = server.sandbox().await;
    let full = server.post(&format!("{path}/fork"), &json!({ "count": 2 })).await;
    assert_eq!(full.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(full.headers["retry-after"], "5");
    assert!(full.error().contains("no compute capacity available"));
    assert_eq!(server.world.manager.list().len(), 1);

    server.post(&format!("{path}/exec"), &json!({ "cmd": "poweroff" })).await;
    let sandbox = server.world.manager.get(server.world.manager.list()[0].id).unwrap();
    eventually("it is seen", || sandbox.view().end_reason.is_some()).await;
    let ended = server.post(&format!("{path}/fork"), &json!({})).await;
    assert_eq!(ended.status, StatusCode::GONE);
    assert!(ended.error().ends_with("ended: guest_shutdown"), "{ended:?}");
}

#[tokio::test]
async fn a_server_that_does_not_fork_says_why() {
    let server = Server::start().await;
    let path = server.sandbox().await;
    for route in ["fork", "fork-tree"] {
        let answer = server.post(&format!("{path}/{route}"), &json!({ "count": 1 })).await;
        assert_eq!(answer.status, StatusCode::NOT_IMPLEMENTED);
        assert!(answer.error().contains("--fork auto"), "{answer:?}");
        assert!(!answer.headers.contains_key("retry-after"));
    }
}
