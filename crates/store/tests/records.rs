//! What the records promise: they survive reopening, they are private, they refuse nonsense.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use pandastack_policy::Policy;
use pandastack_store::{
    ApiKeyRecord, Lifetime, Retention, SandboxRecord, Store, StoreError, Transition, Unfinished,
};
use pandastack_types::{EndReason, SandboxId, Size, SnapshotId, State, TtlMode};
use time::OffsetDateTime;

fn now() -> OffsetDateTime {
    // Whole microseconds: that is what is kept.
    let now = OffsetDateTime::now_utc();
    now.replace_microsecond(now.microsecond()).unwrap()
}

const POLICY: &str =
    r#"{"allow":[{"host":"pypi.org","ports":[443]}],"deny":[{"cidr":"10.0.0.0/8"}]}"#;

fn policy(text: &str) -> Policy {
    serde_json::from_str(text).unwrap()
}

/// What recovery is told about a sandbox.
fn trace(record: &SandboxRecord) -> Unfinished {
    let SandboxRecord { id, machine, state, reason, .. } = record.clone();
    Unfinished { id, machine, state, reason }
}

fn record() -> SandboxRecord {
    SandboxRecord {
        id: SandboxId::random(),
        template: "base".parse().unwrap(),
        size: Size { cpu: 1, memory_mb: 512, disk_mb: 2048 },
        metadata: BTreeMap::from([("k\"\n".to_owned(), "é\u{2028}".to_owned())]),
        lifetime: Lifetime { ttl_seconds: 300, ..Lifetime::default() },
        from_snapshot: None,
        machine: "m-1".to_owned(),
        egress: policy(POLICY),
        state: State::Creating,
        reason: None,
        created_at: now(),
        updated_at: now(),
        ended_at: None,
    }
}

fn step(
    store: &Store,
    id: SandboxId,
    from: State,
    to: State,
    reason: Option<EndReason>,
) -> Result<(), StoreError> {
    store.transition(&Transition { id, from, to, reason, at: now() })
}

fn open(dir: &Path) -> Store {
    Store::open(&dir.join("records.sqlite")).unwrap()
}

#[test]
fn several_records_are_written_together_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let records = [record(), record(), record()];
    store.create_all(&records).unwrap();
    assert_eq!(store.unfinished().unwrap().len(), 3);
    let again = [record(), records[1].clone()];
    assert!(store.create_all(&again).is_err(), "an id is used once");
    assert_eq!(store.sandbox(again[0].id).unwrap(), None);
}

#[test]
fn a_record_survives_reopening_whole() {
    let dir = tempfile::tempdir().unwrap();
    let record = SandboxRecord { from_snapshot: Some(SnapshotId::random()), ..record() };
    let lifetime = Lifetime {
        ttl_seconds: 7,
        persistent: true,
        chosen: true,
        ttl_mode: TtlMode::Idle,
        idle_timeout: 9,
        ends_at: Some(record.created_at + Duration::from_secs(7)),
    };
    {
        let store = open(dir.path());
        store.create(&record).unwrap();
        step(&store, record.id, State::Creating, State::Running, None).unwrap();
        store.set_lifecycle(record.id, &lifetime, now()).unwrap();
    }
    let store = open(dir.path());
    let found = store.sandbox(record.id).unwrap().unwrap();
    assert_eq!(found.state, State::Running);
    assert_eq!(found.metadata, record.metadata);
    assert_eq!((found.lifetime, found.from_snapshot), (lifetime, record.from_snapshot));
    assert_eq!(found.created_at, record.created_at);
    assert_eq!(store.unfinished().unwrap(), vec![trace(&found)]);
    let kinds: Vec<_> =
        store.journal(record.id, 10).unwrap().into_iter().map(|entry| entry.kind).collect();
    assert_eq!(kinds, ["sandbox.creating", "sandbox.running", "sandbox.lifecycle"]);
}

#[test]
fn without_a_clean_close_nothing_written_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let record = record();
    let store = open(dir.path());
    store.create(&record).unwrap();
    // The files as a killed server leaves them: the write-ahead log not copied back.
    let copy = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(dir.path()).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
    }
    let store = open(copy.path());
    assert_eq!(store.unfinished().unwrap(), vec![trace(&record)]);
    assert_eq!(store.sandbox(record.id).unwrap(), Some(record));
}

#[test]
fn a_state_change_must_start_from_the_recorded_state() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let record = record();
    store.create(&record).unwrap();
    let wrong = step(&store, record.id, State::Paused, State::Running, None);
    assert!(matches!(wrong, Err(StoreError::Missing)));
    assert_eq!(store.journal(record.id, 10).unwrap().len(), 1, "nothing was journalled");

    step(&store, record.id, State::Creating, State::Stopping, Some(EndReason::Ttl)).unwrap();
    step(&store, record.id, State::Stopping, State::Deleted, None).unwrap();
    let found = store.sandbox(record.id).unwrap().unwrap();
    assert_eq!(found.reason, Some(EndReason::Ttl), "the reason stays");
    assert!(found.ended_at.is_some());
    assert!(store.unfinished().unwrap().is_empty());
}

#[test]
fn the_files_are_private() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    store.create(&record()).unwrap();
    let mut files = 0;
    for file in std::fs::read_dir(dir.path()).unwrap() {
        let mode = file.unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        files += 1;
    }
    assert!(files >= 2, "the write-ahead log was looked at too");
}

#[test]
fn history_is_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (old, young) = (record(), record());
    for record in [&old, &young] {
        store.create(record).unwrap();
    }
    step(&store, old.id, State::Creating, State::Failed, Some(EndReason::CreateFailed)).unwrap();
    let keep = Retention { age: Duration::from_secs(60), journal_lines: 2 };
    store.maintain(keep, now() + Duration::from_secs(30)).unwrap();
    assert_eq!(store.journal(old.id, 10).unwrap().len(), 1, "only the newest two lines are left");
    store.maintain(keep, now() + Duration::from_secs(90)).unwrap();
    assert_eq!(store.sandbox(old.id).unwrap(), None);
    assert!(store.sandbox(young.id).unwrap().is_some(), "a live one is never forgotten");
}

#[test]
fn a_newer_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let raw = rusqlite::Connection::open(dir.path().join("records.sqlite")).unwrap();
    raw.pragma_update(None, "user_version", 99).unwrap();
    drop(raw);
    let refused = Store::open(&dir.path().join("records.sqlite"));
    assert!(matches!(refused, Err(StoreError::Newer { found: 99, .. })));
}

#[test]
fn a_full_disk_is_said_in_so_many_words_and_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    // SQLite's own page limit gives the same code as a full file system. The limit belongs to a
    // connection, so it is reached through a record that needs many pages.
    let mut big = record();
    big.metadata.insert("x".to_owned(), "y".repeat(1 << 20));
    store.limit_pages(40).unwrap();
    assert!(matches!(store.create(&big), Err(StoreError::DiskFull)));
    assert!(store.unfinished().unwrap().is_empty());
    store.create(&record()).unwrap();
}

#[test]
fn keys_are_found_by_prefix_and_gone_when_removed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let key = ApiKeyRecord {
        hash: [7; 32],
        prefix: "pds_abcdefgh".to_owned(),
        label: "first".to_owned(),
        created_at: now(),
    };
    store.add_key(&key).unwrap();
    store.add_key(&key).unwrap();
    assert_eq!(store.keys().unwrap(), vec![key.clone()]);
    // Another process revokes it.
    assert_eq!(open(dir.path()).remove_keys(&key.prefix).unwrap(), 1);
    assert!(store.keys_with_prefix(&key.prefix).unwrap().is_empty());
}
