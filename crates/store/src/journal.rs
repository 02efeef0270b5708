//! The journal: what happened, in the order in which it was written.

use pandastack_types::{Event, SandboxId};
use rusqlite::{Connection, Row, params};
use time::OffsetDateTime;

use crate::moment::{from_micros, micros};
use crate::{Store, StoreError};

/// A line of the journal and its number, which grows from line to line.
#[derive(Clone, Debug, PartialEq)]
pub struct JournalEntry {
    /// Its place in the journal.
    pub number: u64,
    /// What happened.
    pub event: Event,
}

/// The sandbox of a line that is about none.
const NOBODY: &str = "";

const COLUMNS: &str = "seq, sandbox, time, type, payload";

impl Store {
    /// The newest `limit` lines about one sandbox, oldest first.
    pub fn journal(&self, id: SandboxId, limit: u32) -> Result<Vec<Event>, StoreError> {
        let sql =
            format!("SELECT {COLUMNS} FROM journal WHERE sandbox = ?1 ORDER BY seq DESC LIMIT ?2");
        let mut entries = self.lines(&sql, params![id.to_string(), limit])?;
        entries.reverse();
        Ok(entries.into_iter().map(|entry| entry.event).collect())
    }

    /// Writes a line about no sandbox.
    pub fn note(
        &self,
        at: OffsetDateTime,
        kind: &str,
        payload: &serde_json::Value,
    ) -> Result<(), StoreError> {
        append(&self.lock(), None, at, kind, payload)
    }

    /// The newest `limit` lines about everything, oldest first.
    pub fn journal_tail(&self, limit: u32) -> Result<Vec<JournalEntry>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM journal ORDER BY seq DESC LIMIT ?1");
        let mut entries = self.lines(&sql, params![limit])?;
        entries.reverse();
        Ok(entries)
    }

    /// The first `limit` lines after the one with this number, in their order.
    pub fn journal_after(&self, after: u64, limit: u32) -> Result<Vec<JournalEntry>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM journal WHERE seq > ?1 ORDER BY seq LIMIT ?2");
        self.lines(&sql, params![i64::try_from(after).unwrap_or(i64::MAX), limit])
    }

    fn lines(
        &self,
        sql: &str,
        parameters: impl rusqlite::Params,
    ) -> Result<Vec<JournalEntry>, StoreError> {
        let connection = self.lock();
        let mut statement = connection.prepare_cached(sql)?;
        let rows = statement.query_map(parameters, |row| Ok(read(row)))?;
        rows.map(|row| row?).collect()
    }
}

fn read(row: &Row<'_>) -> Result<JournalEntry, StoreError> {
    let (number, sandbox, time): (i64, String, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
    let (kind, payload): (String, String) = (row.get(3)?, row.get(4)?);
    let damaged = StoreError::Damaged;
    Ok(JournalEntry {
        number: u64::try_from(number).map_err(|_| damaged("journal number"))?,
        event: Event {
            time: from_micros(time)?,
            sandbox_id: match sandbox.as_str() {
                NOBODY => None,
                id => Some(id.parse().map_err(|_| damaged("journal sandbox"))?),
            },
            kind,
            payload: serde_json::from_str(&payload).map_err(|_| damaged("journal payload"))?,
        },
    })
}

/// Appends one line inside the caller's transaction.
pub(crate) fn append(
    connection: &Connection,
    id: Option<SandboxId>,
    at: OffsetDateTime,
    kind: &str,
    payload: &serde_json::Value,
) -> Result<(), StoreError> {
    let id = id.map_or_else(|| NOBODY.to_owned(), |id| id.to_string());
    connection
        .prepare_cached(
            "INSERT INTO journal (time, sandbox, type, payload) VALUES (?1, ?2, ?3, ?4)",
        )?
        .execute(params![micros(at), id, kind, payload.to_string()])?;
    Ok(())
}
