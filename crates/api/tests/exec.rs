//! Commands: collected, streamed and attached.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper::{Method, StatusCode};
use serde_json::{Value, json};
use support::Server;
use support::world::eventually;

/// Event names and data of a stream, which must be in the dialect that clients read.
fn events(body: &[u8]) -> Vec<(String, Value)> {
    assert!(body.is_ascii());
    let text = std::str::from_utf8(body).unwrap();
    assert!(!text.contains('\r') && text.ends_with("\n\n"));
    let blocks = text.split_terminator("\n\n").filter(|block| !block.starts_with(':'));
    blocks
        .map(|block| {
            let (event, data) = block.split_once('\n').unwrap();
            let event = event.strip_prefix("event: ").unwrap().to_owned();
            (event, serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap())
        })
        .collect()
}

#[tokio::test]
async fn a_result_has_everything() {
    let server = Server::start().await;
    let exec = format!("{}/exec", server.sandbox().await);
    let answer = server.post(&exec, &json!({ "cmd": "echo é\u{2028}😀" })).await;
    assert_eq!(answer.status, StatusCode::OK);
    let result = answer.json();
    assert_eq!(result["stdout"], "é\u{2028}😀\n");
    assert_eq!((&result["stderr"], &result["exit_code"]), (&json!(""), &json!(0)));
    assert!(result["duration_ms"].is_u64());
    assert_eq!(server.post(&exec, &json!({ "cmd": "err x" })).await.json()["stderr"], "x\n");
    assert_eq!(server.post(&exec, &json!({ "cmd": "exit 7" })).await.json()["exit_code"], 7);
    let argv = json!({ "argv": ["echo", "a  b"], "cmd": null, "timeout_seconds": 5.0 });
    assert_eq!(server.post(&exec, &argv).await.json()["stdout"], "a  b\n");
    let cat = json!({ "cmd": "cat", "stdin": "x".repeat(300_000) });
    assert_eq!(server.post(&exec, &cat).await.json()["stdout"].as_str().unwrap().len(), 300_000);
    let refused = server.post(&exec, &json!({ "cmd": "refuse" })).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    assert_eq!(refused.error(), "cannot run the command: no user");
}

#[tokio::test]
async fn sixteen_at_once() {
    let server = Server::start().await;
    let exec = format!("{}/exec", server.sandbox().await);
    let calls = (0..16).map(|number| {
        let (server, exec) = (&server, &exec);
        async move {
            let body = json!({ "cmd": format!("echo {number}") });
            assert_eq!(server.post(exec, &body).await.json()["stdout"], format!("{number}\n"));
        }
    });
    futures_util::future::join_all(calls).await;
}

#[tokio::test]
async fn a_time_limit_is_a_504_that_says_timeout() {
    let server = Server::start().await;
    let sandbox = server.sandbox().await;
    let machine = server.world.engine.alive().pop().unwrap();
    let body = json!({ "cmd": "hang", "timeout_seconds": 1 });
    let answer = server.post(&format!("{sandbox}/exec"), &body).await;
    assert_eq!(answer.status, StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(answer.error(), "exec timeout: command exceeded 1 seconds");
    eventually("it is killed", || machine.hanging.load(Ordering::SeqCst) == 0).await;
    let answer = server.post(&format!("{sandbox}/exec/stream"), &body).await;
    let events = events(&answer.body);
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].0, "error");
    assert_eq!(events[0].1["error"], "exec timeout: command exceeded 1 seconds");
}

#[tokio::test]
async fn output_beyond_the_limit_is_dropped_and_the_command_goes_on() {
    let server = Server::with(|config| config.max_output_bytes = 1 << 20, Default::default()).await;
    let exec = format!("{}/exec", server.sandbox().await);
    let result = server.post(&exec, &json!({ "cmd": "flood 20000000" })).await.json();
    assert_eq!(result["stdout"].as_str().unwrap().len(), 1 << 20);
    assert_eq!((&result["truncated"], &result["exit_code"]), (&json!(true), &json!(0)));
}

#[tokio::test]
async fn a_stream_is_ascii_whole_and_ends_with_its_exit() {
    let server = Server::start().await;
    let path = format!("{}/exec/stream", server.sandbox().await);
    // é, U+0085, U+2028 and an emoji, cut everywhere, and a byte that is no text.
    let line = "raw c3 a9c2 85e2 80 a8f0 9f98 80ff 41c3";
    let answer = server.post(&path, &json!({ "cmd": line })).await;
    assert_eq!(answer.headers["content-type"], "text/event-stream; charset=utf-8");
    let events = events(&answer.body);
    let (last, chunks) = events.split_last().unwrap();
    let text: String = chunks.iter().map(|(_, data)| data["chunk"].as_str().unwrap()).collect();
    assert_eq!(text, "é\u{85}\u{2028}😀\u{FFFD}A\u{FFFD}");
    assert!(chunks.iter().all(|(event, _)| event == "stdout"));
    assert_eq!(last, &("exit".to_owned(), json!({ "exit_code": 0 })));
    let answer = server.post(&path, &json!({ "cmd": "exit 3" })).await;
    assert_eq!(&answer.body[..], b"event: exit\ndata: {\"exit_code\":3}\n\n");
}

#[tokio::test]
async fn a_guest_that_dies_is_an_error_never_a_clean_end() {
    let server = Server::start().await;
    let path = server.sandbox().await;
    let request = server.request(Method::POST, &format!("{path}/exec/stream"));
    let body = Full::new(Bytes::from(r#"{"cmd":"hang"}"#));
    let response = server.open(request.body(body).unwrap()).await;
    let machine = server.world.engine.alive().pop().unwrap();
    eventually("it runs", || machine.hanging.load(Ordering::SeqCst) == 1).await;
    machine.end(pandastack_engine::Exit::GuestPanic);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let events = events(&body);
    assert_eq!(events.last().unwrap().0, "error");
    let text = events.last().unwrap().1["error"].as_str().unwrap();
    assert!(text.ends_with("ended: guest_panic"), "{text}");
}

#[tokio::test]
async fn a_client_that_goes_away_takes_its_command_along() {
    let server = Server::start().await;
    let path = server.sandbox().await;
    let machine = server.world.engine.alive().pop().unwrap();
    for (route, body) in [
        ("exec", "{\"cmd\":\"hang\"}"),
        ("exec/stream", "{\"cmd\":\"hang\"}"),
        ("exec/attach", "{\"cmd\":\"hang\"}\n"),
    ] {
        let path = format!("{path}/{route}");
        let call = server.call(Method::POST, &path, body);
        let gone = tokio::time::timeout(Duration::from_millis(300), call).await;
        assert!(gone.is_err(), "{route}: {gone:?}");
        eventually("it is killed", || machine.hanging.load(Ordering::SeqCst) == 0).await;
    }
}

#[tokio::test]
async fn a_log_is_followed_with_either_spelling() {
    let server = Server::start().await;
    let path = server.sandbox().await;
    server.post(&format!("{path}/exec"), &json!({ "cmd": "echo early é" })).await;
    for follow in ["1", "true"] {
        let request = server.request(Method::GET, &format!("{path}/logs?follow={follow}&tail=1"));
        let response = server.open(request.body(Full::<Bytes>::default()).unwrap()).await;
        let mut body = response.into_body();
        let mut next = async || body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert!(next().await.starts_with(b"data: {"));
        server.post(&format!("{path}/exec"), &json!({ "cmd": "err late" })).await;
        let block = next().await;
        assert_eq!(&block[..], b"data: {\"line\":\"late\",\"stream\":\"stderr\"}\n\n");
    }
    let request = server.request(Method::GET, &format!("{path}/events?follow=1"));
    let response = server.open(request.body(Full::<Bytes>::default()).unwrap()).await;
    server.call(Method::DELETE, &path, "").await;
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let events = events(&body);
    assert!(events.iter().all(|(event, _)| event == "event"));
    assert_eq!(events.last().unwrap().1["type"], "sandbox.deleted");
}

/// Channel and bytes of each frame.
fn frames(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut frames = Vec::new();
    while let [channel, a, b, c, d, rest @ ..] = bytes {
        let (frame, tail) = rest.split_at(u32::from_be_bytes([*a, *b, *c, *d]) as usize);
        frames.push((*channel, frame.to_vec()));
        bytes = tail;
    }
    frames
}

#[tokio::test]
async fn an_attached_command_talks_both_ways_at_once() {
    let server = Server::start().await;
    let path = format!("{}/exec/attach", server.sandbox().await);
    let (input, receiver) = tokio::sync::mpsc::unbounded_channel::<Bytes>();
    let pieces = stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|piece| (piece, receiver))
    });
    let body = pieces.map(|piece| Ok::<_, std::convert::Infallible>(Frame::data(piece)));
    let request = server.request(Method::POST, &path).body(StreamBody::new(body)).unwrap();
    input.send("{\"cmd\":\"cat\"}\nfir".into()).unwrap();
    let response = server.open(request).await;
    assert_eq!(response.headers()["content-type"], "application/vnd.pandastack.attach");
    let mut body = response.into_body();
    let mut next = async || body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(frames(&next().await), [(1, b"fir".to_vec())]);
    input.send("st\n".into()).unwrap();
    assert_eq!(frames(&next().await), [(1, b"st\n".to_vec())], "before the input has ended");
    drop(input);
    let (channel, exit) = frames(&next().await).remove(0);
    assert_eq!(channel, 3);
    let exit: Value = serde_json::from_slice(&exit).unwrap();
    assert_eq!(exit, json!({ "exit_code": 0, "timed_out": false }));
    assert!(body.frame().await.is_none());
}

#[tokio::test]
async fn much_input_comes_out_whole() {
    let server = Server::start().await;
    let path = format!("{}/exec/attach", server.sandbox().await);
    let input: Vec<u8> = (0..3_000_000_u32).map(|n| (n / 7) as u8).collect();
    let body = [b"{\"argv\":[\"cat\"]}\n", &input[..]].concat();
    let answer = server.call(Method::POST, &path, body).await;
    let frames = frames(&answer.body);
    let out: Vec<u8> = frames.iter().filter(|f| f.0 == 1).flat_map(|f| f.1.clone()).collect();
    assert!(out == input);
    assert_eq!(frames.last().unwrap().0, 3);
    for wrong in ["", "\n", "{\"cmd\":\"\"}\n", "{\"cmd\""] {
        let answer = server.call(Method::POST, &path, wrong).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{wrong:?}");
        answer.error();
    }
    let answer = server.call(Method::POST, &path, "{\"cmd\":\"refuse\"}\n").await;
    assert_eq!(support_error(&answer.body), "cannot run the command: no user");
}

fn support_error(body: &[u8]) -> String {
    let (channel, data) = frames(body).pop().unwrap();
    assert_eq!(channel, 4);
    serde_json::from_slice::<Value>(&data).unwrap()["error"].as_str().unwrap().to_owned()
}

/// Takes as long as its name says, because that is what it is about.
#[tokio::test]
async fn a_command_of_twenty_eight_seconds_starts_its_answer_at_twenty_five() {
    let server = Server::start().await;
    let path = format!("{}/exec", server.sandbox().await);
    let ask = async |line: &str, limit: Option<i64>| {
        let body = json!({ "cmd": line, "timeout_seconds": limit });
        server.post(&path, &body).await
    };
    let (long, late, held) =
        tokio::join!(ask("sleep 28000", None), ask("hang", Some(29)), ask("hang", Some(27)));
    assert_eq!(long.status, StatusCode::OK);
    assert!(long.body.starts_with(b" {"), "{long:?}");
    assert_eq!(long.json()["exit_code"], 0);
    assert_eq!(late.status, StatusCode::OK);
    let result = late.json();
    assert_eq!((&result["exit_code"], &result["timed_out"]), (&json!(124), &json!(true)));
    assert_eq!(result["error"], "exec timeout: command exceeded 29 seconds");
    assert_eq!(held.status, StatusCode::GATEWAY_TIMEOUT);
}
