//! Forks a running QEMU: a library that is loaded into it (`LD_PRELOAD`) and does what fork(2)
//! does not do for a process with threads and sockets.
//!
//! A supervisor stops the vCPUs (QMP `stop`, which also drains and flushes the block layer) and
//! sends a [`Request`](pandastack_fork::Request). What follows happens in the main thread, inside
//! the wait of QEMU's main loop:
//!
//! 1. `threads`: every other thread is parked by a signal, its state on its own stack.
//! 2. `descriptors`: every descriptor is looked at; one that is not accounted for ends it here.
//! 3. [`birth`](pandastack_fork::birth): a keeper in new namespaces makes the copy of the process.
//! 4. In the child, `descriptors` puts its own sockets, disks and eventfds in place, and
//!    `threads` starts a thread for each one that was parked, on its own stack and storage.
//! 5. In the parent the threads go on. `ppoll` returns 0 on both sides: nothing happened.
//!
//! # Why each step is correct
//!
//! * **The main loop** ([`ppoll`]). QEMU's main thread gives up its big lock before it polls and
//!   takes it again afterwards, so while we work it holds nothing, and no other thread is made to
//!   wait for it in the copy. Returning 0 means that no time or event has come, which is always
//!   a possible answer.
//! * **glibc's locks.** A parked thread may hold a lock of the allocator or of stdio. It is not
//!   lost, as it would be after fork(2): the thread exists in the child too and gives it back. So
//!   `pthread_atfork` handlers are neither needed nor run, and between parking and release nothing
//!   here takes a lock or allocates.
//! * **glibc's threads.** A thread is its stack, its storage (`%fs`) and its kernel id. The first
//!   two are copied memory; the id is written where `struct pthread` keeps it, the same place is
//!   given to the kernel to clear at the thread's end, which is what `pthread_join` waits for, and
//!   robust list and rseq area are announced again. A *recursive* or error-checking mutex that is
//!   held across the fork would remember the old id: QEMU holds none where its threads stand
//!   after `stop` (vCPUs wait for their condition, RCU for its event, the monitor for input).
//! * **RCU.** QEMU's readers register by the address of their storage, which does not change. The
//!   RCU thread itself is parked in a futex wait. A grace period that is under way goes on in
//!   both processes with the same readers.
//! * **Futexes.** They are private, keyed by address space, so waiters of the child and of the
//!   parent never meet. A thread parked inside a futex wait returns to it, or sees EINTR, which
//!   every caller takes for a spurious wake-up.
//! * **Event notifiers and io threads.** Eventfds are made anew with their count: a wake-up that
//!   was pending is pending in the child. QEMU's contexts poll by number and not by epoll below
//!   64 descriptors; an epoll with members refuses the fork.
//! * **Timers.** QEMU's are times in memory and a timeout of `ppoll`; the kernel keeps none.
//! * **Guest memory** ([`madvise`]). QEMU marks it `MADV_DONTFORK`; a child would not have it. That
//!   advice is dropped. The memory is a private mapping, so the kernel keeps the two apart page by
//!   page, with the translated code as well, which is why a child is warm.
//! * **The guest's transports.** Bytes that QEMU had not read are in the parent's sockets only;
//!   the agent's protocol finds its feet again on a new connection, and the child's monitor is
//!   between two commands.
//!
//! # What would break it
//!
//! A thread that blocks SIGFPE, or that is stuck in an uninterruptible call (parking fails after
//! half a second, and all go on); io_uring, vhost, io threads with epoll, a display (an unknown
//! descriptor refuses the fork); a C library whose `struct pthread` has no thread id where it is
//! looked for (found at start, checked in each thread); a musl QEMU, which has no such structure.
//! Whoever relies on forks proves them first, on the very QEMU and C library of the host.

mod descriptors;
mod failure;
mod serve;
mod text;
mod threads;

use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use libc::{c_int, c_void, nfds_t, pollfd, sigset_t, size_t, timespec};
use pandastack_fork::{sys, thread};

/// Names the descriptor of the socket to the supervisor.
const VARIABLE: &core::ffi::CStr = c"PANDA_FORK_FD";

/// Most descriptors that a main loop of ours waits for, its own one included.
const MAX_POLLED: usize = 512;

/// Storage of the main thread, the only one that forks; 0 as long as nobody may.
static MAIN: AtomicUsize = AtomicUsize::new(0);

/// Runs before QEMU's `main`.
#[cfg_attr(not(test), unsafe(link_section = ".init_array"))]
#[used]
static START: extern "C" fn() = start;

extern "C" fn start() {
    // SAFETY: a constructor runs alone, and the name is null-terminated.
    let value = unsafe { libc::getenv(VARIABLE.as_ptr()) };
    if value.is_null() {
        return;
    }
    // SAFETY: getenv returns a null-terminated string.
    let control = unsafe { libc::atoi(value) };
    if control > 2 && threads::prepare() {
        serve::listen(control);
        MAIN.store(thread::storage(), Relaxed);
    }
    // Other machines share the mounts of this one: nobody may look into its memory through /proc.
    let _ = sys::prctl(libc::PR_SET_DUMPABLE as usize, 0);
}

/// ppoll(2), which QEMU's main loop waits in, and a place to hear the supervisor.
///
/// # Safety
/// As the C library's.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn ppoll(
    fds: *mut pollfd,
    count: nfds_t,
    timeout: *const timespec,
    mask: *const sigset_t,
) -> c_int {
    let count = count as usize;
    let control = serve::control().filter(|_| thread::storage() == MAIN.load(Relaxed));
    let Some(control) = control.filter(|_| count < MAX_POLLED) else {
        // SAFETY: the caller's arguments.
        return unsafe { poll(fds, count, timeout, mask) };
    };
    let nothing = pollfd { fd: -1, events: 0, revents: 0 };
    let mut all = [nothing; MAX_POLLED];
    // SAFETY: the caller passes `count` entries.
    let own = unsafe { core::slice::from_raw_parts_mut(fds, count) };
    all[..count].copy_from_slice(own);
    all[count] = pollfd { fd: control, events: libc::POLLIN, revents: 0 };
    // SAFETY: the entries are ours, the rest the caller's.
    let ready = unsafe { poll(all.as_mut_ptr(), count + 1, timeout, mask) };
    if ready > 0 && all[count].revents != 0 {
        // The caller's descriptors are as ready the next time it asks, also in a child, where some
        // of them are others by then.
        own.iter_mut().for_each(|entry| entry.revents = 0);
        serve::request();
        return 0;
    }
    own.copy_from_slice(&all[..count]);
    ready
}

/// The checked variant that `_FORTIFY_SOURCE` calls.
///
/// # Safety
/// As the C library's.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn __ppoll_chk(
    fds: *mut pollfd,
    count: nfds_t,
    timeout: *const timespec,
    mask: *const sigset_t,
    length: size_t,
) -> c_int {
    if (length / size_of::<pollfd>()) < count as usize {
        sys::exit(127);
    }
    // SAFETY: the caller's arguments.
    unsafe { ppoll(fds, count, timeout, mask) }
}

/// The system call, with the C library's manner of reporting errors.
unsafe fn poll(
    fds: *mut pollfd,
    count: usize,
    timeout: *const timespec,
    mask: *const sigset_t,
) -> c_int {
    // The kernel writes the time that is left; the C library's function does not.
    // SAFETY: null, or the caller's timespec.
    let mut left = unsafe { timeout.as_ref() }.copied();
    let left = left.as_mut().map_or(0, |left| &raw mut *left as usize);
    let args = [fds as usize, count, left, mask as usize, size_of::<u64>(), 0];
    // SAFETY: the caller's arguments; the set of signals is eight bytes to the kernel.
    match sys::outcome(unsafe { sys::call(libc::SYS_ppoll, args) }) {
        Ok(ready) => ready as c_int,
        Err(errno) => fail(errno),
    }
}

/// madvise(2), without the advice to leave memory out of a fork.
///
/// # Safety
/// As the C library's.
#[cfg_attr(not(test), unsafe(no_mangle))]
pub unsafe extern "C" fn madvise(address: *mut c_void, length: size_t, advice: c_int) -> c_int {
    if advice == libc::MADV_DONTFORK && MAIN.load(Relaxed) != 0 {
        return 0;
    }
    let args = [address as usize, length, advice as usize, 0, 0, 0];
    // SAFETY: the caller's arguments.
    match sys::outcome(unsafe { sys::call(libc::SYS_madvise, args) }) {
        Ok(_) => 0,
        Err(errno) => fail(errno),
    }
}

fn fail(errno: c_int) -> c_int {
    // SAFETY: the pointer is valid for the life of the thread.
    unsafe { *libc::__errno_location() = errno };
    -1
}
