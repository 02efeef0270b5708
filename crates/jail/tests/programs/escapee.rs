//! A program that is run in place of a monitor and tries to get out of its jail.
//!
//! | arguments | does |
//! |---|---|
//! | `try ABSTRACT NAME…` | the attempts of these names |
//! | `family ABSTRACT NAME…` | all others, in itself, in a keeper and in a copy of itself |
//! | `sweep NUMBER…` | system calls of these numbers, with nothing but zeros |
//! | `int80`, `x32` | a call from another table |
//!
//! `ABSTRACT` is the name of an abstract socket on the host. Every attempt is a line
//! `who.name=errno`, with 0 for one that worked.
#![allow(clippy::unwrap_used, reason = "a test program fails by panicking")]

use std::ffi::{CStr, c_void};
use std::io::Read;

use libc::c_long;
use pandastack_fork::{CHILD_FLAGS, KEEPER_FLAGS};

/// A stream to the outside, and a datagram socket.
const STREAM: usize = 3;
const DATAGRAMS: usize = 4;

struct Attempt {
    name: &'static str,
    call: c_long,
    args: [usize; 6],
    /// Whether it says nothing of somebody who has capabilities in a user namespace of its own.
    needs_none: bool,
}

fn attempt<const N: usize>(name: &'static str, call: c_long, given: [usize; N]) -> Attempt {
    let mut args = [0; 6];
    args[..N].copy_from_slice(&given);
    Attempt { name, call, args, needs_none: false }
}

fn text(text: &'static CStr) -> usize {
    text.as_ptr() as usize
}

/// Memory that stays, as a system call takes it.
fn place<T>(value: T) -> usize {
    Box::into_raw(Box::new(value)) as usize
}

/// Files, by a path.
fn files() -> Vec<Attempt> {
    let (here, write) = (libc::AT_FDCWD as usize, (libc::O_WRONLY | libc::O_CREAT) as usize);
    let (passwd, own, root) = (text(c"/etc/passwd"), text(c"/escapee"), text(c"/"));
    let (new, how) = (text(c"/new"), place([0u64; 3]));
    let room = place([0u8; 4096]);
    vec![
        attempt("open_host", libc::SYS_open, [passwd, 0]),
        attempt("open_own", libc::SYS_open, [own, 0]),
        attempt("open_keeper", libc::SYS_openat, [here, text(c"/panda-keeper"), 0]),
        attempt("open_root", libc::SYS_openat, [here, root, libc::O_DIRECTORY as usize]),
        attempt("open_path", libc::SYS_openat, [here, own, libc::O_PATH as usize]),
        attempt("open_above", libc::SYS_openat, [here, text(c"../../../etc/passwd"), 0]),
        attempt("open_proc", libc::SYS_openat, [here, text(c"/proc/self/mem"), 2]),
        attempt("open_proc_fd", libc::SYS_openat, [here, text(c"/proc/self/fd/3"), 2]),
        attempt("open_kvm", libc::SYS_openat, [here, text(c"/dev/kvm"), 2]),
        attempt("open_write", libc::SYS_openat, [here, own, libc::O_WRONLY as usize]),
        attempt("openat2", libc::SYS_openat2, [here, own, how, 24]),
        attempt("create", libc::SYS_openat, [here, new, write, 0o600]),
        attempt("creat", libc::SYS_creat, [new, 0o600]),
        attempt("open_tree", libc::SYS_open_tree, [here, root, 1]),
        attempt("handle", libc::SYS_name_to_handle_at, [here, own, room, room, 0]),
        attempt("by_handle", libc::SYS_open_by_handle_at, [here, room, 0]),
        attempt("mkdir", libc::SYS_mkdir, [new, 0o700]),
        attempt("unlink", libc::SYS_unlink, [own]),
        attempt("rename", libc::SYS_rename, [own, new]),
        attempt("link", libc::SYS_link, [own, new]),
        attempt("symlink", libc::SYS_symlink, [own, new]),
        attempt("chmod", libc::SYS_chmod, [own, 0o777]),
        attempt("chown", libc::SYS_chown, [own, 0, 0]),
        attempt("truncate", libc::SYS_truncate, [own, 0]),
        attempt("mknod", libc::SYS_mknod, [new, (libc::S_IFCHR | 0o666) as usize, 0x0ae8]),
        attempt("mkfifo", libc::SYS_mknodat, [here, new, (libc::S_IFIFO | 0o666) as usize, 0]),
        attempt("stat", libc::SYS_stat, [own, room]),
        attempt("statat", libc::SYS_newfstatat, [here, own, room, 0]),
        attempt("statx", libc::SYS_statx, [here, own, 0, 0x7ff, room]),
        attempt("statfs", libc::SYS_statfs, [root, room]),
        attempt("access", libc::SYS_access, [passwd, 0]),
        attempt("readlink", libc::SYS_readlink, [text(c"/proc/self/exe"), room, 4096]),
        attempt("getxattr", libc::SYS_getxattr, [own, text(c"user.x"), room, 16]),
        attempt("chdir", libc::SYS_chdir, [root]),
        attempt("getcwd", libc::SYS_getcwd, [room, 4096]),
        attempt("inotify", libc::SYS_inotify_init1, [0]),
        attempt("fanotify", libc::SYS_fanotify_init, [0, 0]),
        attempt("getdents", libc::SYS_getdents64, [0, room, 4096]),
    ]
}

/// Sockets, and ways to others over those that are there.
fn sockets(abstract_name: &str) -> Vec<Attempt> {
    let stream = libc::SOCK_STREAM as usize;
    let of = |family: i32, kind: i32| [family as usize, kind as usize, 0];
    // sockaddr_un with a name that begins with a NUL, and sockaddr_in of 127.0.0.1:1.
    let mut unix = vec![libc::AF_UNIX as u8, 0, 0];
    unix.extend_from_slice(abstract_name.as_bytes());
    let unix_len = unix.len();
    let unix = Vec::leak(unix).as_ptr() as usize;
    let inet = place([2u8, 0, 0, 1, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    let word = c"escaped".as_ptr() as usize;
    let vector = place([word, 7]);
    let message = place([unix, unix_len, vector, 1, 0, 0, 0]);
    vec![
        attempt("socket_unix", libc::SYS_socket, of(libc::AF_UNIX, libc::SOCK_STREAM)),
        attempt("socket_inet", libc::SYS_socket, of(libc::AF_INET, libc::SOCK_STREAM)),
        attempt("socket_inet6", libc::SYS_socket, of(libc::AF_INET6, libc::SOCK_DGRAM)),
        attempt("socket_netlink", libc::SYS_socket, of(libc::AF_NETLINK, libc::SOCK_RAW)),
        attempt("socket_packet", libc::SYS_socket, of(libc::AF_PACKET, libc::SOCK_RAW)),
        attempt("socket_vsock", libc::SYS_socket, of(libc::AF_VSOCK, libc::SOCK_STREAM)),
        attempt("socket_alg", libc::SYS_socket, of(libc::AF_ALG, libc::SOCK_SEQPACKET)),
        attempt("socketpair", libc::SYS_socketpair, [1, stream, 0, place([0i32; 2])]),
        attempt("connect_abstract", libc::SYS_connect, [STREAM, unix, unix_len]),
        attempt("connect_inet", libc::SYS_connect, [STREAM, inet, 16]),
        attempt("bind", libc::SYS_bind, [DATAGRAMS, unix, unix_len]),
        attempt("listen", libc::SYS_listen, [STREAM, 1]),
        attempt("accept", libc::SYS_accept4, [STREAM, 0, 0, 0]),
        attempt("setsockopt", libc::SYS_setsockopt, [STREAM, 1, 7, place(1 << 20), 4]),
        attempt("sendto_abstract", libc::SYS_sendto, [DATAGRAMS, word, 7, 0, unix, unix_len]),
        attempt("sendmsg_abstract", libc::SYS_sendmsg, [DATAGRAMS, message, 0]),
        attempt("sendmmsg", libc::SYS_sendmmsg, [DATAGRAMS, message, 1, 0]),
    ]
}

/// Other processes and their memory, signals to them, and new ones.
fn processes() -> Vec<Attempt> {
    let seize = 0x4206;
    let room = place([0usize, 0, 0, 0, 0, 0, 0, 0]);
    // SAFETY: no arguments.
    let parent = unsafe { libc::getppid() } as usize;
    let mut all = vec![
        attempt("ptrace_keeper", libc::SYS_ptrace, [seize, 1, 0, 0]),
        attempt("ptrace_me", libc::SYS_ptrace, [0, 0, 0, 0]),
        attempt("read_memory", libc::SYS_process_vm_readv, [1, room, 1, room, 1, 0]),
        attempt("write_memory", libc::SYS_process_vm_writev, [1, room, 1, room, 1, 0]),
        attempt("madvise_other", libc::SYS_process_madvise, [0, room, 1, 4, 0]),
        attempt("kcmp", libc::SYS_kcmp, [1, 2, 0, 0, 0]),
        attempt("kill_keeper", libc::SYS_kill, [1, 0]),
        attempt("kill_parent", libc::SYS_kill, [parent, 0]),
        attempt("kill_own", libc::SYS_kill, [2, 0]),
        attempt("kill_group", libc::SYS_kill, [0, 0]),
        attempt("kill_all", libc::SYS_kill, [usize::MAX, 0]),
        attempt("tkill", libc::SYS_tkill, [1, 0]),
        attempt("tgkill_keeper", libc::SYS_tgkill, [1, 1, 0]),
        attempt("tgkill_fork", libc::SYS_tgkill, [3, 3, 0]),
        attempt("sigqueue", libc::SYS_rt_sigqueueinfo, [1, 0, room]),
        attempt("tgsigqueue", libc::SYS_rt_tgsigqueueinfo, [1, 1, 0, room]),
        attempt("pidfd_open", libc::SYS_pidfd_open, [1, 0]),
        attempt("pidfd_signal", libc::SYS_pidfd_send_signal, [STREAM, 0, 0, 0]),
        attempt("pidfd_getfd", libc::SYS_pidfd_getfd, [STREAM, 0, 0]),
        attempt("owner", libc::SYS_fcntl, [STREAM, libc::F_SETOWN as usize, 1]),
        attempt("owner_ex", libc::SYS_fcntl, [STREAM, 15, room]),
        attempt("lease", libc::SYS_fcntl, [0, libc::F_SETLEASE as usize, 0]),
        attempt("fork", libc::SYS_fork, []),
        attempt("vfork", libc::SYS_vfork, []),
        attempt("clone", libc::SYS_clone, [libc::SIGCHLD as usize]),
        attempt("clone_thread", libc::SYS_clone, [0x0001_0f00]),
        attempt("clone3", libc::SYS_clone3, [place([libc::SIGCHLD as u64; 11]), 88]),
        attempt("priority", libc::SYS_setpriority, [0, 0, 0]),
        attempt("scheduler", libc::SYS_sched_setscheduler, [0, 0, room]),
        attempt("affinity", libc::SYS_sched_setaffinity, [0, 8, room]),
        attempt("limits", libc::SYS_prlimit64, [0, 7, room, 0]),
        attempt("limits_other", libc::SYS_prlimit64, [1, 7, 0, room]),
        attempt("setsid", libc::SYS_setsid, []),
    ];
    let namespaces = [
        ("clone_user", libc::CLONE_NEWUSER),
        ("clone_mount", libc::CLONE_NEWNS),
        ("clone_net", libc::CLONE_NEWNET),
        ("clone_pid", libc::CLONE_NEWPID),
        ("clone_ipc", libc::CLONE_NEWIPC),
        ("clone_uts", libc::CLONE_NEWUTS),
        ("clone_cgroup", libc::CLONE_NEWCGROUP),
    ];
    for (name, flag) in namespaces {
        let flags = (flag | libc::SIGCHLD) as u32 as usize;
        all.push(attempt(name, libc::SYS_clone, [flags]));
    }
    all
}

/// Programs and code other than those that are there.
fn code() -> Vec<Attempt> {
    let argv = place([text(c"x"), 0]);
    let exec = (libc::PROT_READ | libc::PROT_EXEC) as usize;
    let writable = exec | libc::PROT_WRITE as usize;
    let anonymous = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as usize;
    let page = (place([0u8; 8192]) + 4095) & !4095;
    let empty = libc::AT_EMPTY_PATH as usize;
    vec![
        attempt("exec_other", libc::SYS_execve, [text(c"/extra"), argv, 0]),
        attempt("exec_shell", libc::SYS_execve, [text(c"/bin/sh"), argv, 0]),
        attempt("exec_above", libc::SYS_execve, [text(c"/../../bin/sh"), argv, 0]),
        attempt("exec_at", libc::SYS_execveat, [STREAM, text(c""), argv, 0, empty]),
        attempt("memfd", libc::SYS_memfd_create, [text(c"x"), 0]),
        attempt("memfd_secret", libc::SYS_memfd_secret, [0]),
        attempt("map_code", libc::SYS_mmap, [0, 4096, exec, anonymous, usize::MAX, 0]),
        attempt("map_writable", libc::SYS_mmap, [0, 4096, writable, anonymous, usize::MAX, 0]),
        attempt("protect_code", libc::SYS_mprotect, [page, 4096, exec]),
        attempt("protect_key", libc::SYS_pkey_mprotect, [page, 4096, exec, usize::MAX]),
        attempt("remap_fixed", libc::SYS_mremap, [page, 4096, 4096, 3, page]),
        attempt("remap_pages", libc::SYS_remap_file_pages, [page, 4096, 0, 0, 0]),
        attempt("personality", libc::SYS_personality, [0x0040_0000]),
        attempt("shared_code", libc::SYS_shmat, [0, 0, 0o100_000]),
        attempt("merge", libc::SYS_madvise, [page, 4096, libc::MADV_MERGEABLE as usize]),
    ]
}

/// Namespaces, mounts, ids and capabilities.
fn privileges() -> Vec<Attempt> {
    let (root, tmpfs) = (text(c"/"), text(c"tmpfs"));
    let bind = libc::MS_BIND as usize;
    let remount = (libc::MS_REMOUNT | libc::MS_BIND) as usize;
    let header = place([0x2008_0522u32, 0]);
    let every = place([u32::MAX; 6]);
    let mut all = vec![
        attempt("mount", libc::SYS_mount, [tmpfs, root, tmpfs, 0, 0]),
        attempt("mount_bind", libc::SYS_mount, [root, root, 0, bind, 0]),
        attempt("mount_writable", libc::SYS_mount, [0, root, 0, remount, 0]),
        attempt("umount", libc::SYS_umount2, [root, libc::MNT_DETACH as usize]),
        attempt("pivot_root", libc::SYS_pivot_root, [root, root]),
        attempt("chroot", libc::SYS_chroot, [root]),
        attempt("fsopen", libc::SYS_fsopen, [tmpfs, 0]),
        attempt("fsmount", libc::SYS_fsmount, [STREAM, 0, 0]),
        attempt("move_mount", libc::SYS_move_mount, [STREAM, root, STREAM, root, 0]),
        attempt("mount_setattr", libc::SYS_mount_setattr, [STREAM, root, 0, header, 32]),
        attempt("setns", libc::SYS_setns, [STREAM, 0]),
        attempt("setuid", libc::SYS_setuid, [0]),
        attempt("setresuid", libc::SYS_setresuid, [0, 0, 0]),
        attempt("setgid", libc::SYS_setgid, [0]),
        attempt("setgroups", libc::SYS_setgroups, [1, header]),
        attempt("setfsuid", libc::SYS_setfsuid, [0]),
        attempt("hostname", libc::SYS_sethostname, [root, 1]),
        attempt("keep_caps", libc::SYS_prctl, [libc::PR_SET_KEEPCAPS as usize, 1]),
        attempt("set_mm", libc::SYS_prctl, [libc::PR_SET_MM as usize, 13, STREAM]),
        attempt("set_ptracer", libc::SYS_prctl, [libc::PR_SET_PTRACER as usize, usize::MAX]),
        attempt("subreaper", libc::SYS_prctl, [libc::PR_SET_CHILD_SUBREAPER as usize, 1]),
        attempt("seccomp_call", libc::SYS_seccomp, [2, 0, 0]),
        attempt("landlock", libc::SYS_landlock_create_ruleset, [0, 0, 1]),
        attempt("arch_prctl", libc::SYS_arch_prctl, [0x1011, 0]),
    ];
    let raise = libc::PR_CAP_AMBIENT_RAISE as usize;
    let ambient = [libc::PR_CAP_AMBIENT as usize, raise, 21];
    for alone in [
        attempt("capset", libc::SYS_capset, [header, every]),
        attempt("ambient", libc::SYS_prctl, ambient),
        attempt("securebits", libc::SYS_prctl, [libc::PR_SET_SECUREBITS as usize, 0]),
    ] {
        all.push(Attempt { needs_none: true, ..alone });
    }
    for (name, flags) in [
        ("unshare_user", libc::CLONE_NEWUSER),
        ("unshare_mount", libc::CLONE_NEWNS),
        ("unshare_net", libc::CLONE_NEWNET),
        ("unshare_files", libc::CLONE_FILES),
    ] {
        all.push(attempt(name, libc::SYS_unshare, [flags as usize]));
    }
    all
}

/// Parts of the kernel that a monitor has no use for.
fn kernel() -> Vec<Attempt> {
    let room = place([0u8; 4096]);
    let mut all = vec![
        attempt("bpf", libc::SYS_bpf, [0, room, 64]),
        attempt("perf", libc::SYS_perf_event_open, [room, 0, usize::MAX, usize::MAX, 0]),
        attempt("userfaultfd", libc::SYS_userfaultfd, [1]),
        attempt("io_uring", libc::SYS_io_uring_setup, [1, room]),
        attempt("keyctl", libc::SYS_keyctl, [0, 0]),
        attempt("add_key", libc::SYS_add_key, [text(c"user"), text(c"x"), room, 1, 0]),
        attempt("request_key", libc::SYS_request_key, [text(c"user"), text(c"x"), 0, 0]),
        attempt("epoll", libc::SYS_epoll_create1, [0]),
        attempt("signalfd", libc::SYS_signalfd4, [usize::MAX, room, 8, 0]),
        attempt("timerfd", libc::SYS_timerfd_create, [0, 0]),
        attempt("timer", libc::SYS_timer_create, [0, 0, room]),
        attempt("pipe", libc::SYS_pipe2, [room, 0]),
        attempt("splice", libc::SYS_splice, [0, 0, 1, 0, 1, 0]),
        attempt("vmsplice", libc::SYS_vmsplice, [1, room, 1, 0]),
        attempt("sendfile", libc::SYS_sendfile, [1, 0, 0, 1]),
        attempt("copy_range", libc::SYS_copy_file_range, [0, 0, 1, 0, 1, 0]),
        attempt("shm", libc::SYS_shmget, [0, 4096, 0o1600]),
        attempt("sem", libc::SYS_semget, [0, 1, 0o1600]),
        attempt("msg", libc::SYS_msgget, [0, 0o1600]),
        attempt("mq", libc::SYS_mq_open, [text(c"x"), 0o100, 0o600, 0]),
        attempt("module", libc::SYS_init_module, [room, 0, room]),
        attempt("kexec", libc::SYS_kexec_load, [0, 0, 0, 0]),
        attempt("iopl", libc::SYS_iopl, [3]),
        attempt("ldt", libc::SYS_modify_ldt, [0, room, 16]),
        attempt("syslog", libc::SYS_syslog, [10, 0, 0]),
        attempt("clock", libc::SYS_clock_settime, [0, room]),
        attempt("adjtime", libc::SYS_adjtimex, [room]),
        attempt("futex_pi", libc::SYS_futex, [room, libc::FUTEX_LOCK_PI as usize, 0, 0, 0, 0]),
        attempt("waitv", libc::SYS_futex_waitv, [room, 1, 0, 0, 0]),
        attempt("seals", libc::SYS_fcntl, [0, libc::F_ADD_SEALS as usize, 0]),
    ];
    for (name, request) in [
        ("ioctl_tiocsti", 0x5412),
        ("ioctl_tiocsctty", 0x540e),
        ("ioctl_siocspgrp", 0x8902),
        ("ioctl_fioasync", 0x5452),
        ("ioctl_create_irqchip", 0xae60),
        ("ioctl_set_gsi_routing", 0x4008_ae6a),
        ("ioctl_irqfd", 0x4020_ae76),
        ("ioctl_create_pit2", 0x4040_ae77),
        ("ioctl_ioeventfd", 0x4040_ae79),
        ("ioctl_create_device", 0xc00c_aee0),
        ("ioctl_get_dirty_log", 0x4010_ae42),
        ("ioctl_hyperv_eventfd", 0x4018_aebd),
        ("ioctl_nested_state", 0x4080_aebf),
        ("ioctl_encrypt", 0xc008_aeba),
        ("ioctl_xen", 0x4038_ae7a),
        ("ioctl_smi", 0xaeb7),
        ("ioctl_clone_range", 0x4020_940d),
        ("ioctl_vhost_owner", 0xaf01),
        ("ioctl_tun", 0x4004_54ca),
    ] {
        all.push(attempt(name, libc::SYS_ioctl, [STREAM, request, room]));
    }
    all
}

/// How a system call failed, or 0.
fn outcome(call: c_long, [a, b, c, d, e, f]: [usize; 6]) -> i32 {
    // SAFETY: the arguments are those of the call; if it makes another process, that one is in a
    // copy of this memory and ends here.
    let result = unsafe { libc::syscall(call, a, b, c, d, e, f) };
    let makes = [libc::SYS_fork, libc::SYS_vfork, libc::SYS_clone, libc::SYS_clone3];
    if result == 0 && makes.contains(&call) {
        end(0);
    }
    if result == -1 { std::io::Error::last_os_error().raw_os_error().unwrap() } else { 0 }
}

fn end(status: usize) -> ! {
    // SAFETY: takes an integer.
    unsafe { libc::syscall(libc::SYS_exit_group, status) };
    unreachable!()
}

/// Which attempts to make, and the name of the socket on the host.
struct Plan<'a> {
    abstract_name: &'a str,
    names: &'a [String],
    /// Whether the names are those to leave out.
    others: bool,
}

impl Plan<'_> {
    fn carry_out(&self, who: &str) {
        let sockets = sockets(self.abstract_name);
        let all = [files(), sockets, processes(), code(), privileges(), kernel()];
        for Attempt { name, call, args, needs_none } in all.into_iter().flatten() {
            let named = self.names.iter().any(|wanted| wanted == name);
            if named != self.others && !(needs_none && who != "main") {
                println!("{who}.{name}={}", outcome(call, args));
            }
        }
    }

    /// Does it in a keeper, and in a copy that the keeper makes. Both have every capability in a
    /// user namespace of their own.
    fn carry_out_in_family(&self) {
        let mut stack = vec![0u128; 1 << 16];
        let top = stack.as_mut_ptr_range().end.cast();
        let plan = std::ptr::from_ref(self).cast_mut().cast();
        // SAFETY: this process stands still until the keeper ends, which has a stack of its own.
        let made = unsafe { libc::clone(keep, top, KEEPER_FLAGS as libc::c_int, plan) };
        println!("main.made={}", made > 0);
    }
}

extern "C" fn keep(plan: *mut c_void) -> libc::c_int {
    // SAFETY: the plan of the process that stands still.
    let plan = unsafe { &*plan.cast::<Plan<'_>>() };
    plan.carry_out("keeper");
    let mut pidfd: libc::c_int = -1;
    // SAFETY: without CLONE_VM the copy has its own memory and stack.
    let copy =
        unsafe { libc::syscall(libc::SYS_clone, CHILD_FLAGS as usize, 0, &raw mut pidfd, 0, 0) };
    if copy == 0 {
        plan.carry_out("copy");
        end(0);
    }
    // SAFETY: takes no status. It waits for the copy, whose pidfd is in the parent's table and
    // nobody else's.
    unsafe {
        libc::waitpid(copy as i32, std::ptr::null_mut(), 0);
        libc::close(pidfd);
    }
    println!("keeper.made={}", copy > 0);
    end(0)
}

/// System calls with zeros: those that do not fail with EPERM.
fn sweep(numbers: &[String]) {
    let calls = numbers.iter().map(|number| number.parse::<c_long>().unwrap());
    let through: Vec<_> =
        calls.filter(|&call| outcome(call, [0; 6]) != libc::EPERM).map(|c| c.to_string()).collect();
    println!("swept={}", numbers.len());
    println!("through={}", through.join(","));
}

/// A call that is in no table of 64-bit programs: getpid(2), twice.
fn foreign(table: &str) {
    println!("before=yes");
    let _answer: i64;
    // SAFETY: both calls take nothing and change registers that are named.
    unsafe {
        match table {
            "int80" => {
                std::arch::asm!("int 0x80", inlateout("rax") 20i64 => _answer,
                    out("rcx") _, out("r8") _, out("r9") _, out("r10") _, out("r11") _)
            }
            _ => std::arch::asm!("syscall", inlateout("rax") 0x4000_0027i64 => _answer,
                    out("rcx") _, out("r11") _),
        }
    }
    println!("after=yes");
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [mode, rest @ ..] = arguments.as_slice() else { return };
    match (mode.as_str(), rest) {
        ("try", [abstract_name, names @ ..]) => {
            Plan { abstract_name, names, others: false }.carry_out("main");
        }
        ("family", [abstract_name, names @ ..]) => {
            let plan = Plan { abstract_name, names, others: true };
            plan.carry_out("main");
            plan.carry_out_in_family();
        }
        ("sweep", numbers) => sweep(numbers),
        (table, _) => foreign(table),
    }
    println!("end=end");
    // Until the outside has looked.
    let _ = std::io::stdin().read(&mut [0u8; 1]);
}
