//! Process 1 of a machine's process namespace: it waits until everything in there is gone.
//!
//! A process namespace dies with its process 1, and the namespaces of forked machines lie inside
//! those of their parents. If a machine's program were process 1 itself, its end would be that of
//! all its forks. So it is process 2, whoever started it, and this program is process 1. It ends
//! when its last child has: the program, and the keepers of the program's forks. If it is killed,
//! or its server dies, the kernel ends the whole family.
//!
//! It starts with no descriptor open, not even 0 to 2, so that nothing of a machine lives longer
//! than its program. The Rust runtime would open `/dev/null` in their place, which a jail does not
//! have, and abort: hence a `main` without it.
//!
//! A fork's keeper has one more thing to do. The user namespace that it was made with has no ids
//! yet, and without them nobody in there could make another: a fork could not fork. Only a process
//! that may be traced owns its `uid_map`, which a machine must never be, but a keeper has no
//! secrets. It comes with the capabilities for that, as ambient ones, and gives them up. In a jail
//! without `/proc` it cannot, and stays one that may be traced, so that the server can.
//!
//! Install it executable but not readable (mode 0111). No program in the jail can then trace it or
//! see it in `/proc` (`would_dump` in fs/exec.c). Where the server is not root, the file is the
//! jailed user's own, and the ancestors of a machine can: they own its user namespace.
#![no_main]

use std::ffi::{c_int, c_long};
use std::fs;
use std::io::{Error, ErrorKind};

// Declared here, because a program this small needs no dependency.
unsafe extern "C" {
    fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
    fn prctl(option: c_int, ...) -> c_int;
    fn getuid() -> u32;
    fn capset(header: *const [u32; 2], data: *const [u32; 6]) -> c_int;
}

/// `PR_SET_DUMPABLE` of prctl(2): whether others may trace the process.
const SET_DUMPABLE: c_int = 4;
/// `_LINUX_CAPABILITY_VERSION_3` of linux/capability.h.
const CAPABILITY_VERSION: u32 = 0x2008_0522;
/// The one id in a jail, the same in every generation: a fork runs as its parent does.
const IDS: &str = "1000 1000 1";

/// What the kernel says of ids that a namespace does not have: `overflowuid`.
const NOBODY: u32 = 65534;

/// The C library calls this.
#[unsafe(no_mangle)]
pub extern "C" fn main() -> c_int {
    if has_no_ids() {
        adopt_ids();
    }
    loop {
        // SAFETY: waitpid(2) takes no status when the pointer is null.
        let ended = unsafe { waitpid(-1, std::ptr::null_mut(), 0) };
        if ended < 0 && Error::last_os_error().kind() != ErrorKind::Interrupted {
            // ECHILD: nobody is left.
            return 0;
        }
    }
}

fn has_no_ids() -> bool {
    // SAFETY: no arguments.
    unsafe { getuid() == NOBODY }
}

/// Gives the user namespace its ids, and up what that took. A failure is nobody's to hear: the
/// program's next fork will be refused.
fn adopt_ids() {
    let may_be_traced = |yes: c_long| {
        // SAFETY: this option takes an integer.
        unsafe { prctl(SET_DUMPABLE, yes) }
    };
    may_be_traced(1);
    // user_namespaces(7): an unprivileged gid map needs setgroups denied first.
    for (file, text) in [("setgroups", "deny"), ("gid_map", IDS), ("uid_map", IDS)] {
        let _ = fs::write(format!("/proc/self/{file}"), text);
    }
    // SAFETY: a header of two words and, in this version, two structures of three.
    unsafe { capset(&[CAPABILITY_VERSION, 0], &[0; 6]) };
    may_be_traced(has_no_ids().into());
}
