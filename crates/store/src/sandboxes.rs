//! Sandbox records and their state changes.

use std::collections::BTreeMap;

use pandastack_policy::Policy;
use pandastack_types::{EndReason, SandboxId, Size, SnapshotId, State, TemplateName, TtlMode};
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde_json::json;
use time::OffsetDateTime;

use crate::journal::append;
use crate::moment::{from_micros, micros};
use crate::{Store, StoreError, attachments};

/// A sandbox as it is remembered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxRecord {
    /// Its id.
    pub id: SandboxId,
    /// The template as the client named it.
    pub template: TemplateName,
    /// vCPUs, memory and disk.
    pub size: Size,
    /// Labels of the client.
    pub metadata: BTreeMap<String, String>,
    /// How long it may live.
    pub lifetime: Lifetime,
    /// The snapshot that it was made of.
    pub from_snapshot: Option<SnapshotId>,
    /// Name of its machine's directory.
    pub machine: String,
    /// What it may reach.
    pub egress: Policy,
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

/// How long a sandbox may live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lifetime {
    /// Seconds of life, 0 for no limit.
    pub ttl_seconds: u64,
    /// Whether it outlives a client's `with` block.
    pub persistent: bool,
    /// Whether a client chose the time to live.
    pub chosen: bool,
    /// What the seconds count.
    pub ttl_mode: TtlMode,
    /// Seconds without use after which it hibernates, 0 for never.
    pub idle_timeout: u64,
    /// When it ends, if it has a limit.
    pub ends_at: Option<OffsetDateTime>,
}

/// What is read of a sandbox that may have left traces: enough to end it, whatever else of its
/// record is damaged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// Its id.
    pub id: SandboxId,
    /// Name of its machine's directory.
    pub machine: String,
    /// Where it was in its life.
    pub state: State,
    /// Why it was ending, if it was.
    pub reason: Option<EndReason>,
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
                       egress, state, reason, created_at, updated_at, ended_at, ttl_chosen, \
                       idle_timeout, ends_at, from_snapshot, ttl_mode, \
                       disk_mb";

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
            let mut payload = json!({
                "template": record.template,
                "cpu": record.size.cpu,
                "memory_mb": record.size.memory_mb,
                "disk_mb": record.size.disk_mb,
                "machine": record.machine,
            });
            let volumes = attachments::of_sandbox(&tx, record.id)?;
            if !volumes.is_empty() {
                payload["volumes"] = volumes.into();
            }
            append(&tx, Some(record.id), record.created_at, &kind(record.state), &payload)?;
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
        append(&tx, Some(change.id), change.at, &kind(change.to), &payload)?;
        tx.commit()?;
        Ok(())
    }

    /// Changes how long a sandbox may live.
    pub fn set_lifecycle(
        &self,
        id: SandboxId,
        lifetime: &Lifetime,
        at: OffsetDateTime,
    ) -> Result<(), StoreError> {
        let Lifetime { ttl_seconds, persistent, chosen, ttl_mode, idle_timeout, ends_at } =
            *lifetime;
        let mut connection = self.lock();
        let tx = connection.transaction()?;
        let changed = tx.execute(
            "UPDATE sandboxes SET ttl_seconds = ?1, persistent = ?2, ttl_chosen = ?3, \
             idle_timeout = ?4, ends_at = ?5, ttl_mode = ?6, updated_at = ?7 WHERE id = ?8",
            params![
                signed(ttl_seconds),
                persistent,
                chosen,
                signed(idle_timeout),
                ends_at.map(micros),
                ttl_mode.as_str(),
                micros(at),
                id.to_string(),
            ],
        )?;
        if changed != 1 {
            return Err(StoreError::Missing);
        }
        let payload = json!({
            "ttl_seconds": ttl_seconds, "ttl_mode": ttl_mode, "persistent": persistent,
            "idle_timeout": idle_timeout,
        });
        append(&tx, Some(id), at, "sandbox.lifecycle", &payload)?;
        tx.commit()?;
        Ok(())
    }

    /// Changes what a sandbox may reach. The journal tells that it was changed and how long the
    /// lists are, the record what they hold.
    pub fn set_egress(
        &self,
        id: SandboxId,
        egress: &Policy,
        at: OffsetDateTime,
    ) -> Result<(), StoreError> {
        let text = egress_text(egress)?;
        let mut connection = self.lock();
        let tx = connection.transaction()?;
        let changed = tx
            .prepare_cached("UPDATE sandboxes SET egress = ?1, updated_at = ?2 WHERE id = ?3")?
            .execute(params![text, micros(at), id.to_string()])?;
        if changed != 1 {
            return Err(StoreError::Missing);
        }
        let payload = json!({ "allow": egress.allow().len(), "deny": egress.deny().len() });
        append(&tx, Some(id), at, "sandbox.egress", &payload)?;
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

    /// Sandboxes that are not deleted: after a crash, everything that may have left traces.
    pub fn unfinished(&self) -> Result<Vec<Unfinished>, StoreError> {
        let connection = self.lock();
        let mut statement = connection.prepare(
            "SELECT id, machine, state, reason FROM sandboxes WHERE state <> 'deleted' ORDER BY id",
        )?;
        let rows = statement.query_map([], |row| {
            let (id, machine): (String, String) = (row.get(0)?, row.get(1)?);
            let (state, reason): (String, Option<String>) = (row.get(2)?, row.get(3)?);
            Ok((id, machine, state, reason))
        })?;
        rows.map(|row| {
            let (id, machine, state, reason) = row?;
            Ok(Unfinished {
                id: id.parse().map_err(|_| StoreError::Damaged("id"))?,
                machine,
                state: state.parse().map_err(|()| StoreError::Damaged("state"))?,
                reason: read_reason(reason)?,
            })
        })
        .collect()
    }
}

fn insert(connection: &Connection, record: &SandboxRecord) -> Result<(), StoreError> {
    let metadata = serde_json::to_string(&record.metadata)
        .map_err(|_| StoreError::Damaged("metadata is not JSON"))?;
    let sql = format!(
        "INSERT INTO sandboxes ({COLUMNS}) VALUES \
         (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, \
         ?20)"
    );
    connection.prepare_cached(&sql)?.execute(params![
        record.id.to_string(),
        record.template.as_str(),
        record.size.cpu,
        record.size.memory_mb,
        metadata,
        signed(record.lifetime.ttl_seconds),
        record.lifetime.persistent,
        record.machine,
        egress_text(&record.egress)?,
        record.state.as_str(),
        record.reason.map(EndReason::as_str),
        micros(record.created_at),
        micros(record.updated_at),
        record.ended_at.map(micros),
        record.lifetime.chosen,
        signed(record.lifetime.idle_timeout),
        record.lifetime.ends_at.map(micros),
        record.from_snapshot.map(|id| id.to_string()),
        record.lifetime.ttl_mode.as_str(),
        record.size.disk_mb,
    ])?;
    Ok(())
}

/// Reads a row. The outer error is SQLite's, the inner one is about the record's contents.
fn read(row: &Row<'_>) -> rusqlite::Result<Result<SandboxRecord, StoreError>> {
    let id: String = row.get(0)?;
    let template: String = row.get(1)?;
    let metadata: String = row.get(4)?;
    let (ttl_seconds, idle_timeout): (i64, i64) = (row.get(5)?, row.get(15)?);
    let (persistent, chosen): (bool, bool) = (row.get(6)?, row.get(14)?);
    let (ends_at, from_snapshot): (Option<i64>, Option<String>) = (row.get(16)?, row.get(17)?);
    let ttl_mode: String = row.get(18)?;
    let egress: String = row.get(8)?;
    let state: String = row.get(9)?;
    let reason: Option<String> = row.get(10)?;
    let (created, updated): (i64, i64) = (row.get(11)?, row.get(12)?);
    let ended: Option<i64> = row.get(13)?;
    let size = Size { cpu: row.get(2)?, memory_mb: row.get(3)?, disk_mb: row.get(19)? };
    let machine = row.get(7)?;
    let damaged = StoreError::Damaged;
    Ok((|| {
        Ok(SandboxRecord {
            id: id.parse().map_err(|_| damaged("id"))?,
            template: template.parse().map_err(|_| damaged("template"))?,
            size,
            metadata: serde_json::from_str(&metadata).map_err(|_| damaged("metadata"))?,
            lifetime: Lifetime {
                ttl_seconds: u64::try_from(ttl_seconds).map_err(|_| damaged("ttl_seconds"))?,
                persistent,
                chosen,
                ttl_mode: ttl_mode.parse().map_err(|()| damaged("ttl_mode"))?,
                idle_timeout: u64::try_from(idle_timeout).map_err(|_| damaged("idle_timeout"))?,
                ends_at: ends_at.map(from_micros).transpose()?,
            },
            from_snapshot: from_snapshot
                .map(|id| id.parse().map_err(|_| damaged("from_snapshot")))
                .transpose()?,
            machine,
            egress: serde_json::from_str(&egress).map_err(|_| damaged("egress"))?,
            state: state.parse().map_err(|()| damaged("state"))?,
            reason: read_reason(reason)?,
            created_at: from_micros(created)?,
            updated_at: from_micros(updated)?,
            ended_at: ended.map(from_micros).transpose()?,
        })
    })())
}

fn read_reason(reason: Option<String>) -> Result<Option<EndReason>, StoreError> {
    reason.map(|r| r.parse().map_err(|()| StoreError::Damaged("reason"))).transpose()
}

/// A policy is kept as its one spelling.
fn egress_text(egress: &Policy) -> Result<String, StoreError> {
    serde_json::to_string(egress).map_err(|_| StoreError::Damaged("egress is not JSON"))
}

/// The journal's word for entering a state.
fn kind(state: State) -> String {
    format!("sandbox.{state}")
}

/// SQLite's integers are signed; a time to live is far below 2^63.
fn signed(seconds: u64) -> i64 {
    i64::try_from(seconds).unwrap_or(i64::MAX)
}
