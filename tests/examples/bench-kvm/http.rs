//! As much HTTP/1.1 as a monitor's API socket speaks: one request at a time, bodies of JSON.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::PATIENCE;

/// Longest response.
const MAX_RESPONSE: usize = 64 << 10;

/// A connection to an API socket.
pub struct Api {
    stream: UnixStream,
}

impl Api {
    /// Connects to a socket that somebody listens on.
    pub async fn connect(path: &Path) -> std::io::Result<Self> {
        Ok(Self { stream: UnixStream::connect(path).await? })
    }

    /// Asks for something that is answered with nothing.
    pub async fn ask(&mut self, method: &str, path: &str, body: &Value) -> Result<()> {
        let asked = timeout(PATIENCE, self.exchange(method, path, &body.to_string())).await;
        asked.context("no answer in time")?.with_context(|| format!("{method} {path}"))
    }

    async fn exchange(&mut self, method: &str, path: &str, body: &str) -> Result<()> {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.stream.write_all(request.as_bytes()).await?;
        let mut response = Vec::new();
        while !response.windows(4).any(|end| end == b"\r\n\r\n") {
            ensure!(response.len() < MAX_RESPONSE, "a response without an end");
            ensure!(self.stream.read_buf(&mut response).await? > 0, "it hung up");
        }
        let text = String::from_utf8_lossy(&response);
        if text.split(' ').nth(1) != Some("204") {
            bail!("{text}");
        }
        Ok(())
    }
}
