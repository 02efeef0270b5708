//! What a sandbox may reach, over the API: that it is understood or refused, and told as it is.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use http_body_util::BodyExt;
use hyper::{Method, StatusCode};
use pandastack_types::{EgressEntry, EgressKind, EgressVerdict};
use serde_json::{Value, json};
use support::world::network::Mood;
use support::{Answer, Server};
use time::OffsetDateTime;

fn pypi() -> Value {
    json!({ "allow": [{ "host": "pypi.org", "ports": [443] }] })
}

async fn create(server: &Server, egress: Value) -> Value {
    let answer =
        server.post("/v1/sandboxes", &json!({ "template": "base", "egress": egress })).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
    answer.json()
}

fn path(view: &Value) -> String {
    format!("/v1/sandboxes/{}", view["id"].as_str().unwrap())
}

async fn put(server: &Server, sandbox: &str, body: impl Into<String>) -> Answer {
    server.call(Method::PUT, &format!("{sandbox}/egress"), body.into()).await
}

/// The policy that the network has in force for a sandbox.
fn in_force(server: &Server, sandbox: &str) -> Option<Value> {
    let id = sandbox.rsplit('/').next().unwrap().parse().unwrap();
    let policy = server.world.network.in_force(&server.world.machine_of(id))?;
    Some(serde_json::from_str(&policy).unwrap())
}

#[tokio::test]
async fn a_sandbox_reaches_nothing_unless_somebody_says_so() {
    let server = Server::start().await;
    for view in [
        server.post("/v1/sandboxes", &json!({ "template": "base" })).await.json(),
        server.post("/v1/sandboxes", &json!({ "template": "base", "disk_gb": 9 })).await.json(),
        create(&server, json!("none")).await,
        create(&server, json!({ "allow": [] })).await,
    ] {
        assert_eq!(view["egress"], "none");
        assert_eq!(server.get(&format!("{}/egress", path(&view))).await.json(), "none");
        assert_eq!(in_force(&server, &path(&view)), Some(json!("none")));
    }
    // One spelling, everywhere.
    let view = create(&server, json!({ "allow": [{ "ports": ["443/tcp"], "host": "PyPI.org." }] }));
    let view = view.await;
    assert_eq!(view["egress"], pypi());
    assert_eq!(server.get(&path(&view)).await.json()["egress"], pypi());
    assert_eq!(in_force(&server, &path(&view)), Some(pypi()));
}

#[tokio::test]
async fn a_policy_is_replaced_as_a_whole_and_in_force_when_that_answers() {
    let server = Server::start().await;
    let sandbox = path(&create(&server, pypi()).await);
    let open = r#"{"log":false,"deny":[{"cidr":"::ffff:10.0.0.0/104"}],"allow":[{"host":"*"}]}"#;
    let canonical =
        json!({ "allow": [{ "host": "*" }], "deny": [{ "cidr": "10.0.0.0/8" }], "log": false });
    for (body, policy) in [
        (open.to_owned(), canonical),
        (pypi().to_string(), pypi()),
        (" \"none\" ".to_owned(), json!("none")),
    ] {
        let answer = put(&server, &sandbox, body).await;
        assert_eq!((answer.status, answer.json()), (StatusCode::OK, policy.clone()));
        assert_eq!(in_force(&server, &sandbox), Some(policy.clone()));
        assert_eq!(server.get(&format!("{sandbox}/egress")).await.json(), policy);
        assert_eq!(server.get(&sandbox).await.json()["egress"], policy);
    }
    server.call(Method::POST, &format!("{sandbox}/pause"), "").await;
    let answer = put(&server, &sandbox, pypi().to_string()).await;
    assert_eq!(answer.status, StatusCode::OK, "also while it is paused");
    let method = server.call(Method::PATCH, &format!("{sandbox}/egress"), "{}").await;
    assert_eq!(method.status, StatusCode::METHOD_NOT_ALLOWED);
}

/// Policies that are refused, and what is said about them.
const REFUSED: &str = r#"
    null                                  ▸ egress: this must be "none" or an object with a list "allow"
    "None"                                ▸ egress: this must be "none" or an object with a list "allow"
    true                                  ▸ egress: this must be "none" or an object with a list "allow"
    ["pypi.org"]                          ▸ egress: this must be "none" or an object with a list "allow"
    {}                                    ▸ egress: "allow" is missing; an empty list allows nothing
    {"deny":[]}                           ▸ egress: "allow" is missing; an empty list allows nothing
    {"Allow":[]}                          ▸ egress: unknown field "Allow"; did you mean "allow"?
    {"allow":[],"DENY":[]}                ▸ egress: unknown field "DENY"; did you mean "deny"?
    {"allow":[],"maxConnections":1}       ▸ egress: unknown field "maxConnections"; did you mean "max_connections"?
    {"allow":[],"open":true}              ▸ egress: unknown field "open"; the fields here are
    {"allow":[],"allow":[{"host":"*"}]}   ▸ egress: the field "allow" is given twice
    {"allow":"*"}                         ▸ egress/allow: this must be a list
    {"allow":["*"]}                       ▸ egress/allow/0: this must be an object
    {"allow":[{}]}                        ▸ egress/allow/0: a rule has either host or cidr
    {"allow":[{"host":"a.b","hosts":1}]}  ▸ egress/allow/0: unknown field "hosts"; did you mean "host"?
    {"allow":[{"host":"a.b"},{"host":"1.1.1.1"}]} ▸ egress/allow/1/host: this is an address
    {"allow":[{"host":"a\u0000.b"}]}      ▸ egress/allow/0/host:
    {"allow":[{"host":"user@a.b"}]}       ▸ egress/allow/0/host:
    {"allow":[{"cidr":"1.1.1.1"}]}        ▸ egress/allow/0/cidr: a network has a prefix
    {"allow":[{"cidr":"10.1.0.0/8"}]}     ▸ egress/allow/0/cidr:
    {"allow":[{"host":"a.b","ports":[]}]} ▸ egress/allow/0/ports: name at least one
    {"allow":[{"host":"a.b","ports":[0]}]}         ▸ egress/allow/0/ports/0: a port is 1 to 65535
    {"allow":[{"host":"a.b","ports":["443/udp"]}]} ▸ egress/allow/0/ports/0: 443/udp is QUIC
    {"allow":[{"host":"a.b","methods":["get"]}]}   ▸ egress/allow/0/methods/0: this must be a method
    {"allow":[{"cidr":"::/0","paths":["/"]}]}      ▸ egress/allow/0: methods and paths go with host
    {"allow":[],"deny":[{"host":"a.b","paths":["/"]}]} ▸ egress/deny/0: deny has no methods and paths
    {"allow":[],"log":1}                  ▸ egress/log: this must be true or false
    {"allow":[],"max_connections":0}      ▸ egress/max_connections: this must be a number from 1
    {"allow":[],"bandwidth":{}}           ▸ egress/bandwidth: up_bytes_per_second or
    {"allow":[[[[[[[[[]]]]]]]]]}          ▸ egress is nested too deeply
"#;

#[tokio::test]
async fn what_is_not_understood_is_refused_in_a_create_a_fork_and_a_change() {
    let server = Server::forking().await;
    let sandbox = path(&create(&server, pypi()).await);
    for (policy, error) in REFUSED.lines().filter_map(|line| line.split_once('▸')) {
        let (policy, error) = (policy.trim(), error.trim());
        let wrapped = format!(r#"{{"template":"base","egress":{policy},"count":1}}"#);
        for answer in [
            put(&server, &sandbox, policy).await,
            server.call(Method::POST, "/v1/sandboxes", wrapped.clone()).await,
            server.call(Method::POST, &format!("{sandbox}/fork"), wrapped.clone()).await,
            server.call(Method::POST, &format!("{sandbox}/fork-tree"), wrapped.clone()).await,
        ] {
            assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{policy}: {answer:?}");
            let text = answer.error();
            assert!(text.starts_with(error), "{policy}: {text}");
            assert!(!text.contains(" column "), "{policy}: {text}");
        }
    }
    for (body, error) in [
        ("", "egress: the request body must be \"none\" or an object"),
        ("{", "invalid JSON: EOF"),
        ("none", "invalid JSON: expected"),
        ("\"none\"}", "invalid JSON: trailing characters"),
        (r#"{"egress":"none"}"#, "egress: unknown field \"egress\"; the fields here are"),
    ] {
        let answer = put(&server, &sandbox, body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert!(answer.error().starts_with(error), "{body}: {answer:?}");
    }
    assert_eq!(in_force(&server, &sandbox), Some(pypi()));
    assert_eq!(server.get("/v1/sandboxes").await.json().as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_member_that_was_meant_for_egress_is_not_ignored() {
    let server = Server::forking().await;
    let sandbox = path(&create(&server, pypi()).await);
    for name in ["Egress", "EGRESS", "egres", "egress_policy", "network", "allow_internet_access"] {
        let body = format!(r#"{{"template":"base","count":1,{name:?}:"none"}}"#);
        for route in ["/v1/sandboxes", &format!("{sandbox}/fork"), &format!("{sandbox}/fork-tree")]
        {
            let answer = server.call(Method::POST, route, body.clone()).await;
            assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{route} {name}");
            let expected = format!("unknown field {name:?}; what a sandbox may reach is said in");
            assert!(answer.error().starts_with(&expected), "{answer:?}");
        }
    }
    let twice = r#"{"egress":"none","egress":{"allow":[{"host":"*"}]}}"#;
    let answer = server.call(Method::POST, "/v1/sandboxes", twice).await;
    assert_eq!(
        (answer.status, answer.error()),
        (StatusCode::BAD_REQUEST, "egress is given twice".into())
    );
    assert_eq!(server.get("/v1/sandboxes").await.json().as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_policy_is_at_most_64_kib() {
    let server = Server::start().await;
    let sandbox = server.sandbox().await;
    let path = |length: usize| format!("\"/{}\"", "a".repeat(length - 1));
    let with = |last: usize| {
        let paths = [vec![path(1024); 63], vec![path(last)]].concat().join(",");
        format!(r#"{{"allow":[{{"host":"a.test","paths":[{paths}]}}]}}"#)
    };
    let room = (64 << 10) - with(1).len();
    let longest = with(1 + room);
    let answer = put(&server, &sandbox, &longest).await;
    assert_eq!((answer.status, answer.body.len()), (StatusCode::OK, 64 << 10));
    let spaced = longest.replace(',', &format!(",{}", " ".repeat(1000)));
    assert_eq!(put(&server, &sandbox, spaced).await.status, StatusCode::OK, "spaces do not count");
    let over = with(2 + room);
    let create = format!(r#"{{"template":"base","egress":{over}}}"#);
    for answer in [
        put(&server, &sandbox, &over).await,
        server.call(Method::POST, "/v1/sandboxes", create).await,
    ] {
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert!(answer.error().starts_with("egress: at most 64 KiB"), "{answer:?}");
    }
    let endless = put(&server, &sandbox, format!("\"none\"{}", " ".repeat(1 << 20))).await;
    assert_eq!(endless.status, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(in_force(&server, &sandbox), serde_json::from_str(&longest).ok());
}

#[tokio::test]
async fn children_and_snapshots_take_it_over_unless_the_request_says_otherwise() {
    let server = Server::forking().await;
    let parent = path(&create(&server, pypi()).await);
    let fork = format!("{parent}/fork");
    let child = server.post(&fork, &json!({})).await.json();
    assert_eq!(child["sandbox"]["egress"], pypi());
    let child = server.post(&fork, &json!({ "egress": "none" })).await.json();
    assert_eq!(child["children"][0]["egress"], "none");
    let tree = json!({ "count": 2, "egress": { "allow": [{ "cidr": "203.0.113.0/24" }] } });
    let tree = server.post(&format!("{parent}/fork-tree"), &tree).await.json();
    for child in tree["children"].as_array().unwrap() {
        assert_eq!(child["egress"]["allow"], json!([{ "cidr": "203.0.113.0/24" }]));
        assert_eq!(in_force(&server, &path(child)).as_ref(), Some(&child["egress"]));
    }

    let snapshot = server.call(Method::POST, &format!("{parent}/snapshots"), "").await.json();
    assert_eq!(snapshot["egress"], pypi());
    put(&server, &parent, "\"none\"").await;
    let made = |egress: Option<Value>| {
        let mut request = json!({ "template": "x", "from_snapshot": snapshot["id"] });
        if let Some(egress) = egress {
            request["egress"] = egress;
        }
        let server = &server;
        async move { server.post("/v1/sandboxes", &request).await.json() }
    };
    assert_eq!(made(None).await["egress"], pypi());
    assert_eq!(made(Some(json!("none"))).await["egress"], "none");
}

#[tokio::test]
async fn a_network_that_is_away_is_said_so_and_may_be_asked_again() {
    let server = Server::start().await;
    let sandbox = path(&create(&server, pypi()).await);
    let moods = &server.world.network.moods;
    *moods.set.lock().unwrap() = Mood::Gone;
    *moods.attach.lock().unwrap() = Mood::Gone;
    let answer = put(&server, &sandbox, "\"none\"").await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.headers.contains_key("retry-after"));
    assert!(answer.error().contains("reaches nothing until its egress is set again"), "{answer:?}");
    assert_eq!(server.get(&format!("{sandbox}/egress")).await.json(), "none");
    assert_eq!(in_force(&server, &sandbox), None);
    let answer = server.post("/v1/sandboxes", &json!({ "template": "base" })).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.headers.contains_key("retry-after"));
    assert_eq!(server.get("/v1/sandboxes").await.json().as_array().unwrap().len(), 1);

    *moods.attach.lock().unwrap() = Mood::Refuses;
    let answer = server.post("/v1/sandboxes", &json!({ "template": "base" })).await;
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR, "not to be tried again");
    *moods.attach.lock().unwrap() = Mood::Willing;
    assert_eq!(put(&server, &sandbox, pypi().to_string()).await.status, StatusCode::OK);
    assert_eq!(in_force(&server, &sandbox), Some(pypi()));
}

#[tokio::test]
async fn who_is_not_there_has_no_policy() {
    let server = Server::start().await;
    let nobody = "/v1/sandboxes/00000000-0000-4000-8000-000000000000";
    for answer in [
        put(&server, nobody, "\"none\"").await,
        server.get(&format!("{nobody}/egress")).await,
        server.get(&format!("{nobody}/egress/log")).await,
        server.get("/v1/sandboxes/x/egress").await,
    ] {
        assert_eq!(answer.status, StatusCode::NOT_FOUND);
        answer.error();
    }
    let sandbox = server.sandbox().await;
    let url = format!("{sandbox}/egress");
    let request = hyper::Request::put(&url).header("host", server.address.to_string());
    let answer = server.send(request.body("\"none\"".into()).unwrap()).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
}

fn entry(name: &str) -> EgressEntry {
    EgressEntry {
        time: OffsetDateTime::from_unix_timestamp(1_700_000_000).unwrap(),
        kind: EgressKind::Tcp,
        verdict: EgressVerdict::Deny,
        name: Some(name.to_owned()),
        address: Some("203.0.113.7".parse().unwrap()),
        port: Some(443),
        rule: Some("deny/0".to_owned()),
        reason: "é: denied by name".to_owned(),
        bytes_up: None,
        bytes_down: None,
        unshown: 0,
    }
}

fn decide(server: &Server, sandbox: &str, names: &[&str]) {
    let id = sandbox.rsplit('/').next().unwrap().parse().unwrap();
    let machine = server.world.machine_of(id);
    server.world.network.decide(&machine, names.iter().map(|name| entry(name)).collect());
}

#[tokio::test]
async fn the_log_is_read_from_any_place() {
    let server = Server::start().await;
    let sandbox = server.sandbox().await;
    let log = format!("{sandbox}/egress/log");
    assert_eq!(server.get(&log).await.json(), json!({ "entries": [], "next": 0 }));
    decide(&server, &sandbox, &["a.test", "b.test", "c.test"]);
    let read = |query: &'static str| {
        let url = format!("{log}{query}");
        let server = &server;
        async move {
            let answer = server.get(&url).await.json();
            let entries = answer["entries"].as_array().unwrap();
            let numbers = entries.iter().map(|entry| entry["number"].as_u64().unwrap());
            (numbers.collect::<Vec<_>>(), answer["next"].as_u64().unwrap())
        }
    };
    assert_eq!(read("").await, (vec![1, 2, 3], 3));
    assert_eq!(read("?after=1").await, (vec![2, 3], 3));
    assert_eq!(read("?tail=1").await, (vec![3], 3));
    assert_eq!(read("?after=1&tail=1").await, (vec![3], 3));
    assert_eq!(read("?after=3").await, (vec![], 3));
    assert_eq!(read("?after=18446744073709551615").await, (vec![], 3));
    let first = &server.get(&log).await.json()["entries"][0];
    assert_eq!(
        first,
        &json!({
            "number": 1, "time": "2023-11-14T22:13:20Z", "kind": "tcp", "verdict": "deny",
            "name": "a.test", "address": "203.0.113.7", "port": 443, "rule": "deny/0",
            "reason": "é: denied by name",
        })
    );
    for bad in ["after=-1", "after=x", "tail=-1", "follow=maybe", "after=18446744073709551616"] {
        let answer = server.get(&format!("{log}?{bad}")).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{bad}");
    }
}

#[tokio::test]
async fn a_followed_log_goes_on_where_it_was_left_and_ends_with_its_sandbox() {
    let server = Server::start().await;
    let sandbox = server.sandbox().await;
    decide(&server, &sandbox, &["a.test", "b.test", "c.test"]);
    let follow = |query: &str, last: Option<&str>| {
        let url = format!("{sandbox}/egress/log?follow={query}");
        let mut request = server.request(Method::GET, &url);
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        server.open(request.body(http_body_util::Empty::new()).unwrap())
    };
    let readers = [
        (follow("1", None).await, vec![1, 2, 3, 4]),
        (follow("true&tail=1", None).await, vec![3, 4]),
        (follow("true&after=3", None).await, vec![4]),
        (follow("true&after=0", Some("2")).await, vec![3, 4]),
        (follow("true&after=99", None).await, vec![4]),
    ];
    let strange = follow("true", Some("x")).await;
    assert_eq!(strange.status(), StatusCode::BAD_REQUEST);
    decide(&server, &sandbox, &["d.test"]);
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    assert_eq!(server.call(Method::DELETE, &sandbox, "").await.status, StatusCode::NO_CONTENT);
    for (reader, expected) in readers {
        assert_eq!(reader.headers()["content-type"], "text/event-stream; charset=utf-8");
        // In good order: a broken stream is an error here.
        let body = reader.into_body().collect().await.unwrap().to_bytes();
        assert!(body.is_ascii());
        let text = String::from_utf8(body.to_vec()).unwrap();
        let blocks: Vec<_> = text.split_terminator("\n\n").collect();
        let numbers = blocks.iter().map(|block| {
            let (id, data) = block.split_once('\n').unwrap();
            let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
            assert_eq!(id, format!("id: {}", data["number"]));
            assert_eq!(data["reason"], "é: denied by name");
            data["number"].as_u64().unwrap()
        });
        assert_eq!(numbers.collect::<Vec<_>>(), expected, "{text}");
    }
}

#[tokio::test]
async fn a_browser_may_follow_with_the_key_in_the_address() {
    let server = Server::start().await;
    let sandbox = server.sandbox().await;
    let get = |path: &str| {
        let url = format!("{sandbox}{path}?access_token={}", server.key);
        let request = hyper::Request::get(&url).header("host", server.address.to_string());
        server.send(request.body("".into()).unwrap())
    };
    assert_eq!(get("/egress/log").await.status, StatusCode::OK);
    assert_eq!(get("/egress").await.status, StatusCode::UNAUTHORIZED);
}
