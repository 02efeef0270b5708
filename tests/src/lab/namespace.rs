//! Network namespaces that nobody has to clean up.
//!
//! A namespace lives as long as a thread is in it or a descriptor refers to it. Nothing here has a
//! name in the file system, so nothing is left when a test is killed.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A network namespace.
pub struct Namespace(File);

impl Namespace {
    /// A new one with nothing in it but a loopback device that is down.
    pub fn new() -> Result<Self> {
        // To leave a namespace takes code that the compiler cannot check; to enter one does not.
        // So a short-lived process makes it, and we take it over.
        let mut maker = Command::new("unshare")
            .args(["--net", "cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("cannot run unshare")?;
        let (stdin, stdout) = (maker.stdin.take(), maker.stdout.take());
        let (mut stdin, mut stdout) = (stdin.context("stdin")?, stdout.context("stdout")?);
        // An answer means that the program runs, so the namespace is made.
        let made = stdin.write_all(b"?").and_then(|()| stdout.read_exact(&mut [0]));
        let file = File::open(format!("/proc/{}/ns/net", maker.id()));
        drop(stdin);
        let output = maker.wait_with_output()?;
        if made.is_err() {
            bail!("no network namespace: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(Self(file?))
    }

    /// That of the calling thread.
    pub fn current() -> Result<Self> {
        Ok(Self(File::open("/proc/thread-self/ns/net")?))
    }

    /// Another handle of it.
    pub fn try_clone(&self) -> Result<Self> {
        Ok(Self(self.0.try_clone()?))
    }

    /// Moves the calling thread into it. Threads and processes that it starts are in it too.
    pub fn enter(&self) -> Result<()> {
        move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))
            .context("cannot enter a network namespace")
    }

    /// Does something in it, on a thread of its own.
    pub fn within<T: Send>(&self, act: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                self.enter()?;
                act()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}
