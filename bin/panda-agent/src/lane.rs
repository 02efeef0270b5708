//! A stream's windows, and what a job says after a piece of work.

use pandastack_proto::{Channel, Encoder, Outcome, RecvWindow, SendWindow, WindowError};

/// Most bytes moved in one go, so that streams take turns.
pub const CHUNK: usize = 32 * 1024;
/// When so much waits for the host, nothing more is read from anywhere.
const HIGH_WATER: usize = 256 * 1024;

/// What a job says after a piece of work.
#[derive(Debug)]
pub enum Progress {
    /// It waits for a descriptor, for data or for credit.
    Waiting,
    /// It could go on at once.
    Ready,
    /// It is over, and this is the reply.
    Done(Outcome),
}

/// The way to the host of one stream.
pub struct Lane {
    pub id: u32,
    send: SendWindow,
    recv: RecvWindow,
}

impl Lane {
    pub fn new(id: u32) -> Self {
        Self { id, send: SendWindow::default(), recv: RecvWindow::default() }
    }

    /// How many bytes may be sent now.
    pub fn room(&self, out: &Encoder) -> usize {
        if out.len() >= HIGH_WATER { 0 } else { self.send.allowance().min(CHUNK) }
    }

    /// Whether a frame of `n` bytes may be sent now.
    pub fn fits(&self, out: &Encoder, n: usize) -> bool {
        out.len() < HIGH_WATER && self.send.allowance() >= n
    }

    /// Sends what `fill` reads, at most `max` bytes, and returns how many it were.
    pub fn send_with(
        &mut self,
        out: &mut Encoder,
        channel: Channel,
        max: usize,
        fill: impl FnOnce(&mut [u8]) -> rustix::io::Result<usize>,
    ) -> rustix::io::Result<usize> {
        let mut errno = None;
        let sent = out.data_with(self.id, channel, max, |buf| {
            fill(buf).map_err(|e| {
                errno = Some(e);
                e.into()
            })
        });
        match sent {
            Ok(0) => Ok(0),
            Ok(n) => {
                self.send.spend(n);
                Ok(n)
            }
            Err(_) => Err(errno.unwrap_or(rustix::io::Errno::IO)),
        }
    }

    /// Notes that a frame of `n` bytes was sent by other means.
    pub fn sent(&mut self, n: usize) {
        self.send.spend(n);
    }

    /// Credit from the host.
    pub fn granted(&mut self, credit: u32) -> Result<(), WindowError> {
        self.send.grant(credit)
    }

    /// A frame of `n` bytes arrived.
    pub fn arrived(&mut self, n: usize) -> Result<(), WindowError> {
        self.recv.take(n)
    }

    /// A frame of `n` bytes was used up.
    pub fn used(&mut self, out: &mut Encoder, n: usize) {
        if let Some(credit) = self.recv.release(n) {
            out.credit(self.id, credit);
        }
    }
}
