//! Attempts from within a guest: `probe.py`, many at once.

use std::fmt;
use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use pandastack_tests::{Client, Sandbox, seconds};
use serde_json::{Value, json};

const PROGRAM: &str = include_str!("probe.py");

/// One attempt, and what it is called in a failure.
#[derive(Clone, Debug)]
pub struct Probe(Value);

/// What came of an attempt.
#[derive(Clone)]
pub struct Outcome {
    /// The attempt.
    pub probe: Probe,
    /// Whether somebody answered.
    pub ok: bool,
    /// What was answered.
    pub text: String,
    /// Everything.
    pub value: Value,
}

impl Probe {
    /// Asks the system for the addresses of a name.
    pub fn resolve(name: &str) -> Self {
        Self(json!({ "do": "resolve", "name": name }))
    }

    /// Asks the gateway for records of a name.
    pub fn dns(name: &str, kind: u16) -> Self {
        Self(json!({ "do": "dns", "name": name, "kind": kind }))
    }

    /// Asks somebody else.
    pub fn dns_at(address: &str, port: u16, name: &str, kind: u16) -> Self {
        Self::dns(name, kind).with("address", address).with("port", port)
    }

    /// Connects and says something; done when anything is answered. Where the gateway may answer
    /// in the place of the server, say what the server's answer has in it.
    pub fn tcp(address: &str, port: u16, text: &[u8]) -> Self {
        Self(json!({ "do": "tcp", "address": address, "port": port, "send": hex(text) }))
    }

    /// A request of HTTP at an address.
    pub fn http(address: &str, host: &str, path: &str) -> Self {
        Self::tcp(address, 80, request("GET", host, path).as_bytes()).with("until", "received=")
    }

    /// A handshake of TLS with a server name, and a request in it.
    pub fn tls(address: &str, name: &str) -> Self {
        let name = if name.is_empty() { Value::Null } else { json!(name) };
        let request = request("GET", "inside.lab", "/");
        Self(json!({ "do": "tls", "address": address, "name": name, "request": request }))
    }

    /// A datagram; done when one comes back.
    pub fn udp(address: &str, port: u16, text: &[u8]) -> Self {
        Self(json!({ "do": "udp", "address": address, "port": port, "send": hex(text) }))
    }

    /// An echo request with a body.
    pub fn ping(address: &str, body: &[u8]) -> Self {
        Self(json!({ "do": "ping", "address": address, "body": hex(body) }))
    }

    /// A frame; done when one comes back that has `heard` in it.
    pub fn frame(frame: &[u8], heard: &[u8]) -> Self {
        Self(json!({ "do": "frame", "send": hex(frame), "heard": hex(heard) }))
    }

    /// The same with another member.
    pub fn with(mut self, member: &str, value: impl Into<Value>) -> Self {
        self.0[member] = value.into();
        self
    }

    /// The same with time enough for something that works, unless it says how much it has.
    pub fn patient(self) -> Self {
        if self.0["timeout"].is_null() { self.with("timeout", seconds(15)) } else { self }
    }

    /// The same, over before those after it begin.
    pub fn alone(self) -> Self {
        self.with("alone", true)
    }
}

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\n  {} => {}", self.probe.0, self.value)
    }
}

/// A request as it is on the wire.
pub fn request(method: &str, host: &str, path: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")
}

/// Bytes as text.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Makes attempts, all at the same time.
pub fn attempt(client: &Client, sandbox: &Sandbox, probes: &[Probe]) -> Result<Vec<Outcome>> {
    let tasks: Vec<_> = probes.iter().map(|probe| &probe.0).collect();
    let body = json!({
        "argv": ["python3", "-c", PROGRAM],
        "stdin": serde_json::to_string(&tasks)?,
        "timeout_seconds": seconds(60),
    });
    let answer = client.post(&sandbox.path("/exec"), &body)?;
    ensure!(answer.status == 200, "exec answered {} {}", answer.status, answer.text());
    let result = answer.json();
    ensure!(result["exit_code"] == 0, "the probe ended with {result}");
    outcomes(probes, result["stdout"].as_str().context("its output")?)
}

/// Makes attempts on the host, in the namespace of the calling thread.
pub fn here(probes: &[Probe]) -> Result<Vec<Outcome>> {
    let mut command = Command::new("python3");
    command.args(["-c", PROGRAM]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn()?;
    let tasks: Vec<_> = probes.iter().map(|probe| &probe.0).collect();
    child.stdin.take().context("stdin")?.write_all(&serde_json::to_vec(&tasks)?)?;
    let output = child.wait_with_output()?;
    outcomes(probes, &String::from_utf8(output.stdout)?)
}

fn outcomes(probes: &[Probe], text: &str) -> Result<Vec<Outcome>> {
    let values: Vec<Value> = serde_json::from_str(text)?;
    if values.len() != probes.len() {
        bail!("{} outcomes of {} attempts", values.len(), probes.len());
    }
    let outcomes = probes.iter().zip(values).map(|(probe, value)| Outcome {
        probe: probe.clone(),
        ok: value["ok"] == true,
        text: value["text"].as_str().unwrap_or_default().to_owned(),
        value,
    });
    Ok(outcomes.collect())
}
