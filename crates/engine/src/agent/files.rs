//! Files of a guest, as streams.

use std::sync::Arc;

use bytes::Bytes;
use pandastack_proto::{Channel, DirEntry, Outcome, Reply, Request, parse};
use tokio::time::timeout;

use super::connection::Link;
use super::stream::{Event, Handle};
use super::{AgentError, DEADLINE, event_within, reply, unexpected};

/// Most entries of a listing.
pub const MAX_LIST_ENTRIES: usize = 100_000;
/// Most bytes of a listing, as sent by the agent.
pub const MAX_LIST_BYTES: usize = 16 << 20;

/// A file being read. Dropping it stops the reading.
pub struct FileReader {
    handle: Handle,
    /// What was seen while opening.
    first: Option<Event>,
    over: bool,
}

impl FileReader {
    pub(super) async fn open(
        link: &Arc<Link>,
        path: &str,
        offset: u64,
        len: Option<u64>,
    ) -> Result<Self, AgentError> {
        let handle =
            link.open(Request::Read { path: path.to_owned(), offset, len }, &[Channel::File])?;
        // An error, the end of an empty file, or the first bytes: so that the caller knows before
        // it starts an answer of its own.
        let first = match event_within(&handle, DEADLINE).await? {
            Event::End(Err(failure)) => return Err(failure.into()),
            first => Some(first),
        };
        Ok(Self { handle, first, over: false })
    }

    /// The next bytes, or `None` at the end.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, AgentError> {
        if self.over {
            return Ok(None);
        }
        let event = match self.first.take() {
            Some(event) => event,
            None => event_within(&self.handle, DEADLINE).await?,
        };
        match event {
            Event::Data(_, bytes) => Ok(Some(bytes)),
            Event::End(outcome) => {
                self.over = true;
                match outcome? {
                    Reply::Done => Ok(None),
                    _ => Err(unexpected()),
                }
            }
            Event::Ready | Event::Eof => Err(unexpected()),
        }
    }
}

/// A file being written. Dropping it before [`FileWriter::finish`] leaves no trace in the guest.
pub struct FileWriter {
    handle: Handle,
}

impl FileWriter {
    pub(super) fn open(
        link: &Arc<Link>,
        path: &str,
        mode: Option<u32>,
    ) -> Result<Self, AgentError> {
        let handle = link.open(Request::Write { path: path.to_owned(), mode }, &[])?;
        Ok(Self { handle })
    }

    /// Appends bytes, waiting while the guest's disk is slow. Not safe to drop while it waits: the
    /// file may then miss bytes, so drop the writer as well. A failure of the guest shows in
    /// [`FileWriter::finish`].
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), AgentError> {
        timeout(DEADLINE, self.handle.send(Channel::File, bytes))
            .await
            .map_err(|_| AgentError::Deadline(DEADLINE))?
    }

    /// Puts the file in place and returns its length.
    pub async fn finish(self) -> Result<u64, AgentError> {
        self.handle.eof(Channel::File);
        match reply(&self.handle).await? {
            Reply::Written { bytes } => Ok(bytes),
            _ => Err(unexpected()),
        }
    }
}

/// Collects a listing within its limits.
pub(super) async fn list(link: &Arc<Link>, path: &str) -> Result<Vec<DirEntry>, AgentError> {
    let handle = link.open(Request::List { path: path.to_owned() }, &[Channel::Entries])?;
    let mut entries: Vec<DirEntry> = Vec::new();
    let mut size = 0;
    loop {
        match event_within(&handle, DEADLINE).await? {
            Event::Data(_, batch) => {
                size += batch.len();
                entries.append(&mut parse(&batch, "listing")?);
                if entries.len() > MAX_LIST_ENTRIES || size > MAX_LIST_BYTES {
                    return Err(AgentError::TooLarge { what: "listing", limit: MAX_LIST_BYTES });
                }
            }
            Event::End(outcome) => {
                return listed(outcome, entries);
            }
            Event::Ready | Event::Eof => return Err(unexpected()),
        }
    }
}

fn listed(outcome: Outcome, mut entries: Vec<DirEntry>) -> Result<Vec<DirEntry>, AgentError> {
    match outcome? {
        Reply::Done => {
            entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
            Ok(entries)
        }
        _ => Err(unexpected()),
    }
}
