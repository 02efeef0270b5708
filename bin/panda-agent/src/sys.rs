//! The system calls that have no safe wrapper, and the child's way from clone to exec.
//!
//! The only module of the agent with `unsafe` in it.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::Pid;

/// Adds entropy to the kernel's generator and makes it reseed from it at once. Without the second
/// step two copies of a snapshot go on with the same stream.
pub fn reseed(random: BorrowedFd<'_>, entropy: &[u8]) -> rustix::io::Result<()> {
    const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;
    const RNDRESEEDCRNG: libc::Ioctl = 0x5207;
    const MAX: usize = 256;

    /// `struct rand_pool_info` with its flexible array at full length.
    #[repr(C)]
    struct PoolInfo {
        entropy_bits: i32,
        size: i32,
        bytes: [u8; MAX],
    }
    let mut info = PoolInfo { entropy_bits: 0, size: 0, bytes: [0; MAX] };
    let len = entropy.len().min(MAX);
    info.bytes[..len].copy_from_slice(&entropy[..len]);
    info.size = len as i32;
    info.entropy_bits = len as i32 * 8;
    // SAFETY: the kernel reads `size` bytes behind the two integers, and the array has them.
    check(unsafe { libc::ioctl(random.as_raw_fd(), RNDADDENTROPY, &raw const info) })?;
    // SAFETY: takes no argument.
    check(unsafe { libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG) })?;
    Ok(())
}

/// Sends a signal to every process but the caller and process 1.
pub fn signal_all(signal: libc::c_int) -> rustix::io::Result<()> {
    // SAFETY: takes two numbers.
    check(unsafe { libc::kill(-1, signal) }).map(drop)
}

/// Blocks SIGCHLD and returns a descriptor that is readable while one is pending.
pub fn child_signals() -> rustix::io::Result<OwnedFd> {
    // SAFETY: the set is initialised by sigemptyset before it is used, and the descriptor that
    // signalfd returns is new and ours.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        check(libc::sigprocmask(libc::SIG_BLOCK, &raw const set, ptr::null_mut()))?;
        let fd = check(libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Brings the loopback interface up.
pub fn loopback_up(socket: BorrowedFd<'_>) -> rustix::io::Result<()> {
    // SAFETY: an all-zero ifreq is valid; name and flags are what the request reads.
    unsafe {
        let mut request = std::mem::zeroed::<libc::ifreq>();
        for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
            *to = *from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request))?;
    }
    Ok(())
}

/// Connects to `port` of the host over vsock, from the first of the ports `from` that is free, and
/// waits at most `patience` for an answer.
pub fn vsock_connect(
    from: Range<u32>,
    port: u32,
    patience: Duration,
) -> rustix::io::Result<OwnedFd> {
    /// `SO_VM_SOCKETS_CONNECT_TIMEOUT` of `linux/vm_sockets.h`; its value is a `timeval`.
    const CONNECT_TIMEOUT: i32 = 6;

    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
    // SAFETY: socket takes no pointers, and the descriptor that it returns is new and ours.
    let socket = unsafe { OwnedFd::from_raw_fd(check(libc::socket(libc::AF_VSOCK, kind, 0))?) };
    let fd = socket.as_raw_fd();
    let timeout = libc::timeval {
        tv_sec: patience.as_secs() as libc::time_t,
        tv_usec: patience.subsec_micros() as libc::suseconds_t,
    };
    let len = std::mem::size_of_val(&timeout) as libc::socklen_t;
    let value = (&raw const timeout).cast();
    // SAFETY: pointer and length are of the structure that the option takes.
    check(unsafe { libc::setsockopt(fd, libc::AF_VSOCK, CONNECT_TIMEOUT, value, len) })?;
    let mut bound = Err(Errno::ADDRINUSE);
    for source in from {
        let (address, len) = vsock_address(libc::VMADDR_CID_ANY, source);
        // SAFETY: pointer and length are of one structure.
        bound = check(unsafe { libc::bind(fd, (&raw const address).cast(), len) });
        if bound != Err(Errno::ADDRINUSE) {
            break;
        }
    }
    bound?;
    let (address, len) = vsock_address(libc::VMADDR_CID_HOST, port);
    // SAFETY: as above.
    check(unsafe { libc::connect(fd, (&raw const address).cast(), len) })?;
    Ok(socket)
}

fn vsock_address(cid: u32, port: u32) -> (libc::sockaddr_vm, libc::socklen_t) {
    let address = libc::sockaddr_vm {
        svm_family: libc::AF_VSOCK as libc::sa_family_t,
        svm_reserved1: 0,
        svm_port: port,
        svm_cid: cid,
        svm_zero: [0; 4],
    };
    (address, std::mem::size_of_val(&address) as libc::socklen_t)
}

/// Keeps every descriptor that the agent was started with from its commands, except the first three.
pub fn keep_descriptors() -> rustix::io::Result<()> {
    const CLOSE_RANGE_CLOEXEC: libc::c_uint = 4;
    let (first, last) = (3 as libc::c_uint, libc::c_uint::MAX);
    // SAFETY: sets a flag on descriptors and closes none.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, last, CLOSE_RANGE_CLOEXEC) };
    check(done as i32).map(drop)
}

/// Takes over a descriptor that was inherited by number.
pub fn inherited(number: i32) -> rustix::io::Result<OwnedFd> {
    // SAFETY: fcntl on a number that is no descriptor fails without any effect.
    check(unsafe { libc::fcntl(number, libc::F_GETFD) })?;
    // SAFETY: it is open, as fcntl has shown, and the caller was given it to own.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Who a command runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
}

/// Everything that a child needs. All of it is made before the clone: the child of a clone must
/// not allocate.
pub struct Launch<'a> {
    /// Tried in order until one is executable.
    pub programs: &'a [CString],
    pub args: &'a [CString],
    /// Whether the first argument is the program's path instead of `args[0]`.
    pub path_as_name: bool,
    pub env: &'a [CString],
    pub cwd: &'a CStr,
    pub stdio: [BorrowedFd<'a>; 3],
    /// `None` for whoever the agent is.
    pub credentials: Option<&'a Credentials>,
    /// Soft and hard limit of open files.
    pub open_files: (u64, u64),
    /// The agent's own descriptor of `/proc`, to become killable by the kernel again; `None` when
    /// the agent is not protected itself.
    pub proc_dir: Option<BorrowedFd<'a>>,
    /// The cgroup to be born in: moving a process there later would wait for an RCU grace period.
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// Starts a command. What fails in the child is a line on its stderr and an exit with 126 or 127.
pub fn spawn(launch: &Launch<'_>) -> rustix::io::Result<Pid> {
    let mut argv: Vec<*const libc::c_char> = launch.args.iter().map(|a| a.as_ptr()).collect();
    let mut envp: Vec<*const libc::c_char> = launch.env.iter().map(|e| e.as_ptr()).collect();
    argv.push(ptr::null());
    envp.push(ptr::null());
    // SAFETY: the agent has one thread, so the child's copy of memory is consistent. The child
    // calls nothing that allocates or locks, and never returns.
    let pid = unsafe {
        match launch.cgroup {
            Some(cgroup) => clone_into(cgroup),
            None => check(libc::fork()),
        }
    }?;
    if pid == 0 {
        // SAFETY: this is the child; both arrays end in null and point into `launch`.
        unsafe { run_child(launch, &mut argv, &envp) }
    }
    Pid::from_raw(pid).ok_or(Errno::SRCH)
}

/// fork(2) into a cgroup.
///
/// # Safety
/// As for fork(2).
unsafe fn clone_into(cgroup: BorrowedFd<'_>) -> rustix::io::Result<i32> {
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

    /// `struct clone_args` up to the field that is needed.
    #[repr(C)]
    #[derive(Default)]
    struct CloneArgs {
        flags: u64,
        pidfd: u64,
        child_tid: u64,
        parent_tid: u64,
        exit_signal: u64,
        stack: u64,
        stack_size: u64,
        tls: u64,
        set_tid: u64,
        set_tid_size: u64,
        cgroup: u64,
    }
    let args = CloneArgs {
        flags: CLONE_INTO_CGROUP,
        exit_signal: libc::SIGCHLD as u64,
        cgroup: cgroup.as_raw_fd() as u64,
        ..CloneArgs::default()
    };
    // SAFETY: the structure has the size that is passed; no stack is given, so this is a fork.
    let pid = unsafe {
        libc::syscall(libc::SYS_clone3, &raw const args, std::mem::size_of::<CloneArgs>())
    };
    check(pid as i32)
}

/// The child: from a copy of the agent to the command.
///
/// # Safety
/// Only in a fresh child. `argv` and `envp` end in null and point to strings that live.
unsafe fn run_child(
    launch: &Launch<'_>,
    argv: &mut [*const libc::c_char],
    envp: &[*const libc::c_char],
) -> ! {
    // SAFETY: plain system calls on values that live; none of them allocates.
    unsafe {
        libc::setsid();
        for (target, fd) in launch.stdio.iter().enumerate() {
            // The sources are above 2, see `Guest::new`, so none is overwritten before its turn.
            libc::dup2(fd.as_raw_fd(), target as i32);
        }
        let mut none = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
        // Ignored by the Rust runtime, and exec would keep it ignored.
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::umask(0o022);
        let (soft, hard) = launch.open_files;
        let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        if let Some(proc_dir) = launch.proc_dir {
            let path = c"self/oom_score_adj".as_ptr();
            let fd = libc::openat(proc_dir.as_raw_fd(), path, libc::O_WRONLY | libc::O_CLOEXEC);
            if fd < 0 || libc::write(fd, b"0".as_ptr().cast(), 1) != 1 {
                give_up(126, &[b"panda-agent: cannot give up the agent's protection\n"]);
            }
        }
        if let Some(who) = launch.credentials {
            // The raw calls: glibc's wrappers would look for other threads.
            let groups = who.groups.as_ptr();
            let failed = libc::syscall(libc::SYS_setgroups, who.groups.len(), groups) != 0
                || libc::syscall(libc::SYS_setresgid, who.gid, who.gid, who.gid) != 0
                || libc::syscall(libc::SYS_setresuid, who.uid, who.uid, who.uid) != 0;
            if failed {
                give_up(126, &[b"panda-agent: cannot become the user\n"]);
            }
        }
        if libc::chdir(launch.cwd.as_ptr()) != 0 {
            give_up(126, &[launch.cwd.to_bytes(), b": cannot enter the directory\n"]);
        }
        let mut denied = 0;
        for program in launch.programs {
            if launch.path_as_name {
                argv[0] = program.as_ptr();
            }
            libc::execve(program.as_ptr(), argv.as_ptr(), envp.as_ptr());
            match *libc::__errno_location() {
                libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::ENAMETOOLONG => {}
                error => denied = error,
            }
        }
        let name = launch.args.first().map_or(&b"command"[..], |name| name.to_bytes());
        match denied {
            0 => give_up(127, &[name, b": not found\n"]),
            libc::EACCES | libc::EPERM => give_up(126, &[name, b": permission denied\n"]),
            libc::ENOEXEC => give_up(126, &[name, b": not a program\n"]),
            libc::E2BIG => give_up(126, &[name, b": arguments and environment too long\n"]),
            _ => give_up(126, &[name, b": cannot be run\n"]),
        }
    }
}

/// Says why on stderr and ends the child.
///
/// # Safety
/// Only in a fresh child.
unsafe fn give_up(code: i32, words: &[&[u8]]) -> ! {
    for word in words {
        // SAFETY: the pointer and the length are of one slice. Nobody could be told of an error.
        unsafe { libc::write(2, word.as_ptr().cast(), word.len()) };
    }
    // SAFETY: ends the process without running anything of the agent's.
    unsafe { libc::_exit(code) }
}

fn check(result: i32) -> rustix::io::Result<i32> {
    if result >= 0 {
        return Ok(result);
    }
    let code = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
    Err(Errno::from_raw_os_error(code))
}
