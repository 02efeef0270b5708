//! System calls that a process may not make.
//!
//! | filter | kind | for |
//! |---|---|---|
//! | [`Filter::machine`] | denies a list | QEMU, whose needs nobody knows completely |
//! | [`Filter::monitor`] | allows a list | our own monitor and its keepers |
//! | [`Filter::gateway`] | allows a list | our own gateway, which makes sockets |
//! | [`Filter::allowing`] | allows any list | single threads, which need less than their process |
//!
//! A filter is in force before the program of a jail starts, and for ever: in its threads, its
//! forks and whatever it executes. Where several are in force the strictest answer counts.

mod allow;
mod bpf;
mod gateway;
pub mod kvm;
mod machine;
mod monitor;

use std::io;

use libc::{SECCOMP_RET_ERRNO, c_long, c_ulong, sock_filter, sock_fprog};

pub use allow::{Rule, When, allow};
pub use monitor::{MEMORY, THREAD_FLAGS, THREADS};

/// Fails the call.
const DENY: u32 = SECCOMP_RET_ERRNO | libc::EPERM as u32;
/// Says that the call does not exist.
const ABSENT: u32 = SECCOMP_RET_ERRNO | libc::ENOSYS as u32;

/// A compiled filter. Compile once; installing it in a child allocates nothing.
pub struct Filter {
    program: Vec<sock_filter>,
}

/// What a filter says of a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The kernel goes on with it.
    Allow,
    /// It fails with this `errno`.
    Fail(i32),
    /// The process ends.
    Kill,
}

impl Filter {
    /// What the filter says of a system call, computed as the kernel computes it.
    pub fn decide(&self, call: c_long, args: [u64; 6]) -> Verdict {
        self.decide_in(bpf::ARCH_X86_64, call as u32, args)
    }

    fn decide_in(&self, arch: u32, number: u32, args: [u64; 6]) -> Verdict {
        match bpf::run(&self.program, arch, number, &args) {
            libc::SECCOMP_RET_ALLOW => Verdict::Allow,
            libc::SECCOMP_RET_KILL_PROCESS => Verdict::Kill,
            answer => Verdict::Fail((answer & libc::SECCOMP_RET_DATA) as i32),
        }
    }

    /// Puts the filter in force in the calling thread and in what it starts from now on.
    pub fn install(&self) -> io::Result<()> {
        // SAFETY: this option takes plain integers.
        if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1 as c_ulong, 0, 0, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
        install(&self.program)
    }

    /// The instructions, for the kernel.
    pub(crate) fn program(&self) -> &[sock_filter] {
        &self.program
    }
}

/// Puts a filter in force in a thread that has no way to new privileges. Allocates nothing.
pub(crate) fn install(filter: &[sock_filter]) -> io::Result<()> {
    let program = sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: `program` describes `filter`, which the kernel copies.
    let result = unsafe {
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER as c_ulong, &raw const program)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
