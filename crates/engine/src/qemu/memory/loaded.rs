//! Guest memories that are loaded, each at most once however many ask for it.
//!
//! A template's memory stays: the next create needs it. A snapshot's goes with the last machine
//! that was made of it, because there may be any number of snapshots.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex as SyncMutex, Weak};

use tokio::sync::Mutex;

/// What is held of a memory. Locked while it is being loaded.
type Slot = Arc<Mutex<Held>>;

#[derive(Default)]
struct Held {
    memory: Weak<OwnedFd>,
    /// The same, for as long as the server runs.
    kept: Option<Arc<OwnedFd>>,
}

/// All of them, by the key of their bake.
#[derive(Default)]
pub(in crate::qemu) struct Loaded {
    slots: SyncMutex<HashMap<String, Slot>>,
}

impl Loaded {
    /// The memory in `memory` with the pages of `diff` over it.
    pub async fn get(
        &self,
        key: &str,
        memory: &Path,
        diff: Option<PathBuf>,
    ) -> io::Result<Arc<OwnedFd>> {
        let slot = self.slot(key);
        let mut held = slot.lock().await;
        if let Some(loaded) = held.memory.upgrade() {
            return Ok(loaded);
        }
        let (memory, keep) = (memory.to_owned(), diff.is_none());
        let loading = tokio::task::spawn_blocking(move || super::load(&memory, diff.as_deref()));
        let loaded = Arc::new(loading.await.map_err(io::Error::other)??);
        held.memory = Arc::downgrade(&loaded);
        held.kept = keep.then(|| loaded.clone());
        Ok(loaded)
    }

    fn slot(&self, key: &str) -> Slot {
        let mut slots = self.slots.lock().expect("no panic under this lock");
        if !slots.contains_key(key) {
            // A slot that is locked is in use.
            let in_use = |slot: &Slot| slot.try_lock().map_or(true, |held| held.is_held());
            slots.retain(|_, slot| Arc::strong_count(slot) > 1 || in_use(slot));
        }
        slots.entry(key.to_owned()).or_default().clone()
    }
}

impl Held {
    fn is_held(&self) -> bool {
        self.memory.strong_count() > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_template_stays_and_a_snapshot_goes_with_its_last_machine() {
        let dir = tempfile::tempdir().unwrap();
        let memory = dir.path().join("memory");
        super::super::save(super::super::create(1 << 20).unwrap(), &memory).unwrap();
        let loaded = Loaded::default();
        let get = |key: &'static str| loaded.get(key, &memory, None);
        let first = get("template").await.unwrap();
        assert!(Arc::ptr_eq(&first, &get("template").await.unwrap()));
        let template = Arc::downgrade(&first);
        drop(first);
        assert!(template.upgrade().is_some());

        // As a snapshot's is held.
        let slot = loaded.slot("snapshot");
        let snapshot = Arc::new(super::super::create(1 << 20).unwrap());
        slot.lock().await.memory = Arc::downgrade(&snapshot);
        drop(slot);
        assert!(Arc::ptr_eq(&snapshot, &get("snapshot").await.unwrap()));
        drop(snapshot);
        get("another").await.unwrap();
        assert!(!loaded.slots.lock().unwrap().contains_key("snapshot"));
    }

    #[tokio::test]
    async fn what_cannot_be_loaded_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let memory = dir.path().join("memory");
        let loaded = Loaded::default();
        assert!(loaded.get("key", &memory, None).await.is_err());
        super::super::save(super::super::create(1 << 20).unwrap(), &memory).unwrap();
        assert!(loaded.get("key", &memory, None).await.is_ok());
    }
}
