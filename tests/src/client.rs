//! A small blocking client that hides nothing: every answer comes back, errors too.

use std::io::Read;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

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
        Self::with_timeout(url, key, Some(Duration::from_secs(400)))
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
        let object = answer.json();
        let id = object["id"].as_str().context("a sandbox has an id")?.to_owned();
        let server_timing = answer.server_timing;
        Ok(Sandbox { client: self.clone(), id, object, server_timing })
    }

    /// Creates a `base` sandbox.
    pub fn base(&self) -> Result<Sandbox> {
        self.create(&json!({ "template": "base", "ttl_seconds": 600 }))
    }
}

/// A sandbox of one client.
#[derive(Clone)]
pub struct Sandbox {
    client: Client,
    /// Its id.
    pub id: String,
    /// What create answered.
    pub object: Value,
    /// Stages of the create.
    pub server_timing: Option<String>,
}

impl Sandbox {
    /// `/v1/sandboxes/{id}` and what follows.
    pub fn path(&self, rest: &str) -> String {
        format!("/v1/sandboxes/{}{rest}", self.id)
    }

    /// Runs a shell line; any answer.
    pub fn try_exec(&self, cmd: &str, timeout_seconds: u64) -> Result<Answer> {
        let body = json!({ "cmd": cmd, "timeout_seconds": timeout_seconds });
        self.client.post(&self.path("/exec"), &body)
    }

    /// Runs a shell line, which must get a result; its object.
    pub fn exec(&self, cmd: &str) -> Result<Value> {
        let answer = self.try_exec(cmd, 60)?;
        if answer.status != 200 {
            bail!("exec of {cmd:?} answered {} {}", answer.status, answer.text());
        }
        Ok(answer.json())
    }

    /// Runs a shell line that must end with 0; its standard output.
    pub fn output(&self, cmd: &str) -> Result<String> {
        let result = self.exec(cmd)?;
        if result["exit_code"] != json!(0) {
            bail!("{cmd:?} ended with {result}");
        }
        Ok(result["stdout"].as_str().unwrap_or_default().to_owned())
    }

    /// Forks it; the children in order.
    pub fn fork(&self, count: usize) -> Result<Vec<Sandbox>> {
        Ok(self.fork_tree(count)?.children)
    }

    /// Forks it, with what the server says of it.
    pub fn fork_tree(&self, count: usize) -> Result<Tree> {
        let answer = self.client.post(&self.path("/fork-tree"), &json!({ "count": count }))?;
        if answer.status != 201 {
            bail!("fork answered {} {}", answer.status, answer.text());
        }
        let object = answer.json();
        let children = object["children"].as_array().cloned().unwrap_or_default();
        if children.len() != count {
            bail!("{} of {count} children: {object}", children.len());
        }
        let child = |object: Value| {
            let id = object["id"].as_str().context("a child has an id")?.to_owned();
            let server_timing = answer.server_timing.clone();
            Ok(Sandbox { client: self.client.clone(), id, object, server_timing })
        };
        let children = children.into_iter().map(child).collect::<Result<_>>()?;
        Ok(Tree { children, object, server_timing: answer.server_timing.clone() })
    }

    /// Process id of its machine.
    pub fn pid(&self) -> Result<u32> {
        let metrics = self.client.get(&self.path("/metrics"))?.json();
        Ok(metrics["pid"].as_u64().context("a machine has a process")?.try_into()?)
    }

    /// Its object as of now.
    pub fn get(&self) -> Result<Answer> {
        self.client.get(&self.path(""))
    }

    /// Ends it.
    pub fn delete(&self) -> Result<Answer> {
        self.client.delete(&self.path(""))
    }

    /// Its status as of now, or the empty string once it is gone.
    pub fn status(&self) -> Result<String> {
        Ok(self.get()?.json()["status"].as_str().unwrap_or_default().to_owned())
    }
}

/// Children of one fork.
#[derive(Clone)]
pub struct Tree {
    /// In the order of their index.
    pub children: Vec<Sandbox>,
    /// What the server answered.
    pub object: Value,
    /// Stages of the fork.
    pub server_timing: Option<String>,
}
