//! The journal: what happened, in the order in which it was written.

use pandastack_types::SandboxId;
use rusqlite::{Connection, params};
use time::OffsetDateTime;

use crate::sandboxes::{from_micros, micros};
use crate::{Store, StoreError};

/// One line of the journal.
#[derive(Clone, Debug, PartialEq)]
pub struct JournalEntry {
    /// When.
    pub time: OffsetDateTime,
    /// What, such as `sandbox.running`.
    pub kind: String,
    /// Details.
    pub payload: serde_json::Value,
}

impl Store {
    /// The newest `limit` lines about one sandbox, oldest first.
    pub fn journal(&self, id: SandboxId, limit: u32) -> Result<Vec<JournalEntry>, StoreError> {
        let connection = self.lock();
        let mut statement = connection.prepare_cached(
            "SELECT time, type, payload FROM journal WHERE sandbox = ?1 ORDER BY seq DESC LIMIT ?2",
        )?;
        let rows = statement.query_map(params![id.to_string(), limit], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?))
        })?;
        let mut entries = Vec::new();
        for row in rows {
            let (time, kind, payload) = row?;
            let payload = serde_json::from_str(&payload)
                .map_err(|_| StoreError::Damaged("journal payload"))?;
            entries.push(JournalEntry { time: from_micros(time)?, kind, payload });
        }
        entries.reverse();
        Ok(entries)
    }
}

/// Appends one line inside the caller's transaction.
pub(crate) fn append(
    connection: &Connection,
    id: SandboxId,
    at: OffsetDateTime,
    kind: &str,
    payload: &serde_json::Value,
) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "INSERT INTO journal (time, sandbox, type, payload) VALUES (?1, ?2, ?3, ?4)",
        )?
        .execute(params![micros(at), id.to_string(), kind, payload.to_string()])?;
    Ok(())
}
