//! Size classes: limits, one bake for all who wait, and what is seen of it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::atomic::Ordering;
use std::time::Duration;

use pandastack_sandbox::{CreateError, NewSandbox};
use pandastack_types::{Event, SizeLimits, SizeState, SizeView};
use serde_json::json;
use support::{World, base, eventually};

fn of_cpu(cpu: i64) -> NewSandbox {
    NewSandbox { cpu: Some(cpu), ..base() }
}

fn of_disk(disk_mb: i64) -> NewSandbox {
    NewSandbox { disk_mb: Some(disk_mb), ..base() }
}

fn baking(world: &World) -> Vec<SizeView> {
    let views = world.manager.template_views();
    let sizes = views.into_iter().flat_map(|view| view.sizes);
    sizes.filter(|class| class.state == SizeState::Baking).collect()
}

#[tokio::test]
async fn what_an_operator_forbids_is_refused_with_the_limits() {
    let limits = SizeLimits { cpu: 2, memory_mb: 1024, disk_mb: 4096 };
    let world = World::with(|config| config.size_limits = limits);
    for (request, text) in [
        (of_cpu(3), "cpu must be 1 to 2, not 3"),
        (of_disk(0), "disk_mb must be 2048 to 4096, not 0"),
        (of_disk(-1), "disk_mb must be 2048 to 4096, not -1"),
        (of_disk(2047), "disk_mb must be 2048 to 4096, not 2047"),
        (of_disk(4097), "disk_mb must be 2048 to 4096, not 4097"),
        (NewSandbox { memory_mb: Some(1025), ..base() }, "memory_mb must be 128 to 1024, not 1025"),
    ] {
        let refused = world.manager.create(request).await.unwrap_err();
        assert!(matches!(refused, CreateError::Invalid(_)), "{refused:?}");
        assert_eq!(refused.to_string(), text);
    }
    assert_eq!(world.templates.bakes.load(Ordering::SeqCst), 0);
    world.nothing_left().await;
    let created = world.manager.create(of_disk(3000)).await.unwrap().view;
    assert_eq!(created.disk_mb, 3072, "at least what was asked for");
    assert_eq!(world.manager.create(base()).await.unwrap().view.disk_mb, 2048);
}

#[tokio::test]
async fn all_who_want_a_class_wait_for_one_bake() {
    let world = World::new();
    world.templates.slowness_ms.store(200, Ordering::SeqCst);
    let mut creates = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let manager = world.manager.clone();
        creates.spawn(async move { manager.create(of_cpu(2)).await });
    }
    for created in creates.join_all().await {
        assert_eq!(created.unwrap().view.cpu, 2);
    }
    assert_eq!(world.templates.bakes.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_long_bake_is_said_so_and_goes_on_without_those_who_left() {
    let world = World::with(|config| config.bake_patience = Duration::from_millis(50));
    world.templates.slowness_ms.store(400, Ordering::SeqCst);
    let left = tokio::time::timeout(Duration::from_millis(20), world.manager.create(of_cpu(2)));
    assert!(left.await.is_err());
    let class = baking(&world).pop().unwrap();
    assert_eq!(class.size.cpu, 2);
    assert_eq!(class.step.as_deref(), Some("boot: of a fake"));
    assert!(class.elapsed_ms.is_some());

    let refused = world.manager.create(of_cpu(2)).await.unwrap_err();
    assert!(matches!(refused, CreateError::Baking { .. }), "{refused:?}");
    let text = refused.to_string();
    assert!(text.contains("2 vCPU") && text.contains("boot: of a fake"), "{text}");
    world.nothing_left().await;

    eventually("it is baked", || baking(&world).is_empty()).await;
    world.manager.create(of_cpu(2)).await.unwrap();
    assert_eq!(world.templates.bakes.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_failed_bake_is_told_to_all_who_waited_and_tried_again_by_the_next() {
    let world = World::new();
    world.templates.slowness_ms.store(100, Ordering::SeqCst);
    world.templates.fails.store(true, Ordering::SeqCst);
    let (one, two) = tokio::join!(world.manager.create(of_cpu(2)), world.manager.create(of_cpu(2)));
    for refused in [one, two] {
        assert!(matches!(refused, Err(CreateError::Bake { .. })), "{refused:?}");
    }
    assert_eq!(world.templates.bakes.load(Ordering::SeqCst), 1);
    world.nothing_left().await;
    world.templates.fails.store(false, Ordering::SeqCst);
    world.manager.create(of_cpu(2)).await.unwrap();
}

/// Bakes in the journal: how far each came, of how many vCPUs, and why it failed.
fn told(world: &World) -> Vec<(String, u64, Option<String>)> {
    let entries = world.manager.stories(None, 1000).unwrap().into_iter();
    let bakes = entries.filter(|entry| entry.event.sandbox_id.is_none());
    bakes
        .map(|entry| {
            let Event { kind, payload, .. } = entry.event;
            assert_eq!((&payload["template"], &payload["disk_mb"]), (&json!("base"), &json!(2048)));
            assert_eq!(payload["elapsed_ms"].is_u64(), kind != "template.baking");
            let error = payload["error"].as_str().map(str::to_owned);
            (kind, payload["cpu"].as_u64().unwrap(), error)
        })
        .collect()
}

#[tokio::test]
async fn the_journal_tells_of_bakes_however_they_end() {
    let world = World::with(|config| config.bake_patience = Duration::from_millis(100));
    let line = |kind: &str, cpu, error: Option<&str>| {
        (format!("template.{kind}"), cpu, error.map(str::to_owned))
    };
    world.manager.create(of_cpu(2)).await.unwrap();
    world.manager.create(of_cpu(2)).await.unwrap();
    let mut expected = vec![line("baking", 2, None), line("baked", 2, None)];
    assert_eq!(told(&world), expected);
    world.templates.fails.store(true, Ordering::SeqCst);
    world.manager.create(of_cpu(3)).await.unwrap_err();
    let why = Some("the template is gone");
    expected.extend([line("baking", 3, None), line("bake_failed", 3, why)]);
    assert_eq!(told(&world), expected);
    // One that a stopping server gives up has an end as well.
    world.templates.slowness_ms.store(60_000, Ordering::SeqCst);
    world.manager.create(of_cpu(4)).await.unwrap_err();
    world.manager.shutdown().await;
    let why = Some("it was given up");
    expected.extend([line("baking", 4, None), line("bake_failed", 4, why)]);
    assert_eq!(told(&world), expected);
}

#[tokio::test]
async fn only_so_many_classes_wait_for_their_bake() {
    let world = World::with(|config| {
        config.bake_patience = Duration::from_millis(1);
        config.max_sandboxes = 100;
    });
    world.templates.slowness_ms.store(60_000, Ordering::SeqCst);
    for step in 1..=8 {
        let refused = world.manager.create(of_disk(2048 + 256 * step)).await;
        assert!(matches!(refused, Err(CreateError::Baking { .. })), "{refused:?}");
    }
    assert_eq!(baking(&world).len(), 8);
    let refused = world.manager.create(of_cpu(8)).await;
    assert!(matches!(refused, Err(CreateError::BakesWaiting(8))), "{refused:?}");
    assert_eq!(world.templates.bakes.load(Ordering::SeqCst), 1, "one after the other");
    // What waits is given up.
    world.manager.shutdown().await;
    assert!(baking(&world).is_empty());
}

#[tokio::test]
async fn who_is_refused_begins_no_bake() {
    let world = World::with(|config| config.max_sandboxes = 0);
    assert!(matches!(world.manager.create(of_cpu(2)).await, Err(CreateError::Full(0))));
    let world = World::with(|config| config.disk_reserve_mb = u64::MAX >> 1);
    let refused = world.manager.create(of_disk(4096)).await;
    assert!(matches!(refused, Err(CreateError::Disk { .. })), "{refused:?}");
    assert_eq!(world.templates.bakes.load(Ordering::SeqCst), 0);
    world.nothing_left().await;
}

#[tokio::test]
async fn a_disk_that_the_host_has_no_room_for_is_refused() {
    let world = World::with(|config| config.disk_estimate_percent = 1 << 40);
    let refused = world.manager.create(base()).await;
    assert!(matches!(refused, Err(CreateError::Disk { .. })), "{refused:?}");
    world.nothing_left().await;
}

#[tokio::test]
async fn forks_and_snapshots_keep_their_size() {
    let world = World::forking(|_| {}).await;
    let parent = world.manager.create(of_disk(4096)).await.unwrap().view;
    let forked = world.manager.fork(parent.id, Default::default()).await.unwrap();
    assert_eq!(forked.children[0].disk_mb, 4096);
    let snapshot = world.manager.snapshot(parent.id).await.unwrap();
    assert_eq!(snapshot.disk_mb, 4096);
    let thaw = |disk_mb| NewSandbox { from_snapshot: Some(snapshot.id), disk_mb, ..base() };
    for disk_mb in [None, Some(4096)] {
        assert_eq!(world.manager.create(thaw(disk_mb)).await.unwrap().view.disk_mb, 4096);
    }
    for disk_mb in [2048, 8192, -1] {
        let refused = world.manager.create(thaw(Some(disk_mb))).await.unwrap_err();
        assert!(refused.to_string().contains("4096 MiB of disk"), "{refused}");
    }
}
