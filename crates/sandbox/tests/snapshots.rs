//! Sandboxes kept on disk, and those made of them.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pandastack_sandbox::{
    Config, CreateError, Created, DeleteSnapshotError, ForkError, Forking, Manager, Output,
    Sandbox, SnapshotError, Unavailable,
};
use pandastack_store::Store;
use pandastack_types::{SandboxId, SnapshotId, State};
use support::network::FakeNetwork;
use support::{FakeEngine, FakeTemplates, World, base, command, eventually};

/// A server that may fork, with a sandbox that has kept a text.
async fn world() -> (World, Arc<Sandbox>) {
    let world = World::with(|config| config.forking = true);
    let id = world.manager.create(base()).await.unwrap().view.id;
    let sandbox = world.manager.get(id).unwrap();
    keep(&sandbox, "one").await;
    eventually("there is a zygote", || world.manager.parking().zygotes == 1).await;
    (world, sandbox)
}

async fn keep(sandbox: &Arc<Sandbox>, text: &str) {
    let mut execution = sandbox.exec(command(&format!("keep {text}"))).await.unwrap();
    assert_eq!(execution.next().await.unwrap(), Output::Exit(0));
}

async fn kept(world: &World, id: SandboxId) -> String {
    let sandbox = world.manager.get(id).unwrap();
    let mut execution = sandbox.exec(command("kept")).await.unwrap();
    match execution.next().await.unwrap() {
        Output::Stdout(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
        other => panic!("{other:?}"),
    }
}

async fn restore(world: &World, id: SnapshotId) -> Result<Created, CreateError> {
    let mut request = base();
    request.template = "later".parse().unwrap();
    request.from_snapshot = Some(id);
    world.manager.create(request).await
}

fn on_disk(world: &World) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(world.dir.path().join("instance/snapshots")).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// Whether nothing is left of what was under way: one sandbox and the zygote.
async fn only(world: &World) {
    eventually("only the sandbox is left", || {
        world.machine_dirs() == 2 && world.engine.alive().len() == 2
    })
    .await;
}

#[tokio::test]
async fn a_snapshot_outlives_its_sandbox() {
    let (world, sandbox) = world().await;
    let view = world.manager.snapshot(sandbox.id()).await.unwrap();
    assert_eq!((view.sandbox_id, view.template.as_str()), (sandbox.id(), "base"));
    assert_eq!((view.cpu, view.memory_mb, view.engine.as_str()), (1, 512, "fake"));
    assert!(view.size_bytes > 0);
    only(&world).await;
    keep(&sandbox, "two").await;
    let second = world.manager.snapshot(sandbox.id()).await.unwrap();
    assert_eq!(kept(&world, sandbox.id()).await, "two", "it goes on");
    sandbox.delete().await.unwrap();

    assert_eq!(world.manager.snapshots(None).await, [second.clone(), view.clone()]);
    assert_eq!(world.manager.snapshots(Some(sandbox.id())).await.len(), 2);
    assert!(world.manager.snapshots(Some(SandboxId::random())).await.is_empty());
    assert_eq!(world.manager.find_snapshot(view.id).unwrap(), view);
    let mut made = Vec::new();
    for (id, text) in [(view.id, "one"), (view.id, "one"), (second.id, "two")] {
        let created = restore(&world, id).await.unwrap().view;
        assert_eq!((created.boot_mode.as_str(), created.from_snapshot), ("snapshot", Some(id)));
        assert_eq!(created.template.as_str(), "base", "the template of the request is ignored");
        assert_eq!(kept(&world, created.id).await, text);
        made.push(created.id);
    }
    world.manager.delete_snapshot(view.id).await.unwrap();
    let again = world.manager.delete_snapshot(view.id).await;
    assert!(matches!(again, Err(DeleteSnapshotError::NotFound(_))));
    assert!(world.manager.find_snapshot(view.id).is_err());
    assert!(matches!(restore(&world, view.id).await, Err(CreateError::NoSnapshot(_))));
    assert_eq!(kept(&world, made[0]).await, "one", "what was made of it goes on");
    assert_eq!(world.manager.parking().zygotes, 1, "none of a snapshot");

    // One that was made of a snapshot can be kept and forked as well.
    let third = world.manager.snapshot(made[2]).await.unwrap();
    let fourth = restore(&world, third.id).await.unwrap().view.id;
    assert_eq!(kept(&world, fourth).await, "two");
    let child = world.manager.fork(fourth, Default::default()).await.unwrap().children.remove(0);
    assert_eq!(child.from_snapshot, None);
    world.manager.shutdown().await;
    world.nothing_left().await;
    assert_eq!(on_disk(&world).len(), 2);
}

#[tokio::test]
async fn a_sandbox_may_do_anything_while_its_snapshot_is_written() {
    let (world, sandbox) = world().await;
    sandbox.pause().await.unwrap();
    world.engine.knobs.snapshot_ms.store(300, Ordering::SeqCst);
    let (view, ()) = tokio::join!(world.manager.snapshot(sandbox.id()), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(sandbox.state(), State::Paused);
        sandbox.resume().await.unwrap();
        keep(&sandbox, "later").await;
        sandbox.delete().await.unwrap();
    });
    let created = restore(&world, view.unwrap().id).await.unwrap().view;
    assert_eq!(kept(&world, created.id).await, "one");
}

#[tokio::test]
async fn a_delete_waits_for_creates_that_were_let_in_before() {
    let (world, sandbox) = world().await;
    let id = world.manager.snapshot(sandbox.id()).await.unwrap().id;
    let references = || world.manager.find_snapshot(id).unwrap().references;
    let first = restore(&world, id).await.unwrap().view.id;
    assert_eq!(references(), 1);
    assert_eq!(world.manager.snapshots(None).await[0].references, 1);

    world.engine.knobs.slow_ms.store(300, Ordering::SeqCst);
    let (made, deleted, refused) = tokio::join!(
        restore(&world, id),
        async {
            eventually("a restore is under way", || world.machine_dirs() == 4).await;
            let deleted = world.manager.delete_snapshot(id).await;
            assert!(on_disk(&world).is_empty());
            deleted
        },
        async {
            eventually("it is hidden", || world.manager.find_snapshot(id).is_err()).await;
            assert_eq!(on_disk(&world).len(), 1, "its files are being read");
            assert!(world.manager.snapshots(None).await.is_empty());
            let again = world.manager.delete_snapshot(id).await;
            assert!(matches!(again, Err(DeleteSnapshotError::NotFound(_))), "{again:?}");
            restore(&world, id).await
        }
    );
    deleted.unwrap();
    assert!(matches!(refused, Err(CreateError::NoSnapshot(_))), "{refused:?}");
    let second = made.unwrap().view.id;
    for made in [first, second] {
        assert_eq!(kept(&world, made).await, "one");
        // What was made of one that is gone can be kept all the same.
        let own = world.manager.snapshot(made).await.unwrap();
        assert_eq!(own.references, 0);
        let copy = restore(&world, own.id).await.unwrap().view.id;
        assert_eq!(world.manager.find_snapshot(own.id).unwrap().references, 1);
        world.manager.get(copy).unwrap().delete().await.unwrap();
        assert_eq!(world.manager.find_snapshot(own.id).unwrap().references, 0);
    }
}

#[tokio::test]
async fn a_delete_that_nobody_waits_for_any_more_keeps_it() {
    let (world, sandbox) = world().await;
    let id = world.manager.snapshot(sandbox.id()).await.unwrap().id;
    world.engine.knobs.slow_ms.store(200, Ordering::SeqCst);
    let (made, ()) = tokio::join!(restore(&world, id), async {
        eventually("a restore is under way", || world.machine_dirs() == 3).await;
        let deleting = world.manager.delete_snapshot(id);
        assert!(tokio::time::timeout(Duration::from_millis(20), deleting).await.is_err());
        assert_eq!(world.manager.find_snapshot(id).unwrap().id, id);
    });
    made.unwrap();
    world.manager.delete_snapshot(id).await.unwrap();
}

#[tokio::test]
async fn a_snapshot_whose_files_were_changed_is_refused() {
    let (world, sandbox) = world().await;
    let id = world.manager.snapshot(sandbox.id()).await.unwrap().id;
    let before = world.manager.list().len();
    let dir = on_disk(&world).remove(0);
    let names = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name());
    let names: Vec<_> = names.filter(|name| name != "snapshot.json").collect();
    assert!(!names.is_empty());
    for name in names {
        let (path, away) = (dir.join(&name), dir.join("away"));
        let content = std::fs::read(&path).unwrap();
        let mut flipped = content.clone();
        flipped[0] ^= 1;
        std::fs::rename(&path, &away).unwrap();
        for damage in [Some(flipped), Some(content[1..].to_vec()), None] {
            if let Some(bytes) = damage {
                std::fs::write(&path, bytes).unwrap();
            }
            let refused = restore(&world, id).await;
            assert!(matches!(refused, Err(CreateError::StaleSnapshot { .. })), "{refused:?}");
            let _ = std::fs::remove_file(&path);
        }
        std::fs::rename(&away, &path).unwrap();
    }
    assert_eq!(world.manager.list().len(), before);
    assert!(restore(&world, id).await.is_ok(), "and nothing else of it was");
}

#[tokio::test]
async fn a_snapshot_that_fails_leaves_nothing() {
    let (world, sandbox) = world().await;
    world.engine.knobs.snapshot_broken.store(true, Ordering::SeqCst);
    let failed = world.manager.snapshot(sandbox.id()).await;
    assert!(matches!(failed, Err(SnapshotError::Engine(_))), "{failed:?}");
    only(&world).await;
    world.engine.knobs.snapshot_broken.store(false, Ordering::SeqCst);
    world.engine.knobs.snapshot_ms.store(100, Ordering::SeqCst);
    for patience in [1, 50, 90] {
        let taking = world.manager.snapshot(sandbox.id());
        assert!(tokio::time::timeout(Duration::from_millis(patience), taking).await.is_err());
        only(&world).await;
    }
    assert!(on_disk(&world).is_empty());
    assert_eq!(kept(&world, sandbox.id()).await, "one");
}

#[tokio::test]
async fn a_server_that_stops_does_not_wait_for_snapshots() {
    let (world, sandbox) = world().await;
    world.engine.knobs.snapshot_ms.store(60_000, Ordering::SeqCst);
    let manager = world.manager.clone();
    let id = sandbox.id();
    let taking = tokio::spawn(async move { manager.snapshot(id).await });
    eventually("it is written", || world.machine_dirs() == 4).await;
    world.manager.shutdown().await;
    world.nothing_left().await;
    assert!(matches!(taking.await.unwrap(), Err(SnapshotError::ShuttingDown)));
}

#[tokio::test]
async fn what_cannot_be_kept_is_refused() {
    let (world, sandbox) = world().await;
    let stranger = world.manager.snapshot(SandboxId::random()).await;
    assert!(matches!(stranger, Err(SnapshotError::Copy(ForkError::NotFound(_)))));
    let mut off = sandbox.exec(command("poweroff")).await.unwrap();
    let _ = off.next().await;
    eventually("it is seen", || sandbox.state() == State::Failed).await;
    let ended = world.manager.snapshot(sandbox.id()).await;
    assert!(matches!(
        ended,
        Err(SnapshotError::Copy(ForkError::Unavailable(Unavailable::Ended { .. })))
    ));
    let world = World::new();
    let id = world.manager.create(base()).await.unwrap().view.id;
    let refused = world.manager.snapshot(id).await;
    assert!(matches!(refused, Err(SnapshotError::Copy(ForkError::Unsupported(_)))));
}

#[tokio::test]
async fn what_would_not_be_the_same_machine_is_refused() {
    let (world, sandbox) = world().await;
    let id = world.manager.snapshot(sandbox.id()).await.unwrap().id;
    let before = world.manager.list().len();
    let mut request = base();
    request.from_snapshot = Some(id);
    request.memory_mb = Some(1024);
    let resized = world.manager.create(request.clone()).await;
    assert!(matches!(resized, Err(CreateError::Invalid(_))), "{resized:?}");
    request.memory_mb = Some(512);
    assert!(world.manager.create(request).await.is_ok(), "its own size may be named");

    world.engine.knobs.other_host.store(true, Ordering::SeqCst);
    let elsewhere = restore(&world, id).await;
    assert!(matches!(elsewhere, Err(CreateError::StaleSnapshot { .. })), "{elsewhere:?}");
    world.engine.knobs.other_host.store(false, Ordering::SeqCst);

    let manifest = on_disk(&world).remove(0).join("snapshot.json");
    let text = std::fs::read_to_string(&manifest).unwrap().replace("\"base\"", "\"nothing\"");
    std::fs::write(&manifest, text).unwrap();
    let orphan = restore(&world, id).await;
    assert!(matches!(orphan, Err(CreateError::StaleSnapshot { .. })), "{orphan:?}");
    assert!(matches!(restore(&world, SnapshotId::random()).await, Err(CreateError::NoSnapshot(_))));
    assert_eq!(world.manager.list().len(), before + 1);
}

#[tokio::test]
async fn snapshots_survive_a_crash_and_half_of_one_does_not() {
    let (world, sandbox) = world().await;
    let whole = world.manager.snapshot(sandbox.id()).await.unwrap();
    // What a killed server leaves: nothing runs any more, and files of a snapshot half written.
    world.manager.shutdown().await;
    let World { dir, manager, .. } = world;
    drop(manager);
    let staging = dir.path().join("instance/machines/0123456789abcdef0123456789abcdef");
    std::fs::create_dir(&staging).unwrap();
    std::fs::write(staging.join("memory"), "half").unwrap();

    let store = Store::open(&dir.path().join("records.sqlite")).unwrap();
    let mut config = Config::new(dir.path().join("instance"));
    config.memory_reserve_mb = 0;
    config.memory_estimate_percent = 0;
    let engine = FakeEngine::new();
    let network = FakeNetwork::of(&engine);
    let start = Manager::start(config, engine, network, Arc::new(FakeTemplates::default()), store);
    let manager = start.await.unwrap();
    assert!(!staging.exists());
    assert_eq!(manager.snapshots(None).await, std::slice::from_ref(&whole));
    let mut request = base();
    request.from_snapshot = Some(whole.id);
    let id = manager.create(request).await.unwrap().view.id;
    // The first that this server needs forks for is one of a snapshot.
    assert_eq!(manager.forking(), Forking::Unproven);
    manager.fork(id, Default::default()).await.unwrap();
    assert_eq!(manager.forking(), Forking::Proven);
    manager.shutdown().await;
}
