//! Starting the program.

use std::process::{Output, Stdio};

use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};

/// The program with a home directory of its own, and nothing of this user's environment.
pub struct Program {
    home: TempDir,
    api: Option<String>,
}

impl Program {
    /// A program that finds no server.
    pub fn alone() -> Self {
        Self { home: tempfile::tempdir().unwrap(), api: None }
    }

    /// A program that talks to the server at `url`.
    pub fn of(url: &str) -> Self {
        Self { api: Some(url.to_owned()), ..Self::alone() }
    }

    /// Its home directory.
    pub fn home(&self) -> &std::path::Path {
        self.home.path()
    }

    /// A command, with its streams piped.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pandastack"));
        command.args(args).env_clear().env("HOME", self.home.path()).kill_on_drop(true);
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        if let Some(api) = &self.api {
            command.env("PANDASTACK_API", api).env("PANDASTACK_API_KEY", crate::fake::KEY);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs it to its end.
    pub async fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().await.unwrap()
    }

    /// Runs it to its end with this standard input.
    pub async fn run_with(&self, args: &[&str], input: Vec<u8>) -> Output {
        let mut child = self.command(args).stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        tokio::spawn(async move {
            let _ = stdin.write_all(&input).await;
        });
        child.wait_with_output().await.unwrap()
    }
}

/// Sends a signal to a running program.
pub async fn signal(child: &Child, name: &str) {
    let pid = child.id().unwrap().to_string();
    let sent = Command::new("kill").args(["-s", name, &pid]).status().await.unwrap();
    assert!(sent.success());
}

/// What it wrote to standard error.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What it wrote to standard output.
pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}
