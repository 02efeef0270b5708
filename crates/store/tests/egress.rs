//! What the records keep of a policy, and what becomes of records that were written before there
//! were policies.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;

use pandastack_policy::Policy;
use pandastack_store::{Lifetime, SandboxRecord, Store, StoreError};
use pandastack_types::{SandboxId, Size, State};
use time::OffsetDateTime;

/// The tables as the first format has them, and one record in them.
const FIRST: &str = r#"
    CREATE TABLE sandboxes (
        id          TEXT PRIMARY KEY,
        template    TEXT NOT NULL,
        cpu         INTEGER NOT NULL,
        memory_mb   INTEGER NOT NULL,
        metadata    TEXT NOT NULL,
        ttl_seconds INTEGER NOT NULL,
        persistent  INTEGER NOT NULL,
        machine     TEXT NOT NULL,
        state       TEXT NOT NULL,
        reason      TEXT,
        created_at  INTEGER NOT NULL,
        updated_at  INTEGER NOT NULL,
        ended_at    INTEGER
    ) STRICT;
    CREATE INDEX sandboxes_ended ON sandboxes (ended_at);
    CREATE TABLE journal (
        seq     INTEGER PRIMARY KEY AUTOINCREMENT,
        time    INTEGER NOT NULL,
        sandbox TEXT NOT NULL,
        type    TEXT NOT NULL,
        payload TEXT NOT NULL
    ) STRICT;
    CREATE INDEX journal_sandbox ON journal (sandbox, seq);
    CREATE TABLE api_keys (
        hash       BLOB PRIMARY KEY,
        prefix     TEXT NOT NULL,
        label      TEXT NOT NULL,
        created_at INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX api_keys_prefix ON api_keys (prefix);
    INSERT INTO sandboxes VALUES ('1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed', 'base', 1, 512,
        '{"a":"b"}', 300, 0, 'm-1', 'running', NULL, 1700000000000000, 1700000000000000, NULL);
    PRAGMA user_version = 1;
"#;

const OPEN: &str = r#"{"allow":[{"host":"*.PyPI.org.","ports":["443/tcp"]}]}"#;

fn policy(text: &str) -> Policy {
    serde_json::from_str(text).unwrap()
}

fn open(dir: &Path) -> Store {
    Store::open(&dir.join("records.sqlite")).unwrap()
}

fn raw(dir: &Path) -> rusqlite::Connection {
    rusqlite::Connection::open(dir.join("records.sqlite")).unwrap()
}

fn record(egress: Policy) -> SandboxRecord {
    let now = OffsetDateTime::from_unix_timestamp(1_700_000_000).unwrap();
    SandboxRecord {
        id: SandboxId::random(),
        template: "base".parse().unwrap(),
        size: Size { cpu: 1, memory_mb: 512, disk_mb: 2048 },
        metadata: Default::default(),
        lifetime: Lifetime { ttl_seconds: 300, ..Lifetime::default() },
        from_snapshot: None,
        machine: "m-1".to_owned(),
        egress,
        state: State::Creating,
        reason: None,
        created_at: now,
        updated_at: now,
        ended_at: None,
    }
}

#[test]
fn a_record_of_the_format_before_policies_reaches_nothing() {
    let dir = tempfile::tempdir().unwrap();
    raw(dir.path()).execute_batch(FIRST).unwrap();
    let store = open(dir.path());
    let id = "1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed".parse().unwrap();
    let old = store.sandbox(id).unwrap().unwrap();
    assert_eq!(old.egress, Policy::default());
    assert_eq!((old.machine.as_str(), old.state), ("m-1", State::Running), "the rest is there");
    assert_eq!(store.unfinished().unwrap().len(), 1);

    // And it is a record like any other from now on.
    store.set_egress(id, &policy(OPEN), OffsetDateTime::now_utc()).unwrap();
    let new = record(policy(OPEN));
    store.create(&new).unwrap();
    drop(store);
    let store = open(dir.path());
    for id in [id, new.id] {
        assert_eq!(store.sandbox(id).unwrap().unwrap().egress, policy(OPEN));
    }
}

#[test]
fn a_policy_is_kept_in_its_one_spelling_and_its_change_is_journalled() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let record = record(policy(OPEN));
    store.create(&record).unwrap();
    assert_eq!(store.sandbox(record.id).unwrap().unwrap(), record);
    let text = |egress: &str| -> String {
        assert_eq!(store.sandbox(record.id).unwrap().unwrap().egress, policy(egress));
        let sql = "SELECT egress FROM sandboxes";
        raw(dir.path()).query_row(sql, [], |row| row.get(0)).unwrap()
    };
    assert_eq!(text(OPEN), r#"{"allow":[{"host":"*.pypi.org","ports":[443]}]}"#);
    let none = r#"{"allow":[],"deny":[],"log":true}"#;
    store.set_egress(record.id, &policy(none), OffsetDateTime::now_utc()).unwrap();
    assert_eq!(text(none), r#""none""#);
    let last = store.journal(record.id, 1).unwrap().pop().unwrap();
    assert_eq!(last.kind, "sandbox.egress");
    assert_eq!(last.payload, serde_json::json!({ "allow": 0, "deny": 0 }));
}

#[test]
fn who_has_no_record_gets_no_policy() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let nobody = store.set_egress(SandboxId::random(), &policy(OPEN), OffsetDateTime::now_utc());
    assert!(matches!(nobody, Err(StoreError::Missing)));
}

#[test]
fn a_damaged_policy_is_no_policy_and_does_not_keep_its_sandbox_from_being_ended() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let record = record(policy(OPEN));
    store.create(&record).unwrap();
    for damaged in [
        "",
        "null",
        "{}",
        r#"{"allow":"*"}"#,
        r#"{"allow":[{"host":"*"}],"#,
        r#"{"allow":[],"allow":[{"host":"*"}]}"#,
        r#"{"allow":[],"mode":"open"}"#,
    ] {
        raw(dir.path()).execute("UPDATE sandboxes SET egress = ?1", [damaged]).unwrap();
        let read = store.sandbox(record.id);
        assert!(matches!(read, Err(StoreError::Damaged("egress"))), "{damaged}: {read:?}");
        let left = store.unfinished().unwrap();
        assert_eq!(left.len(), 1, "{damaged}");
        assert_eq!(left[0].machine, "m-1");
    }
}
