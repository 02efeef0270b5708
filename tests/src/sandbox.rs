//! A sandbox as a test holds it: every operation of the API, most of which must succeed.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::process::wait_until;
use crate::surroundings::seconds;
use crate::{Answer, Client};

/// A sandbox of one client.
#[derive(Clone)]
pub struct Sandbox {
    pub(crate) client: Client,
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

    /// Runs a shell line, which on an ordinary host gets `timeout_seconds`; any answer.
    pub fn try_exec(&self, cmd: &str, timeout_seconds: u64) -> Result<Answer> {
        let body = json!({ "cmd": cmd, "timeout_seconds": seconds(timeout_seconds) });
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

    /// Forks it, into one child with a policy of its own.
    pub fn fork_with(&self, egress: &Value) -> Result<Sandbox> {
        let body = json!({ "count": 1, "egress": egress });
        let answer = self.client.post(&self.path("/fork"), &body)?;
        if answer.status != 201 {
            bail!("fork answered {} {}", answer.status, answer.text());
        }
        let object = answer.json()["sandbox"].clone();
        let id = object["id"].as_str().context("a child has an id")?.to_owned();
        Ok(Sandbox { client: self.client.clone(), id, object, server_timing: answer.server_timing })
    }

    /// Takes a snapshot of it; its id.
    pub fn snapshot(&self) -> Result<String> {
        let answer = self.client.post(&self.path("/snapshots"), &Value::Null)?;
        if answer.status != 201 {
            bail!("the snapshot answered {} {}", answer.status, answer.text());
        }
        Ok(answer.json()["id"].as_str().context("a snapshot has an id")?.to_owned())
    }

    /// Stops its processors.
    pub fn pause(&self) -> Result<()> {
        self.order("/pause")
    }

    /// Lets them go on.
    pub fn resume(&self) -> Result<()> {
        self.order("/resume")
    }

    /// The same sandbox of another server, which found it in the data directory.
    pub fn under(&self, client: &Client) -> Self {
        Self { client: client.clone(), ..self.clone() }
    }

    /// Makes files of it.
    pub fn hibernate(&self) -> Result<()> {
        self.order("/hibernate")
    }

    /// Makes a machine of it again.
    pub fn wake(&self) -> Result<()> {
        self.order("/wake")
    }

    fn order(&self, order: &str) -> Result<()> {
        let answer = self.client.post(&self.path(order), &Value::Null)?;
        if !matches!(answer.status, 200 | 204) {
            bail!("{order} answered {} {}", answer.status, answer.text());
        }
        Ok(())
    }

    /// Writes a file in it.
    pub fn write(&self, path: &str, content: &[u8]) -> Result<()> {
        let answer = self.client.put(&self.path(&format!("/fs?path={path}")), content)?;
        if answer.status != 200 {
            bail!("writing {path} answered {} {}", answer.status, answer.text());
        }
        Ok(())
    }

    /// What is in a directory of it; any answer.
    pub fn list(&self, path: &str) -> Result<Answer> {
        self.client.get(&self.path(&format!("/fs/dir?path={path}")))
    }

    /// Sends a request about it, with a JSON body or none, and hands back the response while its
    /// body is still coming.
    pub fn open(
        &self,
        method: &str,
        rest: &str,
        body: Option<&Value>,
    ) -> Result<ureq::http::Response<ureq::Body>> {
        let body = body.map(|body| body.to_string().into_bytes());
        let body = body.as_deref().map(|bytes| ("application/json", bytes));
        self.client.open(method, &self.path(rest), body)
    }

    /// Waits until it has ended by itself, and tells why.
    pub fn end_reason(&self) -> Result<String> {
        let failed = || self.status().is_ok_and(|status| status == "failed");
        if !wait_until(Duration::from_secs(30), failed) {
            bail!("it is {} and not failed", self.status()?);
        }
        Ok(self.get()?.json()["end_reason"].as_str().unwrap_or_default().to_owned())
    }

    /// Process id of its machine.
    pub fn pid(&self) -> Result<u32> {
        let metrics = self.client.get(&self.path("/metrics"))?.json();
        let pid = metrics["pid"].as_u64();
        Ok(pid.with_context(|| format!("a machine has a process: {metrics}"))?.try_into()?)
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
