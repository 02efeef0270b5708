//! A small blocking client that hides nothing: every answer comes back, errors too.

use std::io::Read;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::Sandbox;
use crate::surroundings::{deadline, seconds};

/// Talks to one server with one key. Each clone has its own connections.
#[derive(Clone)]
pub struct Client {
    agent: ureq::Agent,
    url: String,
    key: String,
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Header `Retry-After`, if there was one.
    pub retry_after: Option<String>,
    /// Header `Server-Timing`, if there was one.
    pub server_timing: Option<String>,
    /// Body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON, or null.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The flat error text, or the empty string.
    pub fn error(&self) -> String {
        self.json()["error"].as_str().unwrap_or_default().to_owned()
    }
}

impl Client {
    /// A client of the server at `url`; an empty `key` sends none.
    pub fn new(url: &str, key: &str) -> Self {
        Self::with_timeout(url, key, Some(deadline(Duration::from_secs(400))))
    }

    /// The same server, for answers that take as long as they take.
    pub fn patient(&self) -> Self {
        Self::with_timeout(&self.url, &self.key, None)
    }

    fn with_timeout(url: &str, key: &str, timeout: Option<Duration>) -> Self {
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(timeout)
            .build()
            .into();
        Self { agent, url: url.into(), key: key.into() }
    }

    /// The same server with another key.
    pub fn with_key(&self, key: &str) -> Self {
        Self::new(&self.url, key)
    }

    /// `GET`.
    pub fn get(&self, path: &str) -> Result<Answer> {
        self.send("GET", path, None)
    }

    /// `DELETE`.
    pub fn delete(&self, path: &str) -> Result<Answer> {
        self.send("DELETE", path, None)
    }

    /// `POST` of a JSON body; null sends none.
    pub fn post(&self, path: &str, body: &Value) -> Result<Answer> {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        self.send("POST", path, Some(("application/json", &body)))
    }

    /// `PATCH` of a JSON body.
    pub fn patch(&self, path: &str, body: &Value) -> Result<Answer> {
        self.send("PATCH", path, Some(("application/json", body.to_string().as_bytes())))
    }

    /// `PUT` of bytes.
    pub fn put(&self, path: &str, body: &[u8]) -> Result<Answer> {
        self.send("PUT", path, Some(("application/octet-stream", body)))
    }

    /// Any method with any body.
    pub fn send(&self, method: &str, path: &str, body: Option<(&str, &[u8])>) -> Result<Answer> {
        let mut response = self.open(method, path, body)?;
        let header = |name: &str| {
            response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned)
        };
        let (retry_after, server_timing) = (header("retry-after"), header("server-timing"));
        let status = response.status().as_u16();
        let mut bytes = Vec::new();
        response.body_mut().as_reader().read_to_end(&mut bytes)?;
        Ok(Answer { status, retry_after, server_timing, body: bytes })
    }

    /// Sends a request and hands back the response while its body is still coming.
    pub fn open(
        &self,
        method: &str,
        path: &str,
        body: Option<(&str, &[u8])>,
    ) -> Result<ureq::http::Response<ureq::Body>> {
        let mut request =
            ureq::http::Request::builder().method(method).uri(format!("{}{path}", self.url));
        if !self.key.is_empty() {
            request = request.header("authorization", format!("Bearer {}", self.key));
        }
        let response = match body {
            Some((kind, bytes)) => {
                self.agent.run(request.header("content-type", kind).body(bytes.to_vec())?)
            }
            None => self.agent.run(request.body(())?),
        };
        response.with_context(|| format!("{method} {path}"))
    }

    /// Creates a sandbox, which must succeed.
    pub fn create(&self, body: &Value) -> Result<Sandbox> {
        let answer = self.post("/v1/sandboxes", body)?;
        if answer.status != 201 {
            bail!("create answered {} {}", answer.status, answer.text());
        }
        self.made(&answer)
    }

    /// The sandbox of a create that was answered 201.
    pub fn made(&self, answer: &Answer) -> Result<Sandbox> {
        let object = answer.json();
        let id = object["id"].as_str().context("a sandbox has an id")?.to_owned();
        let server_timing = answer.server_timing.clone();
        Ok(Sandbox { client: self.clone(), id, object, server_timing })
    }

    /// Creates a `base` sandbox.
    pub fn base(&self) -> Result<Sandbox> {
        self.create(&json!({ "template": "base", "ttl_seconds": seconds(600) }))
    }

    /// Creates a sandbox of a snapshot.
    pub fn thaw(&self, snapshot: &str) -> Result<Sandbox> {
        self.create(&json!({ "from_snapshot": snapshot, "ttl_seconds": seconds(600) }))
    }
}
