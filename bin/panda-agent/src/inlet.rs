//! Where bytes of the host go: the standard input of a command, or a connection. Either may be full.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use pandastack_proto::Encoder;
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::Errno;

use crate::lane::Lane;

/// Our end and what waits for it.
pub struct Inlet {
    /// `None` when the other end is closed.
    pipe: Option<OwnedFd>,
    /// Frames that are not written, and how much of the first one is. The window bounds it.
    queue: VecDeque<Vec<u8>>,
    written: usize,
    finished: bool,
    reset: bool,
}

impl Inlet {
    pub fn new(pipe: OwnedFd) -> Self {
        // Only our end: a command expects a pipe that waits.
        let nonblocking = fcntl_setfl(&pipe, OFlags::NONBLOCK);
        let pipe = nonblocking.is_ok().then_some(pipe);
        Self { pipe, queue: VecDeque::new(), written: 0, finished: false, reset: false }
    }

    /// Queues a frame and writes what goes.
    pub fn push(&mut self, bytes: &[u8], lane: &mut Lane, out: &mut Encoder) {
        self.queue.push_back(bytes.to_vec());
        self.write(lane, out);
    }

    /// No more frames will come.
    pub fn finish(&mut self) {
        self.finished = true;
    }

    /// Whether our end can be closed.
    pub fn is_over(&self) -> bool {
        self.pipe.is_none() || (self.finished && self.queue.is_empty())
    }

    /// Whether the other end broke the connection off. Reading from it then looks like its end.
    pub fn was_reset(&self) -> bool {
        self.reset
    }

    /// Our end, if something waits for it.
    pub fn blocked(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().filter(|_| !self.queue.is_empty()).map(AsFd::as_fd)
    }

    /// Writes until the queue is empty or the other end is full. Credit goes back frame by frame.
    pub fn write(&mut self, lane: &mut Lane, out: &mut Encoder) {
        while let (Some(pipe), Some(frame)) = (&self.pipe, self.queue.front()) {
            match rustix::io::write(pipe, &frame[self.written..]) {
                Ok(n) => self.written += n,
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => return,
                // Nobody wants more. What comes is dropped, as in a shell.
                Err(errno) => {
                    self.reset = errno == Errno::CONNRESET;
                    self.pipe = None;
                }
            }
            if self.written == frame.len() {
                lane.used(out, frame.len());
                self.queue.pop_front();
                self.written = 0;
            }
        }
        if self.pipe.is_none() {
            self.written = 0;
            for frame in self.queue.drain(..) {
                lane.used(out, frame.len());
            }
        }
    }
}
