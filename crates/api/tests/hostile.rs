//! Requests that nobody should send. Each gets a clear answer, and the server goes on.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http_body_util::StreamBody;
use hyper::body::Frame;
use hyper::{Method, StatusCode};
use pandastack_api::Options;
use serde_json::json;
use support::Server;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test]
async fn unknown_routes_and_wrong_methods_answer_in_json() {
    let server = Server::start().await;
    let sandbox = server.sandbox().await;
    for path in ["/", "/v1", "/v1/sandboxes/", "/v1/nothing", "/v1/sandboxes/x/y/z", "/v2/me"] {
        let answer = server.get(path).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}");
        assert_eq!(answer.error(), "no such route");
    }
    for (method, path) in [
        (Method::PUT, "/v1/sandboxes".to_owned()),
        (Method::POST, "/v1/templates".to_owned()),
        (Method::GET, format!("{sandbox}/exec")),
        (Method::PATCH, format!("{sandbox}/fs?path=/x")),
        (Method::OPTIONS, sandbox.clone()),
        (Method::from_bytes(b"BREW").unwrap(), sandbox.clone()),
    ] {
        let answer = server.call(method, &path, "").await;
        assert_eq!(answer.status, StatusCode::METHOD_NOT_ALLOWED, "{path}");
        assert!(answer.error().contains("method"));
    }
    let answer = server.call(Method::POST, &format!("{sandbox}/repl"), "").await;
    assert_eq!(answer.status, StatusCode::NOT_IMPLEMENTED);
    assert_eq!(answer.error(), "not supported by this server yet");
}

#[tokio::test]
async fn ids_are_only_ids() {
    let server = Server::start().await;
    for id in [
        "x",
        "1B9D6BCDBBFD4B2D9B5DAB8DFBBD4BED",
        "..%2f..%2fetc",
        "%00",
        "%ff%fe",
        "1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed",
        "1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed%0a",
    ] {
        let answer = server.get(&format!("/v1/sandboxes/{id}")).await;
        let status = answer.status.as_u16();
        assert!(matches!(status, 400 | 404), "{id}: {answer:?}");
        answer.error();
    }
}

#[tokio::test]
async fn hostile_json_is_refused_with_a_reason() {
    let server = Server::start().await;
    let deep = format!("{{\"metadata\":{}1{}}}", "[".repeat(5000), "]".repeat(5000));
    let cases = [
        ("{", "invalid JSON"),
        ("[]", "JSON object"),
        ("\"x\"", "JSON object"),
        ("{\"ttl_seconds\":1e400}", "invalid JSON"),
        ("{\"ttl_seconds\":-1}", "ttl_seconds"),
        ("{\"ttl_seconds\":1.5}", "ttl_seconds"),
        ("{\"ttl_seconds\":99999999999999999999}", "ttl_seconds"),
        ("{\"ttl_seconds\":\"5\"}", "ttl_seconds"),
        ("{\"template\":\"base\",\"cpu\":-1}", "cpu"),
        ("{\"template\":\"base\",\"cpu\":1e18}", "cpu"),
        ("{\"template\":\"base\",\"memory_mb\":9223372036854775807}", "memory_mb"),
        ("{\"template\":\"../../etc\"}", "template"),
        ("{\"template\":\"nothing\"}", "unknown template"),
        ("{\"metadata\":{\"a\":null}}", "metadata"),
        ("{\"persistent\":\"yes\"}", "persistent"),
        (deep.as_str(), "invalid JSON"),
        ("\u{0}", "invalid JSON"),
    ];
    for (body, reason) in cases {
        let answer = server.call(Method::POST, "/v1/sandboxes", body.to_owned()).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{body:.80}");
        assert!(answer.error().contains(reason), "{body:.80}: {answer:?}");
    }
    let answer = server.call(Method::POST, "/v1/sandboxes", &b"{\"a\":\"\xff\"}"[..]).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    assert!(server.world.manager.list().is_empty());
}

#[tokio::test]
async fn bodies_are_bounded_announced_or_not() {
    let options = Options { max_upload_bytes: 1000, ..Options::default() };
    let server = Server::with(|_| {}, options).await;
    let sandbox = server.sandbox().await;
    let big = json!({ "metadata": { "a": "x".repeat(2 << 20) } });
    let answer = server.post("/v1/sandboxes", &big).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    answer.error();
    let file = format!("{sandbox}/fs?path=/big");
    let answer = server.call(Method::PUT, &file, vec![0; 1001]).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    let pieces = (0..1001).map(|_| Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"x"))));
    let body = StreamBody::new(stream::iter(pieces));
    let request = server.request(Method::PUT, &file).body(body).unwrap();
    assert_eq!(server.open(request).await.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(server.get(&file).await.status, StatusCode::NOT_FOUND, "no trace is left");
    let answer = server.call(Method::PUT, &file, vec![7; 1000]).await;
    assert_eq!(answer.json(), json!({ "path": "/big", "bytes": 1000 }));
}

#[tokio::test]
async fn long_addresses_and_heads_are_refused() {
    let server = Server::start().await;
    let answer = server.get(&format!("/v1/me?x={}", "y".repeat(20 << 10))).await;
    assert_eq!(answer.status, StatusCode::URI_TOO_LONG);
    answer.error();
    let head =
        format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: {}\r\n\r\n", "y".repeat(1 << 20));
    assert!(!server.raw(head.as_bytes()).await.contains(" 200 "));
    let many = "X: y\r\n".repeat(5000);
    let head = format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\n{many}\r\n");
    assert!(!server.raw(head.as_bytes()).await.contains(" 200 "));
    assert_eq!(server.get("/healthz").await.status, StatusCode::OK);
}

#[tokio::test]
async fn smuggled_and_broken_requests_are_not_served() {
    let server = Server::start().await;
    let auth =
        format!("Host: localhost\r\nConnection: close\r\nAuthorization: Bearer {}\r\n", server.key);
    for request in [
        format!("POST /v1/sandboxes HTTP/1.1\r\n{auth}Content-Length: -1\r\n\r\n"),
        format!(
            "POST /v1/sandboxes HTTP/1.1\r\n{auth}Content-Length: 1\r\nContent-Length: 2\r\n\r\n{{}}"
        ),
        format!("POST /v1/sandboxes HTTP/1.1\r\n{auth}Transfer-Encoding: chunked\r\n\r\nZZ\r\n"),
        format!("GET /v1/me HTTP/1.1\r\n{auth}Host: evil.example\r\n\r\n"),
        "\x16\x03\x01\x02\0\x01\0\x01\u{fc}\x03\x03".to_owned(),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
    ] {
        let answer = server.raw(request.as_bytes()).await;
        assert!(!answer.contains(" 200 ") && !answer.contains(" 201 "), "{request:?}: {answer}");
    }
    assert!(server.world.manager.list().is_empty());
}

/// A client whose body follows its head a moment later, as some send it, and who asks again on the
/// same connection: an answer that does not need the body must not cost the connection.
#[tokio::test]
async fn a_body_that_nobody_reads_does_not_break_the_connection() {
    let server = Server::start().await;
    let path = "/v1/sandboxes/00000000-0000-4000-8000-000000000000/pause";
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\n\
         content-type: application/json\r\ncontent-length: 15\r\n\r\n",
        server.key
    );
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    for _ in 0..3 {
        stream.write_all(head.as_bytes()).await.unwrap();
        let early = tokio::time::timeout(Duration::from_millis(100), stream.peek(&mut [0])).await;
        assert!(early.is_err(), "answered before the request was complete");
        stream.write_all(b"{\"cmd\": \"true\"}").await.unwrap();
        let mut answer = [0u8; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 404");
        let mut rest = Vec::new();
        while !rest.ends_with(b"}") {
            rest.push(stream.read_u8().await.unwrap());
        }
    }
}
