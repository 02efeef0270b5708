//! The client against a server that plays a script.

use futures_util::{StreamExt, stream};
use http_body_util::StreamBody;
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::config::Source;

/// A server that answers one connection with `script`, and a client of it.
async fn scripted<F>(script: impl FnOnce(TcpStream) -> F + Send + 'static) -> Client
where
    F: Future<Output = ()> + Send,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { script(listener.accept().await.unwrap().0).await });
    client(url)
}

fn client(url: String) -> Client {
    let endpoint = Endpoint { url, token: Some("pds_secret".into()), source: Source::Environment };
    Client::new(&endpoint).unwrap()
}

/// Reads until the request contains `end`.
async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut text = String::new();
    while !text.contains(end) {
        let mut buffer = [0; 1024];
        let length = stream.read(&mut buffer).await.unwrap();
        assert_ne!(length, 0, "the request ended after {text:?}");
        text.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    text
}

/// Answers any request with `status` and `body`.
async fn answering(status: &'static str, body: &'static str) -> Client {
    scripted(async move |mut stream| {
        read_until(&mut stream, "\r\n\r\n").await;
        let length = body.len();
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}");
        stream.write_all(answer.as_bytes()).await.unwrap();
    })
    .await
}

#[tokio::test]
async fn a_request_carries_the_key_and_the_object() {
    let client = scripted(async |mut stream| {
        let request = read_until(&mut stream, "{\"a\":1}").await;
        assert!(request.starts_with("PATCH /v1/x HTTP/1.1\r\n"), "{request}");
        assert!(request.contains("authorization: Bearer pds_secret\r\n"), "{request}");
        assert!(request.contains("content-type: application/json\r\n"), "{request}");
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n{\"b\": 2}";
        stream.write_all(answer).await.unwrap();
    })
    .await;
    let answer: Value = client.send(Method::PATCH, "/v1/x", &json!({"a": 1})).await.unwrap();
    assert_eq!(answer, json!({"b": 2}));
}

#[tokio::test]
async fn refusals_are_told_in_the_servers_words() {
    let client = answering("404 Not Found", r#"{"error":"sandbox x not found"}"#).await;
    let error = client.get::<Value>("/v1/sandboxes/x").await.unwrap_err();
    assert!(error.is_not_found());
    assert_eq!(error.to_string(), "sandbox x not found");

    let client = answering("401 Unauthorized", r#"{"detail":"who are you"}"#).await;
    let error = client.act(Method::DELETE, "/v1/sandboxes/x").await.unwrap_err();
    assert_eq!(error.to_string(), "who are you");
    assert!(error.hint().unwrap().contains("PANDASTACK_API_KEY"));

    let client = answering("502 Bad Gateway", "<html>").await;
    let error = client.get::<Value>("/v1/x").await.unwrap_err();
    assert_eq!(error.to_string(), "the server answered 502 Bad Gateway");
}

#[tokio::test]
async fn an_answer_that_is_no_json_is_named() {
    let client = answering("200 OK", "hello").await;
    let error = client.get::<Value>("/v1/x").await.unwrap_err();
    assert!(matches!(error, ClientError::Answer { .. }), "{error:?}");
}

#[tokio::test]
async fn nobody_there_comes_with_a_hint() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let client = client(url.clone());
    let error = client.get::<Value>("/v1/sandboxes").await.unwrap_err();
    assert_eq!(error.to_string(), format!("no server answers at {url}"));
    assert!(error.hint().unwrap().contains("pandastack serve"));
    assert!(!client.is_healthy(Duration::from_secs(1)).await);
}

#[tokio::test]
async fn a_silent_server_is_not_healthy() {
    let client = scripted(async |stream| {
        let _held_open = stream;
        std::future::pending().await
    })
    .await;
    assert!(!client.is_healthy(Duration::from_millis(50)).await);
}

#[tokio::test]
async fn an_answer_may_begin_before_the_request_ends() {
    let client = scripted(async |mut stream| {
        read_until(&mut stream, "first").await;
        let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n";
        stream.write_all(head).await.unwrap();
        read_until(&mut stream, "second").await;
        stream.write_all(b"4\r\ndone\r\n0\r\n\r\n").await.unwrap();
    })
    .await;
    let (sender, receiver) = tokio::sync::mpsc::channel::<Bytes>(1);
    let pieces = stream::unfold(receiver, async |mut r| Some((r.recv().await?, r)));
    let body = StreamBody::new(Box::pin(pieces.map(|piece| Ok(Frame::data(piece)))));
    sender.send(Bytes::from_static(b"first")).await.unwrap();
    let body = BodyExt::boxed_unsync(body);
    let mut reply = client.open(Method::POST, "/v1/x", None, body).await.unwrap();
    assert_eq!(reply.chunk().await.unwrap().unwrap(), "ok");
    sender.send(Bytes::from_static(b"second")).await.unwrap();
    assert_eq!(reply.chunk().await.unwrap().unwrap(), "done");
    assert_eq!(reply.chunk().await.unwrap(), None);
}

#[tokio::test]
async fn a_body_that_is_cut_off_is_an_error_and_a_dropped_reply_closes_the_connection() {
    let client = scripted(async |mut stream| {
        read_until(&mut stream, "\r\n\r\n").await;
        let half = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nda";
        stream.write_all(half).await.unwrap();
    })
    .await;
    let mut reply = client.open(Method::GET, "/v1/x", None, no_body()).await.unwrap();
    while let Ok(piece) = reply.chunk().await {
        assert!(piece.is_some(), "a cut body must not look complete");
    }

    let (closed, seen) = tokio::sync::oneshot::channel();
    let client = scripted(async move |mut stream| {
        read_until(&mut stream, "\r\n\r\n").await;
        let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        stream.write_all(head).await.unwrap();
        let length = stream.read(&mut [0; 16]).await.unwrap_or(0);
        closed.send(length).unwrap();
    })
    .await;
    drop(client.open(Method::GET, "/v1/x", None, no_body()).await.unwrap());
    assert_eq!(seen.await.unwrap(), 0);
}
