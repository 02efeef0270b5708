//! Asking a machine's process to fork: the supervisor's side of `pandastack_fork`.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use pandastack_fork::{Answer, Request, Step, Steps};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::EngineError;

/// A fork takes milliseconds; the machine itself gives up on a thread after half a second.
const DEADLINE: Duration = Duration::from_secs(10);

/// What clone(2) says where namespaces are nested too deep, or there are too many: `ENOSPC`, and
/// `EUSERS` before Linux 4.9.
const TOO_DEEP: [i32; 2] = [Errno::NOSPC.raw_os_error(), Errno::USERS.raw_os_error()];

/// Bytes of control data: more descriptors than any request of ours has.
const SPACE: usize = rustix::cmsg_space!(ScmRights(pandastack_fork::MAX_DESCRIPTORS));

/// The socket to one machine's process.
pub(super) struct Control {
    socket: AsyncFd<OwnedFd>,
    /// An answer did not come: the next one could be to the wrong question.
    broken: bool,
}

impl Control {
    /// Takes the server's end, which does not block. Must be called inside a Tokio runtime.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        #[expect(deprecated, reason = "an OwnedFd stays open as long as the AsyncFd that owns it")]
        let socket = AsyncFd::with_interest(socket, Interest::READABLE | Interest::WRITABLE)?;
        Ok(Self { socket, broken: false })
    }

    /// Has the process fork and returns the child's pidfd.
    pub async fn fork(
        &mut self,
        request: &Request,
        attached: &[BorrowedFd<'_>],
    ) -> Result<(OwnedFd, Steps), EngineError> {
        if self.broken {
            return Err(EngineError::Ended("it did not answer an earlier request".into()));
        }
        let mut bytes = [0; Request::MAX_BYTES];
        let length = request.encode(&mut bytes);
        self.socket
            .async_io(Interest::WRITABLE, |socket| send(socket, &bytes[..length], attached))
            .await
            .map_err(|error| EngineError::Ended(error.to_string()))?;
        self.broken = true;
        let (answer, pidfd) = self.hear().await?;
        // Also if it says no: then it has not forked, and can be asked again.
        self.broken = false;
        let steps = judge(answer)?;
        let pidfd = pidfd.ok_or_else(|| EngineError::Ended("a fork without a pidfd".into()))?;
        Ok((pidfd, steps))
    }

    /// Waits until a new child has its descriptors and threads.
    pub async fn born(&mut self) -> Result<(), EngineError> {
        let (answer, _) = self.hear().await?;
        judge(answer).map(drop)
    }

    async fn hear(&self) -> Result<(Answer, Option<OwnedFd>), EngineError> {
        let receiving = self.socket.async_io(Interest::READABLE, receive);
        tokio::time::timeout(DEADLINE, receiving)
            .await
            .map_err(|_| EngineError::Deadline("a fork"))?
            .map_err(|error| EngineError::Ended(error.to_string()))
    }
}

fn judge(answer: Answer) -> Result<Steps, EngineError> {
    match answer {
        Answer::Done(steps) => Ok(steps),
        Answer::Failed { step: Step::Keeper, errno, .. } if TOO_DEEP.contains(&errno) => {
            Err(EngineError::NoFork("the kernel makes no more namespaces".into()))
        }
        Answer::Failed { step, errno, subject } => {
            let why = io::Error::from_raw_os_error(errno);
            Err(EngineError::Monitor(format!("fork failed at {step:?} ({subject}): {why}")))
        }
    }
}

fn send(socket: &OwnedFd, bytes: &[u8], attached: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); SPACE];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(attached)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// One datagram of a process that is not trusted: what is not an answer is an error, and surplus
/// descriptors are closed.
fn receive(socket: &OwnedFd) -> io::Result<(Answer, Option<OwnedFd>)> {
    let mut bytes = [0; Answer::BYTES + 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let descriptor = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let answer = Answer::decode(&bytes[..received.bytes.min(bytes.len())])
        .ok_or(io::ErrorKind::InvalidData)?;
    Ok((answer, descriptor))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::channels;

    fn reply(from: &OwnedFd, bytes: &[u8]) {
        rustix::net::send(from, bytes, SendFlags::empty()).unwrap();
    }

    #[tokio::test]
    async fn failures_and_nonsense_are_errors_and_not_children() {
        let failed = Answer::Failed { step: Step::Park, errno: 16, subject: 7 }.encode();
        let deep = Answer::Failed { step: Step::Keeper, errno: 28, subject: -1 }.encode();
        for (bytes, expected) in [
            (&deep[..], "no more namespaces"),
            (&failed[..], "fork failed at Park (7)"),
            (b"nonsense", "the machine ended"),
            (&Answer::Done(Steps::default()).encode(), "without a pidfd"),
        ] {
            let (ours, theirs) = channels::open().unwrap();
            let mut control = Control::new(ours.control).unwrap();
            reply(&theirs.control, bytes);
            let error = control.fork(&Request::new(), &[]).await.unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[tokio::test]
    async fn a_machine_that_refused_may_be_asked_again() {
        let (ours, theirs) = channels::open().unwrap();
        let mut control = Control::new(ours.control).unwrap();
        let deep = Answer::Failed { step: Step::Keeper, errno: 28, subject: -1 }.encode();
        for _ in 0..2 {
            reply(&theirs.control, &deep);
            let error = control.fork(&Request::new(), &[]).await.unwrap_err();
            assert!(matches!(error, EngineError::NoFork(_)), "{error}");
        }
    }

    #[tokio::test]
    async fn a_machine_that_ends_instead_of_answering_is_not_waited_for() {
        let (ours, theirs) = channels::open().unwrap();
        let mut control = Control::new(ours.control).unwrap();
        drop(theirs);
        assert!(control.fork(&Request::new(), &[]).await.is_err());
        assert!(control.born().await.is_err());
    }
}
