//! Files of a guest.
//!
//! Paths are the tenant's own business: they are handed to the agent as they are and never used
//! on the host. Contents are streamed both ways; no file is ever in memory as a whole.

use std::sync::Arc;

use bytes::Bytes;
use pandastack_engine::agent::{AgentError, DirEntry, ErrorCode, FileKind, FileReader, FileWriter};
use pandastack_types::FileEntry;

use crate::error::{FileError, InvalidRequest};
use crate::request;
use crate::sandbox::{Busy, Sandbox};

/// A file being read from a guest. Dropping it stops the reading.
pub struct Download {
    reader: FileReader,
    sandbox: Arc<Sandbox>,
    path: String,
    _busy: Busy,
}

/// A file being written to a guest. Dropping it before [`Upload::finish`] leaves no trace.
pub struct Upload {
    writer: FileWriter,
    sandbox: Arc<Sandbox>,
    path: String,
    _busy: Busy,
}

impl Sandbox {
    /// Opens a regular file. Returns when its first bytes are there.
    pub async fn read_file(self: &Arc<Self>, path: String) -> Result<Download, FileError> {
        let path = request::path("path", path)?;
        let (agent, busy) = self.guest().await?;
        match agent.read_file(&path).await {
            Ok(reader) => Ok(Download { reader, sandbox: self.clone(), path, _busy: busy }),
            Err(error) => Err(explain(self, &path, error).await),
        }
    }

    /// Starts to replace or create a file. Its parents are created.
    pub async fn write_file(self: &Arc<Self>, path: String) -> Result<Upload, FileError> {
        let path = request::path("path", path)?;
        let (agent, busy) = self.guest().await?;
        match agent.write_file(&path, None).await {
            Ok(writer) => Ok(Upload { writer, sandbox: self.clone(), path, _busy: busy }),
            Err(error) => Err(explain(self, &path, error).await),
        }
    }

    /// The entries of a directory, sorted by name.
    pub async fn list_dir(self: &Arc<Self>, path: String) -> Result<Vec<FileEntry>, FileError> {
        let path = request::path("path", path)?;
        let (agent, _busy) = self.guest().await?;
        match agent.list(&path).await {
            Ok(entries) => {
                Ok(entries.into_iter().map(|entry| listed(path.as_str(), entry)).collect())
            }
            Err(error) => Err(explain(self, &path, error).await),
        }
    }

    /// What a path leads to.
    pub async fn stat(self: &Arc<Self>, path: String) -> Result<FileEntry, FileError> {
        let path = request::path("path", path)?;
        let (agent, _busy) = self.guest().await?;
        match agent.stat(&path).await {
            Ok(entry) => {
                // Of the path that was asked for, also when it is a link.
                let name = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
                let name = if name.is_empty() { "/" } else { name }.to_owned();
                Ok(file_entry(path.clone(), DirEntry { name, ..entry }))
            }
            Err(error) => Err(explain(self, &path, error).await),
        }
    }

    /// Creates a directory and its parents.
    pub async fn mkdir(self: &Arc<Self>, path: String) -> Result<(), FileError> {
        let path = request::path("path", path)?;
        let (agent, _busy) = self.guest().await?;
        match agent.mkdir(&path).await {
            Ok(()) => Ok(()),
            Err(error) => Err(explain(self, &path, error).await),
        }
    }

    /// Removes a file, or a directory with everything in it.
    pub async fn remove(self: &Arc<Self>, path: String) -> Result<(), FileError> {
        let path = request::path("path", path)?;
        let (agent, _busy) = self.guest().await?;
        match agent.remove(&path).await {
            Ok(()) => Ok(()),
            Err(error) => Err(explain(self, &path, error).await),
        }
    }

    /// TCP ports that something in the guest listens on.
    pub async fn ports(self: &Arc<Self>) -> Result<Vec<u16>, FileError> {
        let (agent, _busy) = self.guest().await?;
        match agent.ports().await {
            Ok(ports) => Ok(ports),
            Err(error) => Err(explain(self, "/proc/net/tcp", error).await),
        }
    }
}

impl Download {
    /// The next bytes, or `None` at the end.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, FileError> {
        match self.reader.chunk().await {
            Ok(chunk) => Ok(chunk),
            Err(error) => Err(explain(&self.sandbox, &self.path, error).await),
        }
    }
}

impl Upload {
    /// Appends bytes, waiting while the guest is slow.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), FileError> {
        match self.writer.write(bytes).await {
            Ok(()) => Ok(()),
            Err(error) => Err(explain(&self.sandbox, &self.path, error).await),
        }
    }

    /// Puts the file in place and returns its length.
    pub async fn finish(self) -> Result<u64, FileError> {
        match self.writer.finish().await {
            Ok(bytes) => Ok(bytes),
            Err(error) => Err(explain(&self.sandbox, &self.path, error).await),
        }
    }
}

/// What a failure of the agent means to whoever wanted something of `path`.
async fn explain(sandbox: &Sandbox, path: &str, error: AgentError) -> FileError {
    let (code, message) = match error {
        AgentError::Closed | AgentError::Protocol(_) => {
            return match sandbox.explanation().await {
                Some(ended) => ended.into(),
                None => FileError::Agent(error),
            };
        }
        AgentError::TooLarge { .. } => return InvalidRequest::Field(error.to_string()).into(),
        AgentError::TooMany => return FileError::TooMany,
        AgentError::Deadline(_) | AgentError::Entropy => return FileError::Agent(error),
        AgentError::Remote { code, message } => (code, message),
    };
    match code {
        ErrorCode::NotFound => FileError::NotFound(path.to_owned()),
        ErrorCode::NoSpace => FileError::DiskFull,
        ErrorCode::Unauthorized => FileError::Agent(AgentError::Remote { code, message }),
        _ => FileError::Refused(message),
    }
}

fn listed(dir: &str, entry: DirEntry) -> FileEntry {
    let path = format!("{}/{}", dir.trim_end_matches('/'), entry.name);
    file_entry(path, entry)
}

fn file_entry(path: String, entry: DirEntry) -> FileEntry {
    FileEntry {
        path,
        is_dir: entry.kind == FileKind::Directory || entry.leads_to_dir,
        size: entry.size,
        mode: mode_text(entry.mode),
        mtime: entry.mtime,
        name: entry.name,
    }
}

/// Type and permissions of an `st_mode`, as `ls -l` writes them.
fn mode_text(mode: u32) -> String {
    const TYPES: [(u32, char); 6] = [
        (0o040_000, 'd'),
        (0o120_000, 'l'),
        (0o020_000, 'c'),
        (0o060_000, 'b'),
        (0o010_000, 'p'),
        (0o140_000, 's'),
    ];
    let kind = TYPES.iter().find(|(bits, _)| mode & 0o170_000 == *bits).map_or('-', |(_, c)| *c);
    let mut text = String::with_capacity(10);
    text.push(kind);
    for (shift, special, mark) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, mode & special != 0) {
            (true, true) => mark,
            (false, true) => mark.to_ascii_uppercase(),
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_read_like_ls() {
        for (mode, text) in [
            (0o100_644, "-rw-r--r--"),
            (0o040_755, "drwxr-xr-x"),
            (0o041_777, "drwxrwxrwt"),
            (0o104_755, "-rwsr-xr-x"),
            (0o102_640, "-rw-r-S---"),
            (0o120_777, "lrwxrwxrwx"),
            (0o020_620, "crw--w----"),
        ] {
            assert_eq!(mode_text(mode), text);
        }
    }

    #[test]
    fn a_listed_path_has_one_slash_per_step() {
        let entry = DirEntry {
            name: "x".to_owned(),
            kind: FileKind::Symlink,
            leads_to_dir: true,
            size: 1,
            mode: 0o120_777,
            mtime: 0,
        };
        assert_eq!(listed("/", entry.clone()).path, "/x");
        assert_eq!(listed("/a/", entry.clone()).path, "/a/x");
        assert!(listed("/a", entry).is_dir);
    }
}
