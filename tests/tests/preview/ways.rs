//! What works: addresses, tokens, bodies, WebSockets, copies.

use std::io::{BufReader, Read, Write};
use std::net::Shutdown;
use std::time::Instant;

use anyhow::Result;
use pandastack_tests::{Options, Server};
use serde_json::json;

use super::wire::head;
use super::{Scene, said};

#[test]
fn a_server_on_any_address_is_seen_by_who_may() -> Result<()> {
    let scene = Scene::new(Options::default())?;
    scene.sandbox.write("/root/www/index.html", b"hello from the guest")?;
    scene.sandbox.write("/root/www/static/a.txt", b"a file")?;
    for (port, address) in [(8001, "127.0.0.1"), (8002, "0.0.0.0"), (8003, "::1")] {
        let command =
            format!("python3 -m http.server {port} --bind {address} --directory /root/www");
        scene.background(port, &command)?;
        let answer = scene.with_key(port, "/")?;
        assert_eq!((answer.status, answer.text().as_str()), (200, "hello from the guest"));
    }
    let wire = scene.wire();
    // Private: nobody without a key, a token or a link.
    said(&wire.get(&scene.site(8001), "/", &[])?, 401, "private");
    let token = scene.traffic_token()?;
    let header = format!("x-panda-traffic-token: {token}");
    said(&wire.get(&scene.site(8001), "/", &[&header])?, 200, "hello from the guest");
    // The API is not at that name.
    said(&wire.get(&scene.site(8001), "/v1/sandboxes", &[&header])?, 404, "Error");

    let link = scene.post("/preview-token", &json!({ "port": 8001, "paths": ["/static"] }))?;
    let signed = link["token"].as_str().unwrap_or_default();
    said(&wire.get("localhost", &format!("/p/{signed}/static/a.txt"), &[])?, 200, "a file");
    said(&wire.get("localhost", &format!("/p/{signed}/index.html"), &[])?, 403, "path");
    said(&wire.get("localhost", &format!("/p/{signed}x/static/a.txt"), &[])?, 401, "link");

    // A browser's visit: the token is in the address once.
    let host = format!("{}:{}", scene.site(8002), wire.port());
    let first = wire.get(&host, &format!("/?token={token}"), &[])?;
    assert_eq!((first.status, first.header("location")), (303, Some(&*format!("http://{host}/"))));
    let cookie = first.header("set-cookie").and_then(|cookie| cookie.split(';').next());
    let cookie = format!("cookie: {}", cookie.unwrap_or_default());
    said(&wire.get(&host, "/", &[&cookie])?, 200, "hello from the guest");
    said(&wire.get(&host, "/", &[&cookie, "origin: http://evil.example"])?, 403, "other sites");

    let port = scene.post("/ports", &json!({ "port": 8003, "label": "six", "public": true }))?;
    assert_eq!((&port["listening"], &port["source"]), (&json!(true), &json!("user")));
    said(&wire.get(&scene.site(8003), "/", &[])?, 200, "hello from the guest");
    assert_eq!(scene.client.delete(&scene.sandbox.path("/ports/8003"))?.status, 204);
    said(&wire.get(&scene.site(8003), "/", &[])?, 401, "private");

    scene.sandbox.pause()?;
    said(&wire.get(&scene.site(8001), "/", &[&header])?, 503, "resume");
    scene.sandbox.resume()?;
    said(&wire.get(&scene.site(8001), "/", &[&header])?, 200, "hello from the guest");
    scene.sandbox.delete()?;
    said(&wire.get(&scene.site(8001), "/", &[&header])?, 404, "not found");

    // Nobody who reads the log gets in.
    let log = scene.server.log();
    let key = std::fs::read_to_string(scene.server.data().join("api-key"))?;
    for secret in [key.trim(), &token, signed] {
        assert!(!log.contains(secret), "a secret is in the log");
    }
    assert!(log.contains("/p/…"), "links are logged without their token");
    Ok(())
}

#[test]
fn twenty_megabytes_each_way() -> Result<()> {
    const SERVER: &str = r#"
import http.server, hashlib
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(20 << 20))
        self.end_headers()
        for _ in range(320):
            self.wfile.write(b"0123456789abcdef" * 4096)
    def do_POST(self):
        left, digest = int(self.headers["Content-Length"]), hashlib.sha256()
        while left:
            piece = self.rfile.read(min(left, 65536))
            left -= len(piece)
            digest.update(piece)
        text = digest.hexdigest().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
"#;
    let scene = Scene::new(Options::default())?;
    scene.start(8000, SERVER)?;
    let before = Instant::now();
    let answer = scene.with_key(8000, "/")?;
    let down = before.elapsed();
    assert_eq!((answer.status, answer.body.len()), (200, 20 << 20));
    assert!(answer.body.chunks(16).all(|chunk| chunk == b"0123456789abcdef"));

    let sent: Vec<u8> = (0..20 << 20).map(|at: u32| (at % 251) as u8).collect();
    let before = Instant::now();
    let path = scene.sandbox.path("/proxy/8000/");
    let body = Some(("application/octet-stream", &sent[..]));
    let answer = scene.client.send("POST", &path, body)?;
    let up = before.elapsed();
    scene.sandbox.write("/root/sent", &sent)?;
    let expected = scene.sandbox.output("sha256sum < /root/sent")?;
    assert_eq!((answer.status, answer.text().as_str()), (200, &expected[..64]));
    eprintln!("20 MiB out of the guest in {down:?}, into it in {up:?}");
    Ok(())
}

/// Handshake and frames without a library on either side.
#[test]
fn a_websocket_echo() -> Result<()> {
    const SERVER: &str = r#"
import base64, hashlib, socketserver
class Echo(socketserver.StreamRequestHandler):
    def handle(self):
        key = None
        while (line := self.rfile.readline().strip()):
            name, _, value = line.partition(b": ")
            key = value if name.lower() == b"sec-websocket-key" else key
        accept = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        self.wfile.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Accept: " + base64.b64encode(accept) + b"\r\n\r\n")
        while (start := self.rfile.read(2)):
            length = start[1] & 127
            mask, data = self.rfile.read(4), self.rfile.read(length)
            plain = bytes(b ^ mask[i % 4] for i, b in enumerate(data))
            self.wfile.write(bytes([0x80 | start[0] & 15, length]) + plain)
            if start[0] & 15 == 8:
                return
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
Server(("127.0.0.1", 8000), Echo).serve_forever()
"#;
    let scene = Scene::new(Options::default())?;
    scene.start(8000, SERVER)?;
    let token = scene.traffic_token()?;
    let mut stream = scene.wire().connect()?;
    let request = format!(
        "GET /?token={token} HTTP/1.1\r\nhost: {}\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        scene.site(8000)
    );
    stream.write_all(request.as_bytes())?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let (status, head) = head(&mut reader)?;
    assert_eq!(status, 101, "{head}");
    // The example of the protocol's own document.
    assert!(head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
    for text in ["hello", "", "é🐼"] {
        let mask = [1, 2, 3, 4];
        let masked = text.bytes().enumerate().map(|(at, byte)| byte ^ mask[at % 4]);
        let mut frame = vec![0x81, 0x80 | text.len() as u8];
        frame.extend(mask);
        frame.extend(masked);
        stream.write_all(&frame)?;
        let mut echo = vec![0; 2 + text.len()];
        reader.read_exact(&mut echo)?;
        assert_eq!(echo, [&[0x81, text.len() as u8][..], text.as_bytes()].concat());
    }
    stream.shutdown(Shutdown::Write)?;
    assert_eq!(reader.read(&mut [0])?, 0, "the end comes back");
    Ok(())
}

/// A copy's server goes on in the copy, and what was said of its ports does not.
#[test]
fn forks_have_their_servers_and_no_open_ports() -> Result<()> {
    let server = Server::forking()?;
    let client = server.client();
    let sandbox = client.create(&json!({ "template": "code-interpreter" }))?;
    let scene = Scene { server, client, sandbox };
    scene.sandbox.write("/root/www/index.html", b"of the parent")?;
    scene.background(8000, "python3 -m http.server 8000 --bind 127.0.0.1 --directory /root/www")?;
    scene.post("/ports", &json!({ "port": 8000, "public": true }))?;
    let (wire, token) = (scene.wire(), scene.traffic_token()?);
    said(&wire.get(&scene.site(8000), "/", &[])?, 200, "of the parent");
    let child = scene.sandbox.fork(1)?.remove(0);
    child.write("/root/www/index.html", b"of the child")?;
    let site = format!("8000-{}.localhost", child.id);
    said(&wire.get(&site, "/", &[])?, 401, "private");
    let header = format!("x-panda-traffic-token: {token}");
    said(&wire.get(&site, "/", &[&header])?, 401, "does not open");
    let answer = scene.client.get(&child.path("/proxy/8000/"))?;
    assert_eq!((answer.status, answer.text().as_str()), (200, "of the child"));
    said(&wire.get(&scene.site(8000), "/", &[])?, 200, "of the parent");
    Ok(())
}
