//! What can go wrong with the records.

use std::path::PathBuf;

use rusqlite::ErrorCode;

/// A record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database file could not be created or opened.
    #[error("cannot open the records in {path}")]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The file was written by a newer server, whose tables mean something else.
    #[error("the records have format {found}, this server knows up to {known}")]
    Newer {
        /// The file's format.
        found: i64,
        /// The newest format of this program.
        known: i64,
    },
    /// No space is left for another record. Nothing was written.
    #[error("the disk that holds the records is full")]
    DiskFull,
    /// Another process held the records for too long.
    #[error("the records are locked by another process")]
    Busy,
    /// There is no such record.
    #[error("no such record")]
    Missing,
    /// A record holds something that this program never writes.
    #[error("a record is damaged: {0}")]
    Damaged(&'static str),
    /// Anything else SQLite reports.
    #[error("the records failed")]
    Sqlite(#[source] rusqlite::Error),
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::DiskFull,
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy,
            _ if matches!(error, rusqlite::Error::QueryReturnedNoRows) => Self::Missing,
            _ => Self::Sqlite(error),
        }
    }
}
