//! Previews under attack: from guests, from clients, and from pages.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::io::Write;
use std::net::TcpStream as StdStream;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode};
use pandastack_api::{Options, PreviewHost};
use pandastack_sandbox::MAX_CONNECTIONS;
use serde_json::{Value, json};
use support::guests::{Heard, OK, next, swallow};
use support::{Answer, Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

async fn start() -> Server {
    let preview_patience = Duration::from_millis(400);
    Server::with(|_| {}, Options { preview_patience, ..Options::default() }).await
}

async fn visit(server: &Server, sandbox: &str) -> Answer {
    server.get(&format!("{sandbox}/proxy/8000/")).await
}

fn site(sandbox: &str) -> String {
    format!("8000-{}.localhost", sandbox.rsplit('/').next().unwrap())
}

#[tokio::test]
async fn every_way_to_have_no_answer_has_its_own() {
    let server = start().await;
    let sandbox = server.sandbox().await;
    let nothing = visit(&server, &sandbox).await;
    assert_eq!(nothing.status, StatusCode::BAD_GATEWAY);
    assert!(nothing.error().contains("listens on port 8000"), "{nothing:?}");

    server.listen(8000, swallow);
    let silent = visit(&server, &sandbox).await;
    assert_eq!(silent.status, StatusCode::GATEWAY_TIMEOUT);
    assert!(silent.error().contains("did not answer"), "{silent:?}");

    assert_eq!(server.post(&format!("{sandbox}/pause"), &Value::Null).await.status.as_u16(), 204);
    let paused = visit(&server, &sandbox).await;
    assert_eq!(paused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(paused.error(), "sandbox is paused; resume it first");
    server.post(&format!("{sandbox}/resume"), &Value::Null).await;

    server.post(&format!("{sandbox}/exec"), &json!({ "cmd": "poweroff" })).await;
    let ended = visit(&server, &sandbox).await;
    assert_eq!(ended.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(ended.error().contains("guest_shutdown"), "{ended:?}");

    server.call(Method::DELETE, &sandbox, "").await;
    assert_eq!(visit(&server, &sandbox).await.status, StatusCode::NOT_FOUND);
    let bare = Request::get(format!("{sandbox}/proxy/8000/")).header("host", "localhost");
    let bare = server.send(bare.body(Full::default()).unwrap()).await;
    assert_eq!(bare.status, StatusCode::UNAUTHORIZED, "who has no key is not told");
    let gone = Request::get("/").header("host", site(&sandbox));
    let gone = server.send(gone.body(Full::default()).unwrap()).await;
    assert_eq!(gone.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_sandbox_that_ends_breaks_its_previews_off() {
    let server = start().await;
    server.listen(8000, |mut stream| {
        Heard::read(&stream);
        stream.write_all(b"HTTP/1.0 200 OK\r\n\r\npart").unwrap();
        swallow(stream);
    });
    let sandbox = server.sandbox().await;
    let request = server.request(Method::GET, &format!("{sandbox}/proxy/8000/"));
    let mut response = server.open(request.body(Full::<Bytes>::default()).unwrap()).await;
    assert_eq!(
        &response.body_mut().frame().await.unwrap().unwrap().into_data().unwrap()[..],
        b"part"
    );
    server.call(Method::DELETE, &sandbox, "").await;
    let rest = timeout(Duration::from_secs(10), response.into_body().collect()).await.unwrap();
    assert!(rest.is_err(), "what was cut off must not look complete");
}

#[tokio::test]
async fn what_is_no_answer_is_a_bad_gateway() {
    let server = start().await;
    let sandbox = server.sandbox().await;
    let garbage: [&[u8]; 12] = [
        b"",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"hello\n\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.1 99 No\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\0b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-le",
    ];
    for answer in garbage {
        let _heard = server.answers(8000, answer);
        let got = visit(&server, &sandbox).await;
        let text = String::from_utf8_lossy(answer).into_owned();
        assert_eq!(got.status, StatusCode::BAD_GATEWAY, "{text:?}: {got:?}");
        assert!(got.error().contains("port 8000"), "{text:?}: {got:?}");
    }
}

#[tokio::test]
async fn a_head_without_an_end_is_bounded() {
    let server = start().await;
    let sandbox = server.sandbox().await;
    let endless: [fn(&mut StdStream) -> std::io::Result<()>; 4] = [
        |stream| stream.write_all(b"x-a: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n"),
        |stream| stream.write_all(&[b'a'; 4096]),
        |stream| stream.write_all(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"),
        |stream| {
            std::thread::sleep(Duration::from_millis(50));
            stream.write_all(b"x: y\r\n")
        },
    ];
    for (index, more) in endless.into_iter().enumerate() {
        server.listen(8000, move |mut stream| {
            Heard::read(&stream);
            let start: &[u8] = if index == 2 { b"" } else { b"HTTP/1.1 200 OK\r\n" };
            let _ = stream.write_all(start);
            while more(&mut stream).is_ok() {}
        });
        let started = Instant::now();
        let got = visit(&server, &sandbox).await;
        assert!(matches!(got.status.as_u16(), 502 | 504), "{index}: {got:?}");
        got.error();
        assert!(started.elapsed() < Duration::from_secs(10), "{index}");
    }
}

#[tokio::test]
async fn a_body_that_is_shorter_than_it_says_is_broken_off() {
    let server = start().await;
    let sandbox = server.sandbox().await;
    for answer in [
        &b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nten bytes."[..],
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nhello\r\n",
    ] {
        let _heard = server.answers(8000, answer);
        let request = format!(
            "GET {sandbox}/proxy/8000/ HTTP/1.1\r\nhost: localhost\r\n\
             authorization: Bearer {}\r\n\r\n",
            server.key
        );
        let got = timeout(Duration::from_secs(10), server.raw(request.as_bytes())).await.unwrap();
        let (head, body) = got.split_once("\r\n\r\n").unwrap_or_default();
        let complete = body.ends_with("0\r\n\r\n") || head.contains("content-length: 10\r\n");
        assert!(!complete, "{}: {got}", String::from_utf8_lossy(answer));
    }
    // A length that is told twice over does not cut the answer into two.
    let both = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n\
        5\r\nhello\r\n0\r\n\r\n";
    let _heard = server.answers(8000, both);
    let got = visit(&server, &sandbox).await;
    assert!(got.status == 502 || &got.body[..] == b"hello", "{got:?}");
}

#[tokio::test]
async fn answers_without_a_body_keep_what_they_say() {
    let server = start().await;
    let _heard = server.answers(8000, b"HTTP/1.1 200 OK\r\ncontent-length: 12345\r\n\r\n");
    let sandbox = server.sandbox().await;
    let head = server.call(Method::HEAD, &format!("{sandbox}/proxy/8000/"), "").await;
    assert_eq!((head.status.as_u16(), head.body.len()), (200, 0));
    assert_eq!(head.headers["content-length"], "12345");
}

#[tokio::test]
async fn slow_clients_wait_alone() {
    let server = start().await;
    server.listen(8000, |mut stream| {
        let length = Heard::read(&stream).one("content-length") == "100";
        if length {
            return swallow(stream);
        }
        stream.write_all(OK).unwrap();
    });
    let sandbox = server.sandbox().await;
    let head = format!(
        "POST {sandbox}/proxy/8000/ HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\n\
         content-length: 100\r\nconnection: close\r\n\r\nx",
        server.key
    );
    let slow = server.raw(head.as_bytes());
    let answer = timeout(Duration::from_secs(10), slow).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains("nothing came of the request's body"), "{answer}");
    assert_eq!(&visit(&server, &sandbox).await.body[..], b"hello");
}

#[tokio::test]
async fn a_client_that_does_not_read_stops_the_guest_and_nobody_else() {
    let server = start().await;
    let (told, sent) = std::sync::mpsc::channel();
    server.listen(8000, move |mut stream| {
        Heard::read(&stream);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
        while stream.write_all(&[b'x'; 65_536]).is_ok() {
            let _ = told.send(65_536_usize);
        }
    });
    let sandbox = server.sandbox().await;
    let mut deaf = TcpStream::connect(server.address).await.unwrap();
    let request = format!(
        "GET {sandbox}/proxy/8000/ HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\n\r\n",
        server.key
    );
    deaf.write_all(request.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before: usize = sent.try_iter().sum();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let after: usize = sent.try_iter().sum();
    assert!(before < 64 << 20, "{before} bytes are somewhere");
    assert_eq!(after, 0, "it goes on");
    let exec = server.post(&format!("{sandbox}/exec"), &json!({ "cmd": "echo hi" })).await;
    assert_eq!(exec.json()["stdout"], "hi\n");
}

#[tokio::test]
async fn connections_are_bounded_and_leave_room_for_commands() {
    let server =
        Server::with(|_| {}, Options { max_connections: 1024, ..Options::default() }).await;
    server.listen(8000, |mut stream| {
        Heard::read(&stream);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
        swallow(stream);
    });
    let sandbox = server.sandbox().await;
    let path = format!("{sandbox}/proxy/8000/");
    let mut open = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        let request = server.request(Method::GET, &path).body(Full::<Bytes>::default()).unwrap();
        let response = server.open(request).await;
        assert_eq!(response.status(), StatusCode::OK);
        open.push(response);
    }
    let refused = server.get(&path).await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(refused.error().contains("limit of"), "{refused:?}");
    let exec = server.post(&format!("{sandbox}/exec"), &json!({ "cmd": "echo hi" })).await;
    assert_eq!(exec.json()["stdout"], "hi\n");
    // Another sandbox has its own.
    let other = server.sandbox().await;
    let request = server.request(Method::GET, &format!("{other}/proxy/8000/"));
    let response = server.open(request.body(Full::<Bytes>::default()).unwrap()).await;
    assert_eq!(response.status(), StatusCode::OK);
    drop(open);
    for _ in 0..100 {
        let request = server.request(Method::GET, &path).body(Full::<Bytes>::default()).unwrap();
        if server.open(request).await.status() == StatusCode::OK {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the places did not come back");
}

#[tokio::test]
async fn previews_do_not_use_the_server_up() {
    let options = Options { max_connections: 8, ..Options::default() };
    let server = Server::with(|_| {}, options).await;
    server.listen(8000, |mut stream| {
        Heard::read(&stream);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
        swallow(stream);
    });
    let sandbox = server.sandbox().await;
    let path = format!("{sandbox}/proxy/8000/");
    let mut open = Vec::new();
    for _ in 0..4 {
        let request = server.request(Method::GET, &path).body(Full::<Bytes>::default()).unwrap();
        open.push(server.open(request).await);
    }
    let refused = server.get(&path).await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(refused.headers["retry-after"], "1");
    assert_eq!(server.get("/v1/me").await.status, StatusCode::OK);
}

/// T63 and its like: no spelling leads from a preview to the API, or from the API into a guest.
#[tokio::test]
async fn previews_and_the_api_are_never_confused() {
    let server = start().await;
    let heard = server.answers(8000, OK);
    let sandbox = server.sandbox().await;
    let id = sandbox.rsplit('/').next().unwrap();
    let (site, key) = (site(&sandbox), format!("authorization: Bearer {}\r\n", server.key));
    // Everything that is asked of a sandbox's name goes to the sandbox, as it was asked.
    for target in [
        "/v1/sandboxes",
        "/v1/me",
        "//v1/me",
        "/healthz",
        "/p/pv1.x.y/",
        "/../v1/me",
        "/%2e%2e/v1/me",
        &format!("/v1/sandboxes/{id}/exec"),
        &format!("/v1/sandboxes/{id}/proxy/80/"),
        &format!("http://{site}/v1/me"),
    ] {
        let request =
            format!("GET {target} HTTP/1.1\r\nhost: {site}\r\n{key}connection: close\r\n\r\n");
        let answer = server.raw(request.as_bytes()).await;
        assert!(
            answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("hello"),
            "{target}: {answer}"
        );
        let asked = target.strip_prefix(&format!("http://{site}")).unwrap_or(target);
        assert_eq!(next(&heard).line(), format!("GET {asked} HTTP/1.1"));
    }
    // What is not clear is refused.
    let unclear = [
        format!("GET /v1/me HTTP/1.1\r\nhost: {site}\r\nhost: localhost\r\n"),
        format!("GET /v1/me HTTP/1.1\r\nhost: localhost\r\nhost: {site}\r\n"),
        format!("GET http://{site}/v1/me HTTP/1.1\r\nhost: localhost\r\n"),
        format!("GET http://localhost/v1/me HTTP/1.1\r\nhost: {site}\r\n"),
        format!("GET http://{site}/ HTTP/1.1\r\n"),
        format!("GET /v1/me HTTP/1.1\r\nhost: x-{site}\r\n"),
        format!("GET /v1/me HTTP/1.1\r\nhost: {id}.localhost\r\n"),
        format!("GET /v1/me HTTP/1.1\r\nhost: 0-{id}.localhost\r\n"),
        format!("GET /v1/me HTTP/1.1\r\nhost: 22-{id}.localhost\r\n"),
        format!("GET /v1/me HTTP/1.1\r\nhost: 8000-{id}.evil.example\r\n"),
        format!("GET /v1/me HTTP/1.1\r\nhost: 8000-{id}\r\n"),
        format!("CONNECT {site}:80 HTTP/1.1\r\nhost: {site}:80\r\n"),
        format!("OPTIONS * HTTP/1.1\r\nhost: {site}\r\n"),
    ];
    for request in unclear {
        let answer =
            server.raw(format!("{request}{key}connection: close\r\n\r\n").as_bytes()).await;
        let status = answer.get(9..12).unwrap_or_default();
        assert!(matches!(status, "400" | "403" | "405"), "{request}: {answer}");
    }
    // No path below the API names a port in another way than ours.
    for (path, status) in [
        (format!("{sandbox}/proxy/0/x"), 400),
        (format!("{sandbox}/proxy/22/x"), 400),
        (format!("{sandbox}/proxy/65536/x"), 400),
        (format!("{sandbox}/proxy/%38000/x"), 400),
        (format!("{sandbox}/proxy//8000/x"), 400),
        (format!("{sandbox}/proxy/../8000/x"), 400),
        (format!("{sandbox}/proxy/8000%2f..%2f../x"), 400),
        (format!("{sandbox}/proxy/http/x"), 400),
        (format!("{sandbox}/proxy/08000/x"), 400),
        (format!("{sandbox}/proxy"), 400),
        (format!("{sandbox}//proxy/8000/"), 404),
        (format!("{sandbox}/pro%78y/8000/"), 404),
        (format!("/v1//sandboxes/{id}/proxy/8000/"), 404),
        (format!("/v1/sandboxes/%31{}/proxy/8000/", &id[1..]), 404),
        (format!("/v1/sandboxes/../sandboxes/{id}/proxy/8000/"), 404),
    ] {
        let answer = server.get(&path).await;
        assert_eq!(answer.status.as_u16(), status, "{path}: {answer:?}");
        answer.error();
    }
    let absolute =
        format!("GET http://evil.example{sandbox}/proxy/8000/ HTTP/1.1\r\nhost: localhost\r\n");
    let answer = server.raw(format!("{absolute}{key}connection: close\r\n\r\n").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    assert!(heard.try_recv().is_err(), "none of these reached a guest");
    // A path that climbs stays with the port that it began with.
    let climbing = format!("{sandbox}/proxy/8000/../../../me");
    assert_eq!(&server.get(&climbing).await.body[..], b"hello");
    assert_eq!(next(&heard).line(), "GET /../../../me HTTP/1.1");
}

/// T64: a page that a guest shows is a page of another site.
#[tokio::test]
async fn a_previewed_page_is_foreign_to_the_api() {
    let server = start().await;
    let sandbox = server.sandbox().await;
    let site = site(&sandbox);
    for origin in [format!("http://{site}"), format!("http://{site}:7878"), "null".to_owned()] {
        let request = server.request(Method::GET, "/v1/me").header("origin", &origin);
        let answer = server.send(request.body(Full::default()).unwrap()).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{origin}");
    }
    // A name that suddenly means this host is none of ours, for previews neither.
    for path in [format!("{sandbox}/proxy/8000/"), "/p/pv1.x.y/".to_owned(), "/".to_owned()] {
        let request = Request::get(&path).header("host", "rebound.example:80");
        let answer = server.send(request.body(Full::default()).unwrap()).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{path}");
    }
}

#[tokio::test]
async fn other_names_lead_here_when_the_operator_says_so() {
    let hosts: Vec<PreviewHost> = vec!["https://preview.example".parse().unwrap()];
    let options = Options { preview_hosts: hosts, ..Options::default() };
    let server = Server::with(|_| {}, options).await;
    let heard = server.answers(8000, OK);
    let sandbox = server.sandbox().await;
    let id = sandbox.rsplit('/').next().unwrap();
    let public = json!({ "port": 8000, "public": true });
    let port = server.post(&format!("{sandbox}/ports"), &public).await;
    let url = format!("https://8000-{id}.preview.example");
    assert_eq!(port.json()["preview_url"], url);
    let ask = async |host: &str, path: &str| {
        let request = Request::get(path).header("host", host);
        server.send(request.body(Full::default()).unwrap()).await
    };
    let host = format!("8000-{id}.preview.example");
    assert_eq!(&ask(&host, "/").await.body[..], b"hello");
    assert_eq!(next(&heard).one("x-forwarded-proto"), "https");
    // The name is for sandboxes: the API does not answer to it.
    for name in ["preview.example", "x.preview.example"] {
        assert_eq!(ask(name, "/v1/me").await.status, StatusCode::FORBIDDEN);
    }
    let token = server.get(&format!("{sandbox}/traffic-token")).await.json();
    let token = token["traffic_token"].as_str().unwrap();
    let answer = ask(&host, &format!("/?token={token}")).await;
    assert!(answer.headers["set-cookie"].to_str().unwrap().ends_with("; Secure"), "{answer:?}");
}

#[tokio::test]
async fn a_body_that_breaks_off_is_not_ended_for_the_guest() {
    let server = start().await;
    let (told, got) = std::sync::mpsc::channel();
    server.listen(8000, move |mut stream| {
        Heard::read(&stream);
        let mut bytes = Vec::new();
        let _ = std::io::Read::read_to_end(&mut stream, &mut bytes);
        let _ = told.send(bytes);
    });
    let sandbox = server.sandbox().await;
    let mut client = TcpStream::connect(server.address).await.unwrap();
    let head = format!(
        "POST {sandbox}/proxy/8000/ HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\n\
         transfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        server.key
    );
    client.write_all(head.as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    drop(client);
    let got = tokio::task::spawn_blocking(move || got.recv_timeout(Duration::from_secs(10)));
    let got = String::from_utf8(got.await.unwrap().unwrap()).unwrap();
    assert!(got.contains("half") && !got.contains("0\r\n\r\n"), "{got:?}");
}

#[tokio::test]
async fn pipelined_requests_go_one_by_one_and_do_not_leak_into_each_other() {
    let server = start().await;
    let heard = server.answers(8000, OK);
    let sandbox = server.sandbox().await;
    let one = |path: &str, more: &str| {
        format!(
            "GET {sandbox}/proxy/8000{path} HTTP/1.1\r\nhost: localhost\r\n\
             authorization: Bearer {}\r\n{more}\r\n",
            server.key
        )
    };
    let both = format!("{}{}", one("/1", ""), one("/2", "connection: close\r\n"));
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(both.as_bytes()).await.unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).await.unwrap();
    assert_eq!(answers.matches("hello").count(), 2, "{answers}");
    assert_eq!(next(&heard).line(), "GET /1 HTTP/1.1");
    assert_eq!(next(&heard).line(), "GET /2 HTTP/1.1");
}
