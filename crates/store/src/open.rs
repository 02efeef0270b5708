//! Opening the file: permissions, pragmas, migrations, upkeep.

use std::fs::OpenOptions;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::Connection;
use time::OffsetDateTime;

use crate::StoreError;
use crate::moment::micros;

/// One step per format, applied in order; `user_version` counts the steps done. Append only.
const MIGRATIONS: &[&str] = &[
    "
    CREATE TABLE sandboxes (
        id          TEXT PRIMARY KEY,
        template    TEXT NOT NULL,
        cpu         INTEGER NOT NULL,
        memory_mb   INTEGER NOT NULL,
        metadata    TEXT NOT NULL,
        ttl_seconds INTEGER NOT NULL,
        persistent  INTEGER NOT NULL,
        machine     TEXT NOT NULL,
        state       TEXT NOT NULL,
        reason      TEXT,
        created_at  INTEGER NOT NULL,
        updated_at  INTEGER NOT NULL,
        ended_at    INTEGER
    ) STRICT;
    CREATE INDEX sandboxes_ended ON sandboxes (ended_at);
    CREATE TABLE journal (
        seq     INTEGER PRIMARY KEY AUTOINCREMENT,
        time    INTEGER NOT NULL,
        sandbox TEXT NOT NULL,
        type    TEXT NOT NULL,
        payload TEXT NOT NULL
    ) STRICT;
    CREATE INDEX journal_sandbox ON journal (sandbox, seq);
    CREATE TABLE api_keys (
        hash       BLOB PRIMARY KEY,
        prefix     TEXT NOT NULL,
        label      TEXT NOT NULL,
        created_at INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX api_keys_prefix ON api_keys (prefix);
    ",
    // Nothing could be reached before there was a policy.
    r#"ALTER TABLE sandboxes ADD COLUMN egress TEXT NOT NULL DEFAULT '"none"';"#,
    // No sandbox outlived its server before it could hibernate, so nothing old is ever read here.
    "
    ALTER TABLE sandboxes ADD COLUMN ttl_chosen INTEGER NOT NULL DEFAULT 1;
    ALTER TABLE sandboxes ADD COLUMN idle_timeout INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE sandboxes ADD COLUMN ends_at INTEGER;
    ALTER TABLE sandboxes ADD COLUMN from_snapshot TEXT;
    ",
    "ALTER TABLE sandboxes ADD COLUMN ttl_mode TEXT NOT NULL DEFAULT 'wall';",
    // Every template's disk had this size before one could be asked for.
    "ALTER TABLE sandboxes ADD COLUMN disk_mb INTEGER NOT NULL DEFAULT 2048;",
    // The volumes themselves are directories: what is here is who has which.
    "
    CREATE TABLE attachments (
        volume    TEXT NOT NULL,
        sandbox   TEXT NOT NULL,
        read_only INTEGER NOT NULL,
        PRIMARY KEY (volume, sandbox)
    ) STRICT;
    CREATE INDEX attachments_sandbox ON attachments (sandbox);
    CREATE UNIQUE INDEX attachments_writer ON attachments (volume) WHERE read_only = 0;
    ",
];

/// How long another process may hold the file (`pandastack token` beside a running server).
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Pages in the write-ahead log before a writer copies it back itself: only a safety valve for
/// the case that nobody calls [`Store::maintain`].
const WAL_VALVE_PAGES: u32 = 16_384;

/// How much history is kept.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Ended sandboxes and journal lines older than this are removed.
    pub age: Duration,
    /// Most journal lines, the newest win.
    pub journal_lines: u32,
}

impl Default for Retention {
    fn default() -> Self {
        Self { age: Duration::from_secs(7 * 86_400), journal_lines: 100_000 }
    }
}

/// The records. Cheap to clone; all clones share one connection.
#[derive(Clone)]
pub struct Store {
    connection: Arc<Mutex<Connection>>,
    path: PathBuf,
}

impl Store {
    /// Opens the records at `path`, creating the file (0600) and its tables when needed.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| StoreError::Open {
            path: path.to_owned(),
            source,
        };
        // Created here and not by SQLite, so that there is no moment with wider permissions;
        // SQLite gives its -wal and -shm files the permissions of the main file.
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .open(path)
            .map_err(|e| failed(e.into()))?;
        file.set_permissions(std::fs::Permissions::from_mode(0o600))
            .map_err(|e| failed(e.into()))?;
        let mut connection = connect(path).map_err(|e| failed(e.into()))?;
        migrate(&mut connection)?;
        Ok(Self { connection: Arc::new(Mutex::new(connection)), path: path.to_owned() })
    }

    /// Removes old history and copies the write-ahead log back into the file. Slow (it waits for
    /// the disk): call it now and then from a thread that may block.
    pub fn maintain(&self, retention: Retention, now: OffsetDateTime) -> Result<(), StoreError> {
        let before = micros(now - retention.age);
        {
            let mut connection = self.lock();
            let tx = connection.transaction()?;
            tx.execute("DELETE FROM sandboxes WHERE ended_at < ?1", [before])?;
            tx.execute("DELETE FROM journal WHERE time < ?1", [before])?;
            tx.execute(
                "DELETE FROM journal WHERE seq <= (SELECT MAX(seq) FROM journal) - ?1",
                [retention.journal_lines],
            )?;
            tx.commit()?;
        }
        let own = connect(&self.path)?;
        // Answers a row of counters; PASSIVE never makes a writer wait.
        own.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?;
        Ok(())
    }

    /// Limits the file to this many pages of 4 KiB: a quota, and how a full disk is tested.
    pub fn limit_pages(&self, pages: u32) -> Result<(), StoreError> {
        let connection = self.lock();
        connection.pragma_update_and_check(None, "max_page_count", pages, |_| Ok(()))?;
        Ok(())
    }

    /// The connection. A panic while it was held cannot leave a transaction half done
    /// (dropping one rolls back), so a poisoned lock is as good as a clean one.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn connect(path: &Path) -> Result<Connection, rusqlite::Error> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // NORMAL: a committed transaction survives the death of the process, which is what the
    // journal is for; only a power cut may lose the last ones.
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "wal_autocheckpoint", WAL_VALVE_PAGES)?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(connection)
}

fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    let known = MIGRATIONS.len() as i64;
    // IMMEDIATE, so that two processes opening a new file do not both see version 0.
    let tx = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
    let found: i64 = tx.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if found > known {
        return Err(StoreError::Newer { found, known });
    }
    let done = usize::try_from(found).map_err(|_| StoreError::Damaged("user_version"))?;
    for step in &MIGRATIONS[done..] {
        tx.execute_batch(step)?;
    }
    tx.pragma_update(None, "user_version", known)?;
    tx.commit()?;
    Ok(())
}
