//! Zygotes: sandboxes as forks of a machine that was made ahead, and what happens without.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::atomic::Ordering;
use std::time::Duration;

use pandastack_engine::Exit;
use pandastack_sandbox::{Created, Forking};
use pandastack_types::State;
use support::{World, base, eventually};

async fn create(world: &World) -> Created {
    world.manager.create(base()).await.unwrap()
}

fn restores(world: &World) -> usize {
    world.engine.knobs.restores.load(Ordering::SeqCst)
}

#[tokio::test]
async fn sandboxes_are_forks_of_one_zygote() {
    let world = World::forking(|_| {}).await;
    assert_eq!(world.manager.forking(), Forking::Proven);
    assert_eq!(restores(&world), 1, "the zygote");
    let zygote = world.engine.alive().pop().unwrap();
    for _ in 0..3 {
        let created = create(&world).await;
        assert_eq!(created.view.boot_mode, "fork");
        let names: Vec<_> = created.stages.marks().iter().map(|(name, _)| *name).collect();
        let expected =
            ["admission", "take", "journal", "fork", "attach", "run", "handshake", "commit"];
        assert_eq!(names, expected);
    }
    let commands: Vec<_> = world
        .engine
        .alive()
        .iter()
        .map(|machine| machine.memory.lock().unwrap().commands)
        .collect();
    assert_eq!(commands, [1; 4], "every fork inherits the one warm-up");
    let machines = world.store.unfinished().unwrap().into_iter().map(|record| record.machine);
    for name in machines {
        assert_ne!(name, zygote.name, "the zygote is nobody's sandbox");
        assert!(world.engine.machine(&name).is_some(), "the journal names the fork");
    }
    assert_eq!(restores(&world), 1);
    assert_eq!(world.engine.knobs.proofs.load(Ordering::SeqCst), 1);
    world.manager.shutdown().await;
    world.nothing_left().await;
}

#[tokio::test]
async fn many_forks_at_once() {
    let world = World::forking(|_| {}).await;
    world.engine.knobs.fork_ms.store(20, Ordering::SeqCst);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..30 {
        let manager = world.manager.clone();
        tasks.spawn(async move { manager.create(base()).await.unwrap().view.boot_mode });
    }
    assert!(tasks.join_all().await.iter().all(|mode| mode == "fork"));
}

#[tokio::test]
async fn the_pool_is_filled_by_forking() {
    let world = World::forking(|config| config.pool_size = 2).await;
    eventually("the pool is full", || world.manager.parking().parked == 2).await;
    assert_eq!(restores(&world), 1);
    let created = create(&world).await;
    assert_eq!(created.view.boot_mode, "pool");
    let name = world.store.unfinished().unwrap().pop().unwrap().machine;
    let machine = world.engine.machine(&name).unwrap();
    assert_eq!(machine.memory.lock().unwrap().commands, 1, "warmed up as part of the zygote");
    eventually("the pool is full", || world.manager.parking().parked == 2).await;
    assert_eq!(restores(&world), 1);
    world.manager.shutdown().await;
    world.nothing_left().await;
}

#[tokio::test]
async fn a_refused_proof_leaves_restores_and_the_pool() {
    let world = World::with(|config| {
        config.forking = true;
        config.pool_size = 1;
    });
    assert_eq!(world.manager.forking(), Forking::Unproven);
    world.engine.knobs.unforkable.store(true, Ordering::SeqCst);
    world.manager.prime();
    eventually("one is parked", || world.manager.parking().parked == 1).await;
    let Forking::Refused(reason) = world.manager.forking() else { panic!() };
    assert!(reason.contains("refused by the test"), "{reason}");
    assert_eq!(create(&world).await.view.boot_mode, "pool");
    assert_eq!(create(&world).await.view.boot_mode, "snapshot");
    let knobs = &world.engine.knobs;
    assert_eq!((knobs.proofs.load(Ordering::SeqCst), knobs.forks.load(Ordering::SeqCst)), (1, 0));
    assert_eq!(world.manager.parking().zygotes, 0);
    world.manager.shutdown().await;
    world.nothing_left().await;
}

#[tokio::test]
async fn an_operator_can_do_without() {
    let world = World::with(|config| config.pool_size = 1);
    world.manager.prime();
    eventually("one is parked", || world.manager.parking().parked == 1).await;
    assert_eq!(world.manager.forking(), Forking::Off);
    assert_eq!(world.engine.knobs.proofs.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_fork_that_fails_becomes_a_restore() {
    let world = World::forking(|_| {}).await;
    world.engine.knobs.fork_broken.store(true, Ordering::SeqCst);
    // Two at once, so that both meet the same zygote.
    let (one, other) = tokio::join!(world.manager.create(base()), world.manager.create(base()));
    for created in [one.unwrap(), other.unwrap()] {
        assert_eq!(
            (created.view.status, created.view.boot_mode),
            (State::Running, "snapshot".into())
        );
        assert!(created.stages.marks().iter().any(|(name, _)| *name == "restore"));
    }
    assert_eq!(world.manager.parking().zygotes, 0);
    assert_eq!(world.engine.alive().len(), 2, "the zygote is gone");
    world.engine.knobs.fork_broken.store(false, Ordering::SeqCst);
    assert_eq!(create(&world).await.view.boot_mode, "snapshot", "not at once");
    eventually("there is another zygote", || world.manager.parking().zygotes == 1).await;
    assert_eq!(create(&world).await.view.boot_mode, "fork");
    world.manager.shutdown().await;
    world.nothing_left().await;
}

#[tokio::test]
async fn a_fork_that_hangs_becomes_a_restore() {
    let world = World::forking(|config| config.ready_deadline = Duration::from_millis(600)).await;
    world.engine.knobs.fork_ms.store(60_000, Ordering::SeqCst);
    let created = create(&world).await;
    assert_eq!(created.view.boot_mode, "snapshot");
    assert_eq!(world.machine_dirs(), 1);
}

#[tokio::test]
async fn a_zygote_that_dies_is_replaced() {
    let world = World::forking(|_| {}).await;
    world.engine.alive().pop().unwrap().end(Exit::Died);
    eventually("it is noticed", || world.manager.parking().zygotes == 0).await;
    assert_eq!(world.machine_dirs(), 0);
    assert_eq!(create(&world).await.view.boot_mode, "snapshot");
    eventually("there is another", || world.manager.parking().zygotes == 1).await;
    assert_eq!(create(&world).await.view.boot_mode, "fork");
}

#[tokio::test]
async fn a_size_that_nobody_uses_loses_its_zygote() {
    let world = World::with(|config| {
        config.forking = true;
        config.pool_idle = Duration::from_secs(3);
    });
    let mut request = base();
    request.memory_mb = Some(1024);
    let id = world.manager.create(request).await.unwrap().view.id;
    eventually("there is a zygote", || world.manager.parking().zygotes == 1).await;
    eventually("it is gone", || world.manager.parking().zygotes == 0).await;
    world.manager.get(id).unwrap().delete().await.unwrap();
    world.nothing_left().await;
}

#[tokio::test]
async fn without_memory_nothing_is_made_ahead() {
    let world = World::with(|config| {
        config.forking = true;
        config.pool_size = 1;
        config.memory_reserve_mb = u64::MAX;
    });
    world.manager.prime();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(world.engine.alive().is_empty());
    assert_eq!(world.manager.parking().zygotes, 0);
}

#[tokio::test]
async fn a_server_that_stops_while_it_makes_a_zygote_leaves_nothing() {
    let world = World::with(|config| config.forking = true);
    world.engine.knobs.slow_ms.store(60_000, Ordering::SeqCst);
    world.manager.prime();
    eventually("it has begun", || restores(&world) == 1).await;
    world.manager.shutdown().await;
    world.nothing_left().await;
}

#[tokio::test]
async fn a_requester_that_goes_away_leaves_no_fork() {
    let world = World::forking(|_| {}).await;
    world.engine.knobs.fork_ms.store(50, Ordering::SeqCst);
    for patience in [1, 30, 50, 51, 55] {
        let create = world.manager.create(base());
        if let Ok(created) = tokio::time::timeout(Duration::from_millis(patience), create).await {
            let id = created.unwrap().view.id;
            world.manager.get(id).unwrap().delete().await.unwrap();
        }
        eventually("only the zygote is left", || {
            world.engine.alive().len() == 1 && world.machine_dirs() == 1
        })
        .await;
        assert!(world.store.unfinished().unwrap().is_empty());
    }
    world.manager.shutdown().await;
    world.nothing_left().await;
}
