//! Sandboxes that are files for a while.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use pandastack_sandbox::{
    CreateError, ExecError, ForkRequest, LifecycleChange, LifecycleError, NewSandbox, NoWake,
    Output, Sandbox, Unavailable,
};
use pandastack_store::Transition;
use pandastack_types::{EndReason, SandboxId, State, TtlMode};
use support::{World, base, command, eventually};
use time::OffsetDateTime;

fn persistent() -> NewSandbox {
    NewSandbox { persistent: true, ..base() }
}

async fn create(world: &World, request: NewSandbox) -> Arc<Sandbox> {
    let id = world.manager.create(request).await.unwrap().view.id;
    world.manager.get(id).unwrap()
}

async fn keep(sandbox: &Arc<Sandbox>, text: &str) {
    let mut execution = sandbox.exec(command(&format!("keep {text}"))).await.unwrap();
    assert_eq!(execution.next().await.unwrap(), Output::Exit(0));
}

async fn kept(sandbox: &Arc<Sandbox>) -> String {
    let mut execution = sandbox.exec(command("kept")).await.unwrap();
    match execution.next().await.unwrap() {
        Output::Stdout(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
        other => panic!("{other:?}"),
    }
}

fn files(world: &World) -> usize {
    std::fs::read_dir(world.dir.path().join("instance/hibernated")).unwrap().count()
}

fn state_in_records(world: &World, id: SandboxId) -> State {
    world.store.sandbox(id).unwrap().unwrap().state
}

/// Whether a sandbox is files alone: the zygote is the only machine.
fn only_files(world: &World) -> bool {
    world.engine.alive().len() == 1 && world.machine_dirs() == 1 && files(world) == 1
}

#[tokio::test]
async fn a_hibernated_sandbox_is_files_and_wakes_as_it_was() {
    let world = World::forking(|_| {}).await;
    let sandbox = create(&world, base()).await;
    keep(&sandbox, "one").await;
    for round in 0..5 {
        sandbox.hibernate().await.unwrap();
        sandbox.hibernate().await.unwrap();
        assert_eq!(sandbox.state(), State::Hibernated);
        assert_eq!(state_in_records(&world, sandbox.id()), State::Hibernated);
        // Files of the nap before may still be on their way out.
        eventually(&format!("only files are left in round {round}"), || only_files(&world)).await;
        assert!(sandbox.metrics().is_err());

        sandbox.wake().await.unwrap();
        sandbox.wake().await.unwrap();
        assert_eq!(sandbox.state(), State::Running);
        assert_eq!(state_in_records(&world, sandbox.id()), State::Running);
        assert_eq!(sandbox.view().boot_mode, "wake");
        assert_eq!(kept(&sandbox).await, "one");
        assert_eq!((files(&world), world.engine.alive().len()), (0, 2));
    }
    sandbox.delete().await.unwrap();
    eventually("the zygote alone is left", || world.machine_dirs() == 1).await;
}

#[tokio::test]
async fn a_paused_one_hibernates_too_and_orders_that_need_a_machine_say_so() {
    let world = World::forking(|_| {}).await;
    let sandbox = create(&world, base()).await;
    sandbox.pause().await.unwrap();
    sandbox.hibernate().await.unwrap();
    let paused = sandbox.pause().await;
    assert!(matches!(paused, Err(LifecycleError::Unavailable(Unavailable::Hibernated(_)))));
    let change = LifecycleChange { ttl_seconds: Some(60), ..LifecycleChange::default() };
    assert_eq!(sandbox.change(change).await.unwrap().ttl_seconds, 60);
    sandbox.resume().await.unwrap();
    assert_eq!(sandbox.state(), State::Running);
}

#[tokio::test]
async fn whoever_needs_the_guest_wakes_it_and_whoever_looks_does_not() {
    let world = World::forking(|_| {}).await;
    let sandbox = create(&world, base()).await;
    keep(&sandbox, "x").await;
    sandbox.hibernate().await.unwrap();
    world.manager.list();
    sandbox.view();
    sandbox.lifecycle();
    assert_eq!(sandbox.state(), State::Hibernated);
    // Many at once: one wake.
    let restores = world.engine.knobs.restores.load(Ordering::SeqCst);
    let asking: Vec<_> = (0..8)
        .map(|_| {
            let sandbox = sandbox.clone();
            tokio::spawn(async move { kept(&sandbox).await })
        })
        .collect();
    for answer in asking {
        assert_eq!(answer.await.unwrap(), "x");
    }
    assert_eq!(world.engine.knobs.restores.load(Ordering::SeqCst), restores + 1);

    sandbox.hibernate().await.unwrap();
    sandbox.stat("/kept".to_owned()).await.ok();
    assert_eq!(sandbox.state(), State::Running);
    sandbox.hibernate().await.unwrap();
    let forked = world.manager.fork(sandbox.id(), ForkRequest::default()).await.unwrap();
    let child = world.manager.get(forked.children[0].id).unwrap();
    assert_eq!(kept(&child).await, "x");
    sandbox.hibernate().await.unwrap();
    world.manager.snapshot(sandbox.id()).await.unwrap();
    assert_eq!(sandbox.state(), State::Running);
}

#[tokio::test]
async fn a_command_that_runs_meanwhile_is_told() {
    let world = World::forking(|_| {}).await;
    let sandbox = create(&world, base()).await;
    let mut execution = sandbox.exec(command("hang")).await.unwrap();
    sandbox.hibernate().await.unwrap();
    let ended = execution.next().await;
    assert!(matches!(ended, Err(ExecError::Unavailable(Unavailable::Hibernated(_)))), "{ended:?}");
}

#[tokio::test]
async fn a_hibernation_that_fails_changes_nothing() {
    let world = World::forking(|_| {}).await;
    let sandbox = create(&world, base()).await;
    keep(&sandbox, "x").await;
    let knobs = &world.engine.knobs;
    knobs.snapshot_broken.store(true, Ordering::SeqCst);
    for paused in [false, true] {
        if paused {
            sandbox.pause().await.unwrap();
        }
        let failed = sandbox.hibernate().await;
        assert!(matches!(failed, Err(LifecycleError::NotHibernated(_))), "{failed:?}");
        let state = if paused { State::Paused } else { State::Running };
        assert_eq!((sandbox.state(), files(&world)), (state, 0));
        assert_eq!(state_in_records(&world, sandbox.id()), state);
        assert_eq!((world.machine_dirs(), world.engine.alive().len()), (2, 2));
    }
    sandbox.resume().await.unwrap();
    assert_eq!(kept(&sandbox).await, "x");
}

#[tokio::test]
async fn a_wake_that_fails_leaves_it_asleep() {
    let world = World::forking(|config| config.ready_deadline = Duration::from_millis(300)).await;
    let sandbox = create(&world, base()).await;
    keep(&sandbox, "x").await;
    sandbox.hibernate().await.unwrap();
    let knobs = &world.engine.knobs;
    for knob in [&knobs.broken, &knobs.deaf] {
        knob.store(true, Ordering::SeqCst);
        let failed = sandbox.wake().await;
        assert!(matches!(failed, Err(LifecycleError::NotWoken(..))), "{failed:?}");
        let needed = sandbox.exec(command("kept")).await;
        let expected = Unavailable::NotWoken(sandbox.id(), NoWake::Failed);
        assert!(matches!(needed, Err(ExecError::Unavailable(why)) if why == expected));
        knob.store(false, Ordering::SeqCst);
        assert!(only_files(&world), "{} machines", world.engine.alive().len());
        assert_eq!(state_in_records(&world, sandbox.id()), State::Hibernated);
    }
    knobs.other_host.store(true, Ordering::SeqCst);
    let stale = sandbox.wake().await;
    let Err(LifecycleError::NotWoken(_, error)) = stale else { panic!("{stale:?}") };
    assert!(matches!(*error, CreateError::StaleSnapshot { .. }));
    knobs.other_host.store(false, Ordering::SeqCst);
    assert_eq!(kept(&sandbox).await, "x");
}

#[tokio::test]
async fn it_counts_again_when_it_wakes() {
    let world = World::forking(|config| config.max_sandboxes = 1).await;
    let sandbox = create(&world, base()).await;
    sandbox.hibernate().await.unwrap();
    let other = create(&world, base()).await;
    let refused = sandbox.exec(command("kept")).await;
    let expected = Unavailable::NotWoken(sandbox.id(), NoWake::Full);
    assert!(matches!(refused, Err(ExecError::Unavailable(why)) if why == expected));
    other.delete().await.unwrap();
    sandbox.wake().await.unwrap();
}

#[tokio::test]
async fn it_is_deleted_and_expires_without_a_machine() {
    let world = World::forking(|_| {}).await;
    let sandbox = create(&world, base()).await;
    sandbox.hibernate().await.unwrap();
    sandbox.delete().await.unwrap();
    assert_eq!((files(&world), world.engine.alive().len()), (0, 1));

    let expiring = create(&world, NewSandbox { ttl_seconds: Some(1), ..base() }).await;
    expiring.hibernate().await.unwrap();
    eventually("it expires", || expiring.state() == State::Deleted).await;
    assert_eq!(files(&world), 0);
    let record = world.store.sandbox(expiring.id()).unwrap().unwrap();
    assert_eq!(record.reason, Some(EndReason::Ttl));
}

#[tokio::test]
async fn one_that_nobody_uses_hibernates_by_itself() {
    let world = World::forking(|config| config.idle_timeout_seconds = 1).await;
    let ordinary = create(&world, base()).await;
    let idle = create(&world, persistent()).await;
    let busy = create(&world, persistent()).await;
    let mut execution = busy.exec(command("hang")).await.unwrap();
    eventually("it hibernates", || idle.state() == State::Hibernated).await;
    // In use all the time, or never asked to.
    let early = tokio::time::timeout(Duration::from_millis(1500), execution.next()).await;
    assert!(early.is_err(), "{early:?}");
    assert_eq!((busy.state(), ordinary.state()), (State::Running, State::Running));
    drop(execution);
    eventually("it hibernates as well", || busy.state() == State::Hibernated).await;
    let never = LifecycleChange { idle_timeout: Some(0), ..LifecycleChange::default() };
    assert_eq!(busy.change(never).await.unwrap().idle_timeout, 0);
    let wrong = LifecycleChange { idle_timeout: Some(-1), ..LifecycleChange::default() };
    assert!(matches!(busy.change(wrong).await, Err(LifecycleError::Invalid(_))));
}

#[tokio::test]
async fn a_stop_keeps_what_is_persistent_and_what_sleeps() {
    let world = World::forking(|_| {}).await;
    let mut request = persistent();
    request.metadata.insert("name".to_owned(), "kept".to_owned());
    request.ttl_seconds = Some(3600);
    let awake = create(&world, request).await;
    let (asleep, ordinary) = (create(&world, base()).await, create(&world, base()).await);
    keep(&awake, "a").await;
    keep(&asleep, "b").await;
    asleep.hibernate().await.unwrap();
    let view = awake.view();

    let world = world.restarted().await;
    assert_eq!(world.manager.list().len(), 2);
    assert!(world.manager.get(ordinary.id()).is_err());
    let awake = world.manager.get(awake.id()).unwrap();
    let again = awake.view();
    assert_eq!(again.status, State::Hibernated);
    assert_eq!(
        (again.created_at.unix_timestamp(), again.metadata, again.persistent, again.ttl_seconds),
        (view.created_at.unix_timestamp(), view.metadata, true, 3600)
    );
    assert_eq!(kept(&awake).await, "a");
    assert_eq!(kept(&world.manager.get(asleep.id()).unwrap()).await, "b");
    assert_eq!(files(&world), 0);

    // Over and over, without being used in between.
    let mut world = world.restarted().await;
    world = world.restarted().await;
    let awake = world.manager.get(awake.id()).unwrap();
    assert_eq!(awake.state(), State::Hibernated);
    assert_eq!(kept(&awake).await, "a");
    assert!(world.manager.get(asleep.id()).is_err(), "it was awake and is not persistent");
}

/// Says in the records what a server would have that was killed at a certain moment.
fn step(id: SandboxId, from: State, to: State) -> Transition {
    Transition { id, from, to, reason: None, at: OffsetDateTime::now_utc() }
}

#[tokio::test]
async fn files_decide_after_a_crash() {
    let world = World::forking(|_| {}).await;
    let mut ids = Vec::new();
    for _ in 0..4 {
        let sandbox = create(&world, base()).await;
        keep(&sandbox, "x").await;
        sandbox.hibernate().await.unwrap();
        ids.push(sandbox.id());
    }
    let [asleep, waking, deleted, lost] = ids[..] else { panic!() };
    let instance = world.dir.path().join("instance/hibernated");
    let world = world
        .restarted_after(|store| {
            store.transition(&step(waking, State::Hibernated, State::Running)).unwrap();
            store.transition(&step(deleted, State::Hibernated, State::Stopping)).unwrap();
            std::fs::remove_dir_all(instance.join(lost.to_string())).unwrap();
        })
        .await;
    for id in [asleep, waking] {
        let sandbox = world.manager.get(id).unwrap();
        assert_eq!(sandbox.state(), State::Hibernated);
        assert_eq!(state_in_records(&world, id), State::Hibernated);
        assert_eq!(kept(&sandbox).await, "x");
    }
    for id in [deleted, lost] {
        assert!(world.manager.get(id).is_err());
        assert_eq!(state_in_records(&world, id), State::Deleted);
    }
    assert_eq!(files(&world), 0);
}

#[tokio::test]
async fn a_time_to_live_without_use_counts_from_the_last_use() {
    let world = World::forking(|_| {}).await;
    let idle =
        |seconds| NewSandbox { ttl_seconds: Some(seconds), ttl_mode: TtlMode::Idle, ..base() };
    let unused = create(&world, idle(1)).await;
    let busy = create(&world, idle(1)).await;
    let mut execution = busy.exec(command("hang")).await.unwrap();
    eventually("it is over", || unused.state() == State::Deleted).await;
    let early = tokio::time::timeout(Duration::from_millis(1500), execution.next()).await;
    assert!(early.is_err(), "it ended in use: {early:?}");
    drop(execution);
    let last_use = Instant::now();
    eventually("it is over as well", || busy.state() == State::Deleted).await;
    assert!(last_use.elapsed() >= Duration::from_millis(950), "{:?}", last_use.elapsed());

    // Asleep, and across a restart.
    let asleep = create(&world, idle(2)).await;
    asleep.hibernate().await.unwrap();
    let begin = Instant::now();
    let world = world.restarted().await;
    let asleep = world.manager.get(asleep.id()).unwrap();
    assert_eq!(asleep.lifecycle().ttl_mode, TtlMode::Idle);
    eventually("it is over too", || asleep.state() == State::Deleted).await;
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
}
