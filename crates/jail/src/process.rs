//! Handles of processes: pidfds, which never come to mean another process.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Signal, WaitId, WaitIdOptions};

/// A jailed program, which its keeper collects. Dropping the handle does not end it.
#[derive(Debug)]
pub struct Child {
    pid: u32,
    pidfd: OwnedFd,
}

impl Child {
    /// The program behind a pidfd that came over a socket. Fails with `ESRCH` if it has ended and
    /// was collected already.
    pub fn from_pidfd(pidfd: OwnedFd) -> io::Result<Self> {
        let pid = host_pid(&pidfd)?;
        Ok(Self { pid, pidfd })
    }

    /// Its process id on the host.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Becomes readable when the program has ended.
    pub fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// Whether it has ended.
    pub(crate) fn has_ended(&self) -> bool {
        let mut ended = [PollFd::new(&self.pidfd, PollFlags::IN)];
        rustix::event::poll(&mut ended, Some(&Timespec::default())) != Ok(0)
    }

    /// Ends the program now, and nothing but the program: not its forks, not those of its parent.
    pub fn kill(&self) {
        kill(&self.pidfd);
    }

    /// Waits for the end of the program, and so of everything it held: memory, descriptors and
    /// its place in a control group. Its keeper collects it.
    pub fn reap(&self) {
        let mut ended = [PollFd::new(&self.pidfd, PollFlags::IN)];
        while rustix::event::poll(&mut ended, None) == Err(Errno::INTR) {}
    }
}

/// Process 1 of a family, a child of this process.
pub(crate) struct Init {
    /// Its process id on the host.
    pub pid: u32,
    pub pidfd: OwnedFd,
}

impl Init {
    /// Ends it and with it everything in its namespaces, and collects it.
    pub fn end(&self) {
        kill(&self.pidfd);
        while self.wait(WaitIdOptions::EXITED) == Err(Errno::INTR) {}
    }

    /// Collects it if it has ended; whether it has.
    pub fn collect(&self) -> bool {
        // An error says that it is not there to be collected.
        self.wait(WaitIdOptions::EXITED | WaitIdOptions::NOHANG) != Ok(false)
    }

    /// Whether there was an end to collect.
    fn wait(&self, how: WaitIdOptions) -> Result<bool, Errno> {
        let status = rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), how)?;
        Ok(status.is_some())
    }
}

fn kill(pidfd: &OwnedFd) {
    // The only failure is that it is already gone.
    let _ = rustix::process::pidfd_send_signal(pidfd, Signal::KILL);
}

/// What the kernel says of a pidfd: a process id, and -1 once the process was collected.
fn host_pid(pidfd: &OwnedFd) -> io::Result<u32> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    let number =
        text.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse::<i64>().ok());
    match number {
        None => Err(Errno::INVAL.into()),
        Some(pid) if pid > 0 => u32::try_from(pid).map_err(io::Error::other),
        Some(_) => Err(Errno::SRCH.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    use super::*;

    #[test]
    fn a_pidfd_says_whose_it_is_until_that_is_gone() {
        let mut sleeper = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = Pid::from_raw(sleeper.id() as i32).unwrap();
        let open = || pidfd_open(pid, PidfdFlags::empty()).unwrap();
        let (first, second) = (open(), open());
        let child = Child::from_pidfd(first).unwrap();
        assert_eq!(child.pid(), sleeper.id());
        child.kill();
        child.reap();
        sleeper.wait().unwrap();
        let gone = Child::from_pidfd(second).unwrap_err();
        assert_eq!(gone.raw_os_error(), Some(libc::ESRCH));
        let file = fs::File::open("/dev/null").unwrap();
        let wrong = Child::from_pidfd(file.into()).unwrap_err();
        assert_eq!(wrong.raw_os_error(), Some(libc::EINVAL));
    }
}
