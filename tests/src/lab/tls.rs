//! The lab's server of TLS, with a certificate of its own.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::namespace::Namespace;
use super::servers::TLS_PORT;

const PROGRAM: &str = include_str!("tls.py");

/// The process. Dropping it ends it.
pub struct Tls {
    child: Child,
    certificate: Vec<u8>,
    _dir: TempDir,
}

impl Tls {
    /// Starts it within the internet, with a certificate for these names.
    pub fn start(internet: &Namespace, names: &[&str]) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let (certificate, key) = (dir.path().join("certificate"), dir.path().join("key"));
        let names: Vec<_> = names.iter().map(|name| format!("DNS:{name}")).collect();
        let made = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
            .args(["-nodes", "-days", "2", "-subj", "/CN=lab", "-addext"])
            .arg(format!("subjectAltName={}", names.join(",")))
            .arg("-out")
            .arg(&certificate)
            .arg("-keyout")
            .arg(&key)
            .output()
            .context("cannot run openssl")?;
        ensure!(made.status.success(), "no certificate: {}", String::from_utf8_lossy(&made.stderr));
        let start = || -> Result<Child> {
            let mut command = Command::new("python3");
            command.args(["-c", PROGRAM]).arg(&certificate).arg(&key).arg(TLS_PORT.to_string());
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
            command.spawn().context("cannot run python3")
        };
        let mut child = internet.within(start)?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("stdout")?).read_line(&mut line)?;
        ensure!(line.trim() == "ready", "the server of TLS did not start");
        let certificate = std::fs::read(certificate)?;
        Ok(Self { child, certificate, _dir: dir })
    }

    /// Its certificate, which is its own authority, in PEM.
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }
}

impl Drop for Tls {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
