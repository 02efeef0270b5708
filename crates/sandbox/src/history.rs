//! What happened to a sandbox lately, for its events route.

use pandastack_store::{JournalEntry, StoreError};
use pandastack_types::{Event, SandboxId};
use time::OffsetDateTime;

use crate::manager::Manager;
use crate::ring::{Cursor, Ring};

/// Most lines of the journal that are read at once.
pub const MAX_STORY: u32 = 1000;

/// Events kept per sandbox. The journal in the records keeps state changes for longer.
const KEPT: usize = 256;

impl Manager {
    /// The last `count` state changes of a sandbox, oldest first, also when nothing of it is left;
    /// none of one that never was, or long ago. At most [`MAX_STORY`].
    pub fn story(&self, id: SandboxId, count: usize) -> Result<Vec<Event>, StoreError> {
        self.core.store.journal(id, story(count))
    }

    /// The last `count` state changes of all sandboxes, or the first after the one with a number;
    /// in their order. At most [`MAX_STORY`].
    pub fn stories(
        &self,
        after: Option<u64>,
        count: usize,
    ) -> Result<Vec<JournalEntry>, StoreError> {
        match after {
            Some(after) => self.core.store.journal_after(after, story(count)),
            None => self.core.store.journal_tail(story(count)),
        }
    }
}

fn story(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(MAX_STORY).min(MAX_STORY)
}

/// The events of one sandbox.
#[derive(Debug)]
pub struct History {
    id: SandboxId,
    ring: Ring<Event>,
}

impl History {
    pub(crate) fn new(id: SandboxId) -> Self {
        Self { id, ring: Ring::new(KEPT) }
    }

    pub(crate) fn push(&self, kind: &str, payload: serde_json::Value) {
        let time = OffsetDateTime::now_utc();
        let event = Event { time, sandbox_id: self.id, kind: kind.to_owned(), payload };
        self.ring.push(1, event);
    }

    /// The last `count` events, oldest first, and the place after them.
    pub fn tail(&self, count: usize) -> (Vec<Event>, Cursor) {
        self.ring.tail(count, |_| true)
    }

    /// The events after `cursor`, and the place after them.
    pub fn after(&self, cursor: Cursor) -> (Vec<Event>, Cursor) {
        self.ring.after(cursor)
    }

    /// Waits for an event after `cursor`; `false` when the sandbox has ended.
    pub async fn more(&self, cursor: Cursor) -> bool {
        self.ring.more(cursor).await
    }

    pub(crate) fn close(&self) {
        self.ring.close();
    }
}
