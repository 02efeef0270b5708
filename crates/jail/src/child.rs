//! What the two processes of a jail do between their birth and their programs: process 1 shuts
//! the jail and makes process 2; then it becomes the keeper, and process 2 the program.
//!
//! This code runs in a copy of a multi-threaded process, in which any lock may be held by a
//! thread that no longer exists. So it allocates nothing, takes no lock and calls only thin
//! wrappers of system calls, on data that the parent prepared.

use std::ffi::{CStr, CString, c_char, c_int, c_ulong};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, RawFd};

use libc::{rlimit, sock_filter};
use pandastack_fork::CHILD_FLAGS;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use crate::{landlock, seccomp};

/// A step of the set-up, so that a failure can say where it happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    /// Waiting for the supervisor.
    Wait = 1,
    /// Putting descriptors in place.
    Descriptors,
    /// Making the root directory the only file system.
    Root,
    /// Mounting the process's own `/proc`.
    Proc,
    /// Setting resource limits.
    Limits,
    /// Giving up capabilities and the user id.
    Privileges,
    /// Dying with the supervisor.
    ParentDeath,
    /// Putting Landlock's rules in force.
    Landlock,
    /// Installing the seccomp filter.
    Seccomp,
    /// Making the program's process.
    Fork,
    /// Joining the control group.
    Groups,
    /// Becoming the keeper.
    Init,
    /// Executing the program.
    Exec,
}

impl Step {
    const ALL: [Step; 13] = [
        Step::Wait,
        Step::Descriptors,
        Step::Root,
        Step::Proc,
        Step::Limits,
        Step::Privileges,
        Step::ParentDeath,
        Step::Landlock,
        Step::Seccomp,
        Step::Fork,
        Step::Groups,
        Step::Init,
        Step::Exec,
    ];

    /// The step with this number, if there is one.
    pub(crate) fn from_number(number: u8) -> Option<Step> {
        Self::ALL.into_iter().find(|step| *step as u8 == number)
    }
}

/// Said by process 1, with a pidfd of process 2, once everything but `execve` is done.
pub(crate) const READY: u8 = 0;

/// Ids inside the jail's user namespace: neither root nor anybody that owns a file.
pub(crate) const INNER_ID: u32 = 1000;

/// `_LINUX_CAPABILITY_VERSION_3` of linux/capability.h: sets of 64 bits.
const LINUX_CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// Everything that the children need, in the form that system calls take.
pub(crate) struct Plan {
    /// New root directory.
    pub root: CString,
    /// Program of process 1, as seen from the new root.
    pub init: CString,
    /// Null-terminated.
    pub init_argv: Vec<*const c_char>,
    /// Program of process 2, as seen from the new root.
    pub program: CString,
    /// Null-terminated.
    pub argv: Vec<*const c_char>,
    /// Null-terminated.
    pub envp: Vec<*const c_char>,
    /// Owns the strings that `argv` and `envp` point to.
    pub _strings: [Vec<CString>; 2],
    /// Descriptor `sources[n]` becomes descriptor `n`: first those of the program, then the link
    /// to the supervisor, then the control files of the groups to join, then Landlock's rules, then
    /// the lifeline. All are above their targets.
    pub sources: Vec<RawFd>,
    /// How many of them are the program's.
    pub given: usize,
    /// How many of them are groups.
    pub groups: usize,
    /// Whether they end with Landlock's rules, but for the lifeline.
    pub ruled: bool,
    /// Whether the last of them is the keeper's lifeline. A keeper without one dies with the
    /// supervisor.
    pub lifeline: bool,
    /// Whether there is to be a `/proc`.
    pub proc: bool,
    /// The supervisor's end of the link, of which the child has a copy.
    pub foreign: RawFd,
    /// Resource limits, in order.
    pub limits: Vec<(c_int, rlimit)>,
    /// The seccomp filter.
    pub filter: Vec<sock_filter>,
    /// Whether supplementary groups can be dropped (not in a rootless user namespace).
    pub drop_groups: bool,
}

/// A failed step with its `errno`.
type Failure = (Step, c_int);
type Outcome<T = ()> = Result<T, Failure>;

/// Shuts the jail, divides into two processes and executes their programs; reports the failure
/// otherwise. Never returns.
pub(crate) fn enter(plan: &Plan) -> ! {
    // Where the link is at the moment.
    let mut link = plan.sources[plan.given];
    let (step, errno) = match set_up(plan, &mut link).and_then(|()| divide()) {
        Err(failure) => failure,
        Ok(Side::One { two }) => become_keeper(plan, &mut link, two),
        Ok(Side::Two) => become_program(plan, link),
    };
    let report = [step as u8, errno as u8];
    // SAFETY: `report` is valid for its length.
    unsafe { libc::write(link, report.as_ptr().cast(), report.len()) };
    // Until the supervisor has read the report and ends both, or is gone. A link that ends with an
    // order unread would give it an error instead of the report: unix(7).
    while wait_for_order(link).is_ok() {}
    // SAFETY: _exit runs no destructors or handlers of the copied process.
    unsafe { libc::_exit(127) }
}

fn set_up(plan: &Plan, link: &mut RawFd) -> Outcome {
    // A link whose other end we hold ourselves would never read as ended.
    // SAFETY: closing a number is safe; it is a copy that nobody uses here.
    unsafe { libc::close(plan.foreign) };
    wait_for_order(*link)?;
    place_descriptors(plan)?;
    *link = plan.given as RawFd;
    enter_root(&plan.root)?;
    if plan.proc {
        // While the host's own /proc is still in sight: the kernel lets a user namespace mount a
        // new one only where a whole one is visible (mount_too_revealing in fs/namespace.c).
        mount_proc()?;
    }
    leave_host()?;
    for (resource, limit) in &plan.limits {
        // SAFETY: `limit` is a valid rlimit.
        check(Step::Limits, unsafe { libc::setrlimit(*resource as _, limit) })?;
    }
    drop_privileges(plan.drop_groups)?;
    // After the last change of ids, which would clear it. The supervisor's next word closes the
    // window in which the supervisor died before this line.
    if !plan.lifeline {
        // SAFETY: prctl with these options takes plain integers.
        check(Step::ParentDeath, unsafe {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as c_ulong, 0, 0, 0)
        })?;
    }
    // After the last mount, which rules forbid to change.
    let rules = plan.sources.len() as RawFd - 1 - RawFd::from(plan.lifeline);
    if plan.ruled && !landlock::enforce(rules) {
        return Err((Step::Landlock, errno()));
    }
    // The C library left the reason in `errno`.
    seccomp::install(&plan.filter).map_err(|_| (Step::Seccomp, errno()))
}

/// Which of the two processes this is.
enum Side {
    /// Process 1, with a pidfd of process 2.
    One { two: RawFd },
    /// Process 2.
    Two,
}

/// Makes process 2, the same way in which keepers of forked programs do.
fn divide() -> Outcome<Side> {
    let (mut pidfd, own_stack, unused): (RawFd, usize, usize) = (-1, 0, 0);
    // SAFETY: without CLONE_VM the child has its own copy of memory and of this stack, as after
    // fork(2); the kernel stores the pidfd in a valid place.
    let made = unsafe {
        libc::syscall(
            libc::SYS_clone,
            c_ulong::from(CHILD_FLAGS),
            own_stack,
            &raw mut pidfd,
            unused,
            unused,
        )
    };
    match made {
        -1 => Err((Step::Fork, errno())),
        0 => Ok(Side::Two),
        _ => Ok(Side::One { two: pidfd }),
    }
}

/// Hands process 2 over to the supervisor, lets go of everything and executes the keeper.
fn become_keeper(plan: &Plan, link: &mut RawFd, two: RawFd) -> Failure {
    let done = say_ready(*link, two).and_then(|()| wait_for_order(*link)).and_then(|()| {
        // SAFETY: dup3 and close_range on plain integers.
        unsafe {
            // Behind the lifeline, which is the only one to stay.
            let place = RawFd::from(plan.lifeline);
            if *link != place {
                check(Step::Init, libc::dup3(*link, place, libc::O_CLOEXEC))?;
                *link = place;
            }
            if plan.lifeline {
                check(Step::Init, libc::dup3(plan.sources.len() as RawFd - 1, 0, 0))?;
            }
            check(Step::Init, libc::close_range(place as u32 + 1, u32::MAX, 0))
        }
    });
    match done {
        Err(failure) => failure,
        Ok(()) => {
            let nothing = [std::ptr::null()];
            // SAFETY: all pointers are null-terminated arrays of valid C strings owned by `plan`.
            unsafe {
                libc::execve(plan.init.as_ptr(), plan.init_argv.as_ptr(), nothing.as_ptr());
            }
            (Step::Init, errno())
        }
    }
}

/// Joins the control groups and executes the program.
fn become_program(plan: &Plan, link: RawFd) -> Failure {
    for group in (plan.given + 1..).take(plan.groups) {
        // SAFETY: one readable byte. It says "the writer" instead of a process id.
        let wrote = unsafe { libc::write(group as RawFd, b"0".as_ptr().cast(), 1) };
        if wrote != 1 {
            return (Step::Groups, errno());
        }
    }
    if let Err(failure) = wait_for_order(link) {
        return failure;
    }
    // SAFETY: all pointers are null-terminated arrays of valid C strings owned by `plan`.
    unsafe { libc::execve(plan.program.as_ptr(), plan.argv.as_ptr(), plan.envp.as_ptr()) };
    (Step::Exec, errno())
}

/// Sends READY with the pidfd of process 2.
fn say_ready(link: RawFd, two: RawFd) -> Outcome {
    // SAFETY: both are open, and this process does nothing else meanwhile.
    let (link, two) = unsafe { (BorrowedFd::borrow_raw(link), BorrowedFd::borrow_raw(two)) };
    let two = [two];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut attached = SendAncillaryBuffer::new(&mut space);
    attached.push(SendAncillaryMessage::ScmRights(&two));
    let word = [IoSlice::new(&[READY])];
    match rustix::net::sendmsg(link, &word, &mut attached, SendFlags::NOSIGNAL) {
        Ok(_) => Ok(()),
        Err(e) => Err((Step::Fork, e.raw_os_error())),
    }
}

/// Blocks until the supervisor writes a byte; its death reads as end of file.
fn wait_for_order(fd: RawFd) -> Outcome {
    let mut byte = 0u8;
    loop {
        // SAFETY: one writable byte.
        match unsafe { libc::read(fd, (&raw mut byte).cast(), 1) } {
            1 => return Ok(()),
            -1 if errno() == libc::EINTR => {}
            _ => return Err((Step::Wait, libc::ECANCELED)),
        }
    }
}

/// Puts `sources` on 0, 1, 2… and closes everything else.
fn place_descriptors(plan: &Plan) -> Outcome {
    let step = Step::Descriptors;
    // SAFETY: dup3, close_range and sigprocmask on plain integers and valid pointers.
    unsafe {
        for (target, source) in plan.sources.iter().enumerate() {
            // Only the program's own get through `execve`.
            let flags = if target < plan.given { 0 } else { libc::O_CLOEXEC };
            check(step, libc::dup3(*source, target as RawFd, flags))?;
        }
        check(step, libc::close_range(plan.sources.len() as u32, u32::MAX, 0))?;
        // The supervisor's runtime may block signals and ignore SIGPIPE.
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::setsid();
    }
    Ok(())
}

/// Mounts `root`, read-only, and goes there.
fn enter_root(root: &CStr) -> Outcome {
    let step = Step::Root;
    let (none, top) = (std::ptr::null::<c_char>(), c"/".as_ptr());
    let quiet = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_RDONLY;
    // SAFETY: every string is null-terminated; null source, type and data are allowed by mount(2).
    unsafe {
        let private = libc::MS_REC | libc::MS_PRIVATE;
        check(step, libc::mount(none, top, none, private, none.cast()))?;
        check(step, libc::mount(root.as_ptr(), root.as_ptr(), none, libc::MS_BIND, none.cast()))?;
        let again = libc::MS_REMOUNT | libc::MS_BIND | quiet;
        check(step, libc::mount(none, root.as_ptr(), none, again, none.cast()))?;
        check(step, libc::chdir(root.as_ptr()))
    }
}

/// Makes the current directory the only tree of this mount namespace.
fn leave_host() -> Outcome {
    let (step, here) = (Step::Root, c".".as_ptr());
    // SAFETY: null-terminated strings.
    unsafe {
        // pivot_root(".", ".") stacks the old root on the new one, where it can be detached
        // without a directory to put it in: pivot_root(2), NOTES.
        check(step, libc::syscall(libc::SYS_pivot_root, here, here) as c_int)?;
        check(step, libc::umount2(here, libc::MNT_DETACH))?;
        check(step, libc::chdir(c"/".as_ptr()))
    }
}

/// The jail's own `/proc`, through which a program opens an inherited descriptor by path
/// (`/proc/self/fd/N`). Forks share it, so it shows a program only what it may trace: itself.
fn mount_proc() -> Outcome {
    let mount = |options: &CStr| {
        let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
        let proc = c"proc".as_ptr();
        // SAFETY: null-terminated strings.
        check(Step::Proc, unsafe { libc::mount(proc, proc, proc, flags, options.as_ptr().cast()) })
    };
    match mount(c"subset=pid,hidepid=ptraceable") {
        // A kernel that knows only one of the two.
        Err((_, libc::EINVAL)) => mount(c"subset=pid"),
        other => other,
    }
}

/// Leaves no capability in any set, no way to regain one, and an id that owns nothing.
fn drop_privileges(drop_groups: bool) -> Outcome {
    let step = Step::Privileges;
    // Raw calls where ids change: the C library's versions signal every thread it believes to have
    // and wait for them, for ever in a copy of a process whose other threads do not exist.
    // SAFETY: prctl and set*id take plain integers; setgroups reads no list of length 0; capset
    // reads a header of two words and, in this version, two structures of three.
    unsafe {
        // CAP_LAST_CAP is below 64; numbers that the kernel does not know fail with EINVAL.
        for capability in 0..64 as c_ulong {
            libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0);
        }
        let no_root = libc::SECBIT_NOROOT | libc::SECBIT_NOROOT_LOCKED;
        check(step, libc::prctl(libc::PR_SET_SECUREBITS, no_root as c_ulong, 0, 0, 0))?;
        if drop_groups {
            check(step, libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<u32>()) as c_int)?;
        }
        check(step, raw3(libc::SYS_setresgid, INNER_ID))?;
        check(step, raw3(libc::SYS_setresuid, INNER_ID))?;
        // A change of ids clears capabilities only if it leaves id 0, which nobody has in here;
        // `execve` would clear them too, but only after it has looked at the program with them.
        let this_process = [LINUX_CAPABILITY_VERSION_3, 0];
        let no_capabilities = [0u32; 6];
        let (header, data) = (this_process.as_ptr(), no_capabilities.as_ptr());
        check(step, libc::syscall(libc::SYS_capset, header, data) as c_int)?;
        check(step, libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1 as c_ulong, 0, 0, 0))
    }
}

/// `setresuid` or `setresgid` with one id for all three.
///
/// # Safety
/// `call` must be one of the two.
unsafe fn raw3(call: libc::c_long, id: u32) -> c_int {
    // SAFETY: both calls take three integers.
    unsafe { libc::syscall(call, id, id, id) as c_int }
}

fn check(step: Step, result: c_int) -> Outcome {
    if result < 0 { Err((step, errno())) } else { Ok(()) }
}

fn errno() -> c_int {
    // SAFETY: the pointer is valid for the life of the thread.
    unsafe { *libc::__errno_location() }
}
