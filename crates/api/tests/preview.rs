//! Previews: who gets in, what a guest hears, and what comes back.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::io::{Read, Write};
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper::{Method, Request, StatusCode};
use serde_json::{Value, json};
use support::guests::{Heard, OK, next};
use support::{Answer, Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A request without a key.
fn bare(host: &str, path: &str) -> hyper::http::request::Builder {
    Request::get(path).header("host", host)
}

async fn ask(server: &Server, request: hyper::http::request::Builder) -> Answer {
    server.send(request.body(Full::default()).unwrap()).await
}

/// The host of a port's own site.
fn site(sandbox: &str, port: u16) -> String {
    format!("{port}-{}.localhost", sandbox.rsplit('/').next().unwrap())
}

async fn traffic(server: &Server, sandbox: &str) -> String {
    let answer = server.get(&format!("{sandbox}/traffic-token")).await.json();
    answer["traffic_token"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_port_is_private_and_each_key_to_it_works() {
    let server = Server::start().await;
    let heard = server.answers(8000, OK);
    let sandbox = server.sandbox().await;
    let (host, path) = (site(&sandbox, 8000), format!("{sandbox}/proxy/8000/x"));
    for request in [bare(&host, "/x"), bare("localhost", &path)] {
        let answer = ask(&server, request).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
        assert!(answer.error().contains("preview-token"), "it says what to do");
    }
    assert!(heard.try_recv().is_err(), "nothing reached the guest");

    let token = traffic(&server, &sandbox).await;
    let key = format!("Bearer {}", server.key);
    let keys = [
        ("authorization", key.clone()),
        ("authorization", format!("Bearer {token}")),
        ("x-panda-traffic-token", token.clone()),
    ];
    for (name, value) in keys {
        for request in [bare(&host, "/x"), bare("localhost", &path)] {
            let answer = ask(&server, request.header(name, &value)).await;
            assert_eq!((answer.status.as_u16(), &answer.body[..]), (200, &b"hello"[..]));
            assert_eq!(next(&heard).line(), "GET /x HTTP/1.1");
        }
    }
    // The token of one sandbox opens no other one, and none after it was made void.
    let other = server.sandbox().await;
    let request = bare(&site(&other, 8000), "/").header("x-panda-traffic-token", &token);
    assert_eq!(ask(&server, request).await.status, StatusCode::UNAUTHORIZED);
    let rotated = server.post(&format!("{sandbox}/traffic-token"), &Value::Null).await.json();
    assert_ne!(rotated["traffic_token"], json!(token));
    let request = bare(&host, "/").header("x-panda-traffic-token", &token);
    assert_eq!(ask(&server, request).await.status, StatusCode::UNAUTHORIZED);
    // A key that is no more is none here either.
    assert!(server.keys.revoke(&server.key[..12]).unwrap());
    let request = bare(&host, "/").header("authorization", &key);
    assert_eq!(ask(&server, request).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn create_tells_the_traffic_token_and_nothing_else_does() {
    let server = Server::start().await;
    let created = server.post("/v1/sandboxes", &json!({ "template": "base" })).await.json();
    let sandbox = format!("/v1/sandboxes/{}", created["id"].as_str().unwrap());
    assert_eq!(created["traffic_token"], json!(traffic(&server, &sandbox).await));
    assert_eq!(server.get(&sandbox).await.json().get("traffic_token"), None);
    assert_eq!(server.get("/v1/sandboxes").await.json()[0].get("traffic_token"), None);
}

#[tokio::test]
async fn public_is_said_per_port_and_can_be_taken_back() {
    let server = Server::start().await;
    let _heard = server.answers(8000, OK);
    let sandbox = server.sandbox().await;
    let (host, ports) = (site(&sandbox, 8000), format!("{sandbox}/ports"));
    let exposed = json!({ "port": 8000, "label": "web", "public": true });
    let answer = server.post(&ports, &exposed).await;
    assert_eq!(answer.status, StatusCode::CREATED);
    let port = answer.json();
    let id = sandbox.rsplit('/').next().unwrap();
    assert_eq!(port["proxy_url"], format!("http://{}{sandbox}/proxy/8000/", server.address));
    assert_eq!(
        port["preview_url"],
        format!("http://8000-{id}.localhost:{}", server.address.port())
    );
    for request in [bare(&host, "/"), bare("localhost", &format!("{sandbox}/proxy/8000/"))] {
        assert_eq!(ask(&server, request).await.status, StatusCode::OK);
    }
    // Another port, another sandbox and a fork know nothing of it.
    assert_eq!(ask(&server, bare(&site(&sandbox, 80), "/")).await.status.as_u16(), 401);
    let other = server.sandbox().await;
    assert_eq!(ask(&server, bare(&site(&other, 8000), "/")).await.status.as_u16(), 401);

    let listed = server.get(&ports).await.json();
    let listed: Vec<_> = listed.as_array().unwrap().iter().map(short).collect();
    let detected = (80, Value::Null, true, "detected", false);
    assert_eq!(listed, [detected, (8000, json!("web"), true, "user", true)].map(owned));

    assert_eq!(server.post(&ports, &json!({ "port": 8000 })).await.status.as_u16(), 201);
    assert_eq!(ask(&server, bare(&host, "/")).await.status.as_u16(), 401);
    server.post(&ports, &exposed).await;
    for _ in 0..2 {
        let closed = server.call(Method::DELETE, &format!("{ports}/8000"), "").await;
        assert_eq!(closed.status, StatusCode::NO_CONTENT);
    }
    assert_eq!(ask(&server, bare(&host, "/")).await.status.as_u16(), 401);
}

type Short = (i64, Value, bool, String, bool);

fn short(port: &Value) -> Short {
    let flag = |name: &str| port[name].as_bool().unwrap();
    let source = port["source"].as_str().unwrap().to_owned();
    (
        port["port"].as_i64().unwrap(),
        port["label"].clone(),
        flag("listening"),
        source,
        flag("public"),
    )
}

fn owned((port, label, listening, source, public): (i64, Value, bool, &str, bool)) -> Short {
    (port, label, listening, source.to_owned(), public)
}

#[tokio::test]
async fn what_is_no_port_is_refused_by_every_route() {
    let server = Server::start().await;
    let sandbox = server.sandbox().await;
    for route in ["ports", "preview-token"] {
        for port in [json!(0), json!(22), json!(-1), json!(65536), json!("80"), Value::Null] {
            let answer = server.post(&format!("{sandbox}/{route}"), &json!({ "port": port })).await;
            assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{route} {port}");
            assert!(answer.error().contains("port"));
        }
    }
    for port in ["0", "22", "65536", "x", "080", "%38%30"] {
        let answer = server.call(Method::DELETE, &format!("{sandbox}/ports/{port}"), "").await;
        // The router decodes a segment; what it says is then a port or not.
        let expected = if port == "%38%30" { 204 } else { 400 };
        assert_eq!(answer.status.as_u16(), expected, "{port}");
    }
    let long = json!({ "port": 80, "label": "x".repeat(200) });
    assert_eq!(server.post(&format!("{sandbox}/ports"), &long).await.status.as_u16(), 400);
}

#[tokio::test]
async fn links_carry_their_own_permission_for_their_paths_and_time() {
    let server = Server::start().await;
    let heard = server.answers(8000, OK);
    let sandbox = server.sandbox().await;
    let sign = async |body: Value| server.post(&format!("{sandbox}/preview-token"), &body).await;
    let signed = sign(json!({ "port": 8000, "paths": ["/static"], "ttl_seconds": 60 })).await;
    assert_eq!(signed.status, StatusCode::OK);
    let signed = signed.json();
    let token = signed["token"].as_str().unwrap();
    assert_eq!(signed["url"], format!("http://{}/p/{token}/", server.address));
    let page = signed["preview_url"].as_str().unwrap_or_default();
    assert!(page.ends_with(&format!("/static?token={token}")), "{page}");
    assert_eq!(signed["port"], 8000);
    assert_eq!(signed["paths"], json!(["/static"]));
    assert!(signed["expires_at"].as_str().unwrap().ends_with('Z'));

    let link = async |path: &str| {
        ask(&server, bare("localhost", &format!("/p/{token}{path}"))).await.status.as_u16()
    };
    assert_eq!(link("/static/app.js?v=1").await, 200);
    let got = next(&heard);
    assert_eq!(got.line(), "GET /static/app.js?v=1 HTTP/1.1");
    assert!(!got.head.join("\n").contains(token), "the guest does not get the token");
    for path in
        ["/", "/statics", "/static/../x", "/static/%2e%2e/x", "/static/%252e%252e/x", "//static"]
    {
        assert_eq!(link(path).await, 403, "{path}");
    }
    for bad in ["x", "pv1.x.y", &token[..token.len() - 1], &format!("{token}A"), ""] {
        let answer = ask(&server, bare("localhost", &format!("/p/{bad}/static"))).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{bad}");
    }
    // Sites take it, too, and it is about one port.
    let ours = bare(&site(&sandbox, 8000), "/static/").header("x-panda-traffic-token", token);
    assert_eq!(ask(&server, ours).await.status, StatusCode::OK);
    let other = bare(&site(&sandbox, 80), "/static/").header("x-panda-traffic-token", token);
    assert_eq!(ask(&server, other).await.status, StatusCode::UNAUTHORIZED);

    let brief = sign(json!({ "port": 8000, "ttl_seconds": 1 })).await.json();
    let brief = format!("/p/{}/", brief["token"].as_str().unwrap());
    assert_eq!(ask(&server, bare("localhost", &brief)).await.status.as_u16(), 200);
    tokio::time::sleep(Duration::from_millis(2100)).await;
    assert_eq!(ask(&server, bare("localhost", &brief)).await.status.as_u16(), 401);
    // A rotation ends them, and so does the end of the sandbox.
    let lasting = sign(json!({ "port": 8000 })).await.json();
    let lasting = format!("/p/{}/", lasting["token"].as_str().unwrap());
    server.call(Method::DELETE, &sandbox, "").await;
    assert_eq!(ask(&server, bare("localhost", &lasting)).await.status.as_u16(), 404);
    for body in [
        json!({ "port": 8000, "ttl_seconds": 0 }),
        json!({ "port": 8000, "ttl_seconds": 604_801 }),
        json!({ "port": 8000, "paths": ["x"] }),
        json!({ "port": 8000, "paths": [1] }),
        json!({ "port": 8000, "paths": [] }),
        // What was meant to say less must not be taken for saying nothing.
        json!({ "port": 8000, "path": ["/static"] }),
        json!({ "port": 8000, "Paths": ["/static"] }),
        json!({ "port": 8000, "ttl": 60 }),
    ] {
        let other = server.sandbox().await;
        let answer = server.post(&format!("{other}/preview-token"), &body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{body}");
    }
}

#[tokio::test]
async fn a_token_in_the_address_becomes_a_cookie_of_that_site() {
    let server = Server::start().await;
    let heard = server.answers(8000, OK);
    let sandbox = server.sandbox().await;
    let host = format!("{}:{}", site(&sandbox, 8000), server.address.port());
    let token = traffic(&server, &sandbox).await;
    let answer = ask(&server, bare(&host, &format!("//a?b=1&token={token}"))).await;
    assert_eq!(answer.status, StatusCode::SEE_OTHER);
    assert_eq!(answer.headers["location"], format!("http://{host}//a?b=1"));
    assert_eq!(answer.headers["referrer-policy"], "no-referrer");
    let cookie = answer.headers["set-cookie"].to_str().unwrap().to_owned();
    assert!(cookie.contains("; HttpOnly; SameSite=Lax") && !cookie.contains("Domain"), "{cookie}");
    assert!(heard.try_recv().is_err(), "the guest was not asked");

    let pair = cookie.split(';').next().unwrap();
    let visit = |pairs: &[(&'static str, String)]| {
        let request = bare(&host, "/").header("cookie", format!("panda_preview=x; {pair}; own=1"));
        pairs.iter().fold(request, |request, (name, value)| request.header(*name, value))
    };
    assert_eq!(ask(&server, visit(&[])).await.status, StatusCode::OK);
    assert_eq!(next(&heard).one("cookie"), "own=1");
    let own = visit(&[("origin", format!("http://{host}"))]);
    assert_eq!(ask(&server, own).await.status, StatusCode::OK);
    // Pages of other sites, of other sandboxes among them, have no use for it.
    for foreign in [
        ("origin", "http://evil.example".to_owned()),
        ("origin", format!("http://{}", site(&sandbox, 80))),
        ("origin", "null".to_owned()),
        ("sec-fetch-site", "same-site".to_owned()),
    ] {
        let answer = ask(&server, visit(&[foreign])).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN);
    }
    // It opens nothing but this sandbox's sites, and nothing below the API.
    let request = bare("localhost", &format!("{sandbox}/proxy/8000/")).header("cookie", pair);
    assert_eq!(ask(&server, request).await.status, StatusCode::UNAUTHORIZED);
    let request = bare("localhost", &sandbox).header("cookie", pair);
    assert_eq!(ask(&server, request).await.status, StatusCode::UNAUTHORIZED);
    let request = bare(&host, &format!("/?token={}", &token[..token.len() - 1]));
    assert_eq!(ask(&server, request).await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_guest_hears_the_request_and_none_of_our_business() {
    let server = Server::start().await;
    let heard = server.answers(8000, OK);
    let sandbox = server.sandbox().await;
    let request = server
        .request(Method::POST, &format!("{sandbox}/proxy/8000/a%2Fb//c?q=%20"))
        .header("connection", "x-hop")
        .header("x-hop", "1")
        .header("x-forwarded-for", "6.6.6.6")
        .header("cookie", "dashboard=secret")
        .header("x-api-key", &server.key)
        .header("x-own", "kept");
    let answer = server.send(request.body(Full::new(Bytes::from("body"))).unwrap()).await;
    assert_eq!(answer.status, StatusCode::OK);
    let got = next(&heard);
    assert_eq!(got.line(), "POST /a%2Fb//c?q=%20 HTTP/1.1");
    assert_eq!(got.one("host"), "localhost:8000");
    assert_eq!(got.one("x-forwarded-for"), "127.0.0.1");
    assert_eq!(got.one("x-forwarded-host"), server.address.to_string());
    assert_eq!(got.one("x-forwarded-proto"), "http");
    assert_eq!(got.one("content-length"), "4");
    assert_eq!(got.one("x-own"), "kept");
    assert_eq!(got.one("connection"), "close");
    let all = got.head.join("\n");
    assert!(!all.contains(&server.key) && !all.contains("secret"), "{all}");
    for name in ["authorization", "cookie", "x-api-key", "x-hop"] {
        assert!(got.all(name).is_empty(), "{name}");
    }
    // An application's own key is its own.
    server.post(&format!("{sandbox}/ports"), &json!({ "port": 8000, "public": true })).await;
    let host = site(&sandbox, 8000);
    let request = bare(&host, "/").header("authorization", "Basic eDp5").header("cookie", "a=1");
    ask(&server, request).await;
    let got = next(&heard);
    assert_eq!((got.one("authorization"), got.one("cookie")), ("Basic eDp5", "a=1"));
    assert_eq!(got.one("host"), host);
}

#[tokio::test]
async fn an_answer_reaches_no_further_than_its_site() {
    let server = Server::start().await;
    let answer = b"HTTP/1.1 302 Found\r\nset-cookie: a=1; Domain=localhost; Path=/\r\n\
        location: /login\r\nstrict-transport-security: max-age=1\r\nx-own: kept\r\n\
        connection: close, x-hop\r\nx-hop: 1\r\nx-request-id: forged\r\ncontent-length: 0\r\n\r\n";
    let _heard = server.answers(8000, answer);
    let sandbox = server.sandbox().await;
    server.post(&format!("{sandbox}/ports"), &json!({ "port": 8000, "public": true })).await;
    let own = ask(&server, bare(&site(&sandbox, 8000), "/")).await;
    assert_eq!(own.status, StatusCode::FOUND);
    assert_eq!(own.headers["set-cookie"], "a=1; Path=/");
    assert_eq!(
        (&own.headers["location"], &own.headers["x-own"]),
        (&"/login".parse().unwrap(), &"kept".parse().unwrap())
    );
    assert_ne!(own.headers["x-request-id"], "forged");
    let path = format!("{sandbox}/proxy/8000/");
    let below = ask(&server, bare("localhost", &path)).await;
    assert_eq!(below.headers["location"], format!("{sandbox}/proxy/8000/login"));
    assert!(below.headers.get("set-cookie").is_none());
    let policy = below.headers["content-security-policy"].to_str().unwrap();
    assert!(policy.starts_with("sandbox") && !policy.contains("same-origin"), "{policy}");
    for answer in [own, below] {
        for name in ["strict-transport-security", "x-hop"] {
            assert!(answer.headers.get(name).is_none(), "{name}");
        }
    }
}

#[tokio::test]
async fn events_come_as_they_are_sent() {
    let server = Server::start().await;
    let (go, wait) = mpsc::channel::<()>();
    let wait = std::sync::Arc::new(std::sync::Mutex::new(wait));
    server.listen(8000, move |mut stream| {
        Heard::read(&stream);
        stream
            .write_all(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\
                  transfer-encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n",
            )
            .unwrap();
        wait.lock().unwrap().recv().unwrap();
        stream.write_all(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n").unwrap();
    });
    let sandbox = server.sandbox().await;
    let request = server.request(Method::GET, &format!("{sandbox}/proxy/8000/events"));
    let mut response = server.open(request.body(Full::<Bytes>::default()).unwrap()).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let first = response.body_mut().frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(&first[..], b"data: 1\n\n");
    go.send(()).unwrap();
    assert_eq!(&response.into_body().collect().await.unwrap().to_bytes()[..], b"data: 2\n\n");
}

#[tokio::test]
async fn megabytes_both_ways_and_an_upload_that_is_not_kept() {
    let server = Server::start().await;
    const LENGTH: usize = 20 << 20;
    let (told, first) = mpsc::channel();
    server.listen(8000, move |mut stream| {
        let chunked = Heard::read(&stream).one("transfer-encoding") == "chunked";
        assert!(chunked);
        let mut start = [0; 64];
        stream.read_exact(&mut start).unwrap();
        let _ = told.send(());
        let mut length = start.len();
        let mut buf = vec![0; 65_536];
        let mut tail = start.to_vec();
        while !tail.ends_with(b"\r\n0\r\n\r\n") {
            let count = stream.read(&mut buf).unwrap();
            assert_ne!(count, 0);
            length += count;
            tail.extend_from_slice(&buf[..count]);
            tail.drain(..tail.len().saturating_sub(16));
        }
        assert!(length > LENGTH);
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {LENGTH}\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        for _ in 0..LENGTH / 65_536 {
            stream.write_all(&buf).unwrap();
        }
    });
    let sandbox = server.sandbox().await;
    let (pieces, body) = channel();
    let request = server.request(Method::POST, &format!("{sandbox}/proxy/8000/up"));
    let sending = server.open(request.body(body).unwrap());
    let feeding = async {
        pieces.send(Bytes::from(vec![1; 1024])).await.unwrap();
        // It has arrived before the rest is there.
        tokio::task::spawn_blocking(move || first.recv_timeout(Duration::from_secs(10)).unwrap())
            .await
            .unwrap();
        for _ in 0..LENGTH / 65_536 {
            pieces.send(Bytes::from(vec![2; 65_536])).await.unwrap();
        }
        drop(pieces);
    };
    let (response, ()) = tokio::join!(sending, feeding);
    assert_eq!(response.headers()["content-length"], LENGTH.to_string());
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes().len(), LENGTH);
}

type Pieces = StreamBody<
    std::pin::Pin<
        Box<dyn futures_util::Stream<Item = Result<Frame<Bytes>, std::io::Error>> + Send>,
    >,
>;

/// A body that is sent piece by piece.
fn channel() -> (tokio::sync::mpsc::Sender<Bytes>, Pieces) {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let stream = futures_util::stream::unfold(receiver, |mut receiver| async {
        let piece: Bytes = receiver.recv().await?;
        Some((Ok(Frame::data(piece)), receiver))
    });
    (sender, StreamBody::new(Box::pin(stream)))
}

/// A handshake and an echo, without a library on either side.
#[tokio::test]
async fn websockets_are_carried_both_ways() {
    let server = Server::start().await;
    let (told, heard) = mpsc::channel();
    server.listen(8000, move |mut stream| {
        let head = Heard::read(&stream);
        let asked = head.one("upgrade") == "websocket" && head.one("connection") == "upgrade";
        let key = head.one("sec-websocket-key").to_owned();
        let _ = told.send(head);
        if !asked {
            return stream.write_all(OK).unwrap();
        }
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\
             sec-websocket-accept: {key}=\r\n\r\nfirst"
        );
        stream.write_all(answer.as_bytes()).unwrap();
        let mut copy = stream.try_clone().unwrap();
        let _ = std::io::copy(&mut stream, &mut copy);
    });
    let sandbox = server.sandbox().await;
    let host = site(&sandbox, 8000);
    let token = traffic(&server, &sandbox).await;
    let handshake = |path: &str, more: &str| {
        format!(
            "GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: keep-alive, Upgrade\r\n\
             upgrade: websocket\r\nsec-websocket-key: k\r\n{more}\r\n"
        )
    };
    let shown = [
        handshake("/ws", &format!("x-panda-traffic-token: {token}\r\n")),
        handshake(&format!("/ws?token={token}"), ""),
        handshake("/ws", &format!("cookie: panda_preview={token}\r\norigin: http://{host}\r\n")),
    ];
    for request in shown {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        assert!(head.starts_with("http/1.1 101 "), "{head}");
        assert!(head.contains("sec-websocket-accept: k=\r\n"), "{head}");
        assert_eq!(next(&heard).line(), "GET /ws HTTP/1.1");
        let mut first = [0; 5];
        stream.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"first");
        let sent: Vec<u8> = (0..3_000_000).map(|at| (at % 251) as u8).collect();
        let (mut from, mut to) = stream.split();
        let mut echoed = vec![0; sent.len()];
        let (wrote, read) = tokio::join!(to.write_all(&sent), from.read_exact(&mut echoed));
        wrote.unwrap();
        read.unwrap();
        assert!(echoed == sent);
        stream.shutdown().await.unwrap();
        assert_eq!(stream.read(&mut first).await.unwrap(), 0, "the end comes back as well");
    }
    // Whoever shows nothing, or is another site's page, is refused before the guest hears of it.
    for (more, status) in [
        (String::new(), "401"),
        (format!("cookie: panda_preview={token}\r\norigin: http://evil.example\r\n"), "403"),
    ] {
        let more = format!("{more}connection: close\r\n");
        let answer = server.raw(handshake("/ws", &more).as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
    assert!(heard.try_recv().is_err());
}

#[tokio::test]
async fn a_preview_counts_as_use_and_ends_with_its_client() {
    let server = Server::start().await;
    let (told, ended) = mpsc::channel();
    server.listen(8000, move |mut stream| {
        Heard::read(&stream);
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nx").unwrap();
        let _ = told.send(stream.read(&mut [0]).unwrap_or(0));
    });
    let sandbox = server.sandbox().await;
    let request = server.request(Method::GET, &format!("{sandbox}/proxy/8000/"));
    let mut response = server.open(request.body(Full::<Bytes>::default()).unwrap()).await;
    response.body_mut().frame().await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let lifecycle = server.get(&format!("{sandbox}/lifecycle")).await.json();
    assert_eq!(lifecycle["idle_seconds"], 0);
    drop(response);
    let ended = tokio::task::spawn_blocking(move || ended.recv_timeout(Duration::from_secs(10)));
    assert_eq!(ended.await.unwrap(), Ok(0), "the guest sees that its client went away");
}
