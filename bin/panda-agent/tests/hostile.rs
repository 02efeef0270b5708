//! The client against agents that lie.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use pandastack_engine::agent::{AgentClient, AgentError, DirEntry, FileKind};
use pandastack_proto::{
    Channel, Decoder, Encoder, HEADER_LEN, Hello, INITIAL_WINDOW, Incoming, Kind, MAGIC, Outcome,
    Reply, VERSION, Welcome, parse,
};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// A client whose agent answers the hello correctly and the first request with `answer`.
async fn against(answer: impl FnOnce(&mut Encoder) + Send + 'static) -> AgentClient {
    let (ours, theirs) = UnixStream::pair().unwrap();
    tokio::spawn(async move {
        let (mut theirs, mut decoder) = (theirs, Decoder::for_agent());
        let mut answer = Some(answer);
        loop {
            let count = theirs.read(decoder.space()).await.unwrap_or(0);
            if count == 0 {
                return;
            }
            decoder.commit(count);
            let mut out = Encoder::new();
            while let Some(incoming) = decoder.next().unwrap() {
                let Incoming::Frame(frame) = incoming else { continue };
                match (frame.kind, answer.take()) {
                    (Kind::Hello, kept) => {
                        let hello: Hello = parse(frame.payload, "hello").unwrap();
                        out.echo(&hello.nonce);
                        out.message(Kind::Welcome, 0, &welcome()).unwrap();
                        answer = kept;
                    }
                    (Kind::Request, Some(answer)) => answer(&mut out),
                    _ => {}
                }
            }
            let _ = theirs.write_all(out.pending()).await;
        }
    });
    AgentClient::connect(ours)
}

fn welcome() -> Welcome {
    Welcome { version: VERSION, init: true, kernel: "6.12\n\u{1b}[2J".into() }
}

fn violation<T: std::fmt::Debug>(result: Result<T, AgentError>) -> String {
    match result {
        Err(AgentError::Protocol(text)) => text,
        other => panic!("no violation but {other:?}"),
    }
}

/// The connection must end with a violation, for the request and for everyone after it.
async fn breaks(answer: impl FnOnce(&mut Encoder) + Send + 'static) -> String {
    let client = against(answer).await;
    let text = violation(client.ping().await);
    tokio::time::timeout(Duration::from_secs(5), client.closed()).await.unwrap();
    assert_eq!(violation(client.stats().await), text);
    text
}

#[tokio::test]
async fn violations_end_the_connection() {
    let done = Outcome::Ok(Reply::Done);
    let reply = done.clone();
    assert_eq!(
        breaks(move |out| out.message(Kind::Reply, 9, &reply).unwrap()).await,
        "a frame of a stream that is not open"
    );
    breaks(|out| out.data(1, Channel::Stdout, b"nobody asked").unwrap()).await;
    breaks(|out| out.data(2, Channel::Stdout, b"unknown").unwrap()).await;
    breaks(|out| out.credit(1, 1)).await;
    breaks(|out| out.credit(1, u32::MAX)).await;
    breaks(|out| out.credit(77, 1)).await;
    breaks(|out| out.eof(1, Channel::Stdout)).await;
    breaks(|out| out.reset(1)).await;
    breaks(|out| out.ready(1)).await;
    breaks(|out| out.ready(77)).await;
    breaks(|out| out.eof(1, Channel::Tcp)).await;
    breaks(|out| out.data(1, Channel::Tcp, b"x").unwrap()).await;
    breaks(|out| out.message(Kind::Welcome, 0, &welcome()).unwrap()).await;
    breaks(|out| out.message(Kind::Hello, 0, &Hello { version: VERSION, nonce: [1; 16] }).unwrap())
        .await;
    // A reply that is no reply, and one with something behind it.
    breaks(|out| out.message(Kind::Reply, 1, &[0xFF_u8; 32]).unwrap()).await;
    breaks(move |out| out.message(Kind::Reply, 1, &(done, 1_u8)).unwrap()).await;
    // The mark of a connection means nothing here; it is a frame of no known kind.
    assert_eq!(breaks(|out| out.magic()).await, format!("a frame of unknown kind {}", MAGIC[0]));
}

#[tokio::test]
async fn a_reply_to_another_question_is_an_error() {
    let client = against(|out| {
        out.message(Kind::Reply, 1, &Outcome::Ok(Reply::Ports(vec![1]))).unwrap();
    })
    .await;
    assert!(violation(client.ping().await).contains("does not fit"));
}

#[tokio::test]
async fn more_data_than_granted_is_a_violation_and_never_memory() {
    let client = against(|out| {
        let chunk = vec![0; 32 * 1024];
        for _ in 0..=INITIAL_WINDOW as usize / chunk.len() {
            out.data(1, Channel::Stdout, &chunk).unwrap();
        }
    })
    .await;
    let mut session = client.exec(support::shell("x")).await.unwrap();
    client.closed().await;
    let mut seen = 0;
    let error = loop {
        match session.next().await {
            Ok(Some(pandastack_engine::agent::ExecEvent::Stdout(bytes))) => seen += bytes.len(),
            other => break other,
        }
    };
    assert!(seen <= INITIAL_WINDOW as usize);
    assert_eq!(violation(error), "more data than was granted");
}

#[tokio::test]
async fn a_connection_only_goes_forwards() {
    let backwards: [fn(&mut Encoder); 5] = [
        |out| out.data(1, Channel::Tcp, b"early").unwrap(),
        |out| out.eof(1, Channel::Tcp),
        |out| (0..2).for_each(|_| out.ready(1)),
        |out| {
            out.ready(1);
            (0..2).for_each(|_| out.eof(1, Channel::Tcp));
        },
        |out| {
            out.ready(1);
            out.eof(1, Channel::Tcp);
            out.data(1, Channel::Tcp, b"late").unwrap();
        },
    ];
    for answer in backwards {
        let client = against(answer).await;
        let dialled = client.dial(80).await;
        tokio::time::timeout(Duration::from_secs(5), client.closed()).await.unwrap();
        drop(dialled);
        violation(client.ping().await);
    }
    // An end without a beginning is no connection.
    let client =
        against(|out| out.message(Kind::Reply, 1, &Outcome::Ok(Reply::Done)).unwrap()).await;
    assert!(violation(client.dial(80).await.map(drop)).contains("does not fit"));
}

#[tokio::test]
async fn a_connection_gives_no_more_than_was_granted() {
    let client = against(|out| {
        out.ready(1);
        (0..=INITIAL_WINDOW as usize / 32_768)
            .for_each(|_| out.data(1, Channel::Tcp, &[0; 32_768]).unwrap());
    })
    .await;
    let stream = client.dial(80).await;
    client.closed().await;
    assert_eq!(violation(client.ping().await), "more data than was granted");
    drop(stream);
}

#[tokio::test]
async fn many_empty_frames_are_a_violation_too() {
    let client = against(|out| {
        for _ in 0..10_000 {
            out.data(1, Channel::Stdout, b"x").unwrap();
        }
    })
    .await;
    let session = client.exec(support::shell("x")).await.unwrap();
    client.closed().await;
    drop(session);
}

#[tokio::test]
async fn listings_are_bounded() {
    // An agent that respects the window and never ends.
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    tokio::spawn(async move {
        let mut decoder = Decoder::for_agent();
        let mut window = pandastack_proto::SendWindow::default();
        let entry = DirEntry {
            name: "n".repeat(200),
            kind: FileKind::File,
            leads_to_dir: false,
            size: 1,
            mode: 0,
            mtime: 0,
        };
        let batch = vec![entry; 200];
        let mut listing = None;
        loop {
            let mut out = Encoder::new();
            while let Some(incoming) = decoder.next().unwrap() {
                let Incoming::Frame(frame) = incoming else { continue };
                match frame.kind {
                    Kind::Hello => {
                        let hello: Hello = parse(frame.payload, "hello").unwrap();
                        out.echo(&hello.nonce);
                        out.message(Kind::Welcome, 0, &welcome()).unwrap();
                    }
                    Kind::Request => listing = Some(frame.stream),
                    Kind::Credit => window.grant(frame.credit().unwrap()).unwrap(),
                    Kind::Reset => return,
                    _ => {}
                }
            }
            while let (Some(stream), 60_000..) = (listing, window.allowance()) {
                let len = out.data_message(stream, Channel::Entries, &batch).unwrap();
                window.spend(len);
            }
            theirs.write_all(out.pending()).await.unwrap();
            let count = theirs.read(decoder.space()).await.unwrap();
            decoder.commit(count);
        }
    });
    let client = AgentClient::connect(ours);
    let error = client.list("/").await.unwrap_err();
    assert!(matches!(error, AgentError::TooLarge { .. }), "{error:?}");
}

#[tokio::test]
async fn texts_of_the_guest_are_tamed() {
    let client = against(|out| {
        let failure = pandastack_proto::Failure {
            code: pandastack_engine::agent::ErrorCode::Io,
            message: "evil\n\u{1b}[31m".repeat(1000),
        };
        out.message(Kind::Reply, 1, &Outcome::Err(failure)).unwrap();
    })
    .await;
    let info = client.hello(Duration::from_secs(5)).await.unwrap();
    assert_eq!(info.kernel, "6.12  [2J");
    let text = client.ping().await.unwrap_err().to_string();
    assert!(text.len() <= 512 && !text.contains(char::is_control), "{text}");
}

#[tokio::test]
async fn silence_and_hanging_up_are_answered() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let client = AgentClient::connect(ours);
    let patience = Duration::from_millis(50);
    assert_eq!(client.hello(patience).await, Err(AgentError::Deadline(patience)));
    let ping = tokio::spawn({
        let client = client.clone();
        async move { client.ping().await }
    });
    tokio::task::yield_now().await;
    drop(theirs);
    assert_eq!(ping.await.unwrap(), Err(AgentError::Closed));
    assert_eq!(client.hello(patience).await, Err(AgentError::Closed));
}

#[tokio::test]
async fn a_version_of_another_build_is_refused() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let client = AgentClient::connect(ours);
    let mut greeting = [0; MAGIC.len() + HEADER_LEN + 17];
    theirs.read_exact(&mut greeting).await.unwrap();
    let nonce = greeting[greeting.len() - 16..].try_into().unwrap();
    let mut out = Encoder::new();
    out.echo(&nonce);
    out.message(Kind::Welcome, 0, &Welcome { version: VERSION + 1, ..welcome() }).unwrap();
    theirs.write_all(out.pending()).await.unwrap();
    violation(client.hello(Duration::from_secs(5)).await);
}

#[tokio::test]
async fn stale_bytes_are_skipped_but_not_for_ever() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let client = AgentClient::connect(ours);
    let flood = tokio::spawn(async move {
        let junk = vec![MAGIC[0]; 1 << 16];
        while theirs.write_all(&junk).await.is_ok() {}
    });
    violation(client.hello(Duration::from_secs(30)).await);
    flood.await.unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever an agent sends after a correct start: no panic, and every wait ends.
    #[test]
    fn garbage_never_hurts(junk in proptest::collection::vec(any::<u8>(), 0..2000), kind in 0_u8..11) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let client = AgentClient::connect(ours);
            let mut greeting = [0; MAGIC.len() + HEADER_LEN + 17];
            theirs.read_exact(&mut greeting).await.unwrap();
            let mut session = client.exec(support::shell("x")).await.unwrap();
            let nonce = greeting[greeting.len() - 16..].try_into().unwrap();
            let mut out = Encoder::new();
            out.echo(&nonce);
            out.message(Kind::Welcome, 0, &welcome()).unwrap();
            theirs.write_all(out.pending()).await.unwrap();
            // Half of the cases begin like a frame of the open stream.
            if kind < 10 {
                let len = (junk.len() as u32).to_le_bytes();
                let header = [kind, 1, 0, 0, 0, len[0], len[1], len[2], len[3]];
                theirs.write_all(&header).await.unwrap();
            }
            theirs.write_all(&junk).await.unwrap();
            drop(theirs);
            while let Ok(Some(_)) = session.next().await {}
            client.closed().await;
        });
    }
}
