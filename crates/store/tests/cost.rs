//! What one journalled transition costs, as a median: a busy host stretches some of them. Async code
//! calls the store directly because of this number; the bound is loose, so that only a change of kind
//! (an fsync per write) fails.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use pandastack_store::{Lifetime, SandboxRecord, Store, Transition};
use pandastack_types::{SandboxId, Size, State};
use time::OffsetDateTime;

#[test]
fn a_transition_costs_microseconds() {
    const ROUNDS: usize = 500;
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("records.sqlite")).unwrap();
    let at = OffsetDateTime::now_utc();
    let record = SandboxRecord {
        id: SandboxId::random(),
        template: "base".parse().unwrap(),
        size: Size { cpu: 1, memory_mb: 512, disk_mb: 2048 },
        metadata: BTreeMap::new(),
        lifetime: Lifetime { ttl_seconds: 0, ..Lifetime::default() },
        from_snapshot: None,
        machine: "m".to_owned(),
        egress: Default::default(),
        state: State::Running,
        reason: None,
        created_at: at,
        updated_at: at,
        ended_at: None,
    };
    store.create(&record).unwrap();
    let mut times = Vec::with_capacity(ROUNDS);
    for round in 0..ROUNDS {
        let (from, to) = match round % 2 {
            0 => (State::Running, State::Paused),
            _ => (State::Paused, State::Running),
        };
        let started = Instant::now();
        store.transition(&Transition { id: record.id, from, to, reason: None, at }).unwrap();
        times.push(started.elapsed());
    }
    times.sort();
    let each = times[ROUNDS / 2];
    println!("one transition: {each:?}");
    assert!(each < Duration::from_millis(2), "{each:?}");
}
