//! The files of a sandbox, over the API.

use anyhow::{Context as _, ensure};
use http::Method;
use pandastack_types::{ExecOutput, ExecRequest, FileEntry, SandboxId};
use serde::Deserialize;

use crate::client::{Client, Reply, RequestBody, no_body, query};

/// Arguments of one command: far below what Linux takes.
const PATHS_AT_ONCE: usize = 100;

/// What an entry is, as far as copying cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file, and whether its owner may execute it.
    File {
        /// Whether it is a program.
        executable: bool,
    },
    /// A directory.
    Directory,
    /// A symbolic link, a device, a socket and so on.
    Other,
}

/// What the guest says that `entry` is.
pub fn kind(entry: &FileEntry) -> Kind {
    match entry.mode.as_bytes() {
        [b'd', ..] => Kind::Directory,
        [b'-', _, _, execute, ..] => Kind::File { executable: matches!(execute, b'x' | b's') },
        _ => Kind::Other,
    }
}

/// The files of one sandbox.
pub struct Guest<'a> {
    client: &'a Client,
    id: SandboxId,
}

#[derive(Deserialize)]
struct Listing {
    entries: Option<Vec<FileEntry>>,
}

impl<'a> Guest<'a> {
    pub fn new(client: &'a Client, id: SandboxId) -> Self {
        Self { client, id }
    }

    /// What is at `path`, if anything.
    pub async fn stat(&self, path: &str) -> anyhow::Result<Option<FileEntry>> {
        match self.client.get(&self.url("fs/stat", path)).await {
            Ok(entry) => Ok(Some(entry)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot look at {path}")),
        }
    }

    /// The entries of the directory `path`.
    pub async fn list(&self, path: &str) -> anyhow::Result<Vec<FileEntry>> {
        let listing: Listing = self
            .client
            .get(&self.url("fs/dir", path))
            .await
            .with_context(|| format!("cannot list {path}"))?;
        Ok(listing.entries.unwrap_or_default())
    }

    /// Begins to read the file `path`.
    pub async fn read(&self, path: &str) -> anyhow::Result<Reply> {
        let reply = self.client.open(Method::GET, &self.url("fs", path), None, no_body()).await;
        reply.with_context(|| format!("cannot read {path}"))
    }

    /// Writes the file `path`, and makes the directories above it.
    pub async fn write(&self, path: &str, body: RequestBody) -> anyhow::Result<()> {
        let url = self.url("fs", path);
        let sent = self.client.open(Method::PUT, &url, Some("application/octet-stream"), body);
        sent.await.map(drop).with_context(|| format!("cannot write {path}"))
    }

    /// Makes the directory `path`, and those above it.
    pub async fn make_directory(&self, path: &str) -> anyhow::Result<()> {
        let made = self.client.act(Method::POST, &self.url("fs/mkdir", path)).await;
        made.with_context(|| format!("cannot create {path}"))
    }

    /// Marks files as programs. The API has no call for it, but every guest has a command.
    pub async fn make_executable(&self, paths: &[String]) -> anyhow::Result<()> {
        for paths in paths.chunks(PATHS_AT_ONCE) {
            let words = ["chmod", "a+x", "--"].map(str::to_owned);
            let argv = words.into_iter().chain(paths.iter().cloned()).collect();
            let request = ExecRequest { argv: Some(argv), ..ExecRequest::default() };
            let path = format!("/v1/sandboxes/{}/exec", self.id);
            let output: ExecOutput = self.client.send(Method::POST, &path, &request).await?;
            ensure!(
                output.exit_code == 0,
                "cannot mark programs in the sandbox: {}",
                output.stderr.trim().escape_debug()
            );
        }
        Ok(())
    }

    fn url(&self, route: &str, path: &str) -> String {
        query(&format!("/v1/sandboxes/{}/{route}", self.id), &[("path", path)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_follow_the_mode() {
        let entry = |mode: &str| FileEntry {
            name: String::new(),
            path: String::new(),
            is_dir: true,
            size: 0,
            mode: mode.to_owned(),
            mtime: 0,
        };
        assert_eq!(kind(&entry("drwxr-xr-x")), Kind::Directory);
        assert_eq!(kind(&entry("-rw-r--r--")), Kind::File { executable: false });
        assert_eq!(kind(&entry("-rwsr-xr-x")), Kind::File { executable: true });
        for other in ["lrwxrwxrwx", "crw-rw-rw-", "prw-r--r--", "", "-"] {
            assert_eq!(kind(&entry(other)), Kind::Other, "{other:?}");
        }
    }
}
