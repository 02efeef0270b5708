//! How often a client may ask.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, StatusCode};
use pandastack_api::{Options, RateLimits};
use serde_json::json;
use support::{Answer, Server};

async fn limited(key: u32, keyless: u32) -> Server {
    let rate_limits = RateLimits { key, keyless };
    Server::with(|_| {}, Options { rate_limits, ..Options::default() }).await
}

async fn with_key(server: &Server, path: &str, key: &str) -> Answer {
    let request = server.request(Method::GET, path);
    let mut request = request.body(Full::new(Bytes::new())).unwrap();
    request.headers_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
    server.send(request).await
}

/// Asks until it is refused; comes with how often it was not.
async fn until_refused(server: &Server, path: &str, key: &str) -> (u32, Answer) {
    for admitted in 0..1000 {
        let answer = with_key(server, path, key).await;
        if answer.status == StatusCode::TOO_MANY_REQUESTS {
            return (admitted, answer);
        }
    }
    panic!("never refused");
}

#[tokio::test]
async fn a_key_that_asks_too_often_is_told_when_to_come_again() {
    let server = limited(2, 0).await;
    let other = server.keys.mint("other").unwrap();
    let (admitted, answer) = until_refused(&server, "/v1/me", &server.key).await;
    // A slow host may have refilled some meanwhile.
    assert!((10..20).contains(&admitted), "{admitted}");
    assert_eq!(answer.headers["retry-after"], "1");
    assert!(answer.error().contains("with this key: at most 2 a second"), "{answer:?}");
    // Neither another key, nor what needs none, nor a stranger pays for it.
    assert_eq!(with_key(&server, "/v1/me", &other).await.status, StatusCode::OK);
    for path in ["/healthz", "/version"] {
        assert_eq!(with_key(&server, path, &server.key).await.status, StatusCode::OK);
    }
    assert_eq!(with_key(&server, "/v1/me", "x").await.status, StatusCode::UNAUTHORIZED);
    // A create is refused before anything exists, in the form that libraries try again after.
    until_refused(&server, "/v1/me", &server.key).await;
    let refused = server.post("/v1/sandboxes", &json!({ "template": "base" })).await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    let wait = refused.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!(server.world.manager.list().is_empty());
    tokio::time::sleep(Duration::from_secs(wait)).await;
    let created = server.post("/v1/sandboxes", &json!({ "template": "base" })).await;
    assert_eq!(created.status, StatusCode::CREATED, "what it was told is true");
}

#[tokio::test]
async fn a_stranger_who_guesses_is_stopped_and_stops_nobody() {
    let server = limited(0, 2).await;
    let sandbox = server.sandbox().await;
    let (admitted, answer) = until_refused(&server, "/v1/me", "pds_guess").await;
    assert!((10..20).contains(&admitted), "{admitted}");
    assert_eq!(answer.headers["retry-after"], "1");
    assert!(answer.error().contains("without a valid key from this address"), "{answer:?}");
    // Guesses of what opens a preview count as well, unknown routes too.
    for path in ["/p/pv1.a.b/".to_owned(), format!("{sandbox}/proxy/80/"), "/v1/x".to_owned()] {
        until_refused(&server, &path, "pds_guess").await;
    }
    assert_eq!(server.get("/v1/me").await.status, StatusCode::OK);
    assert_eq!(with_key(&server, "/healthz", "").await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_stream_counts_once() {
    let server = limited(1, 0).await;
    let sandbox = server.sandbox().await;
    let path = format!("{sandbox}/exec");
    let command = json!({ "cmd": "echo once" });
    let answer = server.post(&format!("{path}/stream"), &command).await;
    assert_eq!(answer.status, StatusCode::OK);
    // Five at once: the sandbox, the stream, and these.
    for _ in 0..3 {
        assert_eq!(server.post(&path, &command).await.status, StatusCode::OK);
    }
    until_refused(&server, "/v1/me", &server.key).await;
}

#[tokio::test]
async fn zero_is_no_limit() {
    let server = limited(0, 0).await;
    for key in [server.key.as_str(), "pds_guess"] {
        for _ in 0..200 {
            let status = with_key(&server, "/v1/me", key).await.status;
            assert_ne!(status, StatusCode::TOO_MANY_REQUESTS);
        }
    }
}
