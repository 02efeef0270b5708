//! The contract's routes, as both published client libraries use them.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::time::Duration;

use http_body_util::Full;
use hyper::{Method, StatusCode};
use serde_json::json;
use support::world::eventually;
use support::{Answer, Server};

#[tokio::test]
async fn the_life_of_a_sandbox() {
    let server = Server::start().await;
    let request = json!({ "template": "code-interpreter", "metadata": { "a": "b" }, "args": [1] });
    let answer = server.post("/v1/sandboxes", &request).await;
    assert_eq!(answer.status, StatusCode::CREATED);
    let timing = answer.headers["server-timing"].to_str().unwrap();
    assert!(timing.contains("handshake;dur="), "{timing}");
    let mut view = answer.json();
    // Of the creation alone, and of no view.
    view.as_object_mut().unwrap().remove("traffic_token").unwrap();
    assert_eq!(view["template"], "code-interpreter");
    assert_eq!(view["status"], "running");
    assert_eq!((&view["cpu"], &view["memory_mb"]), (&json!(1), &json!(512)));
    assert_eq!(view["metadata"], json!({ "a": "b" }));
    assert_eq!(view["persistent"], false);
    let path = format!("/v1/sandboxes/{}", view["id"].as_str().unwrap());
    assert_eq!(server.get(&path).await.json(), view);
    assert_eq!(server.get("/v1/sandboxes").await.json(), json!([view]));

    let lifecycle = format!("{path}/lifecycle");
    let answer = server.get(&lifecycle).await.json();
    let expected = json!({
        "ttl_seconds": 3600, "ttl_mode": "wall", "persistent": false, "idle_seconds": 0, "idle_timeout": 0,
    });
    assert_eq!(answer, expected);
    for (body, status) in [
        (json!({ "ttl_seconds": 60 }), 200),
        (json!({ "persistent": true }), 200),
        (json!({ "ttl_seconds": -1 }), 400),
        (json!({}), 400),
    ] {
        let answer = server.call(Method::PATCH, &lifecycle, body.to_string()).await;
        assert_eq!(answer.status.as_u16(), status, "{body}");
    }
    let answer = server.get(&lifecycle).await.json();
    assert_eq!((&answer["ttl_seconds"], &answer["persistent"]), (&json!(60), &json!(true)));

    for step in ["pause", "pause", "resume", "resume"] {
        let answer = server.call(Method::POST, &format!("{path}/{step}"), "").await;
        assert_eq!(answer.status, StatusCode::NO_CONTENT, "{step}");
    }
    server.call(Method::POST, &format!("{path}/pause"), "").await;
    assert_eq!(server.get(&path).await.json()["status"], "paused");
    let answer = server.post(&format!("{path}/exec"), &json!({ "cmd": "echo" })).await;
    assert_eq!(answer.status, StatusCode::CONFLICT);
    assert_eq!(answer.error(), "sandbox is paused; resume it first");

    let answer = server.call(Method::DELETE, &path, "").await;
    assert_eq!((answer.status, answer.body.len()), (StatusCode::NO_CONTENT, 0));
    for method in [Method::DELETE, Method::GET] {
        let answer = server.call(method, &path, "").await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND);
        assert!(answer.error().contains("not found"));
    }
    server.world.nothing_left().await;
}

#[tokio::test]
async fn refusals_that_libraries_try_again_carry_their_marks() {
    let server = Server::with(|config| config.max_sandboxes = 0, Default::default()).await;
    let full = server.post("/v1/sandboxes", &json!({ "template": "base" })).await;
    assert_eq!(full.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(full.headers["retry-after"], "5");
    assert!(full.error().contains("no compute capacity available"));
    let building = server.post("/v1/sandboxes", &json!({ "template": "later" })).await;
    assert_eq!(building.status, StatusCode::SERVICE_UNAVAILABLE, "{building:?}");

    let server =
        Server::with(|config| config.memory_reserve_mb = 1 << 40, Default::default()).await;
    let memory = server.post("/v1/sandboxes", &json!({ "template": "base" })).await;
    assert_eq!(memory.status, StatusCode::INSUFFICIENT_STORAGE);
    assert_eq!(memory.headers["retry-after"], "5");
    let building = server.post("/v1/sandboxes", &json!({ "template": "later" })).await;
    assert!(building.headers.contains_key("retry-after"));
}

#[tokio::test]
async fn a_sandbox_that_ended_by_itself_says_how() {
    let server = Server::start().await;
    let path = server.sandbox().await;
    server.post(&format!("{path}/exec"), &json!({ "cmd": "poweroff" })).await;
    let sandbox = server.world.manager.list()[0].id;
    let sandbox = server.world.manager.get(sandbox).unwrap();
    eventually("it is seen", || sandbox.view().end_reason.is_some()).await;
    let view = server.get(&path).await.json();
    assert_eq!(
        (&view["status"], &view["end_reason"]),
        (&json!("failed"), &json!("guest_shutdown"))
    );
    let answer = server.post(&format!("{path}/exec"), &json!({ "cmd": "echo" })).await;
    assert_eq!(answer.status, StatusCode::GONE);
    assert!(answer.error().ends_with("ended: guest_shutdown"), "{answer:?}");
    assert_eq!(server.get(&format!("{path}/metrics")).await.status, StatusCode::GONE);
    assert_eq!(server.get(&format!("{path}/logs")).await.status, StatusCode::OK);
    assert_eq!(server.call(Method::DELETE, &path, "").await.status, StatusCode::NO_CONTENT);
    assert_eq!(server.get(&path).await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn files() {
    let server = Server::start().await;
    let path = server.sandbox().await;
    let content: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
    let file = format!("{path}/fs?path=/a+b/%C3%A9%2B.bin");
    let answer = server.call(Method::PUT, &file, content.clone()).await;
    assert_eq!(answer.json(), json!({ "path": "/a b/é+.bin", "bytes": 1_000_000 }));
    let answer = server.get(&file).await;
    assert_eq!(answer.headers["content-type"], "application/octet-stream");
    assert!(answer.body == content);
    let answer = server.get(&format!("{path}/fs/stat?path=/a+b/%C3%A9%2B.bin")).await.json();
    assert_eq!((&answer["name"], &answer["size"]), (&json!("é+.bin"), &json!(1_000_000)));
    assert_eq!(answer["mode"], "-rw-r--r--");
    let answer = server.get(&format!("{path}/fs/dir")).await.json();
    assert_eq!((&answer["path"], answer["entries"].as_array().unwrap().len()), (&json!("/"), 1));
    assert_eq!(
        server.call(Method::PUT, &format!("{path}/fs?path=/e"), "").await.json()["bytes"],
        0
    );
    assert_eq!(server.get(&format!("{path}/fs?path=/e")).await.body.len(), 0);
    let made = server.call(Method::POST, &format!("{path}/fs/mkdir?path=/d"), "").await;
    assert_eq!(made.json(), json!({ "path": "/d" }));
    for method in [Method::DELETE, Method::DELETE, Method::GET] {
        let status = server.call(method.clone(), &file, "").await.status.as_u16();
        assert!(status == 404 || (method == Method::DELETE && status == 204), "{status}");
    }
    assert_eq!(server.get(&format!("{path}/fs/stat?path=/no")).await.status.as_u16(), 404);
    let long = format!("path=/{}", "x".repeat(5000));
    for query in ["", "path=", "path=relative", "path=/a%00b", long.as_str()] {
        let answer = server.get(&format!("{path}/fs?{query}")).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{query:.40}");
        assert!(answer.error().contains("path"));
    }
}

#[tokio::test]
async fn logs_events_metrics_and_ports() {
    let server = Server::start().await;
    let path = server.sandbox().await;
    for line in ["echo one é", "err two", "echo three"] {
        server.post(&format!("{path}/exec"), &json!({ "cmd": line })).await;
    }
    let logs = server.get(&format!("{path}/logs")).await;
    assert_eq!(logs.headers["content-type"], "text/plain; charset=utf-8");
    assert_eq!(logs.body, "one é\ntwo\nthree\n".as_bytes());
    assert_eq!(server.get(&format!("{path}/logs?stream=stderr")).await.body, "two\n");
    assert_eq!(server.get(&format!("{path}/logs?tail=1&stream=both")).await.body, "three\n");
    for bad in ["stream=x", "tail=-1", "follow=maybe"] {
        let answer = server.get(&format!("{path}/logs?{bad}")).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{bad}");
    }
    let events = server.get(&format!("{path}/events?tail=2")).await.json();
    let events = events["events"].as_array().unwrap();
    assert_eq!(events.len(), 2);
    assert_eq!(events[1]["type"], "exec.ended");
    assert!(path.ends_with(events[1]["sandbox_id"].as_str().unwrap()));
    let metrics = server.get(&format!("{path}/metrics")).await.json();
    assert_eq!((&metrics["threads"], &metrics["host_rss_bytes"]), (&json!(3), &json!(1 << 20)));
    let ports = server.get(&format!("{path}/ports")).await.json();
    assert_eq!(ports[1]["port"], 8000);
}

#[tokio::test]
async fn stats_say_whether_machines_are_forked() {
    let server = Server::start().await;
    let expected = json!({
        "sandboxes": 0, "parked": 0, "parked_wanted": 0, "zygotes": 0,
        "forking": { "state": "off", "reason": null },
    });
    assert_eq!(server.get("/v1/stats").await.json(), expected);
    let server = Server::with(|config| config.forking = true, Default::default()).await;
    let knobs = server.world.engine.knobs.clone();
    knobs.unforkable.store(true, std::sync::atomic::Ordering::SeqCst);
    server.world.manager.prime();
    eventually("it is known", || server.world.manager.forking().reason().is_some()).await;
    let forking = server.get("/v1/stats").await.json()["forking"].clone();
    assert_eq!(forking["state"], "refused");
    assert!(forking["reason"].as_str().unwrap().contains("refused by the test"), "{forking}");
}

#[tokio::test]
async fn templates_by_name_and_alias() {
    let server = Server::start().await;
    let list = server.get("/v1/templates").await.json();
    assert_eq!(list[0]["name"], "base");
    for name in ["base", "ubuntu-24.04"] {
        assert_eq!(server.get(&format!("/v1/templates/{name}")).await.json(), list[0]);
    }
    for name in ["nothing", "BASE", "..%2fx"] {
        let answer = server.get(&format!("/v1/templates/{name}")).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND);
    }
}

#[tokio::test]
async fn a_client_that_goes_away_during_create_leaves_nothing() {
    let server = Server::start().await;
    server.world.engine.knobs.slow_ms.store(300, std::sync::atomic::Ordering::SeqCst);
    let creating = server.sandbox();
    assert!(tokio::time::timeout(Duration::from_millis(100), creating).await.is_err());
    eventually("it is noticed", || server.world.manager.list().is_empty()).await;
    server.world.nothing_left().await;
}

#[tokio::test]
async fn a_create_with_a_key_is_done_once() {
    let server = Server::start().await;
    let create = |key: &str, body: &'static str| {
        let request = server.request(Method::POST, "/v1/sandboxes");
        let request = request.header("idempotency-key", key).body(Full::from(body)).unwrap();
        server.send(request)
    };
    let body = r#"{"template":"base"}"#;
    let (first, second) = tokio::join!(create("a", body), create("a", body));
    assert_eq!((first.status, second.status), (StatusCode::CREATED, StatusCode::CREATED));
    assert_eq!(first.json(), second.json());
    let replayed = |answer: &Answer| answer.headers.contains_key("idempotent-replayed");
    assert!(replayed(&first) != replayed(&second));
    let other = create("a", r#"{"template":"base","ttl_seconds":9}"#).await;
    assert_eq!(other.status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(create("b", r#"{"template":"unknown"}"#).await.status, StatusCode::BAD_REQUEST);
    assert_eq!(create("b", body).await.status, StatusCode::CREATED, "what failed is forgotten");
    assert_eq!(create(&"x".repeat(256), body).await.status, StatusCode::BAD_REQUEST);
    assert_eq!(server.get("/v1/sandboxes").await.json().as_array().map(Vec::len), Some(2));
}

#[tokio::test]
async fn the_story_of_a_sandbox_outlives_it() {
    let server = Server::start().await;
    let (first, second) = (server.sandbox().await, server.sandbox().await);
    server.call(Method::DELETE, &first, "").await;
    let kinds = |answer: &Answer| -> Vec<String> {
        let events = answer.json()["events"].as_array().unwrap().clone();
        events.iter().map(|event| event["type"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(server.get(&first).await.status, StatusCode::NOT_FOUND);
    let story = server.get(&format!("{first}/events")).await;
    let life = ["sandbox.creating", "sandbox.running", "sandbox.stopping", "sandbox.deleted"];
    assert_eq!(kinds(&story), life);
    assert_eq!(story.json()["events"][3]["payload"]["reason"], "deleted");
    assert_eq!(kinds(&server.get(&format!("{first}/events?tail=1")).await), life[3..]);
    let unknown = "/v1/sandboxes/1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed/events";
    assert_eq!(server.get(unknown).await.status, StatusCode::NOT_FOUND);

    let all = server.get("/v1/events").await;
    assert_eq!(kinds(&all).len(), 6);
    let next = all.json()["next"].as_u64().unwrap();
    let none = server.get("/v1/events?tail=0").await;
    assert_eq!((kinds(&none).len(), none.json()["next"].as_u64()), (0, Some(next)));
    server.call(Method::DELETE, &second, "").await;
    let since = server.get(&format!("/v1/events?after={next}")).await;
    assert_eq!(kinds(&since), life[2..]);
    assert!(second.ends_with(since.json()["events"][0]["sandbox_id"].as_str().unwrap()));
}

#[tokio::test]
async fn sizes_that_are_prepared_are_told_of_among_all_events() {
    let server = Server::start().await;
    let answer = server.post("/v1/sandboxes", &json!({ "template": "base", "cpu": 2 })).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
    let all = server.get("/v1/events").await.json();
    let events = all["events"].as_array().unwrap();
    let bakes: Vec<_> = events.iter().filter(|event| event.get("sandbox_id").is_none()).collect();
    let kinds: Vec<_> = bakes.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["template.baking", "template.baked"]);
    for event in bakes {
        assert_eq!(
            (&event["payload"]["template"], &event["payload"]["cpu"]),
            (&json!("base"), &json!(2))
        );
        assert!(event["time"].is_string());
    }
}
