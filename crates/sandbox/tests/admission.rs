//! What is refused before anything exists, and machines that are parked beforehand.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use pandastack_engine::Exit;
use pandastack_sandbox::{Command, Config, CreateError, Manager, Output, StartError};
use pandastack_store::{Store, Transition};
use pandastack_types::{EndReason, ExecRequest, State};
use support::network::FakeNetwork;
use support::{FakeEngine, FakeTemplates, World, base, eventually};
use time::OffsetDateTime;

async fn who(world: &World, id: pandastack_types::SandboxId) -> String {
    let request = ExecRequest { cmd: Some("who".to_owned()), ..ExecRequest::default() };
    let command = Command::try_from(request).unwrap();
    let sandbox = world.manager.get(id).unwrap();
    let mut execution = sandbox.exec(command).await.unwrap();
    match execution.next().await.unwrap() {
        Output::Stdout(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_cannot_be_is_refused_before_anything_exists() {
    let world = World::with(|config| config.max_sandboxes = 2);
    let ask = |change: fn(&mut pandastack_sandbox::NewSandbox)| {
        let mut request = base();
        change(&mut request);
        world.manager.create(request)
    };
    let unknown = ask(|r| r.template = "nothing".parse().unwrap()).await;
    assert!(matches!(unknown, Err(CreateError::UnknownTemplate(_))));
    let later = ask(|r| r.template = "later".parse().unwrap()).await;
    assert!(matches!(later, Err(CreateError::Building(_))));
    for wrong in [
        ask(|r| r.cpu = Some(-1)).await,
        ask(|r| r.memory_mb = Some(i64::MAX)).await,
        ask(|r| r.ttl_seconds = Some(-1)).await,
        ask(|r| r.metadata = (0..65).map(|n| (n.to_string(), String::new())).collect()).await,
        ask(|r| r.metadata = [("k".repeat(129), String::new())].into()).await,
        ask(|r| r.metadata = [("k".to_owned(), "v".repeat(4097))].into()).await,
    ] {
        assert!(matches!(wrong, Err(CreateError::Invalid(_))), "{wrong:?}");
    }
    assert_eq!(world.engine.knobs.restores.load(Ordering::SeqCst), 0);
    let first = ask(|_| {}).await.unwrap().view.id;
    ask(|_| {}).await.unwrap();
    assert!(matches!(ask(|_| {}).await, Err(CreateError::Full(2))));
    world.manager.get(first).unwrap().delete().await.unwrap();
    ask(|_| {}).await.unwrap();
}

#[tokio::test]
async fn the_hosts_memory_is_left_alone() {
    let world = World::with(|config| config.memory_reserve_mb = u64::MAX);
    let refused = world.manager.create(base()).await;
    assert!(matches!(refused, Err(CreateError::Memory { free_mb: 0, .. })), "{refused:?}");
    world.nothing_left().await;
}

#[tokio::test]
async fn a_new_size_is_baked_on_first_use() {
    let world = World::new();
    let mut request = base();
    request.memory_mb = Some(1000);
    let created = world.manager.create(request).await.unwrap();
    assert_eq!(created.view.memory_mb, 1024);
    assert!(created.stages.marks().iter().any(|(name, _)| *name == "bake"));
}

#[tokio::test]
async fn parked_machines_serve_one_tenant_each() {
    let world = World::with(|config| config.pool_size = 2);
    world.manager.prime();
    let mut seen = HashSet::new();
    for _ in 0..6 {
        eventually("machines are parked", || world.manager.parking().parked > 0).await;
        let created = world.manager.create(base()).await.unwrap();
        assert_eq!(created.view.boot_mode, "pool");
        let who = who(&world, created.view.id).await;
        let (name, commands) = who.split_once(' ').unwrap();
        assert_eq!(commands, "2", "the warm-up, and this one");
        assert!(seen.insert(name.to_owned()), "a machine came twice");
        world.manager.get(created.view.id).unwrap().delete().await.unwrap();
        assert!(world.engine.machine(name).is_none(), "it does not come back");
    }
    eventually("the pool is full", || world.manager.parking().parked == 2).await;
    assert_eq!(world.engine.alive().len(), 2, "not more than that");
}

#[tokio::test]
async fn a_parked_machine_that_dies_is_replaced() {
    let world = World::with(|config| config.pool_size = 1);
    world.manager.prime();
    eventually("one is parked", || world.manager.parking().parked == 1).await;
    let parked = world.engine.alive().pop().unwrap();
    parked.end(Exit::Died);
    eventually("it is noticed", || world.manager.parking().parked == 0).await;
    // After a pause, so that machines that always die do not keep the host busy.
    eventually("another is parked", || world.manager.parking().parked == 1).await;
    assert_eq!(world.machine_dirs(), 1);
    world.manager.shutdown().await;
}

#[tokio::test]
async fn a_killed_server_leaves_nothing_to_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let records = dir.path().join("records.sqlite");
    let config = Config::new(dir.path().join("instance"));
    let id = {
        // What a killed server leaves: a record that says running, and a machine's directory.
        let world = World::new();
        let id = world.manager.create(base()).await.unwrap().view.id;
        let mut record = world.store.sandbox(id).unwrap().unwrap();
        record.state = State::Creating;
        let store = Store::open(&records).unwrap();
        store.create(&record).unwrap();
        let at = OffsetDateTime::now_utc();
        let (from, to) = (State::Creating, State::Running);
        store.transition(&Transition { id, from, to, reason: None, at }).unwrap();
        let machine = config.instance_dir.join("machines").join(&record.machine);
        std::fs::create_dir_all(machine.join("deep")).unwrap();
        id
    };
    let start = || {
        let templates = Arc::new(FakeTemplates::default());
        let store = Store::open(&records).unwrap();
        let engine = FakeEngine::new();
        let network = FakeNetwork::of(&engine);
        Manager::start(config.clone(), engine, network, templates, store)
    };
    let manager = start().await.unwrap();
    assert!(manager.get(id).is_err());
    let store = Store::open(&records).unwrap();
    let record = store.sandbox(id).unwrap().unwrap();
    assert_eq!((record.state, record.reason), (State::Deleted, Some(EndReason::ServerCrash)));
    assert_eq!(std::fs::read_dir(config.instance_dir.join("machines")).unwrap().count(), 0);
    assert!(matches!(start().await.map(|_| ()), Err(StartError::InUse(_))));
    manager.shutdown().await;
    drop(manager);
    assert!(start().await.is_ok());
}
