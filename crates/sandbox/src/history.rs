//! What happened to a sandbox lately, and to templates, for the events routes.

use std::time::Instant;

use pandastack_store::{JournalEntry, Store, StoreError};
use pandastack_types::{Event, SandboxId, Size, TemplateName};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::error::Chain;
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

    /// The last `count` state changes of all sandboxes and bakes of templates, or the first after the
    /// one with a number; in their order. At most [`MAX_STORY`].
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

    /// Says in the journal that a bake begins which somebody else makes.
    pub fn bake_begins(&self, template: &TemplateName, size: Size) -> BakeStory {
        BakeStory::begin(&self.core.store, template, size)
    }
}

/// A bake in the journal: its beginning, and however it ends. One that is dropped was given up.
pub struct BakeStory {
    store: Store,
    template: TemplateName,
    size: Size,
    began: Instant,
    over: bool,
}

impl BakeStory {
    pub(crate) fn begin(store: &Store, template: &TemplateName, size: Size) -> Self {
        let (store, template) = (store.clone(), template.clone());
        let story = Self { store, template, size, began: Instant::now(), over: false };
        story.tell("template.baking", json!({}));
        story
    }

    /// It is there.
    pub fn baked(mut self) {
        self.end("template.baked", json!({}));
    }

    /// It is not, and this is what clients hear of the reason.
    pub fn failed(mut self, error: &str) {
        self.end("template.bake_failed", json!({ "error": error }));
    }

    fn end(&mut self, kind: &str, mut payload: Value) {
        self.over = true;
        payload["elapsed_ms"] = (self.began.elapsed().as_millis() as u64).into();
        self.tell(kind, payload);
    }

    /// Without its line a bake is a bake all the same.
    fn tell(&self, kind: &str, mut payload: Value) {
        payload["template"] = self.template.as_str().into();
        payload["cpu"] = self.size.cpu.into();
        payload["memory_mb"] = self.size.memory_mb.into();
        payload["disk_mb"] = self.size.disk_mb.into();
        if let Err(error) = self.store.note(OffsetDateTime::now_utc(), kind, &payload) {
            tracing::warn!(error = %Chain(&error), kind, "an event is lost");
        }
    }
}

impl Drop for BakeStory {
    fn drop(&mut self) {
        if !self.over {
            self.end("template.bake_failed", json!({ "error": "it was given up" }));
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
        let event = Event { time, sandbox_id: Some(self.id), kind: kind.to_owned(), payload };
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
