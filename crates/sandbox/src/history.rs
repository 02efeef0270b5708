//! What happened to a sandbox lately, for its events route.

use pandastack_types::{Event, SandboxId};
use time::OffsetDateTime;

use crate::ring::{Cursor, Ring};

/// Events kept per sandbox. The journal in the records keeps state changes for longer.
const KEPT: usize = 256;

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
