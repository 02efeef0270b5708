//! The body of a request on its way to a guest, and whose turn it is.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use tokio::time::Instant;

/// Who is being waited for, and since when.
#[derive(Clone, Debug)]
pub(super) struct Progress(Arc<Mutex<(Turn, Instant)>>);

/// Whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// The client's, to send more.
    Client,
    /// The guest's, to take what there is, or to answer.
    Guest,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new((Turn::Guest, Instant::now()))))
    }

    fn note(&self, turn: Turn, moved: bool) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0 != turn || moved {
            *state = (turn, Instant::now());
        }
    }

    /// Returns whose fault it is once nothing has moved for `limit`.
    pub(super) async fn stalled(&self, limit: Duration) -> Turn {
        loop {
            let (turn, since) = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if since.elapsed() >= limit {
                return turn;
            }
            tokio::time::sleep_until(since + limit).await;
        }
    }
}

/// A request's body that says when it moves. It is handed on piece by piece; trailers are not.
pub(super) struct Upload {
    body: Body,
    progress: Progress,
}

impl Upload {
    pub(super) fn new(body: Body, progress: Progress) -> Self {
        Self { body, progress }
    }
}

impl hyper::body::Body for Upload {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        loop {
            let frame = Pin::new(&mut self.body).poll_frame(cx);
            let turn = if frame.is_pending() { Turn::Client } else { Turn::Guest };
            self.progress.note(turn, frame.is_ready());
            match frame {
                Poll::Ready(Some(Ok(frame))) if !frame.is_data() => {}
                other => return other,
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
