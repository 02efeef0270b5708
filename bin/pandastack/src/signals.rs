//! The signals that ask the program to end.

use std::future::Future;

use anyhow::Context as _;
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

use crate::status::Status;

/// A request to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// The terminal went away.
    Hangup,
    /// Ctrl-C.
    Interrupt,
    /// `kill`, or a service manager.
    Terminate,
}

impl Signal {
    /// Its number, for the exit status.
    pub fn number(self) -> u8 {
        match self {
            Signal::Hangup => 1,
            Signal::Interrupt => 2,
            Signal::Terminate => 15,
        }
    }
}

/// Work was given up because a signal asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted(pub Signal);

/// Receives the signals; while it exists they no longer end the process by themselves.
pub struct Signals {
    hangup: Stream,
    interrupt: Stream,
    terminate: Stream,
}

impl Signals {
    /// Takes the signals over.
    pub fn listen() -> anyhow::Result<Self> {
        let take = |kind| signal(kind).context("cannot receive signals");
        Ok(Self {
            hangup: take(SignalKind::hangup())?,
            interrupt: take(SignalKind::interrupt())?,
            terminate: take(SignalKind::terminate())?,
        })
    }

    /// Resolves with the next signal.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.hangup.recv() => Signal::Hangup,
            _ = self.interrupt.recv() => Signal::Interrupt,
            _ = self.terminate.recv() => Signal::Terminate,
        }
    }

    /// Does `work`, and gives it up at the first signal.
    pub async fn unless_interrupted<T>(
        &mut self,
        work: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<T> {
        tokio::select! {
            outcome = work => outcome,
            signal = self.next() => Err(Interrupted(signal).into()),
        }
    }

    /// Does clean-up `work` that should not be given up; a signal meanwhile means that the user
    /// will not wait for it, and ends the process at once.
    pub async fn cleaning_up<T>(&mut self, work: impl Future<Output = T>) -> T {
        tokio::select! {
            outcome = work => outcome,
            signal = self.next() => std::process::exit(Status::of_signal(signal.number()).into()),
        }
    }
}
