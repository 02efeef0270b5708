//! Servers in real guests, seen from outside.

mod hostile;
mod ways;
mod wire;

use anyhow::{Context, Result, bail};
use pandastack_tests::{Client, Options, Sandbox, Server, seconds, wait_until};
use serde_json::{Value, json};
use std::time::Duration;

use wire::{Reply, Wire};

/// A server with one sandbox that has Python.
struct Scene {
    server: Server,
    client: Client,
    sandbox: Sandbox,
}

impl Scene {
    fn new(options: Options) -> Result<Self> {
        let server = Server::start(options)?;
        let client = server.client();
        let body = json!({ "template": "code-interpreter", "ttl_seconds": seconds(1200) });
        let sandbox = client.create(&body)?;
        Ok(Self { server, client, sandbox })
    }

    fn wire(&self) -> Wire {
        Wire::new(self.server.url())
    }

    /// Runs a Python program in the background until something listens on `port`.
    fn start(&self, port: u16, program: &str) -> Result<()> {
        let path = format!("/root/server-{port}.py");
        self.sandbox.write(&path, program.as_bytes())?;
        self.background(port, &format!("python3 {path}"))
    }

    fn background(&self, port: u16, command: &str) -> Result<()> {
        let log = format!("/root/{port}.log");
        self.sandbox.output(&format!("setsid {command} </dev/null >{log} 2>&1 &"))?;
        let listens = || self.ports().is_ok_and(|ports| ports.contains(&port));
        if wait_until(Duration::from_secs(seconds(60)), listens) {
            return Ok(());
        }
        bail!("nothing listens on {port}: {}", self.sandbox.output(&format!("cat {log}"))?)
    }

    /// What listens in the guest.
    fn ports(&self) -> Result<Vec<u16>> {
        let listed = self.client.get(&self.sandbox.path("/ports"))?.json();
        let listening = listed.as_array().into_iter().flatten().filter(|p| p["listening"] == true);
        Ok(listening.filter_map(|p| p["port"].as_u64()?.try_into().ok()).collect())
    }

    /// The host of a port's own site.
    fn site(&self, port: u16) -> String {
        format!("{port}-{}.localhost", self.sandbox.id)
    }

    /// Below the API, with the key.
    fn with_key(&self, port: u16, path: &str) -> Result<pandastack_tests::Answer> {
        self.client.get(&self.sandbox.path(&format!("/proxy/{port}{path}")))
    }

    fn post(&self, route: &str, body: &Value) -> Result<Value> {
        let answer = self.client.post(&self.sandbox.path(route), body)?;
        if !(200..300).contains(&answer.status) {
            bail!("{route} answered {} {}", answer.status, answer.text());
        }
        Ok(answer.json())
    }

    fn traffic_token(&self) -> Result<String> {
        let answer = self.client.get(&self.sandbox.path("/traffic-token"))?.json();
        Ok(answer["traffic_token"].as_str().context("a token")?.to_owned())
    }
}

fn said(reply: &Reply, status: u16, text: &str) {
    assert_eq!(reply.status, status, "{reply:?}");
    assert!(reply.text().contains(text), "{reply:?}");
}
