//! Guests and clients that mean no good.

use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use pandastack_tests::Options;
use serde_json::json;

use super::{Scene, said};

/// Servers that each misbehave in their own way, in one program.
const SERVERS: &str = r#"
import socket, threading, time
def serve(port, handle):
    listener = socket.create_server(("127.0.0.1", port))
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=guarded, args=(handle, connection), daemon=True).start()
def guarded(handle, connection):
    try:
        handle(connection)
    except OSError:
        pass
    connection.close()
def silent(c):
    time.sleep(3600)
def garbage(c):
    c.recv(4096)
    c.sendall(bytes(range(256)) * 64)
def endless(c):
    c.recv(4096)
    c.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        c.sendall(b"X-More: " + b"m" * 8000 + b"\r\n")
def flood(c):
    c.recv(4096)
    c.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        c.sendall(b"f" * 65536)
def fine(c):
    c.recv(4096)
    c.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine")
ports = {8001: silent, 8002: garbage, 8003: endless, 8004: flood}
for port, handle in ports.items():
    threading.Thread(target=serve, args=(port, handle), daemon=True).start()
serve(8000, fine)
"#;

#[test]
fn misbehaving_servers_are_told_apart_and_disturb_nobody() -> Result<()> {
    let scene = Scene::new(Options::default())?;
    scene.start(8000, SERVERS)?;
    let (client, path) = (scene.client.clone(), scene.sandbox.path("/proxy/8001/"));
    let silent = thread::spawn(move || {
        let before = Instant::now();
        client.get(&path).map(|answer| (answer, before.elapsed()))
    });
    for port in [8002, 8003] {
        let answer = scene.with_key(port, "/")?;
        assert_eq!(answer.status, 502, "{port}: {}", answer.text());
        assert!(answer.error().contains("HTTP"), "{}", answer.error());
    }
    let nothing = scene.with_key(8009, "/")?;
    assert_eq!(nothing.status, 502);
    assert!(nothing.error().contains("listens on port 8009"), "{}", nothing.error());

    // A flood that nobody reads stays where it is: nothing here grows.
    let floods: Vec<_> = (0..20)
        .map(|_| {
            let mut stream = scene.wire().connect()?;
            let key = std::fs::read_to_string(scene.server.data().join("api-key"))?;
            let request = format!(
                "GET {} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {}\r\n\r\n",
                scene.sandbox.path("/proxy/8004/"),
                key.trim()
            );
            stream.write_all(request.as_bytes())?;
            Ok(stream)
        })
        .collect::<Result<_>>()?;
    thread::sleep(Duration::from_secs(3));
    let rss = resident_mib(scene.server.pid())?;
    assert!(rss < 400, "the server has {rss} MiB");
    let answer = scene.with_key(8000, "/")?;
    assert_eq!((answer.status, answer.text().as_str()), (200, "fine"));
    assert_eq!(scene.sandbox.output("echo still here")?, "still here\n");
    drop(floods);

    let (answer, took) = silent.join().expect("no panic")?;
    assert_eq!(answer.status, 504, "{}", answer.text());
    assert!(answer.error().contains("did not answer within 60 seconds"), "{}", answer.error());
    assert!((59..90).contains(&took.as_secs()), "{took:?}");
    Ok(())
}

fn resident_mib(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    Ok(line.split_whitespace().next().unwrap_or_default().parse::<u64>()? / 1024)
}

#[test]
fn slow_clients_hold_nothing_that_others_need() -> Result<()> {
    let scene = Scene::new(Options::default())?;
    scene.start(8000, SERVERS)?;
    scene.post("/ports", &json!({ "port": 8000, "public": true }))?;
    let site = scene.site(8000);
    // Heads and bodies that come a byte at a time, or not at all.
    let mut slow = Vec::new();
    for number in 0..100 {
        let mut stream = scene.wire().connect()?;
        let request = match number % 3 {
            0 => "GET / HT".to_owned(),
            1 => format!("GET / HTTP/1.1\r\nhost: {site}\r\nx: "),
            _ => format!("POST / HTTP/1.1\r\nhost: {site}\r\ncontent-length: 1000\r\n\r\nx"),
        };
        stream.write_all(request.as_bytes())?;
        slow.push(stream);
    }
    for round in 0..5 {
        for stream in &mut slow {
            // The server may have given up on it, which is as well.
            let _ = stream.write_all(b"x");
        }
        let before = Instant::now();
        said(&scene.wire().get(&site, "/", &[])?, 200, "fine");
        assert_eq!(scene.client.get("/v1/me")?.status, 200);
        assert!(
            before.elapsed() < Duration::from_secs(10),
            "round {round}: {:?}",
            before.elapsed()
        );
    }
    assert_eq!(scene.sandbox.output("echo still here")?, "still here\n");
    Ok(())
}
