//! Volumes: who gets one, and what is done to machines and records for it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::atomic::Ordering;

use pandastack_sandbox::{CreateError, ForkRequest, NewSandbox, VolumeError};
use pandastack_types::{SandboxId, VolumeMount, VolumeName};
use support::{World, base};

fn name(text: &str) -> VolumeName {
    text.parse().unwrap()
}

fn with(volumes: &[(&str, bool)]) -> NewSandbox {
    let mount = |(text, read_only): &(&str, bool)| VolumeMount {
        name: name(text),
        read_only: *read_only,
        clone: false,
    };
    NewSandbox { volumes: volumes.iter().map(mount).collect(), persistent: true, ..base() }
}

async fn make(world: &World, names: &[&str]) {
    for text in names {
        world.manager.create_volume(name(text), Some(16)).await.unwrap();
    }
}

async fn create(world: &World, request: NewSandbox) -> Result<SandboxId, CreateError> {
    Ok(world.manager.create(request).await?.view.id)
}

/// What was done to the machine that a sandbox has or had, besides to its network.
fn notes(world: &World, id: SandboxId) -> Vec<String> {
    of_machine(world, &world.store.sandbox(id).unwrap().unwrap().machine)
}

fn of_machine(world: &World, machine: &str) -> Vec<String> {
    let mut notes = world.engine.knobs.notes(machine);
    notes.retain(|note| note != "detach" && !note.starts_with("attach \""));
    notes
}

fn holder(world: &World, text: &str) -> Option<String> {
    world.store.holder(&name(text)).unwrap()
}

#[tokio::test]
async fn volumes_are_made_listed_and_deleted() {
    let world = World::forking(|config| config.max_volumes = 2).await;
    let manager = &world.manager;
    let made = manager.create_volume(name("b"), None).await.unwrap();
    assert_eq!(made.size_mb, 256);
    make(&world, &["a"]).await;
    let names: Vec<_> = manager.volumes().await.into_iter().map(|view| view.name).collect();
    assert_eq!(names, [name("a"), name("b")]);
    assert_eq!(manager.volume(&name("b")).unwrap(), made);

    let again = manager.create_volume(name("a"), None).await.unwrap_err();
    assert!(matches!(again, VolumeError::Exists(_)), "{again}");
    let third = manager.create_volume(name("c"), None).await.unwrap_err();
    assert!(matches!(third, VolumeError::Quota(2)), "{third}");
    manager.delete_volume(name("a")).await.unwrap();
    let gone = manager.delete_volume(name("a")).await.unwrap_err();
    assert!(matches!(gone, VolumeError::NotFound(_)), "{gone}");
    for size_mb in [-1, 0, 65_537, i64::MAX] {
        let error = manager.create_volume(name("c"), Some(size_mb)).await.unwrap_err();
        assert!(matches!(error, VolumeError::Invalid(_)), "{size_mb}: {error}");
    }
    world.engine.knobs.no_volumes.store(true, Ordering::SeqCst);
    for error in [
        manager.create_volume(name("c"), None).await.unwrap_err(),
        match create(&world, with(&[("b", false)])).await.unwrap_err() {
            CreateError::Volume(error) => error,
            other => panic!("{other}"),
        },
    ] {
        assert!(matches!(error, VolumeError::Unsupported("fake")), "{error}");
    }
}

#[tokio::test]
async fn a_host_without_room_takes_none() {
    let world = World::forking(|config| config.disk_estimate_percent = 1_000_000_000).await;
    let error = world.manager.create_volume(name("a"), None).await.unwrap_err();
    assert!(matches!(error, VolumeError::Disk { .. }), "{error}");
    assert!(world.manager.volumes().await.is_empty());
}

#[tokio::test]
async fn a_machine_gets_its_volumes_before_it_runs_and_gives_them_up_in_order() {
    let world = World::forking(|_| {}).await;
    make(&world, &["a", "b"]).await;
    let id = create(&world, with(&[("a", false), ("b", true)])).await.unwrap();
    let begun = ["attach 0 write", "attach 1 read", "run", "mount 0 a false", "mount 1 b true"];
    assert_eq!(notes(&world, id), begun);
    assert!(matches!(
        world.manager.delete_volume(name("a")).await.unwrap_err(),
        VolumeError::Attached { .. }
    ));
    let sandbox = world.manager.get(id).unwrap();
    sandbox.pause().await.unwrap();
    sandbox.delete().await.unwrap();
    assert_eq!(notes(&world, id)[5..], ["pause", "run", "flush true", "kill"]);
    assert_eq!((holder(&world, "a"), holder(&world, "b")), (None, None));
    world.manager.delete_volume(name("a")).await.unwrap();
}

#[tokio::test]
async fn a_create_that_fails_gives_back_what_it_had() {
    let world = World::forking(|_| {}).await;
    make(&world, &["a"]).await;
    for request in [
        with(&[("a", false), ("none", false)]),
        with(&[("a", false), ("a", true)]),
        NewSandbox { cpu: Some(1000), ..with(&[("a", false)]) },
        NewSandbox { template: "none".parse().unwrap(), ..with(&[("a", false)]) },
    ] {
        create(&world, request).await.unwrap_err();
        assert_eq!(holder(&world, "a"), None);
    }
    world.engine.knobs.fork_broken.store(true, Ordering::SeqCst);
    world.engine.knobs.broken.store(true, Ordering::SeqCst);
    create(&world, with(&[("a", false)])).await.unwrap_err();
    assert_eq!(holder(&world, "a"), None);
}

#[tokio::test]
async fn a_sleeper_keeps_its_volumes_and_writes_on_from_where_it_was() {
    let world = World::forking(|_| {}).await;
    make(&world, &["a", "b"]).await;
    let id = create(&world, with(&[("a", false), ("b", true)])).await.unwrap();
    let sandbox = world.manager.get(id).unwrap();
    sandbox.hibernate().await.unwrap();
    assert_eq!(notes(&world, id)[5..], ["flush false", "pause", "kill"]);
    let error = create(&world, with(&[("a", true)])).await.unwrap_err();
    assert!(
        matches!(error, CreateError::Volume(VolumeError::InUse { writes: true, .. })),
        "{error}"
    );
    sandbox.wake().await.unwrap();
    let woken = world.engine.alive().into_iter().map(|machine| machine.name.clone());
    let woken = woken.map(|machine| of_machine(&world, &machine));
    let expected = ["attach 0 rewind", "attach 1 copy", "run"].map(str::to_owned);
    assert!(woken.into_iter().any(|notes| notes == expected));
    sandbox.hibernate().await.unwrap();
    sandbox.delete().await.unwrap();
    assert_eq!((holder(&world, "a"), holder(&world, "b")), (None, None));
}

#[tokio::test]
async fn a_copy_holds_nothing() {
    let world = World::forking(|_| {}).await;
    make(&world, &["a"]).await;
    let id = create(&world, with(&[("a", false)])).await.unwrap();
    let child = world.manager.fork(id, ForkRequest::default()).await.unwrap().children.remove(0);
    assert!(child.volumes[0].clone);
    let snapshot = world.manager.snapshot(id).await.unwrap().id;
    world.manager.get(id).unwrap().delete().await.unwrap();
    assert_eq!(holder(&world, "a"), None);

    let thaw = NewSandbox { from_snapshot: Some(snapshot), ..base() };
    let made = create(&world, thaw.clone()).await.unwrap();
    assert_eq!(notes(&world, made)[..2], ["attach 0 copy", "run"]);
    assert!(world.manager.get(made).unwrap().view().volumes[0].clone);
    assert_eq!(holder(&world, "a"), None);
    let both = NewSandbox { volumes: with(&[("a", false)]).volumes, ..thaw };
    let error = create(&world, both).await.unwrap_err();
    assert!(matches!(error, CreateError::Invalid(_)), "{error}");
}
