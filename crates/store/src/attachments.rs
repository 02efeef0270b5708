//! Who has which volume.
//!
//! The invariant, which [`Store::attach`] and an index keep: **a volume has readers or one writer,
//! never both**. A line is there before anything of the attachment is, and goes after all of it. It
//! is no part of the journal: that of its sandbox begins with it.

use pandastack_types::{SandboxId, VolumeName};
use rusqlite::{Connection, OptionalExtension, params};
use serde_json::{Value, json};

use crate::{Store, StoreError};

/// Why a sandbox does not get a volume.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// Others have it, in a way that this one cannot join.
    #[error("sandbox {holder} has volume {volume}")]
    InUse {
        /// The volume.
        volume: VolumeName,
        /// One of those that have it.
        holder: String,
        /// Whether that one writes.
        writes: bool,
    },
    /// The records failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<rusqlite::Error> for AttachError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Store(error.into())
    }
}

impl Store {
    /// Gives a sandbox its volumes, each to be read or to be written: all or none.
    pub fn attach(
        &self,
        sandbox: SandboxId,
        volumes: &[(VolumeName, bool)],
    ) -> Result<(), AttachError> {
        let mut connection = self.lock();
        let tx = connection.transaction()?;
        for (volume, read_only) in volumes {
            // Those that write come first: they are what is in the way of everybody.
            let holder = tx
                .query_row(
                    "SELECT sandbox, read_only FROM attachments WHERE volume = ?1 \
                     ORDER BY read_only LIMIT 1",
                    [volume.as_str()],
                    |row| Ok((row.get::<_, String>(0)?, row.get::<_, bool>(1)?)),
                )
                .optional()?;
            if let Some((holder, reads)) = holder.filter(|(_, reads)| !(*reads && *read_only)) {
                return Err(AttachError::InUse { volume: volume.clone(), holder, writes: !reads });
            }
            tx.execute(
                "INSERT INTO attachments (volume, sandbox, read_only) VALUES (?1, ?2, ?3)",
                params![volume.as_str(), sandbox.to_string(), read_only],
            )?;
        }
        tx.commit()?;
        Ok(())
    }

    /// Takes all volumes from a sandbox.
    pub fn detach(&self, sandbox: SandboxId) -> Result<(), StoreError> {
        let connection = self.lock();
        connection.execute("DELETE FROM attachments WHERE sandbox = ?1", [sandbox.to_string()])?;
        Ok(())
    }

    /// Takes all volumes from every sandbox but these. Returns how many attachments there were.
    pub fn detach_all_but(&self, kept: &[SandboxId]) -> Result<usize, StoreError> {
        let kept: Vec<String> = kept.iter().map(SandboxId::to_string).collect();
        let connection = self.lock();
        let kept = serde_json::to_string(&kept).map_err(|_| StoreError::Damaged("ids"))?;
        Ok(connection.execute(
            "DELETE FROM attachments WHERE sandbox NOT IN (SELECT value FROM json_each(?1))",
            [kept],
        )?)
    }

    /// One of the sandboxes that have a volume, if any has.
    pub fn holder(&self, volume: &VolumeName) -> Result<Option<String>, StoreError> {
        let connection = self.lock();
        let sql = "SELECT sandbox FROM attachments WHERE volume = ?1 LIMIT 1";
        Ok(connection.query_row(sql, [volume.as_str()], |row| row.get(0)).optional()?)
    }
}

/// The volumes of a sandbox, as its first journal line has them.
pub(crate) fn of_sandbox(
    connection: &Connection,
    sandbox: SandboxId,
) -> Result<Vec<Value>, StoreError> {
    let sql = "SELECT volume, read_only FROM attachments WHERE sandbox = ?1 ORDER BY rowid";
    let mut query = connection.prepare_cached(sql)?;
    let rows = query.query_map([sandbox.to_string()], |row| {
        Ok(json!({ "name": row.get::<_, String>(0)?, "read_only": row.get::<_, bool>(1)? }))
    })?;
    Ok(rows.collect::<Result<_, _>>()?)
}
