//! The two ends of an attached command on our side: where its input comes from and where its
//! output goes.

use std::io::{self, IsTerminal, Read};

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::output::write_error;

/// How much of standard input is read at once.
const READ_LEN: usize = 64 << 10;
/// How much output of one stream is kept for a report.
const KEPT_LIMIT: usize = 64 << 20;

/// Where a command's standard input comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// Nothing: it is closed at once.
    Closed,
    /// Our own standard input.
    Stdin,
}

impl Input {
    /// Our standard input, unless `unwanted` or reading it would stop us: a background job that
    /// reads from its terminal is stopped by the kernel.
    pub fn choose(unwanted: bool) -> Self {
        let stdin = io::stdin();
        let in_background = stdin.is_terminal()
            && rustix::termios::tcgetpgrp(&stdin)
                .is_ok_and(|group| group != rustix::process::getpgrp());
        if unwanted || in_background { Self::Closed } else { Self::Stdin }
    }

    pub(super) fn into_stream(self) -> BoxStream<'static, Bytes> {
        match self {
            Self::Closed => stream::empty().boxed(),
            Self::Stdin => stdin_stream().boxed(),
        }
    }
}

/// Standard input, read by a thread of its own: a read from a terminal or pipe cannot be taken
/// back, and a thread of the runtime that hangs in one would keep the process from ending.
fn stdin_stream() -> impl futures_util::Stream<Item = Bytes> + Send {
    // One piece under way and one in hand: enough to stream, and it reads ahead only little.
    let (sender, mut receiver) = mpsc::channel(1);
    std::thread::spawn(move || {
        let mut stdin = io::stdin().lock();
        let mut buffer = vec![0; READ_LEN];
        loop {
            match stdin.read(&mut buffer) {
                Ok(0) => return,
                Ok(length) => {
                    let piece = Bytes::copy_from_slice(buffer.get(..length).unwrap_or_default());
                    if sender.blocking_send(piece).is_err() {
                        return;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    tracing::warn!(%error, "standard input ended early");
                    return;
                }
            }
        }
    });
    stream::poll_fn(move |context| receiver.poll_recv(context))
}

/// Where a command's output goes.
pub enum Output {
    /// To our own standard streams, byte for byte.
    Through {
        /// Our standard output.
        stdout: tokio::io::Stdout,
        /// Our standard error.
        stderr: tokio::io::Stderr,
    },
    /// Into memory, for a report.
    Keep(Kept),
}

/// Output in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// Whether there was more than is kept.
    pub truncated: bool,
}

impl Output {
    /// Output that goes to our own standard streams.
    pub fn through() -> Self {
        Self::Through { stdout: tokio::io::stdout(), stderr: tokio::io::stderr() }
    }

    pub(super) async fn stdout(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        match self {
            Self::Through { stdout, .. } => pass(stdout, bytes).await,
            Self::Keep(kept) => {
                kept.truncated |= !keep(&mut kept.stdout, bytes);
                Ok(())
            }
        }
    }

    pub(super) async fn stderr(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        match self {
            Self::Through { stderr, .. } => pass(stderr, bytes).await,
            Self::Keep(kept) => {
                kept.truncated |= !keep(&mut kept.stderr, bytes);
                Ok(())
            }
        }
    }
}

/// Writes `bytes` and waits until they are taken, which is what slows the guest down when our
/// reader is slow.
async fn pass(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> anyhow::Result<()> {
    stream.write_all(bytes).await.map_err(write_error)?;
    stream.flush().await.map_err(write_error)
}

/// Adds what fits of `bytes`, and says whether that was all.
fn keep(kept: &mut Vec<u8>, bytes: &[u8]) -> bool {
    let room = KEPT_LIMIT - kept.len();
    let fitting = bytes.get(..room).unwrap_or(bytes);
    kept.extend_from_slice(fitting);
    fitting.len() == bytes.len()
}
