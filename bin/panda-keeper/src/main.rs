//! Process 1 of a machine's process namespace: it waits until everything in there is gone.
//!
//! A process namespace dies with its process 1, and the namespaces of forked machines lie inside
//! those of their parents. If a machine's program were process 1 itself, its end would be that of
//! all its forks. So it is process 2, whoever started it, and this program is process 1. It ends
//! when its last child has: the program, and the keepers of the program's forks. If it is killed,
//! the kernel ends the whole family.
//!
//! Nor does a family live longer than its owners. The kernel kills a keeper when the server dies
//! that made it, or, if it is called with [`LIFELINE`], it ends by itself when nobody holds the
//! other end of descriptor 0: so a family can be handed from one server to the next. Keepers of
//! forks need neither, as they lie in the first one's namespace.
//!
//! It starts with no other descriptor open, not even 0 to 2, so that nothing of a machine lives
//! longer than its program. The Rust runtime would open `/dev/null` in their place, which a jail does not
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

use std::ffi::{CStr, c_char, c_int, c_long, c_short, c_ulong};
use std::fs;
use std::io::{Error, ErrorKind};

// Declared here, because a program this small needs no dependency.
unsafe extern "C" {
    fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
    fn prctl(option: c_int, ...) -> c_int;
    fn signal(signal: c_int, handler: extern "C" fn(c_int)) -> usize;
    fn sigprocmask(how: c_int, set: *const Signals, old: *mut Signals) -> c_int;
    fn ppoll(fds: *mut Poll, count: c_ulong, timeout: *const u8, mask: *const Signals) -> c_int;
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

/// The argument that says that descriptor 0 is a lifeline.
const LIFELINE: &CStr = c"lifeline";

/// `sigset_t`, as long as any C library's.
type Signals = [c_ulong; 16];

/// `struct pollfd`.
#[repr(C)]
struct Poll {
    fd: c_int,
    events: c_short,
    found: c_short,
}

const SIGCHLD: c_int = 17;
/// `SIG_BLOCK` of sigprocmask(2).
const BLOCK: c_int = 0;
/// `WNOHANG` of waitpid(2).
const NO_HANG: c_int = 1;
/// `POLLERR`, `POLLHUP` and `POLLNVAL` of poll(2).
const OVER: c_short = 0x08 | 0x10 | 0x20;

/// The C library calls this.
///
/// # Safety
/// As the C library does: with so many arguments.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn main(count: c_int, arguments: *const *const c_char) -> c_int {
    if has_no_ids() {
        adopt_ids();
    }
    // SAFETY: there is a second argument, a null-terminated string.
    if count > 1 && unsafe { CStr::from_ptr(*arguments.add(1)) } == LIFELINE {
        return outlive_children_on_a_lifeline();
    }
    while collect(0) != Collected::NobodyIsLeft {}
    0
}

/// What waiting for children came to.
#[derive(PartialEq)]
enum Collected {
    One,
    NoneYet,
    NobodyIsLeft,
}

fn collect(options: c_int) -> Collected {
    // SAFETY: waitpid(2) takes no status when the pointer is null.
    match unsafe { waitpid(-1, std::ptr::null_mut(), options) } {
        0 => Collected::NoneYet,
        1.. => Collected::One,
        _ if Error::last_os_error().kind() == ErrorKind::Interrupted => Collected::NoneYet,
        // ECHILD.
        _ => Collected::NobodyIsLeft,
    }
}

/// Waits until the last child has ended, or until nobody holds the other end of the lifeline: the
/// kernel then ends the children with this process.
fn outlive_children_on_a_lifeline() -> c_int {
    extern "C" fn wake(_: c_int) {}
    let nothing: Signals = [0; 16];
    let mut children = nothing;
    children[0] = 1 << (SIGCHLD - 1);
    // Blocked but for the wait, so that no end goes by between the look and the wait.
    // SAFETY: the handler does nothing, the sets are as long as the C library's.
    unsafe {
        signal(SIGCHLD, wake);
        sigprocmask(BLOCK, &raw const children, std::ptr::null_mut());
    }
    loop {
        loop {
            match collect(NO_HANG) {
                Collected::One => {}
                Collected::NoneYet => break,
                Collected::NobodyIsLeft => return 0,
            }
        }
        let mut lifeline = Poll { fd: 0, events: 0, found: 0 };
        // SAFETY: one entry, no timeout, and a set as long as the C library's.
        let ready = unsafe { ppoll(&raw mut lifeline, 1, std::ptr::null(), &raw const nothing) };
        if ready > 0 && lifeline.found & OVER != 0 {
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
