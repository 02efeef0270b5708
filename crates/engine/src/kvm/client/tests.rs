//! The client against a monitor that only speaks the wire.

use std::os::fd::AsRawFd;
use std::thread;

use pandastack_vmm::control::{Fork, Start};
use rustix::net::SendFlags;

use super::super::channels;
use super::*;

/// What a test's monitor does with its end of the socket.
fn monitor(script: impl FnOnce(&OwnedFd) + Send + 'static) -> Client {
    let (ours, theirs) = channels::control().unwrap();
    thread::spawn(move || script(&theirs));
    Client::new(ours).unwrap()
}

fn next(socket: &OwnedFd) -> Received<Request> {
    receive(socket).unwrap()
}

fn say(socket: &OwnedFd, reply: Reply) {
    send(socket, reply, &[]).unwrap();
}

const SOON: Deadline = within(5, "a test");
const AT_ONCE: Deadline = Deadline { time: Duration::from_millis(20), what: "a test" };

#[tokio::test]
async fn a_start_arrives_with_its_descriptors_in_order() {
    let client = monitor(|socket| {
        let mut got = next(socket);
        let start = Start { cpus: 2, memory_mb: 512, boot: Some("quiet".into()) };
        assert_eq!(got.body, Request::Start(start));
        let mut length = |role| {
            let file = std::fs::File::from(got.take(role).unwrap());
            file.metadata().unwrap().len()
        };
        assert_eq!([Role::Layer, Role::Root, Role::Layer].map(&mut length), [1, 2, 3]);
        assert!(got.descriptors.is_empty());
        say(socket, Reply::Done);
        // Not before the client is done with it.
        let _ = receive::<Request>(socket);
    });
    let files = [1, 2, 3].map(|length| {
        let file = tempfile::tempfile().unwrap();
        file.set_len(length).unwrap();
        file
    });
    let mut attached = Attached::new();
    attach(&mut attached, Role::Layer, [&files[0]]);
    attach(&mut attached, Role::Root, [&files[1]]);
    attach(&mut attached, Role::Layer, [&files[2]]);
    let start = Start { cpus: 2, memory_mb: 512, boot: Some("quiet".into()) };
    client.done(Request::Start(start), attached, SOON).await.unwrap();
}

#[tokio::test]
async fn a_fork_brings_a_process_and_the_copy_speaks_for_itself() {
    let client = monitor(|socket| {
        let mut got = next(socket);
        assert_eq!(got.body, Request::Fork(Fork { readable: false, disks: Vec::new() }));
        let control = got.take(Role::Control).unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        // In this order they may arrive in any.
        say(&control, Reply::Born(vec![("settle".into(), 7)]));
        send(socket, Reply::Forked(vec![("clone".into(), 9)]), &[(Role::Process, null.as_fd())])
            .unwrap();
        assert_eq!(next(&control).body, Request::Run);
        say(&control, Reply::Ran(Vec::new()));
        say(&control, Reply::Ended(End::PowerOff));
    });
    let (ours, theirs) = channels::control().unwrap();
    let copy = Client::new(ours).unwrap();
    let birth = copy.expect();
    let attached = vec![(Role::Control, theirs.as_fd())];
    let fork = Request::Fork(Fork { readable: false, disks: Vec::new() });
    let mut forked = client.ask(fork, attached, SOON).await.unwrap();
    drop(theirs);
    assert_eq!(forked.body, Reply::Forked(vec![("clone".into(), 9)]));
    assert!(forked.take(Role::Process).unwrap().as_raw_fd() > 2);
    let born = copy.answer(birth, SOON).await.unwrap();
    assert_eq!(born.body, Reply::Born(vec![("settle".into(), 7)]));
    copy.run().await.unwrap();
    assert_eq!(copy.over().await, Over::Guest(End::PowerOff));
    assert!(client.over.borrow().is_none() || client.over().await == Over::Closed);
}

#[tokio::test]
async fn an_end_that_nobody_asked_for_is_heard_and_explains_the_silence() {
    let client = monitor(|socket| {
        assert_eq!(next(socket).body, Request::Run);
        say(socket, Reply::Ended(End::Reset));
    });
    let error = client.run().await.unwrap_err();
    assert!(error.to_string().contains("its guest ended (Reset)"), "{error}");
    assert_eq!(client.over().await, Over::Guest(End::Reset));
    assert!(client.pause().await.is_err());
}

#[tokio::test]
async fn a_failure_is_an_error_of_its_kind_and_not_the_end() {
    let client = monitor(|socket| {
        for failure in [
            Failure::Foreign("another \u{1b}[31mmodel".into()),
            Failure::Damaged { file: "state".into(), why: "short".into() },
            Failure::TooDeep,
            Failure::Refused("x".repeat(10_000)),
        ] {
            next(socket);
            say(socket, Reply::Failed(failure));
        }
        next(socket);
        say(socket, Reply::Done);
        let _ = receive::<Request>(socket);
    });
    let error = client.pause().await.unwrap_err();
    assert!(matches!(&error, EngineError::Foreign(why) if !why.contains('\u{1b}')), "{error}");
    let error = client.pause().await.unwrap_err();
    assert!(matches!(&error, EngineError::Damaged { file, .. } if file == "state"), "{error}");
    assert!(matches!(client.pause().await, Err(EngineError::NoFork(_))));
    let error = client.pause().await.unwrap_err();
    assert!(matches!(&error, EngineError::Monitor(why) if why.len() < 1000), "{error}");
    client.pause().await.unwrap();
}

#[tokio::test]
async fn garbage_and_answers_without_a_question_end_the_conversation() {
    for bytes in [&b"garbage"[..], &[0xff; 64], &postcard_of_done()] {
        let bytes = bytes.to_owned();
        let client = monitor(move |socket| {
            rustix::net::send(socket, &bytes, SendFlags::NOSIGNAL).unwrap();
            let _ = receive::<Request>(socket);
        });
        assert!(matches!(client.over().await, Over::Broken(_)));
        let error = client.run().await.unwrap_err();
        assert!(error.to_string().contains("broke the protocol"), "{error}");
    }
}

/// A well-formed message, as bytes: what `send` writes for [`Reply::Done`].
fn postcard_of_done() -> Vec<u8> {
    let (one, other) = channels::control().unwrap();
    send(&one, Reply::Done, &[]).unwrap();
    let mut bytes = vec![0; 64];
    let (length, _) =
        rustix::net::recv(&other, &mut bytes[..], rustix::net::RecvFlags::empty()).unwrap();
    bytes.truncate(length);
    bytes
}

#[tokio::test]
async fn an_answer_to_another_question_is_refused() {
    let client = monitor(|socket| {
        next(socket);
        say(socket, Reply::Console(b"hello".to_vec()));
        let _ = receive::<Request>(socket);
    });
    assert!(matches!(client.run().await, Err(EngineError::Monitor(_))));
}

#[tokio::test]
async fn silence_has_a_deadline_and_a_late_answer_is_nobodys() {
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let client = monitor(move |socket| {
        next(socket);
        let _ = wait.recv();
        say(socket, Reply::Done);
        let _ = receive::<Request>(socket);
    });
    let silent = client.done(Request::Pause, Vec::new(), AT_ONCE).await;
    assert!(matches!(silent, Err(EngineError::Deadline(_))), "{silent:?}");
    go.send(()).unwrap();
    let error = client.run().await.unwrap_err();
    assert!(error.to_string().contains("did not answer"), "{error}");
}

#[tokio::test]
async fn a_monitor_that_goes_away_is_not_waited_for() {
    let client = monitor(|socket| drop(next(socket)));
    let error = client.run().await.unwrap_err();
    assert!(matches!(error, EngineError::Ended(_)), "{error}");
    assert_eq!(client.over().await, Over::Closed);
}

#[tokio::test]
async fn a_client_that_is_dropped_closes_its_end() {
    let (ours, theirs) = channels::control().unwrap();
    let client = Client::new(ours).unwrap();
    let over = client.over();
    drop(client);
    assert_eq!(over.await, Over::Closed);
    let ended = tokio::task::spawn_blocking(move || receive::<Request>(&theirs)).await.unwrap();
    assert!(matches!(ended, Err(WireError::Closed)));
}
