//! The thread that makes every child, and collects it.
//!
//! `PR_SET_PDEATHSIG` fires when the thread that made a child ends, not the process. So one thread
//! makes them all, and it ends with the program. What it makes are the first processes of
//! families, which end at some time long after anybody here still has a handle of theirs. Those with
//! a lifeline may live longer than this process, and are then collected by the host's first one.

use std::os::fd::OwnedFd;
use std::sync::{OnceLock, mpsc};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};

use crate::process::{Child, Init};
use crate::spawn::{Program, SpawnError, start};

/// Jails and starts a program. Blocks for about 2 ms, until the program was executed.
pub fn spawn(program: Program) -> Result<Child, SpawnError> {
    static SPAWNER: OnceLock<Spawner> = OnceLock::new();
    let (answer, result) = mpsc::sync_channel(1);
    SPAWNER.get_or_init(Spawner::launch).give(Job { program, answer })?;
    result.recv().map_err(|_| SpawnError::Vanished)?
}

struct Job {
    program: Program,
    answer: mpsc::SyncSender<Result<Child, SpawnError>>,
}

/// The way to the thread.
struct Spawner {
    jobs: mpsc::Sender<Job>,
    /// Says that there is a job: the thread sleeps in poll(2), which knows no channels.
    wake: &'static OwnedFd,
}

impl Spawner {
    fn launch() -> Self {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let wake = eventfd(0, flags).expect("a descriptor at start-up");
        let wake: &'static OwnedFd = Box::leak(Box::new(wake));
        let (jobs, queue) = mpsc::channel();
        std::thread::Builder::new()
            .name("spawner".into())
            .spawn(move || work(&queue, wake))
            .expect("a thread at start-up");
        Self { jobs, wake }
    }

    fn give(&self, job: Job) -> Result<(), SpawnError> {
        self.jobs.send(job).map_err(|_| SpawnError::Vanished)?;
        // The only failure is a counter that is full: the thread is about to look.
        let _ = rustix::io::write(self.wake, &1u64.to_ne_bytes());
        Ok(())
    }
}

/// Does jobs and collects families that have ended. Never returns, as the way to it stays.
fn work(queue: &mpsc::Receiver<Job>, wake: &OwnedFd) {
    let mut inits: Vec<Init> = Vec::new();
    loop {
        let pidfds = inits.iter().map(|init| &init.pidfd);
        let mut watched: Vec<_> =
            [wake].into_iter().chain(pidfds).map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        // Whatever it says, looking is harmless.
        let _ = rustix::event::poll(&mut watched, None);
        // Before the queue is looked at, so that a job that comes later wakes us again.
        let _ = rustix::io::read(wake, &mut [0u8; 8]);
        inits.retain(|init| !init.collect());
        while let Ok(Job { program, answer }) = queue.try_recv() {
            let started = start(program).map(|(init, child)| {
                inits.push(init);
                child
            });
            let _ = answer.send(started);
        }
    }
}
