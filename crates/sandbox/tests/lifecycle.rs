//! The life of a sandbox, from its creation to the last trace of it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use pandastack_engine::Exit;
use pandastack_sandbox::{
    Command, CreateError, ExecError, LifecycleChange, LifecycleError, Output, Unavailable,
};
use pandastack_types::{EndReason, ExecRequest, State};
use support::{World, base, eventually};

fn command(line: &str) -> Command {
    let request = ExecRequest { cmd: Some(line.to_owned()), ..ExecRequest::default() };
    Command::try_from(request).unwrap()
}

fn limited(line: &str, seconds: i64) -> Command {
    let request = ExecRequest {
        cmd: Some(line.to_owned()),
        timeout_seconds: Some(seconds),
        ..ExecRequest::default()
    };
    Command::try_from(request).unwrap()
}

#[tokio::test]
async fn a_sandbox_is_created_used_and_gone() {
    let world = World::new();
    let created = world.manager.create(base()).await.unwrap();
    assert_eq!(created.view.status, State::Running);
    assert_eq!(created.view.boot_mode, "snapshot");
    assert_eq!(created.view.ttl_seconds, 3600);
    let names: Vec<_> = created.stages.marks().iter().map(|(name, _)| *name).collect();
    assert_eq!(
        names,
        [
            "admission",
            "take",
            "journal",
            "queue",
            "restore",
            "attach",
            "run",
            "handshake",
            "commit"
        ]
    );
    let sandbox = world.manager.get(created.view.id).unwrap();
    let mut execution = sandbox.exec(command("echo hi")).await.unwrap();
    assert_eq!(execution.next().await.unwrap(), Output::Stdout("hi\n".into()));
    assert_eq!(execution.next().await.unwrap(), Output::Exit(0));
    drop(execution);
    sandbox.delete().await.unwrap();
    assert!(world.manager.get(created.view.id).is_err());
    world.nothing_left().await;
    let kinds: Vec<_> = world.store.journal(created.view.id, 10).unwrap();
    let kinds: Vec<_> = kinds.into_iter().map(|entry| entry.kind).collect();
    assert_eq!(
        kinds,
        ["sandbox.creating", "sandbox.running", "sandbox.stopping", "sandbox.deleted"]
    );
}

#[tokio::test]
async fn two_deletions_at_once_both_succeed_and_a_third_finds_nothing() {
    let world = World::new();
    let id = world.manager.create(base()).await.unwrap().view.id;
    let sandbox = world.manager.get(id).unwrap();
    let (first, second) = tokio::join!(sandbox.delete(), sandbox.delete());
    assert!(first.is_ok() && second.is_ok());
    assert!(matches!(sandbox.delete().await, Err(LifecycleError::NotFound(_))));
    world.nothing_left().await;
}

#[tokio::test]
async fn a_ttl_is_exact_and_counts_from_its_last_change() {
    let world = World::new();
    let mut request = base();
    request.ttl_seconds = Some(1);
    let started = Instant::now();
    let id = world.manager.create(request).await.unwrap().view.id;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let sandbox = world.manager.get(id).unwrap();
    let change = LifecycleChange { ttl_seconds: Some(1), ..LifecycleChange::default() };
    assert_eq!(sandbox.change(change).await.unwrap().ttl_seconds, 1);
    let changed = Instant::now();
    tokio::time::sleep_until((started + Duration::from_millis(1300)).into()).await;
    assert!(world.manager.get(id).is_ok(), "the first limit does not count any more");
    eventually("it expires", || world.manager.get(id).is_err()).await;
    let lived = changed.elapsed();
    assert!(lived >= Duration::from_millis(990), "{lived:?}");
    assert!(lived < Duration::from_secs(2), "{lived:?}");
    assert_eq!(world.store.sandbox(id).unwrap().unwrap().reason, Some(EndReason::Ttl));
    world.nothing_left().await;
}

#[tokio::test]
async fn a_paused_sandbox_expires_too() {
    let world = World::new();
    let mut request = base();
    request.ttl_seconds = Some(1);
    let id = world.manager.create(request).await.unwrap().view.id;
    world.manager.get(id).unwrap().pause().await.unwrap();
    eventually("it expires", || world.manager.get(id).is_err()).await;
    world.nothing_left().await;
}

#[tokio::test]
async fn pausing_stops_the_guest_and_its_time_limits() {
    let world = World::new();
    let id = world.manager.create(base()).await.unwrap().view.id;
    let sandbox = world.manager.get(id).unwrap();
    let mut execution = sandbox.exec(limited("sleep 300", 1)).await.unwrap();
    sandbox.pause().await.unwrap();
    sandbox.pause().await.unwrap();
    assert_eq!(sandbox.state(), State::Paused);
    let refused = sandbox.exec(command("echo")).await.map(|_| ());
    assert!(matches!(refused, Err(ExecError::Unavailable(Unavailable::Paused(_)))));
    // Far longer than the command's limit.
    let still = tokio::time::timeout(Duration::from_millis(1500), execution.next()).await;
    assert!(still.is_err(), "{still:?}");
    sandbox.resume().await.unwrap();
    sandbox.resume().await.unwrap();
    assert_eq!(execution.next().await.unwrap(), Output::Exit(0));
}

#[tokio::test]
async fn a_time_limit_kills_the_command() {
    let world = World::new();
    let id = world.manager.create(base()).await.unwrap().view.id;
    let sandbox = world.manager.get(id).unwrap();
    let machine = world.engine.alive().pop().unwrap();
    let started = Instant::now();
    let mut execution = sandbox.exec(limited("hang", 1)).await.unwrap();
    let Err(ExecError::Timeout(limit)) = execution.next().await else { panic!() };
    assert_eq!(limit, Duration::from_secs(1));
    assert!(started.elapsed() >= Duration::from_millis(990));
    eventually("it is killed", || machine.hanging.load(Ordering::SeqCst) == 0).await;
    assert_eq!(sandbox.lifecycle().idle_seconds, 0);
}

#[tokio::test]
async fn a_dropped_command_is_killed() {
    let world = World::new();
    let id = world.manager.create(base()).await.unwrap().view.id;
    let sandbox = world.manager.get(id).unwrap();
    let machine = world.engine.alive().pop().unwrap();
    let execution = sandbox.exec(command("hang")).await.unwrap();
    eventually("it runs", || machine.hanging.load(Ordering::SeqCst) == 1).await;
    drop(execution);
    eventually("it is killed", || machine.hanging.load(Ordering::SeqCst) == 0).await;
}

#[tokio::test]
async fn a_machine_that_ends_by_itself_leaves_an_explanation() {
    let world = World::new();
    let id = world.manager.create(base()).await.unwrap().view.id;
    let sandbox = world.manager.get(id).unwrap();
    let mut running = sandbox.exec(command("hang")).await.unwrap();
    let mut last = sandbox.exec(command("poweroff")).await.unwrap();
    let ended = Unavailable::Ended { id, reason: EndReason::GuestShutdown };
    for execution in [&mut running, &mut last] {
        match execution.next().await {
            Err(ExecError::Unavailable(error)) => assert_eq!(error, ended),
            // The guest may still have reported the command that ended it.
            Ok(Output::Exit(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    eventually("it is seen", || sandbox.state() == State::Failed).await;
    let view = world.manager.get(id).unwrap().view();
    assert_eq!(view.end_reason, Some(EndReason::GuestShutdown));
    let refused = sandbox.exec(command("echo")).await.map(|_| ());
    assert!(matches!(refused, Err(ExecError::Unavailable(error)) if error == ended));
    assert_eq!(world.machine_dirs(), 0, "what it used is free at once");
    assert!(world.engine.alive().is_empty());
    sandbox.delete().await.unwrap();
    assert!(world.manager.get(id).is_err());
    let record = world.store.sandbox(id).unwrap().unwrap();
    assert_eq!((record.state, record.reason), (State::Deleted, Some(EndReason::GuestShutdown)));
}

#[tokio::test]
async fn explanations_are_kept_for_a_while_and_not_too_many() {
    let world = World::with(|config| {
        config.ended_kept = Duration::from_millis(400);
        config.ended_max = 2;
    });
    let mut ids = Vec::new();
    for _ in 0..3 {
        let id = world.manager.create(base()).await.unwrap().view.id;
        world.engine.alive().pop().unwrap().end(Exit::Died);
        let sandbox = world.manager.get(id).unwrap();
        eventually("it is seen", || sandbox.state() != State::Running).await;
        ids.push(id);
    }
    eventually("the oldest is forgotten", || world.manager.get(ids[0]).is_err()).await;
    assert!(world.manager.get(ids[2]).is_ok());
    world.nothing_left().await;
}

#[tokio::test]
async fn a_create_that_fails_leaves_nothing() {
    let world = World::with(|config| config.ready_deadline = Duration::from_millis(300));
    world.engine.knobs.broken.store(true, Ordering::SeqCst);
    let failed = world.manager.create(base()).await;
    assert!(matches!(failed, Err(CreateError::Machine(_))), "{failed:?}");
    world.nothing_left().await;
    world.engine.knobs.broken.store(false, Ordering::SeqCst);
    world.engine.knobs.deaf.store(true, Ordering::SeqCst);
    let failed = world.manager.create(base()).await;
    assert!(matches!(failed, Err(CreateError::NotReady(_))), "{failed:?}");
    world.nothing_left().await;
    world.engine.knobs.deaf.store(false, Ordering::SeqCst);
    world.engine.knobs.slow_ms.store(2000, Ordering::SeqCst);
    let failed = world.manager.create(base()).await;
    assert!(matches!(failed, Err(CreateError::NotReady(_))), "{failed:?}");
    world.nothing_left().await;
}

#[tokio::test]
async fn a_requester_that_goes_away_leaves_nothing() {
    let world = World::new();
    world.engine.knobs.slow_ms.store(100, Ordering::SeqCst);
    for patience in [1, 30, 90, 100, 101, 103, 110] {
        let create = world.manager.create(base());
        let _ = tokio::time::timeout(Duration::from_millis(patience), create).await;
        // What was answered in time belongs to its requester.
        for view in world.manager.list() {
            if view.status == State::Running {
                let sandbox = world.manager.get(view.id).unwrap();
                let _ = sandbox.delete().await;
            }
        }
        world.nothing_left().await;
    }
}

#[tokio::test]
async fn a_sandbox_can_be_deleted_while_it_is_created() {
    let world = World::new();
    world.engine.knobs.slow_ms.store(5000, Ordering::SeqCst);
    let manager = world.manager.clone();
    let creating = tokio::spawn(async move { manager.create(base()).await });
    eventually("it is listed", || !world.manager.list().is_empty()).await;
    let view = world.manager.list().remove(0);
    assert_eq!(view.status, State::Creating);
    let sandbox = world.manager.get(view.id).unwrap();
    let early = sandbox.pause().await;
    assert!(matches!(early, Err(LifecycleError::Unavailable(Unavailable::Creating(_)))));
    sandbox.delete().await.unwrap();
    assert!(matches!(creating.await.unwrap(), Err(CreateError::Deleted)));
    world.nothing_left().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn fifty_sandboxes_come_and_go_at_once() {
    let world = World::new();
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..50 {
        let manager = world.manager.clone();
        tasks.spawn(async move {
            let id = manager.create(base()).await.unwrap().view.id;
            let sandbox = manager.get(id).unwrap();
            let mut execution = sandbox.exec(command(&format!("echo {number}"))).await.unwrap();
            let line = format!("{number}\n");
            assert_eq!(execution.next().await.unwrap(), Output::Stdout(line.into()));
            if number % 3 == 0 {
                sandbox.pause().await.unwrap();
            }
            sandbox.delete().await.unwrap();
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    world.nothing_left().await;
}

#[tokio::test]
async fn shutting_down_ends_everything() {
    let world = World::with(|config| config.pool_size = 1);
    world.manager.prime();
    for _ in 0..3 {
        world.manager.create(base()).await.unwrap();
    }
    let ids: Vec<_> = world.manager.list().into_iter().map(|view| view.id).collect();
    world.manager.shutdown().await;
    assert!(world.engine.alive().is_empty());
    assert_eq!(world.machine_dirs(), 0);
    assert!(world.store.unfinished().unwrap().is_empty());
    for id in ids {
        let record = world.store.sandbox(id).unwrap().unwrap();
        assert_eq!(record.reason, Some(EndReason::ServerStopped));
    }
    let late = world.manager.create(base()).await;
    assert!(matches!(late, Err(CreateError::ShuttingDown)));
}
