//! Connections to ports of the guest, through the real agent.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use pandastack_engine::agent::{AgentError, ErrorCode, GuestStream};
use pandastack_proto::{Kind, MAGIC, MAX_STREAMS, Outcome, Request};
use support::raw::RawHost;
use support::{Agent, spawn};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// A server that does `serve` with each connection, on a port of its own.
fn server(serve: impl Fn(TcpStream) + Clone + Send + 'static) -> u16 {
    server_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), serve)
}

fn server_at(address: SocketAddr, serve: impl Fn(TcpStream) + Clone + Send + 'static) -> u16 {
    let listener = TcpListener::bind(address).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = serve.clone();
            std::thread::spawn(move || serve(stream));
        }
    });
    port
}

/// Sends back what comes, and ends when it ends.
fn echo(mut stream: TcpStream) {
    let mut copy = stream.try_clone().unwrap();
    let _ = std::io::copy(&mut stream, &mut copy);
}

async fn rest(stream: &mut GuestStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    timeout(Duration::from_secs(20), stream.read_to_end(&mut bytes)).await.unwrap().unwrap();
    bytes
}

fn code<T>(result: Result<T, AgentError>) -> ErrorCode {
    result.err().and_then(|error| error.code()).unwrap()
}

#[tokio::test]
async fn bytes_go_both_ways_and_each_way_ends_by_itself() {
    let agent = Agent::start().await;
    for address in [(Ipv4Addr::LOCALHOST, 0).into(), (Ipv6Addr::LOCALHOST, 0).into()] {
        let mut stream = agent.client.dial(server_at(address, echo)).await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        let mut five = [0; 5];
        stream.read_exact(&mut five).await.unwrap();
        assert_eq!(&five, b"hello");
        stream.write_all(b" and goodbye").await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(rest(&mut stream).await, b" and goodbye");
    }
    // The guest ends its side first and goes on listening.
    let (heard, hear) = std::sync::mpsc::channel();
    let port = server(move |mut stream| {
        stream.write_all(b"bye").unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        heard.send(bytes).unwrap();
    });
    let mut stream = agent.client.dial(port).await.unwrap();
    assert_eq!(rest(&mut stream).await, b"bye");
    stream.write_all(b"late").await.unwrap();
    stream.shutdown().await.unwrap();
    let heard = tokio::task::spawn_blocking(move || hear.recv_timeout(Duration::from_secs(10)));
    assert_eq!(heard.await.unwrap().unwrap(), b"late");
}

#[tokio::test]
async fn megabytes_arrive_as_they_were_with_marks_in_them() {
    let agent = Agent::start().await;
    let mut stream = agent.client.dial(server(echo)).await.unwrap();
    let piece = [&MAGIC[..], b"between", &MAGIC[..9], &[0xFF; 100]].concat();
    let sent: Vec<u8> = piece.iter().copied().cycle().take(20 << 20).collect();
    let (mut from, mut to) = tokio::io::split(&mut stream);
    let sending = async {
        to.write_all(&sent).await.unwrap();
        to.shutdown().await.unwrap();
    };
    let mut got = Vec::new();
    let (_, read) = tokio::join!(sending, from.read_to_end(&mut got));
    read.unwrap();
    assert!(got == sent);
}

#[tokio::test]
async fn a_port_without_a_server_is_refused_by_name() {
    let agent = Agent::start().await;
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let before = agent.descriptors();
    for _ in 0..50 {
        let error = agent.client.dial(port).await.map(drop).unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::Refused));
        assert_eq!(error.to_string(), format!("nothing listens on port {port}"));
    }
    assert_eq!(code(agent.client.dial(0).await), ErrorCode::InvalidArgument);
    assert_eq!(agent.descriptors(), before);
}

#[tokio::test]
async fn a_full_queue_is_no_reason_to_wait_for_ever() {
    let agent = Agent::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    // As short as a queue can be.
    rustix::net::listen(&listener, 0).unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut made = Vec::new();
    loop {
        match timeout(Duration::from_secs(9), agent.client.dial(port)).await.unwrap() {
            Ok(stream) => made.push(stream),
            Err(error) => break assert_eq!(error.code(), Some(ErrorCode::TimedOut)),
        }
        assert!(made.len() < 10, "the queue has no end");
        // What waits does not keep anything else waiting.
        agent.client.ping().await.unwrap();
    }
}

#[tokio::test]
async fn a_guest_that_never_reads_costs_a_window_and_nobody_else() {
    let agent = Agent::start().await;
    let port = server(|stream| {
        std::thread::sleep(Duration::from_secs(60));
        drop(stream);
    });
    let before = agent.resident_kib();
    let mut streams = Vec::new();
    for _ in 0..20 {
        let mut stream = agent.client.dial(port).await.unwrap();
        let sent = async {
            let mut sent = 0;
            while stream.write_all(&[7; 65_536]).await.is_ok() {
                sent += 65_536;
            }
            sent
        };
        assert!(timeout(Duration::from_millis(300), sent).await.is_err(), "it took everything");
        streams.push(stream);
        agent.client.ping().await.unwrap();
    }
    let grown = agent.resident_kib().saturating_sub(before);
    assert!(grown < 20 * 512, "{grown} KiB");
    let open = agent.descriptors();
    drop(streams);
    agent.client.ping().await.unwrap();
    assert_eq!(agent.descriptors(), open - 40);
}

#[tokio::test]
async fn a_flood_that_nobody_takes_stays_in_the_guest() {
    let agent = Agent::start().await;
    let port = server(|mut stream| while stream.write_all(&[1; 65_536]).is_ok() {});
    let streams = [agent.client.dial(port).await.unwrap(), agent.client.dial(port).await.unwrap()];
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(agent.sh("echo still here").await.stdout, b"still here\n");
    drop(streams);
}

#[tokio::test]
async fn what_breaks_does_not_look_like_an_end() {
    let agent = Agent::start().await;
    let port = server(|mut stream| {
        let _ = stream.read(&mut [0; 1]);
        stream.write_all(b"part").unwrap();
        // Closing with bytes unread resets the connection.
        std::thread::sleep(Duration::from_millis(100));
    });
    let mut stream = agent.client.dial(port).await.unwrap();
    stream.write_all(b"two bytes or more").await.unwrap();
    let mut bytes = Vec::new();
    let read = timeout(Duration::from_secs(10), stream.read_to_end(&mut bytes)).await.unwrap();
    assert!(read.unwrap_err().to_string().contains("broke"), "{bytes:?}");
    assert!(stream.write_all(b"more").await.is_err());
    agent.client.ping().await.unwrap();
}

#[tokio::test]
async fn one_client_has_a_bounded_number_of_connections() {
    let agent = Agent::start().await;
    let port = server(echo);
    let mut streams = Vec::new();
    let refused = loop {
        match agent.client.dial(port).await {
            Ok(stream) => streams.push(stream),
            Err(error) => break error,
        }
        assert!(streams.len() < 1000);
    };
    assert_eq!(refused, AgentError::TooMany);
    streams.pop();
    // Its number is free once the agent has confirmed the end.
    while agent.client.ping().await.is_err() {
        tokio::task::yield_now().await;
    }
    agent.client.dial(port).await.unwrap();
}

#[test]
fn the_agent_itself_counts_too() {
    let (socket, mut process) = spawn();
    let port = server(echo);
    let mut host = RawHost::greet(socket.try_clone().unwrap(), 1);
    let last = MAX_STREAMS as u32 + 1;
    for stream in 1..=last {
        host.request(stream, Request::Dial { port });
    }
    let refusal: Outcome = host.reply(last);
    assert_eq!(refusal.unwrap_err().code, ErrorCode::TooMany);
    // Another host has nothing of them.
    let mut next = RawHost::greet(socket.try_clone().unwrap(), 2);
    next.request(1, Request::Dial { port });
    assert_eq!(next.frame(1), Kind::Ready);
    let open = std::fs::read_dir(format!("/proc/{}/fd", process.id())).unwrap().count();
    assert!(open < 20, "{open} descriptors");
    drop((host, next, socket));
    assert!(process.wait().unwrap().success());
}
