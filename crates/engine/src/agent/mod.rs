//! The host's end of the agent protocol: see `pandastack_proto` for the frames.
//!
//! Everything read here is hostile input: lengths are bounded before allocation, a stream may
//! only receive what it was granted, and a peer that breaks the protocol loses the connection.
//! A connection holds at most 256 streams of 256 KiB for consumers that do not read.
//!
//! Every wait is bounded. An operation has [`DEADLINE`], or for [`AgentClient::resume`] the caller's;
//! a command has its own timeout, which the agent enforces, and [`GRACE`] on top of it here, in case
//! the agent does not. Dropping the future or the object of an operation cancels it in the guest.

mod connection;
mod dial;
mod error;
mod exec;
mod files;
mod identity;
mod stream;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use pandastack_proto::{Reply, Request};
use tokio::net::UnixStream;
use tokio::time::timeout;

pub use dial::GuestStream;
pub use error::AgentError;
pub use exec::{ExecEvent, ExecOutput, ExecSession, ExecStdin, MAX_RUN_OUTPUT};
pub use files::{FileReader, FileWriter, MAX_LIST_BYTES, MAX_LIST_ENTRIES};
pub use identity::Identity;
pub use pandastack_proto::{
    Detached, DirEntry, Ended, ErrorCode, ExecSpec, ExecStatus, FileKind, ResumeAck, Stats, Token,
};

use crate::error::tame;
use connection::{Link, Phase};
use stream::{Event, Handle};

/// How long an operation other than a command may take.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// How long after a command's timeout its end may come.
pub const GRACE: Duration = Duration::from_secs(5);

/// What an agent says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentInfo {
    /// Whether it is PID 1 of a guest; false in development mode.
    pub init: bool,
    /// The guest's kernel release.
    pub kernel: String,
}

/// A connection to the agent of one guest. Clones share it; it closes when the last clone and the
/// last session, reader and writer made of it are dropped.
#[derive(Clone)]
pub struct AgentClient {
    link: Arc<Link>,
}

impl AgentClient {
    /// Greets the agent at the other end. Requests may be made at once; they wait for an agent
    /// that is not up yet. Must be called inside a Tokio runtime.
    pub fn connect(stream: UnixStream) -> Self {
        Self { link: connection::start(stream) }
    }

    /// Authorises the requests from now on: for a guest that got its identity on an earlier
    /// connection. [`AgentClient::resume`] does it by itself.
    pub fn set_token(&self, token: Token) {
        self.link.set_token(token);
    }

    /// Greets the agent of a guest that was copied from another one: until it has an identity of
    /// its own, it takes the token of the guest that it was copied from.
    pub fn connect_copy(stream: UnixStream, original: &Self) -> Self {
        let copy = Self::connect(stream);
        copy.set_token(original.link.token());
        copy
    }

    /// Waits until the agent has answered the greeting.
    pub async fn hello(&self, deadline: Duration) -> Result<AgentInfo, AgentError> {
        let mut phase = self.link.phase();
        let greeted = phase.wait_for(|phase| !matches!(phase, Phase::Greeting));
        let greeted =
            timeout(deadline, greeted).await.map_err(|_| AgentError::Deadline(deadline))?;
        match greeted.as_deref() {
            Ok(Phase::Open(welcome)) => {
                Ok(AgentInfo { init: welcome.init, kernel: tame(&welcome.kernel) })
            }
            Ok(Phase::Ended(reason)) => Err(reason.clone()),
            Ok(Phase::Greeting) | Err(_) => Err(AgentError::Closed),
        }
    }

    /// One round trip.
    pub async fn ping(&self) -> Result<(), AgentError> {
        self.done(Request::Ping).await
    }

    /// Gives the guest an identity, the time of now and fresh entropy. From here on the client
    /// uses the identity's token and the guest refuses the one before. It is the first thing that a
    /// new machine does, among others that are new: who makes it knows how long that may take.
    pub async fn resume(
        &self,
        identity: &Identity,
        deadline: Duration,
    ) -> Result<ResumeAck, AgentError> {
        let handle = self.link.open(Request::Resume(identity.message()), &[])?;
        match reply_within(&handle, deadline).await? {
            Reply::Resumed(ack) => {
                self.link.set_token(identity.token);
                Ok(ack)
            }
            _ => Err(unexpected()),
        }
    }

    /// Sets the guest's wall clock: after it stood still.
    pub async fn set_clock(&self, now: SystemTime) -> Result<(), AgentError> {
        self.done(Request::SetClock { unix_ns: identity::unix_ns(now) }).await
    }

    /// Mounts the volume of `bytes` that is in a slot of the machine.
    pub async fn mount_volume(
        &self,
        slot: usize,
        name: &str,
        bytes: u64,
        read_only: bool,
    ) -> Result<(), AgentError> {
        let slot = u8::try_from(slot).unwrap_or(u8::MAX);
        self.done(Request::MountVolume { slot, name: name.to_owned(), bytes, read_only }).await
    }

    /// Has the guest write out what it holds back of its volumes, and unmount those that are not
    /// in use if it is to.
    pub async fn flush_volumes(&self, unmount: bool) -> Result<(), AgentError> {
        self.done(Request::FlushVolumes { unmount }).await
    }

    /// Starts a command. Returns at once: a command that cannot start says so in the session.
    pub async fn exec(&self, spec: ExecSpec) -> Result<ExecSession, AgentError> {
        ExecSession::open(&self.link, spec)
    }

    /// Runs a command to its end and keeps the first [`MAX_RUN_OUTPUT`] bytes of each output.
    pub async fn run(&self, spec: ExecSpec) -> Result<ExecOutput, AgentError> {
        self.exec(spec).await?.output().await
    }

    /// Opens a regular file. Returns when its first bytes are there.
    pub async fn read_file(&self, path: &str) -> Result<FileReader, AgentError> {
        FileReader::open(&self.link, path, 0, None).await
    }

    /// Opens a part of a regular file: at most `len` bytes from `offset` on.
    pub async fn read_file_range(
        &self,
        path: &str,
        offset: u64,
        len: Option<u64>,
    ) -> Result<FileReader, AgentError> {
        FileReader::open(&self.link, path, offset, len).await
    }

    /// Starts to replace or create a file. Nothing is visible under its name until
    /// [`FileWriter::finish`]. The mode defaults to that of the replaced file, or 0644.
    pub async fn write_file(
        &self,
        path: &str,
        mode: Option<u32>,
    ) -> Result<FileWriter, AgentError> {
        FileWriter::open(&self.link, path, mode)
    }

    /// The entries of a directory, sorted by name. Beyond [`MAX_LIST_ENTRIES`] or
    /// [`MAX_LIST_BYTES`] it is an error.
    pub async fn list(&self, path: &str) -> Result<Vec<DirEntry>, AgentError> {
        files::list(&self.link, path).await
    }

    /// What a path leads to; symbolic links are followed.
    pub async fn stat(&self, path: &str) -> Result<DirEntry, AgentError> {
        self.entry(path, true).await
    }

    /// What a path is; a symbolic link is described itself.
    pub async fn lstat(&self, path: &str) -> Result<DirEntry, AgentError> {
        self.entry(path, false).await
    }

    async fn entry(&self, path: &str, follow: bool) -> Result<DirEntry, AgentError> {
        match self.call(Request::Stat { path: path.to_owned(), follow }).await? {
            Reply::Entry(entry) => Ok(entry),
            _ => Err(unexpected()),
        }
    }

    /// Creates a directory and its parents; fine if it exists.
    pub async fn mkdir(&self, path: &str) -> Result<(), AgentError> {
        self.done(Request::Mkdir { path: path.to_owned() }).await
    }

    /// Removes a file, or a directory with everything in it. Has a minute instead of [`DEADLINE`].
    pub async fn remove(&self, path: &str) -> Result<(), AgentError> {
        const LONG: Duration = Duration::from_secs(60);
        let handle = self.link.open(Request::Remove { path: path.to_owned() }, &[])?;
        match reply_within(&handle, LONG).await? {
            Reply::Done => Ok(()),
            _ => Err(unexpected()),
        }
    }

    /// TCP ports that something in the guest listens on, sorted.
    pub async fn ports(&self) -> Result<Vec<u16>, AgentError> {
        match self.call(Request::Ports).await? {
            Reply::Ports(ports) => Ok(ports),
            _ => Err(unexpected()),
        }
    }

    /// Connects to a TCP port of the guest's own loopback. Returns when the connection is made.
    pub async fn dial(&self, port: u16) -> Result<GuestStream, AgentError> {
        GuestStream::open(&self.link, port).await
    }

    /// What became of commands that ran when another connection to this guest ended. `seen` is the
    /// number of the last end that is known; the guest forgets it.
    pub async fn detached(&self, seen: u64) -> Result<Detached, AgentError> {
        match self.call(Request::Detached { seen }).await? {
            Reply::Detached(detached) => Ok(detached),
            _ => Err(unexpected()),
        }
    }

    /// The guest's own measurements.
    pub async fn stats(&self) -> Result<Stats, AgentError> {
        match self.call(Request::Stats).await? {
            Reply::Stats(stats) => Ok(stats),
            _ => Err(unexpected()),
        }
    }

    /// Brings the guest to rest before a snapshot. Fails while commands of this connection run.
    pub async fn quiesce(&self) -> Result<(), AgentError> {
        self.done(Request::Quiesce).await
    }

    /// Switches the guest off. A connection that ends instead of an answer is an answer, too.
    pub async fn power_off(&self) -> Result<(), AgentError> {
        match self.done(Request::PowerOff).await {
            Err(AgentError::Closed) => Ok(()),
            other => other,
        }
    }

    /// Resolves when the connection has ended.
    pub async fn closed(&self) {
        // An error means that the sender is gone, which is an end as well.
        let _ = self.link.phase().wait_for(|phase| matches!(phase, Phase::Ended(_))).await;
    }

    async fn done(&self, request: Request) -> Result<(), AgentError> {
        match self.call(request).await? {
            Reply::Done => Ok(()),
            _ => Err(unexpected()),
        }
    }

    async fn call(&self, request: Request) -> Result<Reply, AgentError> {
        reply(&self.link.open(request, &[])?).await
    }
}

/// The reply of a stream without data.
async fn reply(handle: &Handle) -> Result<Reply, AgentError> {
    reply_within(handle, DEADLINE).await
}

async fn reply_within(handle: &Handle, deadline: Duration) -> Result<Reply, AgentError> {
    match event_within(handle, deadline).await? {
        Event::End(outcome) => Ok(outcome?),
        Event::Data(..) | Event::Ready | Event::Eof => Err(unexpected()),
    }
}

async fn event_within(handle: &Handle, deadline: Duration) -> Result<Event, AgentError> {
    timeout(deadline, handle.event()).await.map_err(|_| AgentError::Deadline(deadline))?
}

/// A well-formed reply to another question. Not worth the connection: the stream is over anyway.
fn unexpected() -> AgentError {
    AgentError::protocol("the reply does not fit the request")
}
