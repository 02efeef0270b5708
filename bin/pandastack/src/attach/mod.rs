//! One command in a sandbox with our standard streams attached to it.
//!
//! The request's body is a line of JSON and then standard input, for as long as there is any; the
//! answer begins at once and brings [`frames`] until the command ends. Both directions hold
//! back: we read no more of the answer than our output takes, and no more of standard input than
//! the connection takes. Dropping the work closes the connection, and the server then kills the
//! command.

mod frames;
mod streams;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::Method;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame as BodyFrame;
use pandastack_types::{ExecRequest, SandboxId};

use crate::client::{Client, RequestBody};
use frames::{Decoder, Frame};

pub use frames::Exit;
pub use streams::{Input, Kept, Output};

/// Runs `request` in the sandbox `id`, feeds it `input` and gives `output` what it prints.
pub async fn attach(
    client: &Client,
    id: SandboxId,
    request: &ExecRequest,
    input: Input,
    output: &mut Output,
) -> anyhow::Result<Exit> {
    let path = format!("/v1/sandboxes/{id}/exec/attach");
    let body = request_body(request, input.into_stream())?;
    let mut reply =
        client.open(Method::POST, &path, Some("application/octet-stream"), body).await?;
    let mut decoder = Decoder::default();
    while let Some(bytes) = reply.chunk().await? {
        decoder.feed(&bytes);
        while let Some(frame) = decoder.next()? {
            match frame {
                Frame::Stdout(bytes) => output.stdout(&bytes).await?,
                Frame::Stderr(bytes) => output.stderr(&bytes).await?,
                Frame::Exit(exit) => return Ok(exit),
                Frame::Error(error) => bail!(error),
            }
        }
    }
    // A stream that ends without a verdict is never a success.
    bail!("the server closed the connection before the command's end was known")
}

fn request_body(
    request: &ExecRequest,
    input: impl Stream<Item = Bytes> + Send + 'static,
) -> anyhow::Result<RequestBody> {
    let mut line = serde_json::to_vec(request).context("cannot write the request")?;
    line.push(b'\n');
    let pieces = stream::once(async move { Bytes::from(line) }).chain(input);
    Ok(StreamBody::new(pieces.map(|piece| Ok(BodyFrame::data(piece)))).boxed_unsync())
}
