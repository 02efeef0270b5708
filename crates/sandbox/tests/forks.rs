//! Children of running sandboxes.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pandastack_engine::Exit;
use pandastack_sandbox::{
    CreateError, ForkError, ForkRequest, Forked, LifecycleChange, Output, PromoteError, Sandbox,
    Unavailable,
};
use pandastack_types::{EndReason, SandboxId, State};
use support::{World, base, command, eventually};

/// A server that may fork, and has nothing to fork yet.
fn world() -> World {
    World::with(|config| config.forking = true)
}

async fn parent(world: &World) -> Arc<Sandbox> {
    let mut request = base();
    request.metadata = labels(&[("a", "1"), ("b", "1")]);
    request.ttl_seconds = Some(300);
    request.persistent = true;
    let id = world.manager.create(request).await.unwrap().view.id;
    world.manager.get(id).unwrap()
}

/// A parent that a server which stops does not keep.
async fn transient(world: &World) -> Arc<Sandbox> {
    let parent = parent(world).await;
    let change = LifecycleChange { persistent: Some(false), ..LifecycleChange::default() };
    parent.change(change).await.unwrap();
    parent
}

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn children(count: i64) -> ForkRequest {
    ForkRequest { count: Some(count), ..ForkRequest::default() }
}

async fn forked(world: &World, id: SandboxId, count: i64) -> Forked {
    world.manager.fork(id, children(count)).await.unwrap()
}

async fn says(sandbox: &Arc<Sandbox>, line: &str) -> String {
    let mut execution = sandbox.exec(command(line)).await.unwrap();
    match execution.next().await.unwrap() {
        Output::Stdout(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
        other => panic!("{other:?}"),
    }
}

/// Whether the parent is all that is left, and there is no trace of children.
async fn only(world: &World, parent: &Sandbox) {
    eventually("only the parent is left", || {
        world.manager.list().iter().map(|view| view.id).eq([parent.id()])
            && world.store.unfinished().unwrap().len() == 1
            && world.machine_dirs() == 1 + world.manager.parking().zygotes
            && world.engine.alive().len() == 1 + world.manager.parking().zygotes
    })
    .await;
}

#[tokio::test]
async fn a_child_is_a_sandbox_of_its_own() {
    let world = world();
    let parent = parent(&world).await;
    let mut keep = parent.exec(command("keep before")).await.unwrap();
    assert_eq!(keep.next().await.unwrap(), Output::Exit(0));
    let mut running = parent.exec(command("sleep 200")).await.unwrap();
    let answer = forked(&world, parent.id(), 1).await;
    assert_eq!((answer.parent, answer.tree, answer.failures.len()), (parent.id(), None, 0));
    let names: Vec<_> = answer.stages.marks().iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["admission", "journal", "fork", "attach", "run", "handshake", "commit"]);
    assert_eq!(answer.pause, Duration::from_millis(2));
    let [view] = answer.children.as_slice() else { panic!() };
    assert_eq!((view.status, view.boot_mode.as_str()), (State::Running, "fork"));
    assert_eq!((view.ttl_seconds, view.persistent), (300, true));
    assert_eq!((view.template.as_str(), view.cpu, view.memory_mb), ("base", 1, 512));
    let mut expected = labels(&[("a", "1"), ("b", "1")]);
    expected.insert("fork_parent_id".to_owned(), parent.id().to_string());
    assert_eq!(view.metadata, expected);
    let child = world.manager.get(view.id).unwrap();
    assert_ne!(says(&child, "who").await, says(&parent, "who").await);
    assert_eq!(says(&child, "kept").await, "before");
    assert_eq!(running.next().await.unwrap(), Output::Exit(0), "the parent's commands go on");
    parent.delete().await.unwrap();
    assert_eq!(says(&child, "echo still").await, "still\n");
    child.delete().await.unwrap();
    let kinds = world.store.journal(view.id, 10).unwrap().into_iter().map(|entry| entry.kind);
    let kinds: Vec<_> = kinds.collect();
    assert_eq!(
        kinds,
        ["sandbox.creating", "sandbox.running", "sandbox.stopping", "sandbox.deleted"]
    );
    world.manager.shutdown().await;
    world.nothing_left().await;
}

#[tokio::test]
async fn a_tree_is_one_capture() {
    let world = world();
    let parent = transient(&world).await;
    let forks = world.engine.knobs.forks.load(Ordering::SeqCst);
    let metadata = labels(&[
        ("b", "2"),
        ("explore_ttl", "40"),
        ("fork_tree_id", "forged"),
        ("fork_index", "99"),
        ("fork_parent_id", "forged"),
    ]);
    let request = ForkRequest { metadata, tree: true, ..children(5) };
    let answer = world.manager.fork(parent.id(), request).await.unwrap();
    assert_eq!(world.engine.knobs.forks.load(Ordering::SeqCst), forks + 1);
    let tree = answer.tree.unwrap();
    let ids: HashSet<_> = answer.children.iter().map(|view| view.id).collect();
    assert_eq!(ids.len(), 5);
    for (index, view) in answer.children.iter().enumerate() {
        let expected = [
            ("a", "1"),
            ("b", "2"),
            ("explore_ttl", "40"),
            ("fork_tree_id", &tree),
            ("fork_parent_id", &parent.id().to_string()),
            ("fork_index", &index.to_string()),
            ("fork_tree_role", "child"),
        ];
        assert_eq!(view.metadata, labels(&expected));
        assert_eq!(view.ttl_seconds, 40);
    }
    // A grandchild is no sibling of its parent.
    let grandchild = forked(&world, answer.children[2].id, 1).await.children.remove(0);
    assert_eq!(grandchild.metadata.get("fork_tree_id"), None);
    assert_eq!(grandchild.metadata["fork_parent_id"], answer.children[2].id.to_string());
    assert_eq!(grandchild.ttl_seconds, 40);
    world.manager.shutdown().await;
    world.nothing_left().await;
}

#[tokio::test]
async fn children_of_a_paused_sandbox_run() {
    let world = world();
    let parent = parent(&world).await;
    parent.pause().await.unwrap();
    let view = forked(&world, parent.id(), 1).await.children.remove(0);
    assert_eq!(parent.state(), State::Paused);
    let child = world.manager.get(view.id).unwrap();
    assert_eq!(says(&child, "echo on").await, "on\n");
    parent.resume().await.unwrap();
    assert_eq!(says(&parent, "echo too").await, "too\n");
}

#[tokio::test]
async fn a_childs_time_counts_from_its_birth() {
    let world = world();
    let parent = parent(&world).await;
    let request = ForkRequest { ttl_seconds: Some(1), ..children(1) };
    let view = world.manager.fork(parent.id(), request).await.unwrap().children.remove(0);
    eventually("it expires", || world.manager.get(view.id).is_err()).await;
    assert_eq!(world.store.sandbox(view.id).unwrap().unwrap().reason, Some(EndReason::Ttl));
    only(&world, &parent).await;
}

#[tokio::test]
async fn nonsense_is_refused_before_anything_exists() {
    let world = world();
    let parent = parent(&world).await;
    let long = ForkRequest { metadata: labels(&[("k", &"v".repeat(5000))]), ..children(1) };
    let explore = |text: &str| ForkRequest {
        metadata: labels(&[("explore_ttl", text)]),
        tree: true,
        ..children(1)
    };
    let ttl = ForkRequest { ttl_seconds: Some(-1), ..children(1) };
    let wrong = [
        children(0),
        children(-1),
        children(101),
        children(i64::MAX),
        long,
        ttl,
        explore("soon"),
        explore("-1"),
        explore(""),
    ];
    for request in wrong {
        let refused = world.manager.fork(parent.id(), request.clone()).await;
        assert!(matches!(refused, Err(ForkError::Invalid(_))), "{request:?}: {refused:?}");
    }
    let stranger = world.manager.fork(SandboxId::random(), children(1)).await;
    assert!(matches!(stranger, Err(ForkError::NotFound(_))));
    only(&world, &parent).await;
}

#[tokio::test]
async fn all_children_are_let_in_or_none() {
    let world = World::with(|config| {
        config.forking = true;
        config.max_sandboxes = 4;
    });
    let parent = parent(&world).await;
    let refused = world.manager.fork(parent.id(), children(4)).await;
    assert!(matches!(refused, Err(ForkError::Child(CreateError::Full(4)))), "{refused:?}");
    only(&world, &parent).await;
    assert_eq!(forked(&world, parent.id(), 3).await.children.len(), 3);
}

#[tokio::test]
async fn a_host_that_cannot_fork_says_so() {
    let world = world();
    world.engine.knobs.unforkable.store(true, Ordering::SeqCst);
    let sandbox = parent(&world).await;
    let refused = world.manager.fork(sandbox.id(), children(1)).await;
    let Err(ForkError::Unsupported(why)) = refused else { panic!("{refused:?}") };
    assert!(why.contains("refused by the test"), "{why}");
    only(&world, &sandbox).await;
    let world = World::new();
    let sandbox = parent(&world).await;
    let refused = world.manager.fork(sandbox.id(), children(1)).await;
    let Err(ForkError::Unsupported(why)) = refused else { panic!("{refused:?}") };
    assert!(why.contains("--fork auto"), "{why}");
}

#[tokio::test]
async fn a_child_that_does_not_become_ready_costs_the_others_nothing() {
    let world = World::with(|config| {
        config.forking = true;
        config.ready_deadline = Duration::from_millis(300);
    });
    let parent = parent(&world).await;
    world.engine.knobs.first_fork_deaf.store(true, Ordering::SeqCst);
    let answer = forked(&world, parent.id(), 3).await;
    assert_eq!(answer.children.len(), 2);
    let [(0, CreateError::NotReady(_))] = answer.failures.as_slice() else { panic!() };
    assert_eq!(world.manager.list().len(), 3);
    let none = world.manager.fork(parent.id(), children(1)).await;
    assert!(matches!(none, Err(ForkError::Child(CreateError::NotReady(_)))), "{none:?}");
    for child in answer.children {
        world.manager.get(child.id).unwrap().delete().await.unwrap();
    }
    only(&world, &parent).await;
}

#[tokio::test]
async fn a_fork_that_fails_leaves_the_parent_and_nothing_else() {
    let world = world();
    let parent = parent(&world).await;
    eventually("there is a zygote", || world.manager.parking().zygotes == 1).await;
    world.engine.knobs.fork_broken.store(true, Ordering::SeqCst);
    let failed = world.manager.fork(parent.id(), children(3)).await;
    assert!(matches!(failed, Err(ForkError::Machine(_))), "{failed:?}");
    only(&world, &parent).await;
    assert_eq!(says(&parent, "echo fine").await, "fine\n");
}

#[tokio::test]
async fn what_has_ended_is_not_forked() {
    let world = world();
    let parent = parent(&world).await;
    let name = world.store.unfinished().unwrap().pop().unwrap().machine;
    world.engine.knobs.fork_ms.store(50, Ordering::SeqCst);
    let (forked, ()) = tokio::join!(world.manager.fork(parent.id(), children(2)), async {
        eventually("it is asked", || world.manager.list().len() == 3).await;
        world.engine.machine(&name).unwrap().end(Exit::GuestShutdown);
    });
    let ended = Unavailable::Ended { id: parent.id(), reason: EndReason::GuestShutdown };
    let Err(ForkError::Unavailable(why)) = forked else { panic!("{forked:?}") };
    assert_eq!(why, ended);
    let again = world.manager.fork(parent.id(), children(1)).await;
    assert!(matches!(again, Err(ForkError::Unavailable(why)) if why == ended));
    parent.delete().await.unwrap();
    world.manager.shutdown().await;
    world.nothing_left().await;
}

#[tokio::test]
async fn a_requester_that_goes_away_leaves_no_children() {
    let world = world();
    let parent = parent(&world).await;
    eventually("there is a zygote", || world.manager.parking().zygotes == 1).await;
    world.engine.knobs.fork_ms.store(50, Ordering::SeqCst);
    for patience in [1, 25, 49, 50, 51, 52, 55] {
        let forking = world.manager.fork(parent.id(), children(5));
        if let Ok(forked) = tokio::time::timeout(Duration::from_millis(patience), forking).await {
            for child in forked.unwrap().children {
                world.manager.get(child.id).unwrap().delete().await.unwrap();
            }
        }
        only(&world, &parent).await;
        assert_eq!(says(&parent, "echo fine").await, "fine\n");
    }
}

#[tokio::test]
async fn a_child_can_be_deleted_before_it_is_ready() {
    let world = world();
    let parent = parent(&world).await;
    eventually("there is a zygote", || world.manager.parking().zygotes == 1).await;
    world.engine.knobs.fork_ms.store(100, Ordering::SeqCst);
    let (answer, ()) = tokio::join!(forked(&world, parent.id(), 3), async {
        eventually("they are listed", || world.manager.list().len() == 4).await;
        let views = world.manager.list();
        let early = views.iter().find(|view| view.status == State::Creating).unwrap();
        let early = world.manager.get(early.id).unwrap();
        let refused = world.manager.fork(early.id(), children(1)).await;
        assert!(matches!(refused, Err(ForkError::Unavailable(Unavailable::Creating(_)))));
        early.delete().await.unwrap();
    });
    assert_eq!(answer.children.len(), 2);
    assert!(matches!(answer.failures.as_slice(), [(_, CreateError::Deleted)]));
}

#[tokio::test]
async fn a_server_that_stops_takes_forks_on_their_way_along() {
    let world = world();
    let parent = transient(&world).await;
    world.engine.knobs.fork_ms.store(200, Ordering::SeqCst);
    let manager = world.manager.clone();
    let id = parent.id();
    let forking = tokio::spawn(async move { manager.fork(id, children(3)).await });
    eventually("they are listed", || world.manager.list().len() == 4).await;
    world.manager.shutdown().await;
    assert!(forking.await.unwrap().is_err());
    world.nothing_left().await;
}

#[tokio::test]
async fn a_forged_place_in_a_tree_is_not_believed() {
    let world = World::new();
    let mut request = base();
    request.metadata = labels(&[("fork_tree_id", "x"), ("a", "b")]);
    let view = world.manager.create(request).await.unwrap().view;
    assert_eq!(view.metadata, labels(&[("a", "b")]));
}

#[tokio::test]
async fn of_siblings_that_are_promoted_at_once_one_stays() {
    let world = world();
    let parent = transient(&world).await;
    for _ in 0..5 {
        let request = ForkRequest { count: Some(2), tree: true, ..ForkRequest::default() };
        let tree = world.manager.fork(parent.id(), request).await.unwrap();
        let promote = |index: usize| world.manager.promote(tree.children[index].id, None, true);
        let (first, second) = tokio::join!(promote(0), promote(1));
        let kept = [&first, &second].into_iter().filter(|outcome| outcome.is_ok()).count();
        assert_eq!(kept, 1, "{first:?} {second:?}");
        let winner = first.or(second).unwrap().winner;
        let left: Vec<_> = world.manager.list().iter().map(|view| view.id).collect();
        assert!(left.len() == 2 && left.contains(&winner), "{left:?}");
        world.manager.get(winner).unwrap().delete().await.unwrap();
    }
}

#[tokio::test]
async fn a_promoted_child_stays_and_its_siblings_go() {
    let world = world();
    let parent = transient(&world).await;
    let tree = |labels_of: &[(&str, &str)]| ForkRequest {
        count: Some(4),
        metadata: labels(labels_of),
        tree: true,
        ..ForkRequest::default()
    };
    let first = world.manager.fork(parent.id(), tree(&[("explore_ttl", "40")])).await.unwrap();
    let other = world.manager.fork(parent.id(), tree(&[])).await.unwrap();
    let [a, winner, b, c] = first.children.iter().map(|view| view.id).collect::<Vec<_>>()[..]
    else {
        panic!()
    };
    let first_tree = first.tree.unwrap();
    let sandbox = world.manager.get(winner).unwrap();
    assert_eq!(sandbox.lifecycle().ttl_seconds, 40);

    let none = world.manager.promote(parent.id(), None, true).await;
    assert!(matches!(none, Err(PromoteError::NoTree(_))), "{none:?}");
    let wrong = world.manager.promote(winner, other.tree.as_deref(), true).await;
    assert!(matches!(wrong, Err(PromoteError::OtherTree(_))), "{wrong:?}");
    assert_eq!(world.manager.list().len(), 9, "nothing has changed");
    assert_eq!(sandbox.lifecycle().ttl_seconds, 40);

    let kept = world.manager.promote(winner, None, false).await.unwrap();
    assert_eq!((kept.tree.as_str(), kept.deleted.len()), (first_tree.as_str(), 0));
    assert_eq!(sandbox.lifecycle().ttl_seconds, 3600, "as if nobody had chosen one");
    world.manager.get(b).unwrap().delete().await.unwrap();
    let done = world.manager.promote(winner, Some(&first_tree), true).await.unwrap();
    assert_eq!((done.winner, done.deleted, done.failures.len()), (winner, vec![a, c], 0));
    let left: BTreeSet<_> = world.manager.list().iter().map(|view| view.id).collect();
    let mut expected: BTreeSet<_> = other.children.iter().map(|view| view.id).collect();
    expected.extend([parent.id(), winner]);
    assert_eq!(left, expected);
}
