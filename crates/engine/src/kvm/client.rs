//! The supervisor's side of `pandastack_vmm::control`: requests, one after the other, and what
//! the monitor says unasked.
//!
//! ```text
//!   request ──▶ socket ──▶ monitor
//!      ▲                      │
//!   slot ◀── reader task ◀────┤ an answer, if one is waited for
//!   over ◀───────┘ ◀──────────┘ Ended; anything else, and the end of the socket
//! ```
//!
//! The monitor parses what the guest sends it, so it is not trusted: messages are bounded by the
//! wire, every answer has a deadline, an answer that nobody waits for ends the conversation, and
//! after an answer that did not come in time no other question is asked.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pandastack_vmm::control::{
    End, Failure, Received, Reply, Request, Role, Stages, WireError, receive, send,
};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Mutex as AsyncMutex, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::EngineError;
use crate::error::tame;

/// Descriptors that go with a request, with their meanings.
pub(super) type Attached<'a> = Vec<(Role, BorrowedFd<'a>)>;

/// How a conversation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Over {
    /// The guest ended, and how.
    Guest(End),
    /// The process closed its socket: it is gone, or about to be.
    Closed,
    /// It said something that it must not, and is not listened to any more.
    Broken(&'static str),
}

/// An answer that is waited for.
pub(super) type Awaited = oneshot::Receiver<Received<Reply>>;

/// Where the reader puts an answer.
type Slot = Arc<Mutex<Option<oneshot::Sender<Received<Reply>>>>>;

/// The way to one monitor. Dropping it closes the server's end, which ends the monitor.
pub(super) struct Client {
    socket: Arc<AsyncFd<OwnedFd>>,
    slot: Slot,
    over: watch::Receiver<Option<Over>>,
    /// Held during an exchange; whether an answer is outstanding.
    turn: AsyncMutex<bool>,
    reader: AbortHandle,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Client {
    /// Takes the server's end, which does not block. Must be called inside a Tokio runtime.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        #[expect(deprecated, reason = "an OwnedFd stays open as long as the AsyncFd that owns it")]
        let socket = AsyncFd::with_interest(socket, Interest::READABLE | Interest::WRITABLE)?;
        let socket = Arc::new(socket);
        let slot = Slot::default();
        let (publish, over) = watch::channel(None);
        let reader = tokio::spawn({
            let (socket, slot) = (socket.clone(), slot.clone());
            async move {
                let end = read(&socket, &slot).await;
                let _ = publish.send(Some(end));
            }
        });
        let reader = reader.abort_handle();
        Ok(Self { socket, slot, over, turn: AsyncMutex::new(false), reader })
    }

    /// Asks for something that is answered with [`Reply::Done`].
    pub async fn done(
        &self,
        request: Request,
        attached: Attached<'_>,
        deadline: Deadline,
    ) -> Result<(), EngineError> {
        match self.ask(request, attached, deadline).await?.body {
            Reply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Lets the vCPUs run; where the time went.
    pub async fn run(&self) -> Result<Stages, EngineError> {
        self.timed(Request::Run, RUN).await
    }

    /// Does what running would, ahead of time; where that went.
    pub async fn make_ready(&self) -> Result<Stages, EngineError> {
        self.timed(Request::Ready, READY).await
    }

    async fn timed(&self, request: Request, deadline: Deadline) -> Result<Stages, EngineError> {
        match self.ask(request, Vec::new(), deadline).await?.body {
            Reply::Ran(stages) => Ok(stages),
            other => Err(unexpected(&other)),
        }
    }

    /// Stops them.
    pub async fn pause(&self) -> Result<(), EngineError> {
        self.done(Request::Pause, Vec::new(), PAUSE).await
    }

    /// What the guest printed last.
    pub async fn console(&self) -> Result<String, EngineError> {
        match self.ask(Request::Console, Vec::new(), CONSOLE).await?.body {
            Reply::Console(text) => Ok(String::from_utf8_lossy(&text).into_owned()),
            other => Err(unexpected(&other)),
        }
    }

    /// Sends a request and waits for its answer. [`Reply::Failed`] is an error.
    pub async fn ask(
        &self,
        request: Request,
        attached: Attached<'_>,
        deadline: Deadline,
    ) -> Result<Received<Reply>, EngineError> {
        let mut outstanding = self.turn.lock().await;
        if *outstanding {
            return Err(EngineError::Monitor("it did not answer an earlier request".into()));
        }
        let awaited = self.expect();
        *outstanding = true;
        let sending = self
            .socket
            .async_io(Interest::WRITABLE, |fd| send(fd, &request, &attached).map_err(io_error));
        match timeout(deadline.time, sending).await {
            Err(_) => return Err(EngineError::Deadline(deadline.what)),
            Ok(Err(error)) => return Err(self.why_silent(&error.to_string())),
            Ok(Ok(())) => drop(attached),
        }
        let answer = self.answer(awaited, deadline).await?;
        *outstanding = false;
        match answer.body {
            Reply::Failed(why) => Err(why.into()),
            _ => Ok(answer),
        }
    }

    /// Announces that the monitor will say something that nobody asks for on this socket: a copy
    /// is born.
    pub fn expect(&self) -> Awaited {
        let (sender, receiver) = oneshot::channel();
        // One that waited before gave up, and its answer is not wanted.
        drop(fill(&self.slot, Some(sender)));
        receiver
    }

    /// Waits for what was announced.
    pub async fn answer(
        &self,
        awaited: Awaited,
        deadline: Deadline,
    ) -> Result<Received<Reply>, EngineError> {
        let first = async {
            tokio::select! {
                biased;
                answer = awaited => answer.ok(),
                // Nobody listens any more, maybe since before the answer was announced.
                _ = self.over() => None,
            }
        };
        match timeout(deadline.time, first).await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(self.why_silent("no answer came")),
            Err(_) => Err(EngineError::Deadline(deadline.what)),
        }
    }

    /// Resolves when the conversation is over, to how it ended. Needs nothing of the client.
    pub fn over(&self) -> impl Future<Output = Over> + Send + use<> {
        let mut over = self.over.clone();
        async move {
            match over.wait_for(Option::is_some).await {
                Ok(end) => end.clone().unwrap_or(Over::Closed),
                Err(_) => Over::Closed, // the client was dropped
            }
        }
    }

    fn why_silent(&self, otherwise: &str) -> EngineError {
        let why = match &*self.over.borrow() {
            Some(Over::Guest(end)) => format!("its guest ended ({end:?})"),
            Some(Over::Closed) => "it closed its control socket".to_owned(),
            Some(Over::Broken(why)) => format!("it broke the protocol: {why}"),
            None => otherwise.to_owned(),
        };
        EngineError::Ended(why)
    }
}

/// How long an answer may take, and the name of what is waited for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    time: Duration,
    what: &'static str,
}

const fn within(seconds: u64, what: &'static str) -> Deadline {
    Deadline { time: Duration::from_secs(seconds), what }
}

// What takes milliseconds gets enough for a host in trouble, or one that is itself emulated.

/// For a guest of a few instructions.
pub(super) const PROVE: Deadline = within(30, "the proof that KVM works");
/// For mapping memory, reading the state or loading a kernel.
pub(super) const START: Deadline = within(30, "the start of a machine");
/// For making a virtual machine and its threads.
const RUN: Deadline = within(20, "running a machine");
/// For that, and all pages that a machine needs first.
const READY: Deadline = within(30, "making a machine ready");
/// For ending its threads and reading its state.
const PAUSE: Deadline = within(20, "pausing a machine");
/// For opening the layers of a volume.
pub(super) const ATTACH: Deadline = within(20, "attaching a volume");
/// For a copy of the process, and for what the copy does before it can be used.
pub(super) const FORK: Deadline = within(20, "a fork");
/// For writing out what was changed of at most 3 GiB.
pub(super) const SAVE: Deadline = within(600, "writing a machine");
/// For a list of pages.
pub(super) const RECORD: Deadline = within(60, "recording the working set");
const CONSOLE: Deadline = within(10, "the console");

/// Listens until there is nothing more to hear.
async fn read(socket: &AsyncFd<OwnedFd>, slot: &Slot) -> Over {
    loop {
        let receiving = socket.async_io(Interest::READABLE, |fd| match receive(fd) {
            Err(WireError::Socket(Errno::AGAIN)) => Err(io::ErrorKind::WouldBlock.into()),
            other => Ok(other),
        });
        let received: Received<Reply> = match receiving.await {
            Ok(Ok(received)) => received,
            Ok(Err(WireError::Malformed)) => return Over::Broken("a malformed message"),
            Ok(Err(WireError::TooLong)) => return Over::Broken("a message that is too long"),
            Ok(Err(WireError::Closed | WireError::Socket(_))) | Err(_) => return Over::Closed,
        };
        if let Reply::Ended(end) = received.body {
            return Over::Guest(end);
        }
        match fill(slot, None) {
            // Whoever waited may have given up meanwhile.
            Some(waiting) => drop(waiting.send(received)),
            None => return Over::Broken("an answer without a question"),
        }
    }
}

/// Puts something into the slot and takes out what was in it.
fn fill(
    slot: &Slot,
    content: Option<oneshot::Sender<Received<Reply>>>,
) -> Option<oneshot::Sender<Received<Reply>>> {
    std::mem::replace(&mut *slot.lock().expect("no panic under this lock"), content)
}

fn io_error(error: WireError) -> io::Error {
    match error {
        WireError::Socket(errno) => errno.into(),
        other => io::Error::other(other.to_string()),
    }
}

/// An answer to another question.
pub(super) fn unexpected(reply: &Reply) -> EngineError {
    EngineError::Monitor(tame(&format!("an answer that does not fit: {reply:?}")))
}

impl From<Failure> for EngineError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Damaged { file, why } => {
                EngineError::Damaged { file: tame(&file), why: tame(&why) }
            }
            Failure::Foreign(why) => EngineError::Foreign(tame(&why)),
            Failure::TooDeep => EngineError::NoFork("the kernel makes no more namespaces".into()),
            other => EngineError::Monitor(tame(&other.to_string())),
        }
    }
}

/// Attaches descriptors that all have one meaning.
pub(super) fn attach<'a, F: AsFd + 'a>(
    to: &mut Attached<'a>,
    role: Role,
    files: impl IntoIterator<Item = &'a F>,
) {
    to.extend(files.into_iter().map(|file| (role, file.as_fd())));
}

#[cfg(test)]
mod tests;
