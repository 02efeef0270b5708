//! System calls without the C library: no `errno`, no cancellation point, no lock, no thread-local
//! storage. The keeper runs on the storage of another thread, and a thread that starts in a child
//! has none that is in order yet.
//!
//! Every function returns what the kernel does: a negative number is an `errno`.

use core::arch::asm;

use libc::{c_int, c_long};

/// One system call with up to six arguments.
///
/// # Safety
/// The arguments must be what the call asks for; what it does to memory must be sound.
#[inline(always)]
pub unsafe fn call(number: c_long, args: [usize; 6]) -> isize {
    let result: isize;
    // SAFETY: the register convention of syscall(2); the rest is the caller's promise.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") args[0], in("rsi") args[1], in("rdx") args[2],
            in("r10") args[3], in("r8") args[4], in("r9") args[5],
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// Turns the kernel's answer into a number or an `errno`.
pub fn outcome(result: isize) -> Result<usize, c_int> {
    if result < 0 { Err(-result as c_int) } else { Ok(result as usize) }
}

/// A call whose arguments are plain numbers, which the kernel checks.
macro_rules! plain {
    ($(#[$doc:meta])* $name:ident($($arg:ident),*) = $number:ident) => {
        $(#[$doc])*
        pub fn $name($($arg: usize),*) -> Result<usize, c_int> {
            let given = [$($arg),*];
            let mut args = [0; 6];
            args[..given.len()].copy_from_slice(&given);
            // SAFETY: no argument is a pointer.
            outcome(unsafe { call(libc::$number, args) })
        }
    };
}

plain!(/// close(2)
    close(fd) = SYS_close);
plain!(/// dup3(2)
    dup3(old, new, flags) = SYS_dup3);
plain!(/// fcntl(2) with an integer argument
    fcntl(fd, command, argument) = SYS_fcntl);
plain!(/// eventfd2(2)
    eventfd(count, flags) = SYS_eventfd2);
plain!(/// epoll_create1(2)
    epoll_create(flags) = SYS_epoll_create1);
plain!(/// close_range(2)
    close_range(first, last, flags) = SYS_close_range);
plain!(/// tgkill(2)
    tgkill(process, thread, signal) = SYS_tgkill);
plain!(/// gettid(2)
    gettid() = SYS_gettid);
plain!(/// getpid(2)
    getpid() = SYS_getpid);
plain!(/// getuid(2)
    getuid() = SYS_getuid);
plain!(/// prctl(2) with an integer argument
    prctl(option, argument) = SYS_prctl);
plain!(/// prctl(2) with two integer arguments
    prctl2(option, first, second) = SYS_prctl);
plain!(/// sched_yield(2)
    sched_yield() = SYS_sched_yield);

/// Ends the whole process. Never returns.
pub fn exit(status: i32) -> ! {
    loop {
        // SAFETY: exit_group(2) takes an integer.
        let _ = unsafe { call(libc::SYS_exit_group, [status as usize, 0, 0, 0, 0, 0]) };
    }
}

/// Opens a file or directory that exists, by a path that ends with a NUL.
pub fn open(path: &[u8], flags: c_int) -> Result<usize, c_int> {
    if path.last() != Some(&0) {
        return Err(libc::EINVAL);
    }
    let flags = (flags | libc::O_CLOEXEC) as usize;
    let args = [libc::AT_FDCWD as usize, path.as_ptr() as usize, flags, 0, 0, 0];
    // SAFETY: the path ends with a NUL.
    outcome(unsafe { call(libc::SYS_openat, args) })
}

/// Reads into a buffer.
pub fn read(fd: usize, buffer: &mut [u8]) -> Result<usize, c_int> {
    let args = [fd, buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0];
    // SAFETY: the buffer is ours for its length.
    outcome(unsafe { call(libc::SYS_read, args) })
}

/// Writes a buffer.
pub fn write(fd: usize, bytes: &[u8]) -> Result<usize, c_int> {
    let args = [fd, bytes.as_ptr() as usize, bytes.len(), 0, 0, 0];
    // SAFETY: the buffer is valid for its length.
    outcome(unsafe { call(libc::SYS_write, args) })
}

/// Reads directory entries (`struct linux_dirent64`).
pub fn getdents(fd: usize, buffer: &mut [u8]) -> Result<usize, c_int> {
    let args = [fd, buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0];
    // SAFETY: the buffer is ours for its length.
    outcome(unsafe { call(libc::SYS_getdents64, args) })
}

/// Reads what a symbolic link leads to, by a path that ends with a NUL.
pub fn readlink(path: &[u8], buffer: &mut [u8]) -> Result<usize, c_int> {
    if path.last() != Some(&0) {
        return Err(libc::EINVAL);
    }
    let args = [path.as_ptr() as usize, buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0];
    // SAFETY: the path ends with a NUL, the buffer is ours for its length.
    outcome(unsafe { call(libc::SYS_readlink, args) })
}

/// What a descriptor leads to.
pub fn fstat(fd: usize) -> Result<libc::stat, c_int> {
    // SAFETY: `stat` is plain data.
    let mut stat: libc::stat = unsafe { core::mem::zeroed() };
    // SAFETY: on x86-64 the kernel's structure is that of the C library.
    outcome(unsafe { call(libc::SYS_fstat, [fd, &raw mut stat as usize, 0, 0, 0, 0]) })?;
    Ok(stat)
}

/// A signalfd of its own for a set of signals.
pub fn signalfd(mask: u64, flags: usize) -> Result<usize, c_int> {
    let args = [usize::MAX, &raw const mask as usize, size_of::<u64>(), flags, 0, 0];
    // SAFETY: the kernel reads eight bytes.
    outcome(unsafe { call(libc::SYS_signalfd4, args) })
}

/// Waits while `word` is `value`, at most for `timeout_ns`. Spurious returns are possible.
pub fn futex_wait(word: &core::sync::atomic::AtomicU32, value: u32, timeout_ns: Option<u64>) {
    let time = libc::timespec {
        tv_sec: (timeout_ns.unwrap_or(0) / 1_000_000_000) as i64,
        tv_nsec: (timeout_ns.unwrap_or(0) % 1_000_000_000) as i64,
    };
    let time = timeout_ns.map_or(0, |_| &raw const time as usize);
    let operation = (libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG) as usize;
    let args = [word.as_ptr() as usize, operation, value as usize, time, 0, 0];
    // SAFETY: the word lives for the call, the time too.
    let _ = unsafe { call(libc::SYS_futex, args) };
}

/// Wakes everybody who waits for `word`.
pub fn futex_wake(word: &core::sync::atomic::AtomicU32) {
    let operation = (libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG) as usize;
    let args = [word.as_ptr() as usize, operation, i32::MAX as usize, 0, 0, 0];
    // SAFETY: the kernel uses the word as a key only.
    let _ = unsafe { call(libc::SYS_futex, args) };
}

/// The monotonic clock in nanoseconds.
pub fn now_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let args = [libc::CLOCK_MONOTONIC as usize, &raw mut time as usize, 0, 0, 0, 0];
    // SAFETY: the kernel writes one timespec.
    let _ = unsafe { call(libc::SYS_clock_gettime, args) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
