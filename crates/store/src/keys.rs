//! API keys. Only their hashes are kept.

use rusqlite::params;
use time::OffsetDateTime;

use crate::moment::{from_micros, micros};
use crate::{Store, StoreError};

/// An API key as it is remembered: enough to recognise it, not enough to use it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiKeyRecord {
    /// Hash of the whole key.
    pub hash: [u8; 32],
    /// The key's first characters, to tell keys apart in listings.
    pub prefix: String,
    /// What it is for.
    pub label: String,
    /// When it was added.
    pub created_at: OffsetDateTime,
}

impl Store {
    /// Adds a key. Adding one that is there already changes nothing.
    pub fn add_key(&self, key: &ApiKeyRecord) -> Result<(), StoreError> {
        self.lock().execute(
            "INSERT OR IGNORE INTO api_keys (hash, prefix, label, created_at) \
             VALUES (?1, ?2, ?3, ?4)",
            params![key.hash, key.prefix, key.label, micros(key.created_at)],
        )?;
        Ok(())
    }

    /// Every key, oldest first.
    pub fn keys(&self) -> Result<Vec<ApiKeyRecord>, StoreError> {
        self.select_keys("SELECT hash, prefix, label, created_at FROM api_keys ORDER BY rowid", [])
    }

    /// The keys with this prefix. Read from the file each time, so that a key revoked by another
    /// process is refused at once.
    pub fn keys_with_prefix(&self, prefix: &str) -> Result<Vec<ApiKeyRecord>, StoreError> {
        self.select_keys(
            "SELECT hash, prefix, label, created_at FROM api_keys WHERE prefix = ?1",
            [prefix],
        )
    }

    /// Removes the keys with this prefix and says how many there were.
    pub fn remove_keys(&self, prefix: &str) -> Result<usize, StoreError> {
        Ok(self.lock().execute("DELETE FROM api_keys WHERE prefix = ?1", [prefix])?)
    }

    fn select_keys(
        &self,
        sql: &str,
        parameters: impl rusqlite::Params,
    ) -> Result<Vec<ApiKeyRecord>, StoreError> {
        let connection = self.lock();
        let mut statement = connection.prepare_cached(sql)?;
        let rows = statement.query_map(parameters, |row| {
            Ok((row.get::<_, [u8; 32]>(0)?, row.get(1)?, row.get(2)?, row.get::<_, i64>(3)?))
        })?;
        rows.map(|row| {
            let (hash, prefix, label, created_at) = row?;
            Ok(ApiKeyRecord { hash, prefix, label, created_at: from_micros(created_at)? })
        })
        .collect()
    }
}
