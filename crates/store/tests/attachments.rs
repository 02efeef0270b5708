//! Who has which volume.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use pandastack_store::{AttachError, Store};
use pandastack_types::{SandboxId, VolumeName};

struct Records {
    store: Store,
    dir: tempfile::TempDir,
}

impl Records {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { store: Store::open(&dir.path().join("records")).unwrap(), dir }
    }

    fn attach(&self, sandbox: SandboxId, volumes: &[(&str, bool)]) -> Result<(), AttachError> {
        let named = |(name, reads): &(&str, bool)| (name.parse().unwrap(), *reads);
        let volumes: Vec<(VolumeName, bool)> = volumes.iter().map(named).collect();
        self.store.attach(sandbox, &volumes)
    }

    fn holder(&self, volume: &str) -> Option<String> {
        self.store.holder(&volume.parse().unwrap()).unwrap()
    }
}

#[test]
fn a_volume_has_readers_or_one_writer() {
    let records = Records::new();
    let [a, b, c] = std::array::from_fn(|_| SandboxId::random());
    records.attach(a, &[("v", true)]).unwrap();
    records.attach(b, &[("v", true)]).unwrap();
    let error = records.attach(c, &[("v", false)]).unwrap_err();
    assert!(matches!(error, AttachError::InUse { writes: false, .. }), "{error}");
    records.store.detach(a).unwrap();
    assert!(records.attach(c, &[("v", false)]).is_err());
    records.store.detach(b).unwrap();
    records.attach(c, &[("v", false)]).unwrap();
    for read_only in [true, false] {
        let error = records.attach(a, &[("v", read_only)]).unwrap_err();
        assert!(matches!(error, AttachError::InUse { writes: true, .. }), "{error}");
    }
}

#[test]
fn a_sandbox_gets_all_of_its_volumes_or_none() {
    let records = Records::new();
    let [a, b] = std::array::from_fn(|_| SandboxId::random());
    records.attach(a, &[("taken", false)]).unwrap();
    records.attach(b, &[("free", false), ("taken", false)]).unwrap_err();
    assert_eq!(records.holder("free"), None);
    assert_eq!(records.holder("taken"), Some(a.to_string()));
    // The same one twice is what the index forbids.
    assert!(records.attach(b, &[("free", true), ("free", true)]).is_err());
    assert_eq!(records.holder("free"), None);
}

#[test]
fn those_that_sleep_keep_theirs_over_a_restart() {
    let records = Records::new();
    let [a, b] = std::array::from_fn(|_| SandboxId::random());
    records.attach(a, &[("a", false)]).unwrap();
    records.attach(b, &[("b", false)]).unwrap();
    let store = Store::open(&records.dir.path().join("records")).unwrap();
    assert_eq!(store.detach_all_but(&[b]).unwrap(), 1);
    assert_eq!(records.holder("a"), None);
    assert_eq!(records.holder("b"), Some(b.to_string()));
    assert_eq!(store.detach_all_but(&[]).unwrap(), 1);
}
