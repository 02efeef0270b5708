//! A machine's process, seen from the server: how it is started, what it complains of, what it
//! costs, and how it ends.

mod complaints;
mod life;
mod limits;
mod usage;

use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::Arc;
use std::time::Duration;

use pandastack_jail::{Cgroup, Child, Program};
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;

use crate::error::{EngineError, ErrorChain};

pub(crate) use self::complaints::Complaints;
pub(crate) use self::life::{Life, settled};
pub(crate) use self::limits::{of_group, rlimits};

/// An empty control group this old belongs to nobody: machines join theirs within milliseconds.
pub(crate) const OLD_GROUP: Duration = Duration::from_secs(60);

/// A machine's process that runs. Dropping it kills it.
pub(crate) struct Process {
    child: Arc<Child>,
    complaints: Complaints,
    /// Removed, once empty, after the process was reaped.
    group: Option<Arc<Cgroup>>,
}

impl Process {
    pub fn new(child: Arc<Child>, complaints: Complaints, group: Option<Arc<Cgroup>>) -> Self {
        Self { child, complaints, group }
    }

    /// The process itself.
    pub fn child(&self) -> &Arc<Child> {
        &self.child
    }

    /// Its id on the host.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// What it wrote to its standard error.
    pub fn complaints(&self) -> &Complaints {
        &self.complaints
    }

    /// Waits for its end and collects it. The future needs nothing of the process.
    pub fn ended(&self) -> impl Future<Output = io::Result<()>> + Send + use<> {
        ended(self.child.clone())
    }

    /// Ends it now and waits until it is gone.
    pub async fn end(&self) {
        self.child.kill();
        let _ = self.ended().await;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill();
    }
}

/// Jails and starts a program, on a thread that may block.
pub(crate) async fn spawn(program: Program) -> Result<Arc<Child>, EngineError> {
    let child = tokio::task::spawn_blocking(move || pandastack_jail::spawn(program))
        .await
        .map_err(|e| EngineError::Spawn(io::Error::other(e)))?
        .map_err(|e| EngineError::Spawn(io::Error::other(ErrorChain(&e).to_string())))?;
    Ok(Arc::new(child))
}

async fn ended(child: Arc<Child>) -> io::Result<()> {
    let pidfd = child.pidfd().try_clone()?;
    #[expect(deprecated, reason = "an OwnedFd stays open as long as the AsyncFd that owns it")]
    let watched = AsyncFd::with_interest(pidfd, tokio::io::Interest::READABLE)?;
    drop(watched.readable().await?);
    child.reap();
    Ok(())
}

/// What leads nowhere, for standard input and output.
pub(crate) fn open_null() -> Result<Arc<OwnedFd>, EngineError> {
    let null = std::fs::File::options().read(true).write(true).open("/dev/null");
    null.map(|file| Arc::new(file.into())).map_err(EngineError::Spawn)
}

/// The server's end of a socket, ready for use in the runtime.
pub(crate) fn into_tokio(stream: StdUnixStream) -> Result<UnixStream, EngineError> {
    stream.set_nonblocking(true).map_err(EngineError::Spawn)?;
    UnixStream::from_std(stream).map_err(EngineError::Spawn)
}

/// A word of ours for the kernel.
pub(crate) fn c_string(text: &str) -> Result<CString, EngineError> {
    CString::new(text).map_err(|e| EngineError::Spawn(e.into()))
}
