//! One gateway process, and what is said to it.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use pandastack_types::EgressEntry;
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{oneshot, watch};

use super::launch::Process;
use super::{GatewayError, lock};
use crate::control::{self, Ask, NetworkId, Reply, Request, WireError};

/// The way to a process. Dropping it ends the process.
pub(super) struct Link {
    inner: Arc<Inner>,
    reader: tokio::task::JoinHandle<()>,
    process: Process,
}

struct Inner {
    socket: AsyncFd<OwnedFd>,
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Result<(), GatewayError>>>>,
    /// What was to be told when the socket was full. It goes before everything that comes later: a
    /// network that was ended must not live beside the one that takes its place.
    untold: Mutex<VecDeque<Ask>>,
    over: watch::Sender<bool>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.reader.abort();
        self.process.end();
    }
}

impl Link {
    /// Listens to a process. Lines of the log go to `deliver`.
    pub fn new(
        socket: OwnedFd,
        process: Process,
        deliver: impl Fn(NetworkId, Vec<EgressEntry>) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        #[expect(deprecated, reason = "an OwnedFd stays open as long as the AsyncFd that owns it")]
        let socket = AsyncFd::with_interest(socket, Interest::READABLE | Interest::WRITABLE)?;
        let inner = Arc::new(Inner {
            socket,
            next: AtomicU64::new(1),
            waiting: Mutex::default(),
            untold: Mutex::default(),
            over: watch::Sender::new(false),
        });
        let reader = tokio::spawn(inner.clone().listen(deliver));
        Ok(Self { inner, reader, process })
    }

    /// Asks and waits for the answer.
    pub async fn ask(
        &self,
        request: Request,
        with: Option<BorrowedFd<'_>>,
    ) -> Result<(), GatewayError> {
        let number = self.inner.next.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        lock(&self.inner.waiting).insert(number, answer);
        if *self.inner.over.borrow() {
            return Err(GatewayError::Gone);
        }
        let ask = Ask { number, request };
        loop {
            match self.inner.catch_up().and_then(|()| control::send(&self.inner.socket, &ask, with))
            {
                Ok(()) => break,
                Err(WireError::Socket(Errno::AGAIN)) => {
                    let ready = self.inner.socket.writable().await;
                    ready.map_err(|_| GatewayError::Gone)?.clear_ready();
                }
                Err(WireError::TooLong) => {
                    return Err(GatewayError::Refused("the policy is too long".into()));
                }
                Err(_) => return Err(GatewayError::Gone),
            }
        }
        answered.await.unwrap_or(Err(GatewayError::Gone))
    }

    /// Asks without waiting, and without an answer. What a process does not take at once is asked
    /// again before anything else is; one that is gone has forgotten everything.
    pub fn tell(&self, request: Request) {
        let number = self.inner.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.inner.untold).push_back(Ask { number, request });
        let _ = self.inner.catch_up();
    }

    /// Waits for the end of the process.
    pub async fn closed(&self) {
        let _ = self.inner.over.subscribe().wait_for(|over| *over).await;
    }

    /// What it wrote to its standard error.
    pub fn complaints(&self) -> String {
        self.process.complaints()
    }
}

impl Inner {
    /// Tells what could not be told before.
    fn catch_up(&self) -> Result<(), WireError> {
        let mut untold = lock(&self.untold);
        while let Some(ask) = untold.front() {
            control::send(&self.socket, ask, None)?;
            untold.pop_front();
        }
        Ok(())
    }

    async fn listen(self: Arc<Self>, deliver: impl Fn(NetworkId, Vec<EgressEntry>)) {
        loop {
            let Ok(mut ready) = self.socket.readable().await else { break };
            // Somebody who reads may have made room.
            let _ = self.catch_up();
            match control::receive::<Reply>(&self.socket) {
                Ok((Reply::Log { network, entries }, _)) => deliver(network, entries),
                Ok((Reply::Done { number }, _)) => self.answer(number, Ok(())),
                Ok((Reply::Refused { number, why }, _)) => {
                    self.answer(number, Err(GatewayError::Refused(why)));
                }
                Err(WireError::Socket(Errno::AGAIN)) => ready.clear_ready(),
                // It is ours; one that speaks nonsense is as good as gone.
                Err(_) => break,
            }
        }
        self.over.send_replace(true);
        lock(&self.waiting).clear();
    }

    fn answer(&self, number: u64, answer: Result<(), GatewayError>) {
        if let Some(waiting) = lock(&self.waiting).remove(&number) {
            let _ = waiting.send(answer);
        }
    }
}
