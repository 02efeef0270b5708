//! Records: sandboxes, their journal, and API keys, in one SQLite file.
//!
//! The invariant that the rest of the server leans on: **what [`Store::create`] and
//! [`Store::transition`] return `Ok` for survives a `kill -9` of the server**, and a state never
//! changes without its journal line (both are written in one transaction). A power cut may
//! lose the last moments, which is fine: machines do not survive it either.
//!
//! Calls are synchronous and take tens of microseconds (`tests/cost.rs` measures them), so async
//! code calls them directly. The slow part of SQLite, copying the write-ahead log back and
//! waiting for the disk, happens in [`Store::maintain`] on a connection of its own.
#![forbid(unsafe_code)]

mod attachments;
mod error;
mod journal;
mod keys;
mod moment;
mod open;
mod sandboxes;

pub use attachments::AttachError;
pub use error::StoreError;
pub use journal::JournalEntry;
pub use keys::ApiKeyRecord;
pub use moment::now;
pub use open::{Retention, Store};
pub use sandboxes::{Lifetime, SandboxRecord, Transition, Unfinished};
