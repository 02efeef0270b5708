//! The life of a machine's process and its end.
//!
//! One task per machine watches for its end, whatever the cause, and is the only place where the
//! process is reaped:
//!
//! ```text
//!  parked ──run──▶ running ⇄ paused          process ends by itself ─┐
//!     └───────────────┴────────┴── kill ─────────────────────────────┼─▶ reaped, group removed,
//!                                   the guest ends itself, and its   │    Exit published
//!                                   last words are heard ────────────┘
//! ```

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Weak};
use std::time::Duration;

use pandastack_jail::{Cgroup, Child};
use tokio::sync::watch;
use tokio::time::timeout;

use super::{Process, limits, usage};
use crate::{Exit, Usage};

/// How long to listen to a process that is gone. What it said last is in a socket that ends with
/// it, unless a fork that is being born holds the other end a moment longer.
const LISTENING: Duration = Duration::from_secs(1);

/// How many processes are watched over: those that run, and those that have ended and are being
/// cleaned up after.
static WATCHED: LazyLock<watch::Sender<usize>> = LazyLock::new(|| watch::Sender::new(0));

/// Resolves when nothing is left of any machine, its control group included.
pub(crate) async fn settled() {
    // The sender is never dropped.
    let _ = WATCHED.subscribe().wait_for(|watched| *watched == 0).await;
}

/// Counts one.
struct Watched;

impl Watched {
    fn new() -> Self {
        WATCHED.send_modify(|watched| *watched += 1);
        Self
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        WATCHED.send_modify(|watched| *watched -= 1);
    }
}

/// A process that is watched over. Dropping it kills the process.
pub(crate) struct Life {
    child: Arc<Child>,
    exit: watch::Receiver<Option<Exit>>,
    killed: Arc<AtomicBool>,
    /// Owned by the task that watches.
    group: Weak<Cgroup>,
}

impl Life {
    /// Watches over a process from now on. `last_words` resolves when the guest has ended itself,
    /// and the process is then killed; to nothing when there will be none.
    pub fn watch(
        mut process: Process,
        last_words: impl Future<Output = Option<Exit>> + Send + 'static,
    ) -> Self {
        let killed = Arc::new(AtomicBool::new(false));
        let (publish, exit) = watch::channel(None);
        let group = process.group.as_ref().map(Arc::downgrade).unwrap_or_default();
        let child = process.child.clone();
        let life = Self { child, exit, killed: killed.clone(), group };
        let watched = Watched::new();
        tokio::spawn(async move {
            let _watched = watched;
            let heard = watch_for_the_end(&process, &killed, last_words).await;
            let exit = match heard {
                _ if killed.load(Ordering::SeqCst) => Exit::Killed,
                Some(Exit::GuestPanic) => {
                    let (pid, said) = (process.pid(), process.complaints.last().await);
                    tracing::warn!(pid, said, "a guest crashed");
                    Exit::GuestPanic
                }
                Some(exit) => exit,
                None => {
                    let (pid, said) = (process.pid(), process.complaints.last().await);
                    tracing::warn!(pid, said, "a machine died");
                    Exit::Died
                }
            };
            let group = process.group.take();
            drop(process);
            // Removing a group may wait a moment for the kernel.
            let _ = tokio::task::spawn_blocking(move || drop(group)).await;
            let _ = publish.send(Some(exit));
        });
        life
    }

    /// The process itself.
    pub fn child(&self) -> &Child {
        &self.child
    }

    /// The process's id on the host.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Makes the machine yield to those that somebody waits for, or one of those again.
    pub fn set_background(&self, background: bool) {
        if let Some(group) = self.group.upgrade() {
            let weight = if background { limits::BACKGROUND_WEIGHT } else { limits::CPU_WEIGHT };
            group.set_cpu_weight(weight);
        }
    }

    /// Ends the process now and waits until it is gone.
    pub async fn kill(&self) {
        self.end();
        self.exited().await;
    }

    /// Resolves when the machine has ended.
    pub async fn exited(&self) -> Exit {
        let mut exit = self.exit.clone();
        match exit.wait_for(Option::is_some).await {
            Ok(exit) => exit.unwrap_or(Exit::Died),
            Err(_) => Exit::Died, // the watcher is gone: the runtime is shutting down
        }
    }

    /// What the process costs the host at this moment.
    pub fn usage(&self) -> Option<Usage> {
        if self.exit.borrow().is_some() {
            return None; // the id may belong to somebody else by now
        }
        usage::of(self.child.pid())
    }

    fn end(&self) {
        if self.exit.borrow().is_none() {
            self.killed.store(true, Ordering::SeqCst);
            self.child.kill();
        }
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.end();
    }
}

/// Waits for the end and reaps; what the guest said, if it was it that ended.
async fn watch_for_the_end(
    process: &Process,
    killed: &AtomicBool,
    last_words: impl Future<Output = Option<Exit>>,
) -> Option<Exit> {
    let gone = process.ended();
    tokio::pin!(gone, last_words);
    tokio::select! {
        words = &mut last_words => {
            if words.is_some() {
                process.child.kill();
            }
            let _ = gone.await;
            words
        }
        _ = &mut gone => {
            if killed.load(Ordering::SeqCst) {
                return None;
            }
            // Both happen at once when the process ends by itself after its last words.
            timeout(LISTENING, last_words).await.ok().flatten()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;
    use std::process::Command;

    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    use super::super::Complaints;
    use super::*;

    /// A process that nobody but this test collects.
    fn sleeper() -> (std::process::Child, Arc<Child>) {
        let sleeper = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = Pid::from_raw(sleeper.id() as i32).unwrap();
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        (sleeper, Arc::new(Child::from_pidfd(pidfd).unwrap()))
    }

    fn watch(
        child: Arc<Child>,
        words: impl Future<Output = Option<Exit>> + Send + 'static,
    ) -> Life {
        Life::watch(Process::new(child, Complaints::none(), None), words)
    }

    #[tokio::test]
    async fn every_end_has_its_name() {
        let (mut process, child) = sleeper();
        let life = watch(child, ready(None));
        assert!(life.usage().is_some());
        life.kill().await;
        assert_eq!(life.exited().await, Exit::Killed);
        life.kill().await;
        assert!(life.usage().is_none());
        process.wait().unwrap();

        let (mut process, child) = sleeper();
        child.kill();
        assert_eq!(watch(child, ready(None)).exited().await, Exit::Died);
        process.wait().unwrap();

        let (mut process, child) = sleeper();
        let life = watch(child, ready(Some(Exit::GuestShutdown)));
        assert_eq!(life.exited().await, Exit::GuestShutdown);
        process.wait().unwrap();
    }

    #[tokio::test]
    async fn words_that_are_read_after_the_end_count() {
        let (mut process, child) = sleeper();
        let (say, words) = tokio::sync::oneshot::channel();
        let life = watch(child.clone(), async move { words.await.ok() });
        child.kill();
        process.wait().unwrap();
        say.send(Exit::GuestPanic).unwrap();
        assert_eq!(life.exited().await, Exit::GuestPanic);
    }

    #[tokio::test]
    async fn a_process_that_nobody_wants_any_more_is_killed() {
        let (mut process, child) = sleeper();
        drop(watch(child, ready(None)));
        assert!(!process.wait().unwrap().success());
        // Other tests of this process have machines as well, but none for long.
        timeout(Duration::from_secs(20), settled()).await.unwrap();
    }
}
