//! Runs an HTTP/2 server and the real agent under QEMU's translator for programs (the same one
//! that a guest's PID 1 runs on) and times their answers.
//!
//! Arguments: path of the HTTP/2 server, path of the agent. Prints JSON.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use pandastack_engine::agent::AgentClient;
use serde_json::{Value, json};
use tokio::net::UnixStream;

/// Runs of each server; each is cold once.
const RUNS: usize = 11;
/// Requests after the first.
const WARM: u32 = 200;
/// The translator of the package qemu-user.
const TRANSLATOR: &str = "qemu-x86_64";

/// One run: milliseconds to the first answer, per warm request, and resident KiB at the end.
struct Run {
    first_ms: f64,
    warm_ms: f64,
    resident_kib: f64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let mut paths = std::env::args().skip(1);
    let (h2, agent) = (paths.next().expect("h2-server"), paths.next().expect("panda-agent"));
    let (mut http, mut frames) = (Vec::new(), Vec::new());
    // In turns, so that both see the same host.
    for _ in 0..RUNS {
        http.push(http2(&h2).await);
        frames.push(own_frames(&agent).await);
    }
    let report = json!({ "http2": summary(&h2, &http), "frames": summary(&agent, &frames) });
    println!("{report}");
}

/// Starts a program under the translator with a socket as its standard input.
fn start(program: &str, arguments: &[&str]) -> (Child, UnixStream, Instant) {
    let (ours, theirs) = StdUnixStream::pair().expect("a socket pair");
    let begin = Instant::now();
    let child = Command::new(TRANSLATOR)
        .arg(program)
        .args(arguments)
        .stdin(OwnedFd::from(theirs))
        .spawn()
        .expect("the package qemu-user");
    ours.set_nonblocking(true).expect("a socket");
    (child, UnixStream::from_std(ours).expect("a reactor"), begin)
}

async fn http2(program: &str) -> Run {
    let (child, stream, begin) = start(program, &[]);
    let (client, connection) = h2::client::handshake(stream).await.expect("a server");
    tokio::spawn(connection);
    let ask = async || {
        let mut client = client.clone().ready().await.expect("a connection");
        let request = http::Request::get("http://agent/ping").body(()).expect("a request");
        let (response, _) = client.send_request(request, true).expect("a stream");
        let mut body = response.await.expect("an answer").into_body();
        assert_eq!(body.data().await.expect("a body").expect("data"), "pong");
    };
    measure(child, begin, ask).await
}

async fn own_frames(program: &str) -> Run {
    let (child, stream, begin) = start(program, &["--socket-fd", "0"]);
    let client = AgentClient::connect(stream);
    client.hello(Duration::from_secs(30)).await.expect("an agent");
    measure(child, begin, async || client.ping().await.expect("an answer")).await
}

async fn measure(mut child: Child, begin: Instant, ask: impl AsyncFn()) -> Run {
    ask().await;
    let first_ms = begin.elapsed().as_secs_f64() * 1e3;
    let warm = Instant::now();
    for _ in 0..WARM {
        ask().await;
    }
    let warm_ms = warm.elapsed().as_secs_f64() * 1e3 / f64::from(WARM);
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or_default();
    let resident_kib = line.trim().trim_end_matches(" kB").parse().unwrap_or(f64::NAN);
    child.kill().expect("our own child");
    child.wait().expect("our own child");
    Run { first_ms, warm_ms, resident_kib }
}

fn summary(program: &str, runs: &[Run]) -> Value {
    let median = |of: fn(&Run) -> f64| {
        let mut values: Vec<f64> = runs.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    json!({
        "binary_kib": std::fs::metadata(program).map_or(0, |m| m.len() / 1024),
        "first_answer_ms": median(|run| run.first_ms),
        "warm_request_ms": median(|run| run.warm_ms),
        "resident_kib": median(|run| run.resident_kib),
    })
}
