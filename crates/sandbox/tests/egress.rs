//! What sandboxes may reach: that it is in force before anything of them runs, on every way that a
//! sandbox comes to be, and what happens when the network does not do as it is told.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pandastack_policy::Policy;
use pandastack_sandbox::{CreateError, Cursor, ForkError, ForkRequest, LifecycleError, Sandbox};
use pandastack_types::{EgressEntry, EgressKind, EgressVerdict, SandboxId, SnapshotId, State};
use support::network::Mood;
use support::{World, base, eventually};
use time::OffsetDateTime;

const PYPI: &str = r#"{"allow":[{"host":"pypi.org","ports":[443]}]}"#;
const OTHER: &str = r#"{"allow":[{"cidr":"203.0.113.0/24"}]}"#;
const NONE: &str = r#""none""#;

fn policy(text: &str) -> Policy {
    serde_json::from_str(text).unwrap()
}

/// The policy that a sandbox shows, that its record has, and that the network has in force.
fn everywhere(world: &World, id: SandboxId) -> String {
    let sandbox = world.manager.get(id).unwrap();
    let shown = serde_json::to_string(&sandbox.egress()).unwrap();
    assert_eq!(sandbox.view().egress, sandbox.egress());
    assert_eq!(world.store.sandbox(id).unwrap().unwrap().egress, sandbox.egress());
    assert_eq!(world.network.in_force(&world.machine_of(id)).as_deref(), Some(shown.as_str()));
    shown
}

/// A server that does not wait long for its network.
fn impatient() -> World {
    World::with(|config| config.network_deadline = Duration::from_millis(100))
}

async fn create(world: &World, egress: Option<&str>) -> SandboxId {
    let mut request = base();
    request.egress = egress.map(policy);
    world.manager.create(request).await.unwrap().view.id
}

async fn made_of(
    world: &World,
    snapshot: SnapshotId,
    egress: Option<&str>,
) -> Result<SandboxId, CreateError> {
    let mut request = base();
    request.from_snapshot = Some(snapshot);
    request.egress = egress.map(policy);
    world.manager.create(request).await.map(|created| created.view.id)
}

fn done_to(world: &World, id: SandboxId) -> Vec<String> {
    world.engine.knobs.notes(&world.machine_of(id))
}

fn attached(policy: &str) -> String {
    format!("attach {policy}")
}

#[tokio::test]
async fn a_restored_sandbox_is_attached_before_it_runs() {
    let world = World::new();
    for (asked, expected) in [(None, NONE), (Some(PYPI), PYPI), (Some(NONE), NONE)] {
        let id = create(&world, asked).await;
        assert_eq!(done_to(&world, id), [attached(expected), "run".to_owned()]);
        assert_eq!(everywhere(&world, id), expected);
    }
}

#[tokio::test]
async fn a_parked_machine_warms_up_unattached_and_is_attached_before_it_is_somebodys() {
    let world = World::with(|config| config.pool_size = 1);
    world.manager.prime();
    eventually("one is parked", || world.manager.parking().parked == 1).await;
    let id = create(&world, Some(PYPI)).await;
    let view = world.manager.get(id).unwrap().view();
    assert_eq!(view.boot_mode, "pool");
    let warm = ["run".to_owned(), "pause".to_owned()];
    assert_eq!(done_to(&world, id), [&warm[..], &[attached(PYPI), "run".to_owned()]].concat());
    assert_eq!(everywhere(&world, id), PYPI);
}

#[tokio::test]
async fn a_fork_of_a_zygote_is_attached_before_it_runs_and_the_zygote_never_is() {
    let world = World::forking(|_| {}).await;
    let id = create(&world, Some(PYPI)).await;
    assert_eq!(world.manager.get(id).unwrap().view().boot_mode, "fork");
    assert_eq!(done_to(&world, id), [attached(PYPI), "run".to_owned()]);
    assert_eq!(everywhere(&world, id), PYPI);
    let own = world.machine_of(id);
    for machine in world.engine.alive().iter().filter(|machine| machine.name != own) {
        let notes = world.engine.knobs.notes(&machine.name);
        assert!(notes.iter().all(|note| !note.starts_with("attach")), "{notes:?}");
    }

    // And where the zygote turns out to be dead, what is restored in its place.
    world.engine.knobs.fork_broken.store(true, Ordering::SeqCst);
    let id = create(&world, Some(OTHER)).await;
    assert_eq!(world.manager.get(id).unwrap().view().boot_mode, "snapshot");
    assert_eq!(done_to(&world, id), [attached(OTHER), "run".to_owned()]);
}

#[tokio::test]
async fn children_have_what_their_parent_may_at_the_instant_of_the_copy() {
    let world = World::with(|config| config.forking = true);
    let parent = create(&world, Some(PYPI)).await;
    for tree in [false, true] {
        let request = ForkRequest { count: Some(2), tree, ..ForkRequest::default() };
        for child in world.manager.fork(parent, request).await.unwrap().children {
            assert_eq!(child.egress, policy(PYPI));
            assert_eq!(done_to(&world, child.id), [attached(PYPI), "run".to_owned()]);
            assert_eq!(everywhere(&world, child.id), PYPI);
        }
    }
    let request = ForkRequest { egress: Some(policy(NONE)), ..ForkRequest::default() };
    let child = world.manager.fork(parent, request).await.unwrap().children.remove(0);
    assert_eq!(done_to(&world, child.id), [attached(NONE), "run".to_owned()]);
    assert_eq!(everywhere(&world, parent), PYPI, "the parent's is its own");

    // What a child or its parent may later is nothing to the other one.
    let handle = world.manager.get(child.id).unwrap();
    handle.set_egress(policy(OTHER)).await.unwrap();
    assert_eq!(
        (everywhere(&world, child.id), everywhere(&world, parent)),
        (OTHER.into(), PYPI.into())
    );
}

#[tokio::test]
async fn a_policy_that_changes_while_a_fork_waits_is_what_its_children_get() {
    let world = World::with(|config| config.forking = true);
    let parent = create(&world, Some(PYPI)).await;
    let handle = world.manager.get(parent).unwrap();
    // The network takes its time over the change, and the fork is asked for meanwhile: it has
    // been recorded with the policy of before.
    *world.network.moods.set.lock().unwrap() = Mood::Slow;
    let (changed, forked) = tokio::join!(handle.set_egress(policy(NONE)), async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        world.manager.fork(parent, ForkRequest::default()).await
    });
    assert_eq!(changed.unwrap(), policy(NONE));
    let child = forked.unwrap().children.remove(0);
    assert_eq!(done_to(&world, child.id), [attached(NONE), "run".to_owned()]);
    assert_eq!(everywhere(&world, child.id), NONE);
}

#[tokio::test]
async fn a_snapshot_remembers_what_its_sandbox_could_reach_also_after_a_restart() {
    let world = World::with(|config| config.forking = true);
    let id = create(&world, Some(PYPI)).await;
    let open = world.manager.snapshot(id).await.unwrap();
    assert_eq!(open.egress, Some(policy(PYPI)));
    world.manager.get(id).unwrap().set_egress(policy(NONE)).await.unwrap();
    let closed = world.manager.snapshot(id).await.unwrap();
    assert_eq!(closed.egress, Some(Policy::default()));

    let world = world.restarted().await;
    assert_eq!(world.manager.find_snapshot(open.id).unwrap().egress, Some(policy(PYPI)));
    for (snapshot, asked, expected) in [
        (open.id, None, PYPI),
        (open.id, Some(NONE), NONE),
        (closed.id, None, NONE),
        (closed.id, Some(OTHER), OTHER),
    ] {
        let id = made_of(&world, snapshot, asked).await.unwrap();
        assert_eq!(done_to(&world, id), [attached(expected), "run".to_owned()]);
        assert_eq!(everywhere(&world, id), expected);
    }
}

#[tokio::test]
async fn a_damaged_policy_of_a_snapshot_opens_nothing() {
    let world = World::with(|config| config.forking = true);
    let id = create(&world, Some(PYPI)).await;
    let snapshot = world.manager.snapshot(id).await.unwrap().id;
    let file = world.dir.path().join(format!("instance/snapshots/{snapshot}/snapshot.json"));
    let whole: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let write = |policy: Option<&str>| {
        let mut manifest = whole.clone();
        match policy {
            Some(policy) => manifest["policy"] = policy.into(),
            None => drop(manifest.as_object_mut().unwrap().remove("policy")),
        }
        std::fs::write(&file, manifest.to_string()).unwrap();
    };
    for damaged in ["", "null", "{}", r#"{"allow":[{"host":"*"}"#, r#"{"allow":[],"open":true}"#] {
        write(Some(damaged));
        let before = world.manager.list().len();
        let refused = made_of(&world, snapshot, None).await.unwrap_err();
        assert!(matches!(refused, CreateError::DamagedPolicy(of) if of == snapshot), "{damaged}");
        assert!(refused.to_string().contains("egress policy of snapshot"), "{refused}");
        assert_eq!(world.manager.list().len(), before);
        assert_eq!(world.manager.find_snapshot(snapshot).unwrap().egress, None);
        let named = made_of(&world, snapshot, Some(OTHER)).await.unwrap();
        assert_eq!(everywhere(&world, named), OTHER, "who says what is meant can have the rest");
    }
    // Before there were policies, nothing was reached.
    write(None);
    let old = made_of(&world, snapshot, None).await.unwrap();
    assert_eq!(everywhere(&world, old), NONE);
}

#[tokio::test]
async fn without_a_network_there_is_no_sandbox() {
    for mood in [Mood::Refuses, Mood::Gone, Mood::Late, Mood::Silent] {
        let world = impatient();
        *world.network.moods.attach.lock().unwrap() = mood;
        let failed = world.manager.create(base()).await;
        assert!(matches!(failed, Err(CreateError::Network(_))), "{mood:?}: {failed:?}");
        world.nothing_left().await;
        assert!(world.network.moods.in_force.lock().unwrap().is_empty());
    }
    let world = World::new();
    world.engine.knobs.no_device.store(true, Ordering::SeqCst);
    let failed = world.manager.create(base()).await;
    assert!(matches!(failed, Err(CreateError::Machine(_))), "{failed:?}");
    world.nothing_left().await;
}

#[tokio::test]
async fn a_child_without_a_network_costs_its_parent_nothing() {
    let world = World::with(|config| config.forking = true);
    let parent = create(&world, Some(PYPI)).await;
    *world.network.moods.attach.lock().unwrap() = Mood::Gone;
    let failed = world.manager.fork(parent, ForkRequest::default()).await;
    assert!(matches!(failed, Err(ForkError::Child(CreateError::Network(_)))), "{failed:?}");
    assert_eq!(everywhere(&world, parent), PYPI);
    assert_eq!(world.manager.list().len(), 1);
}

#[tokio::test]
async fn a_machine_that_fails_after_it_was_attached_is_detached() {
    let world = World::with(|config| config.ready_deadline = Duration::from_millis(100));
    world.engine.knobs.deaf.store(true, Ordering::SeqCst);
    assert!(world.manager.create(base()).await.is_err());
    world.nothing_left().await;
    assert!(world.network.moods.in_force.lock().unwrap().is_empty());
}

#[tokio::test]
async fn the_network_goes_before_the_machine() {
    let world = World::new();
    let id = create(&world, Some(PYPI)).await;
    let machine = world.machine_of(id);
    let handle = world.manager.get(id).unwrap();
    handle.pause().await.unwrap();
    assert_eq!(everywhere(&world, id), PYPI, "a pause keeps it");
    handle.resume().await.unwrap();
    handle.delete().await.unwrap();
    let all = [&attached(PYPI), "run", "pause", "run", "detach", "kill"];
    assert_eq!(world.engine.knobs.notes(&machine), all);

    // One that ends by itself.
    let id = create(&world, Some(PYPI)).await;
    let machine = world.machine_of(id);
    world.engine.machine(&machine).unwrap().end(pandastack_engine::Exit::GuestShutdown);
    let handle = world.manager.get(id).unwrap();
    eventually("it is seen", || handle.state() == State::Failed).await;
    eventually("it is detached", || world.network.in_force(&machine).is_none()).await;
    let gone = handle.set_egress(policy(OTHER)).await;
    assert!(matches!(gone, Err(LifecycleError::Unavailable(_))), "{gone:?}");
}

async fn open(world: &World) -> Arc<Sandbox> {
    let id = create(world, Some(PYPI)).await;
    world.manager.get(id).unwrap()
}

#[tokio::test]
async fn a_policy_changes_while_a_sandbox_runs_and_while_it_stands_still() {
    let world = World::new();
    let sandbox = open(&world).await;
    assert_eq!(sandbox.set_egress(policy(OTHER)).await.unwrap(), policy(OTHER));
    assert_eq!(everywhere(&world, sandbox.id()), OTHER);
    sandbox.pause().await.unwrap();
    sandbox.set_egress(policy(NONE)).await.unwrap();
    assert_eq!(everywhere(&world, sandbox.id()), NONE);
    assert_eq!(sandbox.state(), State::Paused);
    let changes = [attached(PYPI), "run".into(), format!("policy {OTHER}"), "pause".into()];
    let changes = [&changes[..], &[format!("policy {NONE}")]].concat();
    assert_eq!(done_to(&world, sandbox.id()), changes);
    let kinds: Vec<_> =
        world.store.journal(sandbox.id(), 10).unwrap().into_iter().map(|e| e.kind).collect();
    assert_eq!(kinds.iter().filter(|kind| *kind == "sandbox.egress").count(), 2, "{kinds:?}");
    let told = sandbox.history().tail(100).0;
    assert_eq!(told.iter().filter(|event| event.kind == "sandbox.egress").count(), 2);
}

#[tokio::test]
async fn a_policy_that_cannot_be_recorded_is_not_given_to_the_network() {
    let world = World::new();
    let sandbox = open(&world).await;
    let id = sandbox.id();
    // What else but a lost record makes the journal fail, so that the order can be seen.
    let raw = rusqlite::Connection::open(world.dir.path().join("records.sqlite")).unwrap();
    raw.execute("UPDATE sandboxes SET id = 'x' || id", []).unwrap();
    let failed = sandbox.set_egress(policy(OTHER)).await;
    assert!(matches!(failed, Err(LifecycleError::Journal(_))), "{failed:?}");
    raw.execute("UPDATE sandboxes SET id = substr(id, 2)", []).unwrap();
    assert_eq!(everywhere(&world, id), PYPI);
    assert_eq!(done_to(&world, id).len(), 2, "the network was not asked");
}

#[tokio::test]
async fn a_network_that_does_not_take_a_policy_gets_the_machine_anew() {
    for mood in [Mood::Refuses, Mood::Gone, Mood::Late, Mood::Silent] {
        let world = impatient();
        let sandbox = open(&world).await;
        let id = sandbox.id();
        *world.network.moods.set.lock().unwrap() = mood;
        sandbox.set_egress(policy(OTHER)).await.unwrap();
        assert_eq!(everywhere(&world, id), OTHER);
        let notes = done_to(&world, id);
        assert_eq!(notes[2..], [format!("policy {OTHER}"), "detach".into(), attached(OTHER)]);
    }
}

#[tokio::test]
async fn when_nobody_knows_which_policy_is_in_force_none_is() {
    for (set, attach) in [
        (Mood::Refuses, Mood::Refuses),
        (Mood::Gone, Mood::Gone),
        (Mood::Late, Mood::Gone),
        (Mood::Silent, Mood::Silent),
    ] {
        let world = impatient();
        let sandbox = open(&world).await;
        let id = sandbox.id();
        *world.network.moods.set.lock().unwrap() = set;
        *world.network.moods.attach.lock().unwrap() = attach;
        // Once as it was attached, and once as it is cut off.
        for _ in 0..2 {
            let failed = sandbox.set_egress(policy(OTHER)).await.unwrap_err();
            assert!(matches!(failed, LifecycleError::CutOff(_)), "{failed:?}");
            assert!(failed.to_string().contains("reaches nothing"), "{failed}");
            assert_eq!(world.network.in_force(&world.machine_of(id)), None);
            assert_eq!(sandbox.egress(), Policy::default());
            assert_eq!(world.store.sandbox(id).unwrap().unwrap().egress, Policy::default());
            assert_eq!(sandbox.state(), State::Running, "it goes on without a network");
        }

        // Until somebody sets it again.
        *world.network.moods.attach.lock().unwrap() = Mood::Willing;
        sandbox.set_egress(policy(PYPI)).await.unwrap();
        assert_eq!(everywhere(&world, id), PYPI);
    }
}

#[tokio::test]
async fn the_longest_policy_goes_everywhere() {
    let path = |length: usize| format!("\"/{}\"", "a".repeat(length - 1));
    let with = |last: usize| {
        let paths = [vec![path(1024); 63], vec![path(last)]].concat().join(",");
        format!(r#"{{"allow":[{{"host":"a.test","paths":[{paths}]}}]}}"#)
    };
    let longest = with(1 + Policy::MAX_LEN - with(1).len());
    assert_eq!(longest.len(), Policy::MAX_LEN);
    let world = World::with(|config| config.forking = true);
    let id = create(&world, Some(&longest)).await;
    assert_eq!(everywhere(&world, id), longest);
    let child = world.manager.fork(id, ForkRequest::default()).await.unwrap().children.remove(0);
    assert_eq!(everywhere(&world, child.id), longest);
    let snapshot = world.manager.snapshot(id).await.unwrap();
    let made = made_of(&world, snapshot.id, None).await.unwrap();
    assert_eq!(everywhere(&world, made), longest);
}

fn decision(name: &str) -> EgressEntry {
    EgressEntry {
        time: OffsetDateTime::UNIX_EPOCH,
        kind: EgressKind::Dns,
        verdict: EgressVerdict::Deny,
        name: Some(name.to_owned()),
        address: None,
        port: None,
        rule: None,
        reason: "no rule allows the name".to_owned(),
        bytes_up: None,
        bytes_down: None,
        unshown: 0,
    }
}

#[tokio::test]
async fn every_decision_has_its_number_and_memory_is_bounded() {
    let world = World::new();
    let sandbox = open(&world).await;
    let machine = world.machine_of(sandbox.id());
    let log = sandbox.egress_log();
    assert_eq!(log.after(Cursor::default(), 10), (vec![], Cursor::default()));
    world.network.decide(&machine, vec![decision("a.test"), decision("b.test")]);
    world.network.decide(&machine, vec![decision("c.test")]);
    let names = |after: u64, count: usize| -> Vec<(u64, String)> {
        let (lines, next) = log.after(Cursor::behind(after), count);
        assert_eq!(next, Cursor::behind(3));
        lines.into_iter().map(|line| (line.number, line.entry.name.unwrap())).collect()
    };
    let all = [(1, "a.test"), (2, "b.test"), (3, "c.test")];
    let all: Vec<_> = all.map(|(number, name)| (number, name.to_owned())).into();
    assert_eq!(names(0, 10), all);
    assert_eq!(names(0, 1), all[2..], "the last ones");
    assert_eq!(names(1, 10), all[1..]);
    assert!(names(3, 10).is_empty());
    assert!(names(u64::MAX, 10).is_empty(), "a place that never was");

    let long = "x".repeat(250);
    for _ in 0..100 {
        world.network.decide(&machine, (0..100).map(|_| decision(&long)).collect());
    }
    let (kept, next) = log.after(Cursor::default(), usize::MAX);
    assert_eq!(next, Cursor::behind(10_003));
    assert_eq!(kept.last().unwrap().number, 10_003);
    let first = kept[0].number;
    assert!(kept.iter().map(|line| line.number).eq(first..=10_003), "no gaps but the one before");
    assert!((500..1000).contains(&kept.len()), "{}", kept.len());

    let reader = tokio::spawn({
        let log = log.clone();
        async move { log.more(next).await }
    });
    sandbox.delete().await.unwrap();
    assert!(!reader.await.unwrap(), "the end of the sandbox is the end of its log");
}
