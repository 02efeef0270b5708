//! The real agent in development mode, and a client for it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "each test file uses a part")]

pub mod raw;

use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Child, Command};
use std::time::Duration;

use pandastack_engine::agent::{AgentClient, ExecEvent, ExecOutput, ExecSession, ExecSpec};
use tokio::net::UnixStream;

/// A running agent. Ends with its client.
pub struct Agent {
    pub client: AgentClient,
    pub process: Child,
}

impl Agent {
    /// Starts an agent and greets it.
    pub async fn start() -> Self {
        let (ours, process) = spawn();
        ours.set_nonblocking(true).unwrap();
        let client = AgentClient::connect(UnixStream::from_std(ours).unwrap());
        let info = client.hello(Duration::from_secs(10)).await.unwrap();
        assert!(!info.init);
        Self { client, process }
    }

    /// Runs a shell line to its end.
    pub async fn sh(&self, line: &str) -> ExecOutput {
        self.client.run(shell(line)).await.unwrap()
    }

    /// Number of open descriptors of the agent.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.process.id())).unwrap().count()
    }

    /// States of the agent's children, such as `Z`.
    pub fn children(&self) -> Vec<String> {
        let path = format!("/proc/{0}/task/{0}/children", self.process.id());
        let list = std::fs::read_to_string(path).unwrap();
        let state = |pid: &str| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            Some(stat.rsplit_once(") ")?.1.chars().take(1).collect())
        };
        list.split_whitespace().filter_map(state).collect()
    }

    /// Resident memory of the agent in KiB.
    pub fn resident_kib(&self) -> u64 {
        let path = format!("/proc/{}/status", self.process.id());
        let status = std::fs::read_to_string(path).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Starts the agent's program with one end of a socket pair, and returns the other.
pub fn spawn() -> (std::os::unix::net::UnixStream, Child) {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    // Without CLOEXEC in a copy: that is what the child inherits.
    let theirs: OwnedFd = rustix::io::dup(&theirs).unwrap();
    let process = Command::new(env!("CARGO_BIN_EXE_panda-agent"))
        .args(["--socket-fd", &theirs.as_raw_fd().to_string()])
        .env("LEAK", "from the agent's own environment")
        .spawn()
        .unwrap();
    (ours, process)
}

/// A shell line.
pub fn shell(line: &str) -> ExecSpec {
    ExecSpec { shell: Some(line.to_owned()), ..ExecSpec::default() }
}

/// The exact arguments.
pub fn argv(words: &[&str]) -> ExecSpec {
    let argv = words.iter().map(|&word| word.to_owned()).collect();
    ExecSpec { argv: Some(argv), ..ExecSpec::default() }
}

/// Takes everything until the exit, without a limit: stdout and the exit code.
pub async fn drain(session: &mut ExecSession) -> (Vec<u8>, i32) {
    let mut stdout = Vec::new();
    loop {
        match session.next().await.unwrap().unwrap() {
            ExecEvent::Stdout(bytes) => stdout.extend_from_slice(&bytes),
            ExecEvent::Stderr(_) => {}
            ExecEvent::Exit(status) => return (stdout, status.code),
        }
    }
}

/// Output as text.
pub fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Waits until no process has `word` among its arguments.
pub async fn gone(word: &str) -> bool {
    for _ in 0..200 {
        if !runs(word) {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}

/// Whether a process has `word` among its arguments.
pub fn runs(word: &str) -> bool {
    std::fs::read_dir("/proc").unwrap().flatten().any(|entry| {
        let arguments = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        arguments.split(|&b| b == 0).any(|argument| argument == word.as_bytes())
    })
}
