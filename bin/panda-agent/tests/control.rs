//! Identity, tokens, measurements and the start of connections, through the real agent.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::{Duration, SystemTime};

use pandastack_engine::agent::{AgentClient, AgentError, DEADLINE, ErrorCode, Identity};
use pandastack_proto::{Detached, Encoder, Ended, ExecStatus, Reply, Request};
use support::raw::RawHost;
use support::{Agent, gone, runs, shell, spawn};

fn code<T: std::fmt::Debug>(result: Result<T, AgentError>) -> ErrorCode {
    result.unwrap_err().code().unwrap()
}

#[tokio::test]
async fn a_resume_changes_the_token_and_nothing_of_this_host() {
    let agent = Agent::start().await;
    let name = || std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let before = name();
    let identity = Identity::random("sandbox-1").unwrap();
    let ack = agent.client.resume(&identity, DEADLINE).await.unwrap();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let lag = now.saturating_sub(Duration::from_nanos(ack.unix_ns));
    assert!(lag < Duration::from_secs(5));
    assert_eq!(name(), before);
    agent.client.ping().await.unwrap();
    agent.client.set_clock(SystemTime::UNIX_EPOCH).await.unwrap();

    agent.client.set_token([0; 16]);
    assert_eq!(code(agent.client.ping().await), ErrorCode::Unauthorized);
    assert_eq!(code(agent.client.run(shell("true")).await), ErrorCode::Unauthorized);
    assert_eq!(code(agent.client.list("/").await), ErrorCode::Unauthorized);
    assert_eq!(code(agent.client.resume(&identity, DEADLINE).await), ErrorCode::Unauthorized);
    agent.client.set_token(identity.token);

    let second = Identity::random("sandbox-2").unwrap();
    agent.client.resume(&second, DEADLINE).await.unwrap();
    agent.client.set_token(identity.token);
    assert_eq!(code(agent.client.ping().await), ErrorCode::Unauthorized);
    agent.client.set_token(second.token);
    agent.client.ping().await.unwrap();
    let malformed = Identity { hostname: "a b".into(), ..second };
    assert_eq!(code(agent.client.resume(&malformed, DEADLINE).await), ErrorCode::InvalidArgument);
}

#[tokio::test]
async fn ports_and_measurements() {
    let agent = Agent::start().await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    assert!(agent.client.ports().await.unwrap().contains(&port));
    drop(listener);
    assert!(!agent.client.ports().await.unwrap().contains(&port));
    let stats = agent.client.stats().await.unwrap();
    assert!(stats.mem_total > stats.mem_available && stats.uptime_ms > 0 && stats.tasks > 0);
}

#[tokio::test]
async fn quiesce_wants_silence() {
    let agent = Agent::start().await;
    agent.client.quiesce().await.unwrap();
    let session = agent.client.exec(shell("sleep 982.1")).await.unwrap();
    while !runs("982.1") {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(code(agent.client.quiesce().await), ErrorCode::TooMany);
    drop(session);
    assert!(gone("982.1").await);
}

#[tokio::test]
async fn the_agent_ends_with_its_client() {
    let mut agent = Agent::start().await;
    let session = agent.client.exec(shell("sleep 981.1")).await.unwrap();
    while !runs("981.1") {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (other, _) = UnixStream::pair().unwrap();
    other.set_nonblocking(true).unwrap();
    agent.client = AgentClient::connect(tokio::net::UnixStream::from_std(other).unwrap());
    drop(session);
    // Waited for with the runtime running: it is what closes the socket.
    let mut status = None;
    while status.is_none() {
        tokio::time::sleep(Duration::from_millis(10)).await;
        status = agent.process.try_wait().unwrap();
    }
    assert!(status.is_some_and(|status| status.success()));
    assert!(gone("981.1").await);
}

#[tokio::test]
async fn power_off_ends_the_agent() {
    let mut agent = Agent::start().await;
    agent.client.power_off().await.unwrap();
    agent.client.closed().await;
    assert_eq!(agent.client.ping().await, Err(AgentError::Closed));
    assert!(agent.process.wait().unwrap().success());
}

#[test]
fn a_new_host_starts_clean_in_the_middle_of_anything() {
    let (socket, mut process) = spawn();
    // The agent is sending a flood that nobody reads, and is in the middle of a long frame.
    let mut first = RawHost::greet(socket.try_clone().unwrap(), 1);
    first.request(1, Request::Ping);
    assert_eq!(first.reply(1), Ok(Reply::Done));
    first.request(2, Request::Exec(shell("sleep 980.1 & exec yes 980.2")));
    let unfinished = [5_u8, 2, 0, 0, 0, 0, 0, 1, 0, 3, b'x', b'y'];
    first.socket.write_all(&unfinished).unwrap();
    while !(runs("980.1") && runs("980.2")) {
        std::thread::sleep(Duration::from_millis(10));
    }
    // Long enough for pipe, window and socket to be full.
    std::thread::sleep(Duration::from_millis(100));

    let mut second = RawHost::greet(socket.try_clone().unwrap(), 2);
    second.request(1, Request::Ping);
    assert_eq!(second.reply(1), Ok(Reply::Done));
    assert!(runs("980.1"), "commands live on");

    // Garbage stops the agent from listening, but not from hearing the next host.
    second.socket.write_all(&[0xEE; 5000]).unwrap();
    let mut third = RawHost::greet(socket.try_clone().unwrap(), 3);
    third.request(
        7,
        Request::Exec(shell("pkill -f '[s]leep 980.1'; pkill -f '[y]es 980.2'; exit 0")),
    );
    assert!(matches!(third.reply(7), Ok(Reply::Exited(_))));
    // A number that was used and frames for no stream are ignored.
    third.request(7, Request::Ping);
    let mut out = Encoder::new();
    out.reset(5);
    out.credit(900, 1);
    third.socket.write_all(out.pending()).unwrap();
    third.request(8, Request::Ping);
    assert_eq!(third.reply(8), Ok(Reply::Done));
    drop((first, second, third, socket));
    assert!(process.wait().unwrap().success());
}

/// What a host is told of the commands of the one before, and that it is told once.
#[test]
fn a_new_host_hears_how_commands_ended() {
    let (socket, mut process) = spawn();
    let mut first = RawHost::greet(socket.try_clone().unwrap(), 1);
    first.request(1, Request::Exec(shell("sleep 0.2; exit 7")));
    first.request(2, Request::Exec(shell("sleep 979.1")));
    first.request(3, Request::Ping);
    assert_eq!(first.reply(3), Ok(Reply::Done));

    let mut second = RawHost::greet(socket.try_clone().unwrap(), 2);
    let mut streams = 1..;
    let mut asked = |seen: u64| {
        let stream = streams.next().unwrap();
        second.request(stream, Request::Detached { seen });
        match second.reply(stream) {
            Ok(Reply::Detached(detached)) => detached,
            other => panic!("{other:?}"),
        }
    };
    let ended = loop {
        let told = asked(0);
        match &told.ended[..] {
            [] => assert_eq!(told.running, 2),
            _ => break told,
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let status = ExecStatus { code: 7, timed_out: false };
    let command = "sleep 0.2; exit 7".to_owned();
    assert_eq!(ended, Detached { running: 1, ended: vec![Ended { number: 1, command, status }] });
    // Whoever does not say that it has seen it may not have.
    assert_eq!(asked(0), ended);
    assert_eq!(asked(1), Detached { running: 1, ended: Vec::new() });
    assert_eq!(asked(0), asked(1), "it is forgotten");
    drop((first, second, socket));
    assert!(process.wait().unwrap().success());
}

#[test]
fn every_start_and_garbage_in_between() {
    let (socket, mut process) = spawn();
    let mut noise = 0x2545_F491_4F6C_DD1D_u64;
    for round in 0..200 {
        let junk: Vec<u8> = (0..round * 7)
            .map(|_| {
                noise ^= noise << 13;
                noise ^= noise >> 7;
                noise ^= noise << 17;
                noise as u8
            })
            .collect();
        (&socket).write_all(&junk).unwrap();
        let mut host = RawHost::greet(socket.try_clone().unwrap(), round as u8);
        host.request(1, Request::Ping);
        assert_eq!(host.reply(1), Ok(Reply::Done), "round {round}");
    }
    drop(socket);
    assert!(process.wait().unwrap().success());
}
