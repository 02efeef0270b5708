//! Who gets in: keys, host names, web pages; and what everybody is told.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, StatusCode};
use pandastack_api::Options;
use support::Server;

fn empty() -> Full<Bytes> {
    Full::default()
}

#[tokio::test]
async fn nothing_works_without_a_key() {
    let server = Server::start().await;
    let host = server.address.to_string();
    let routes = [
        (Method::GET, "/v1/sandboxes"),
        (Method::POST, "/v1/sandboxes"),
        (Method::GET, "/v1/sandboxes/1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed"),
        (Method::POST, "/v1/sandboxes/1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed/exec"),
        (Method::GET, "/v1/sandboxes/1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed/fs?path=/x"),
        (Method::GET, "/v1/templates"),
        (Method::GET, "/v1/version"),
        (Method::GET, "/v1/me"),
        (Method::GET, "/nowhere"),
        (Method::GET, "//healthz"),
        (Method::GET, "/healthz/../v1/me"),
        (Method::GET, "/%68ealthz"),
    ];
    for (method, path) in routes {
        for key in [None, Some("Bearer "), Some("Bearer pds_x"), Some("Basic eDp5"), Some("é")] {
            let mut request = Request::builder().method(&method).uri(path).header("host", &host);
            if let Some(key) = key {
                request = request.header("authorization", key);
            }
            let answer = server.send(request.body(empty()).unwrap()).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{path}");
            assert_eq!(answer.json()["error"], answer.json()["detail"]);
            assert_eq!(answer.headers["www-authenticate"], "Bearer");
        }
    }
    for path in ["/healthz", "/version"] {
        let request = Request::get(path).header("host", &host).body(empty()).unwrap();
        assert_eq!(server.send(request).await.status, StatusCode::OK);
    }
    assert_eq!(server.get("/version").await.json()["service"], "pandastack-api");
}

#[tokio::test]
async fn no_header_but_the_key_says_who_somebody_is() {
    let server = Server::start().await;
    let plain = server.get("/v1/me").await;
    for name in [
        "x-user-id",
        "x-forwarded-user",
        "x-remote-user",
        "x-org-id",
        "x-workspace",
        "x-pandastack-workspace",
        "x-tenant",
        "x-internal",
        "x-api-key",
        "x-forwarded-for",
        "forwarded",
    ] {
        let ask = async |key: Option<&str>| {
            let mut request = Request::get("/v1/me").header("host", "localhost");
            request = request.header(name, "admin");
            if let Some(key) = key {
                request = request.header("authorization", format!("Bearer {key}"));
            }
            server.send(request.body(empty()).unwrap()).await
        };
        assert_eq!(ask(None).await.status, StatusCode::UNAUTHORIZED, "{name}");
        assert_eq!(ask(Some(&server.key)).await.body, plain.body, "{name}");
    }
}

#[tokio::test]
async fn a_revoked_key_is_refused_at_once_also_on_an_open_connection() {
    let server = Server::start().await;
    let key = server.keys.mint("short-lived").unwrap();
    let stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let mut statuses = Vec::new();
    for round in 0..2 {
        let request = Request::get("/v1/me")
            .header("host", "localhost")
            .header("authorization", format!("bearer {key}"))
            .body(empty())
            .unwrap();
        sender.ready().await.unwrap();
        let response = sender.send_request(request).await.unwrap();
        statuses.push(response.status().as_u16());
        http_body_util::BodyExt::collect(response.into_body()).await.unwrap();
        if round == 0 {
            assert!(server.keys.revoke(&key[..12]).unwrap());
        }
    }
    assert_eq!(statuses, [200, 401]);
}

#[tokio::test]
async fn a_key_in_the_address_is_taken_for_followed_streams_only() {
    let server = Server::start().await;
    let sandbox = server.sandbox().await;
    let ask = async |method: Method, path: String| {
        let request = Request::builder().method(method).uri(path).header("host", "localhost");
        server.send(request.body(empty()).unwrap()).await.status.as_u16()
    };
    let key = &server.key;
    assert_eq!(ask(Method::GET, format!("{sandbox}/logs?access_token={key}")).await, 200);
    assert_eq!(ask(Method::GET, format!("{sandbox}/events?access_token={key}")).await, 200);
    assert_eq!(ask(Method::GET, format!("{sandbox}/logs?access_token=x")).await, 401);
    assert_eq!(ask(Method::GET, format!("{sandbox}?access_token={key}")).await, 401);
    assert_eq!(ask(Method::POST, format!("{sandbox}/exec?access_token={key}")).await, 401);
    assert_eq!(ask(Method::DELETE, format!("{sandbox}/logs?access_token={key}")).await, 401);
}

#[tokio::test]
async fn web_pages_and_other_host_names_are_refused_even_with_the_key() {
    let options = Options { extra_hosts: vec!["panda.test".to_owned()], ..Options::default() };
    let server = Server::with(|_| {}, options).await;
    let ask = async |host: &str, origin: Option<&str>| {
        let mut request = Request::get("/v1/me")
            .header("host", host)
            .header("authorization", format!("Bearer {}", server.key));
        if let Some(origin) = origin {
            request = request.header("origin", origin);
        }
        server.send(request.body(empty()).unwrap()).await.status.as_u16()
    };
    assert_eq!(ask("localhost:1", None).await, 200);
    assert_eq!(ask("panda.test", None).await, 200);
    assert_eq!(ask("localhost", Some("http://localhost:3000")).await, 200);
    assert_eq!(ask("evil.example", None).await, 403);
    assert_eq!(ask("localhost", Some("https://evil.example")).await, 403);
    assert_eq!(ask("localhost", Some("null")).await, 403);
    let key = &server.key;
    let request = format!("GET /healthz HTTP/1.0\r\nAuthorization: Bearer {key}\r\n\r\n");
    assert!(server.raw(request.as_bytes()).await.contains(" 403 "));
}

#[tokio::test]
async fn every_answer_has_an_id() {
    let server = Server::start().await;
    let request = server.request(Method::GET, "/v1/me").header("x-request-id", "abc-1");
    let answer = server.send(request.body(empty()).unwrap()).await;
    assert_eq!(answer.headers["x-request-id"], "abc-1");
    let long = "x".repeat(65);
    let request = server.request(Method::GET, "/nowhere").header("x-request-id", &long);
    let answer = server.send(request.body(empty()).unwrap()).await;
    assert_eq!(answer.headers["x-request-id"].len(), 32);
}

#[tokio::test]
async fn a_stopped_server_finishes_what_runs_and_breaks_off_what_stays() {
    let mut server = Server::start().await;
    let sandbox = server.sandbox().await;
    let request = server.request(Method::GET, &format!("{sandbox}/logs?follow=1"));
    let followed = server.open(request.body(empty()).unwrap()).await;
    let request = server.request(Method::POST, &format!("{sandbox}/exec"));
    let body = Full::new(Bytes::from(r#"{"cmd":"sleep 300"}"#));
    let stop = server.stop.take().unwrap();
    let running = server.open(request.body(body).unwrap());
    let (running, ()) = tokio::join!(running, async {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        stop.send(()).unwrap();
    });
    assert_eq!(running.status(), StatusCode::OK);
    (&mut server.serving).await.unwrap().unwrap();
    let end = http_body_util::BodyExt::collect(followed.into_body()).await;
    assert!(end.is_err(), "not closed in good order");
    assert!(tokio::net::TcpStream::connect(server.address).await.is_err());
}
