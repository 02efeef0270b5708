//! Sandbox records and their state changes.

use std::collections::BTreeMap;

use pandastack_types::{EndReason, SandboxId, Size, State, TemplateName};
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde_json::json;
use time::OffsetDateTime;

use crate::journal::append;
use crate::{Store, StoreError};

/// A sandbox as it is remembered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxRecord {
    /// Its id.
    pub id: SandboxId,
    /// The template as the client named it.
    pub template: TemplateName,
    /// vCPUs and memory.
    pub size: Size,
    /// Labels of the client.
    pub metadata: BTreeMap<String, String>,
    /// Seconds of life, 0 for no limit.
    pub ttl_seconds: u64,
    /// Whether it outlives a client's `with` block.
    pub persistent: bool,
    /// Name of its machine's directory.
    pub machine: String,
    /// Where it is in its life.
    pub state: State,
    /// Why it ended.
    pub reason: Option<EndReason>,
    /// When it was asked for.
    pub created_at: OffsetDateTime,
    /// Last change of the record.
    pub updated_at: OffsetDateTime,
    /// When it reached `failed` or `deleted`.
    pub ended_at: Option<OffsetDateTime>,
}

/// One state change to be journalled.
#[derive(Clone, Copy, Debug)]
pub struct Transition {
    /// The sandbox.
    pub id: SandboxId,
    /// The state it leaves; the write fails when the record is in another.
    pub from: State,
    /// The state it enters.
    pub to: State,
    /// Why, when the change ends its life.
    pub reason: Option<EndReason>,
    /// When.
    pub at: OffsetDateTime,
}

const COLUMNS: &str = "id, template, cpu, memory_mb, metadata, ttl_seconds, persistent, machine, \
                       state, reason, created_at, updated_at, ended_at";

impl Store {
    /// Writes a new record together with its first journal line.
    pub fn create(&self, record: &SandboxRecord) -> Result<(), StoreError> {
        self.create_all(std::slice::from_ref(record))
    }

    /// Writes new records with their first journal lines: all or none, for the price of one.
    pub fn create_all(&self, records: &[SandboxRecord]) -> Result<(), StoreError> {
        let mut connection = self.lock();
        let tx = connection.transaction()?;
        for record in records {
            insert(&tx, record)?;
            let payload = json!({
                "template": record.template,
                "cpu": record.size.cpu,
                "memory_mb": record.size.memory_mb,
                "machine": record.machine,
            });
            append(&tx, record.id, record.created_at, &kind(record.state), &payload)?;
        }
        tx.commit()?;
        Ok(())
    }

    /// Writes a state change together with its journal line.
    pub fn transition(&self, change: &Transition) -> Result<(), StoreError> {
        let mut connection = self.lock();
        let tx = connection.transaction()?;
        let at = micros(change.at);
        let ended = matches!(change.to, State::Failed | State::Deleted).then_some(at);
        let changed = tx
            .prepare_cached(
                "UPDATE sandboxes SET state = ?1, reason = COALESCE(?2, reason), updated_at = ?3, \
                 ended_at = COALESCE(?4, ended_at) WHERE id = ?5 AND state = ?6",
            )?
            .execute(params![
                change.to.as_str(),
                change.reason.map(EndReason::as_str),
                at,
                ended,
                change.id.to_string(),
                change.from.as_str(),
            ])?;
        if changed != 1 {
            return Err(StoreError::Missing);
        }
        let payload = json!({ "from": change.from, "reason": change.reason });
        append(&tx, change.id, change.at, &kind(change.to), &payload)?;
        tx.commit()?;
        Ok(())
    }

    /// Changes how long a sandbox may live.
    pub fn set_lifecycle(
        &self,
        id: SandboxId,
        ttl_seconds: u64,
        persistent: bool,
        at: OffsetDateTime,
    ) -> Result<(), StoreError> {
        let mut connection = self.lock();
        let tx = connection.transaction()?;
        let changed = tx.execute(
            "UPDATE sandboxes SET ttl_seconds = ?1, persistent = ?2, updated_at = ?3 WHERE id = ?4",
            params![signed(ttl_seconds), persistent, micros(at), id.to_string()],
        )?;
        if changed != 1 {
            return Err(StoreError::Missing);
        }
        let payload = json!({ "ttl_seconds": ttl_seconds, "persistent": persistent });
        append(&tx, id, at, "sandbox.lifecycle", &payload)?;
        tx.commit()?;
        Ok(())
    }

    /// One record.
    pub fn sandbox(&self, id: SandboxId) -> Result<Option<SandboxRecord>, StoreError> {
        let connection = self.lock();
        let sql = format!("SELECT {COLUMNS} FROM sandboxes WHERE id = ?1");
        let raw = connection.prepare_cached(&sql)?.query_row([id.to_string()], read).optional()?;
        raw.transpose()
    }

    /// Records that are not deleted: after a crash, everything that may have left traces.
    pub fn unfinished(&self) -> Result<Vec<SandboxRecord>, StoreError> {
        let connection = self.lock();
        let sql = format!("SELECT {COLUMNS} FROM sandboxes WHERE state <> 'deleted' ORDER BY id");
        let mut statement = connection.prepare(&sql)?;
        let rows = statement.query_map([], read)?;
        rows.map(|row| row?).collect()
    }
}

fn insert(connection: &Connection, record: &SandboxRecord) -> Result<(), StoreError> {
    let metadata = serde_json::to_string(&record.metadata)
        .map_err(|_| StoreError::Damaged("metadata is not JSON"))?;
    let sql = format!(
        "INSERT INTO sandboxes ({COLUMNS}) VALUES \
         (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)"
    );
    connection.prepare_cached(&sql)?.execute(params![
        record.id.to_string(),
        record.template.as_str(),
        record.size.cpu,
        record.size.memory_mb,
        metadata,
        signed(record.ttl_seconds),
        record.persistent,
        record.machine,
        record.state.as_str(),
        record.reason.map(EndReason::as_str),
        micros(record.created_at),
        micros(record.updated_at),
        record.ended_at.map(micros),
    ])?;
    Ok(())
}

/// Reads a row. The outer error is SQLite's, the inner one is about the record's contents.
fn read(row: &Row<'_>) -> rusqlite::Result<Result<SandboxRecord, StoreError>> {
    let id: String = row.get(0)?;
    let template: String = row.get(1)?;
    let metadata: String = row.get(4)?;
    let ttl_seconds: i64 = row.get(5)?;
    let state: String = row.get(8)?;
    let reason: Option<String> = row.get(9)?;
    let (created, updated): (i64, i64) = (row.get(10)?, row.get(11)?);
    let ended: Option<i64> = row.get(12)?;
    let size = Size { cpu: row.get(2)?, memory_mb: row.get(3)? };
    let persistent = row.get(6)?;
    let machine = row.get(7)?;
    let damaged = StoreError::Damaged;
    Ok((|| {
        Ok(SandboxRecord {
            id: id.parse().map_err(|_| damaged("id"))?,
            template: template.parse().map_err(|_| damaged("template"))?,
            size,
            metadata: serde_json::from_str(&metadata).map_err(|_| damaged("metadata"))?,
            ttl_seconds: u64::try_from(ttl_seconds).map_err(|_| damaged("ttl_seconds"))?,
            persistent,
            machine,
            state: state.parse().map_err(|()| damaged("state"))?,
            reason: reason.map(|r| r.parse().map_err(|()| damaged("reason"))).transpose()?,
            created_at: from_micros(created)?,
            updated_at: from_micros(updated)?,
            ended_at: ended.map(from_micros).transpose()?,
        })
    })())
}

/// The journal's word for entering a state.
fn kind(state: State) -> String {
    format!("sandbox.{state}")
}

/// SQLite's integers are signed; a time to live is far below 2^63.
fn signed(seconds: u64) -> i64 {
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

/// Times are kept as microseconds since 1970.
pub(crate) fn micros(time: OffsetDateTime) -> i64 {
    i64::try_from(time.unix_timestamp_nanos() / 1_000).unwrap_or(i64::MAX)
}

pub(crate) fn from_micros(micros: i64) -> Result<OffsetDateTime, StoreError> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1_000)
        .map_err(|_| StoreError::Damaged("time"))
}
