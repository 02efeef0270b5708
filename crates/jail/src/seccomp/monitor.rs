//! The filter of a monitor's process: a list of what it needs, from its start to its last fork.
//!
//! It holds for the main thread, which builds and restores the machine and copies the process, and
//! for the keepers of the copies. Threads that serve the guest take narrower filters on top
//! ([`Filter::allowing`]).
//!
//! What is not in the list, and so not in a monitor: opening anything by a path, making sockets,
//! processes other than keepers and copies, threads or mappings with new code, signals to others,
//! ids, namespaces, mounts. A compromised monitor holds the descriptors that it was given.

use pandastack_fork::{CHILD_FLAGS, KEEPER_FLAGS, PROGRAM_PID};

use super::allow::When::{All, Always, Masked, Null, OneOf, Without};
use super::{Filter, Rule, allow, kvm};

/// Flags of clone(2) with which glibc makes a thread: `CLONE_VM | CLONE_FS | CLONE_FILES |
/// CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM | CLONE_SETTLS | CLONE_PARENT_SETTID |
/// CLONE_CHILD_CLEARTID`.
pub const THREAD_FLAGS: u32 = 0x003d_0f00;

impl Filter {
    /// The filter for a monitor's process.
    pub fn monitor() -> Self {
        Self::allowing(&[
            DEVICES,
            TRANSFER,
            DESCRIPTORS,
            MEMORY,
            THREADS,
            NEW_THREADS,
            PROCESS,
            COPIES,
        ])
    }
}

/// `PROT_EXEC` of mmap(2).
const EXECUTABLE: u32 = libc::PROT_EXEC as u32;

/// Requests to KVM and to `/proc/PID/pagemap`. Those that come often are first.
const DEVICES: &[Rule] = &[allow(
    libc::SYS_ioctl,
    OneOf(
        1,
        &[
            kvm::RUN,
            kvm::SIGNAL_MSI,
            kvm::GET_API_VERSION,
            kvm::CREATE_VM,
            kvm::GET_MSR_INDEX_LIST,
            kvm::CHECK_EXTENSION,
            kvm::GET_VCPU_MMAP_SIZE,
            kvm::GET_SUPPORTED_CPUID,
            kvm::CREATE_VCPU,
            kvm::SET_USER_MEMORY_REGION,
            kvm::SET_TSS_ADDR,
            kvm::SET_IDENTITY_MAP_ADDR,
            kvm::SET_CLOCK,
            kvm::GET_CLOCK,
            kvm::ENABLE_CAP,
            kvm::X86_SET_MSR_FILTER,
            kvm::GET_REGS,
            kvm::SET_REGS,
            kvm::GET_SREGS,
            kvm::SET_SREGS,
            kvm::GET_SREGS2,
            kvm::SET_SREGS2,
            kvm::GET_MSRS,
            kvm::SET_MSRS,
            kvm::SET_SIGNAL_MASK,
            kvm::GET_FPU,
            kvm::SET_FPU,
            kvm::GET_LAPIC,
            kvm::SET_LAPIC,
            kvm::SET_CPUID2,
            kvm::GET_CPUID2,
            kvm::GET_MP_STATE,
            kvm::SET_MP_STATE,
            kvm::GET_VCPU_EVENTS,
            kvm::SET_VCPU_EVENTS,
            kvm::GET_DEBUGREGS,
            kvm::SET_DEBUGREGS,
            kvm::SET_TSC_KHZ,
            kvm::GET_TSC_KHZ,
            kvm::GET_XSAVE,
            kvm::SET_XSAVE,
            kvm::GET_XSAVE2,
            kvm::GET_XCRS,
            kvm::SET_XCRS,
            kvm::GET_ONE_REG,
            kvm::SET_ONE_REG,
            kvm::KVMCLOCK_CTRL,
            kvm::SET_DEVICE_ATTR,
            kvm::GET_DEVICE_ATTR,
            kvm::HAS_DEVICE_ATTR,
            kvm::PRE_FAULT_MEMORY,
            kvm::PAGEMAP_SCAN,
            kvm::FIONBIO,
        ],
    ),
    "the machine, its vCPUs and the map of its pages",
)];

/// Bytes in and out of descriptors that are there.
const TRANSFER: &[Rule] = &[
    allow(libc::SYS_read, Always, "events and streams"),
    allow(libc::SYS_write, Always, "events and streams"),
    allow(libc::SYS_readv, Always, "streams to the guest's memory"),
    allow(libc::SYS_writev, Always, "streams from the guest's memory"),
    allow(libc::SYS_pread64, Always, "disks and snapshots"),
    allow(libc::SYS_pwrite64, Always, "disks and snapshots"),
    allow(libc::SYS_preadv, Always, "disks to the guest's memory"),
    allow(libc::SYS_pwritev, Always, "disks from the guest's memory"),
    allow(libc::SYS_recvmsg, Always, "requests with descriptors"),
    allow(libc::SYS_sendmsg, Always, "replies with descriptors"),
    allow(libc::SYS_recvfrom, Always, "frames"),
    allow(libc::SYS_sendto, Null(4), "frames, to the peer only"),
    allow(libc::SYS_shutdown, Always, "a half-closed stream of the guest's agent"),
    allow(libc::SYS_poll, Always, "waiting for descriptors"),
    allow(libc::SYS_ppoll, Always, "waiting for descriptors"),
    allow(libc::SYS_lseek, Always, "sizes of files and their holes"),
    allow(libc::SYS_fsync, Always, "the guest's flushes"),
    allow(libc::SYS_fdatasync, Always, "the guest's flushes"),
    allow(libc::SYS_ftruncate, Always, "files that grow"),
    allow(libc::SYS_fallocate, Always, "what the guest discards"),
];

/// Asks about a descriptor. With a path in spite of it the call tells of the jail's root directory,
/// in which there is nothing to know.
const EMPTY_PATH: &[u32] = &[libc::AT_EMPTY_PATH as u32];

/// Duplicates and flags of descriptors.
pub(super) const FCNTL: Rule = allow(
    libc::SYS_fcntl,
    OneOf(
        1,
        &[
            libc::F_DUPFD_CLOEXEC as u32,
            libc::F_GETFD as u32,
            libc::F_SETFD as u32,
            libc::F_GETFL as u32,
            libc::F_SETFL as u32,
        ],
    ),
    "duplicates and flags, and no owner that would get signals",
);

/// The table of descriptors.
const DESCRIPTORS: &[Rule] = &[
    allow(libc::SYS_close, Always, "descriptors that are done with"),
    allow(libc::SYS_close_range, Always, "a keeper's and a copy's descriptors"),
    allow(libc::SYS_dup3, Always, "a copy's descriptors, in their places"),
    FCNTL,
    allow(libc::SYS_eventfd2, Always, "waking threads"),
    allow(libc::SYS_fstat, Always, "what a descriptor is"),
    allow(libc::SYS_newfstatat, OneOf(3, EMPTY_PATH), "the C library's fstat(3)"),
    allow(libc::SYS_statx, OneOf(2, EMPTY_PATH), "the standard library's fstat(3)"),
];

/// `MADV_*` of madvise(2). Not `MADV_MERGEABLE`: what one machine shares with another by accident
/// tells each of the other.
const ADVICE: &[u32] = &[
    libc::MADV_NORMAL as u32,
    libc::MADV_RANDOM as u32,
    libc::MADV_SEQUENTIAL as u32,
    libc::MADV_WILLNEED as u32,
    libc::MADV_DONTNEED as u32,
    libc::MADV_FREE as u32,
    libc::MADV_DONTFORK as u32,
    libc::MADV_DOFORK as u32,
    libc::MADV_HUGEPAGE as u32,
    libc::MADV_NOHUGEPAGE as u32,
    libc::MADV_DONTDUMP as u32,
    libc::MADV_DODUMP as u32,
    libc::MADV_WIPEONFORK as u32,
    libc::MADV_KEEPONFORK as u32,
    libc::MADV_COLD as u32,
    libc::MADV_PAGEOUT as u32,
    libc::MADV_POPULATE_READ as u32,
    libc::MADV_POPULATE_WRITE as u32,
];

/// Memory, in which no new code ever is: a static program maps none itself.
pub const MEMORY: &[Rule] = &[
    allow(libc::SYS_mmap, Without(2, EXECUTABLE), "memory, guests' and our own"),
    allow(libc::SYS_mprotect, Without(2, EXECUTABLE), "stacks' guards, relocations"),
    allow(libc::SYS_munmap, Always, "memory that is done with"),
    allow(
        libc::SYS_mremap,
        OneOf(3, &[0, libc::MREMAP_MAYMOVE as u32]),
        "large allocations that grow, wherever the kernel puts them",
    ),
    allow(libc::SYS_brk, Always, "the allocator"),
    allow(libc::SYS_madvise, OneOf(2, ADVICE), "pages that come or go"),
];

/// Waits and wakes of futex(2), less `FUTEX_PRIVATE_FLAG` and `FUTEX_CLOCK_REALTIME`. Nothing
/// with priority inheritance.
const FUTEX: &[u32] = &[
    libc::FUTEX_WAIT as u32,
    libc::FUTEX_WAKE as u32,
    libc::FUTEX_REQUEUE as u32,
    libc::FUTEX_CMP_REQUEUE as u32,
    libc::FUTEX_WAIT_BITSET as u32,
    libc::FUTEX_WAKE_BITSET as u32,
];
const FUTEX_FLAGS: u32 = (libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME) as u32;

/// What a thread of a static Rust program needs once it runs, whatever it does, up to its end:
/// locks, signals to and from other threads, clocks.
pub const THREADS: &[Rule] = &[
    allow(libc::SYS_futex, Masked(1, !FUTEX_FLAGS, FUTEX), "locks and joins"),
    allow(
        libc::SYS_tgkill,
        OneOf(0, &[PROGRAM_PID]),
        "waking vCPUs, aborting; in there every other number is somebody else",
    ),
    allow(libc::SYS_gettid, Always, "signals to oneself"),
    allow(libc::SYS_getpid, Always, "signals to oneself"),
    allow(libc::SYS_rt_sigreturn, Always, "the end of a signal handler"),
    allow(libc::SYS_rt_sigprocmask, Always, "the start and the end of threads"),
    allow(libc::SYS_sigaltstack, Always, "the standard library's overflow handler"),
    allow(libc::SYS_restart_syscall, Always, "waits after a stop"),
    allow(libc::SYS_sched_yield, Always, "short waits"),
    allow(libc::SYS_nanosleep, Always, "waits"),
    allow(libc::SYS_clock_nanosleep, Always, "waits"),
    allow(libc::SYS_clock_gettime, Always, "clocks that the vDSO cannot read"),
    allow(libc::SYS_clock_getres, Always, "clocks that the vDSO cannot read"),
    allow(libc::SYS_gettimeofday, Always, "clocks that the vDSO cannot read"),
    allow(libc::SYS_getrandom, Always, "hash maps, and what guests ask for"),
    allow(libc::SYS_exit, Always, "a thread's end"),
    allow(libc::SYS_exit_group, Always, "the end of all"),
];

/// What it takes to start a thread.
pub(super) const NEW_THREADS: &[Rule] = &[
    allow(libc::SYS_set_robust_list, Always, "a thread's start"),
    allow(libc::SYS_rseq, Always, "a thread's start, which fails without"),
    allow(libc::SYS_rt_sigaction, Always, "handlers"),
    allow(libc::SYS_sched_getaffinity, Always, "how many processors there are"),
];

/// The start of a static program.
pub(super) const PROCESS: &[Rule] = &[
    allow(
        libc::SYS_execve,
        Always,
        "the program and its keepers. A path is nothing that a filter can read: the root directory \
         has these two, and Landlock knows them",
    ),
    allow(libc::SYS_arch_prctl, OneOf(0, &[ARCH_SET_FS]), "the main thread's storage"),
    allow(libc::SYS_set_tid_address, Always, "the main thread's start"),
    allow(
        libc::SYS_prlimit64,
        All(&[OneOf(0, &[0]), Null(2)]),
        "asking for one's own limits: the size of stacks",
    ),
];

/// `ARCH_SET_FS` of asm/prctl.h.
const ARCH_SET_FS: u32 = 0x1002;

/// Keepers and copies: `pandastack_fork::birth`.
const COPIES: &[Rule] = &[
    allow(
        libc::SYS_clone,
        OneOf(0, &[THREAD_FLAGS, KEEPER_FLAGS, CHILD_FLAGS]),
        "threads, keepers and copies, in exactly one way each",
    ),
    allow(libc::SYS_get_robust_list, OneOf(0, &[0]), "what a copy announces again"),
    allow(libc::SYS_getuid, Always, "whether a copy's namespace has ids yet"),
    allow(libc::SYS_capset, Always, "giving capabilities up; it never adds one"),
    allow(libc::SYS_wait4, Always, "a keeper, which waits for all in its namespace"),
    allow(
        libc::SYS_prctl,
        OneOf(
            0,
            &[
                libc::PR_CAPBSET_DROP as u32,
                libc::PR_SET_SECUREBITS as u32,
                libc::PR_CAP_AMBIENT as u32,
                libc::PR_SET_DUMPABLE as u32,
                libc::PR_SET_NAME as u32,
                libc::PR_SET_NO_NEW_PRIVS as u32,
                libc::PR_SET_SECCOMP as u32,
            ],
        ),
        "giving privileges up, names of threads, narrower filters",
    ),
];

#[cfg(test)]
mod tests {
    use libc::c_long;

    use super::super::Verdict;
    use super::super::bpf::{ARCH_X86_64, X32_BIT};
    use super::*;

    const DENIED: Verdict = Verdict::Fail(libc::EPERM);

    fn decide(call: c_long, args: &[u64]) -> Verdict {
        let mut all = [0; 6];
        all[..args.len()].copy_from_slice(args);
        Filter::monitor().decide(call, all)
    }

    /// Every number that a system call has or may get, with arguments that no condition takes.
    #[test]
    fn nothing_that_is_not_listed_is_allowed() {
        let filter = Filter::monitor();
        let lists = [DEVICES, TRANSFER, DESCRIPTORS, MEMORY, THREADS, NEW_THREADS, PROCESS, COPIES];
        let rules = || lists.into_iter().flatten();
        for call in 0..1024 {
            let verdict = filter.decide(call, [u64::MAX; 6]);
            let always = rules().any(|r| r.call == call && matches!(r.when, Always));
            match (call, always) {
                (libc::SYS_clone3, _) => assert_eq!(verdict, Verdict::Fail(libc::ENOSYS)),
                (_, true) => assert_eq!(verdict, Verdict::Allow, "call {call}"),
                (_, false) => assert_eq!(verdict, DENIED, "call {call}"),
            }
        }
        assert!(rules().all(|rule| !rule.why.is_empty()));
    }

    #[test]
    fn what_reaches_out_is_not_listed() {
        for call in [
            libc::SYS_open,
            libc::SYS_openat,
            libc::SYS_openat2,
            libc::SYS_creat,
            libc::SYS_stat,
            libc::SYS_statx,
            libc::SYS_access,
            libc::SYS_readlink,
            libc::SYS_socket,
            libc::SYS_socketpair,
            libc::SYS_connect,
            libc::SYS_bind,
            libc::SYS_accept4,
            libc::SYS_execveat,
            libc::SYS_memfd_create,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_kill,
            libc::SYS_tkill,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_mount,
            libc::SYS_bpf,
            libc::SYS_io_uring_setup,
            libc::SYS_userfaultfd,
            libc::SYS_perf_event_open,
            libc::SYS_personality,
            libc::SYS_shmat,
            libc::SYS_pkey_mprotect,
            libc::SYS_fork,
            libc::SYS_vfork,
            libc::SYS_setrlimit,
        ] {
            assert_eq!(decide(call, &[0; 6]), DENIED, "call {call}");
        }
    }

    #[test]
    fn clone_makes_threads_keepers_and_copies_and_nothing_else() {
        let right = [THREAD_FLAGS, KEEPER_FLAGS, CHILD_FLAGS];
        for flags in right {
            assert_eq!(decide(libc::SYS_clone, &[flags.into()]), Verdict::Allow);
            for bit in 0..32 {
                let wrong = flags ^ 1 << bit;
                assert_eq!(decide(libc::SYS_clone, &[wrong.into()]), DENIED, "flags {wrong:#x}");
            }
        }
        for flags in [0, libc::SIGCHLD as u64, 0x0120_0011, u64::from(libc::CLONE_NEWUSER as u32)] {
            assert_eq!(decide(libc::SYS_clone, &[flags]), DENIED);
        }
    }

    #[test]
    fn signals_go_to_the_program_itself_only() {
        for process in (0..10_000).chain([u64::from(u32::MAX), 1 << 31]) {
            let expected = if process == 2 { Verdict::Allow } else { DENIED };
            assert_eq!(decide(libc::SYS_tgkill, &[process, 2, 9]), expected, "process {process}");
        }
    }

    #[test]
    fn no_memory_becomes_executable() {
        for call in [libc::SYS_mmap, libc::SYS_mprotect] {
            for protection in 0..8 {
                let expected = if protection & 4 == 0 { Verdict::Allow } else { DENIED };
                assert_eq!(decide(call, &[0, 4096, protection]), expected);
            }
        }
        // MREMAP_FIXED would put code where something else trusts to find its own.
        for (flags, expected) in
            [(0, Verdict::Allow), (1, Verdict::Allow), (3, DENIED), (5, DENIED)]
        {
            assert_eq!(decide(libc::SYS_mremap, &[0, 0, 0, flags]), expected);
        }
        let mergeable = libc::MADV_MERGEABLE as u64;
        assert_eq!(decide(libc::SYS_madvise, &[0, 0, mergeable]), DENIED);
    }

    #[test]
    fn requests_are_those_of_the_list() {
        let known = |request: u32| kvm::NAMES.iter().any(|(_, number)| *number == request);
        // Type and number in all combinations that matter, with every size that one of ours has.
        let shapes = kvm::NAMES.iter().map(|(_, number)| number & 0xffff_0000);
        for shape in shapes.chain([0, 0x4004_0000, 0x8004_0000]) {
            for low in (0xae00..0xaf00).chain(0x5400..0x5500).chain(0x6600..0x6700) {
                let request = shape | low;
                let expected = if known(request) { Verdict::Allow } else { DENIED };
                let got = decide(libc::SYS_ioctl, &[3, request.into()]);
                assert_eq!(got, expected, "request {request:#x}");
            }
        }
        // KVM_CREATE_DEVICE, KVM_SET_GSI_ROUTING, KVM_IRQFD, TIOCSTI, SIOCSPGRP.
        for request in [0xc00c_aee0, 0x4008_ae6a, 0x4020_ae76, 0x5412, 0x8902] {
            assert_eq!(decide(libc::SYS_ioctl, &[3, request]), DENIED);
        }
    }

    #[test]
    fn frames_go_to_the_peer_and_signals_of_descriptors_to_nobody() {
        assert_eq!(decide(libc::SYS_sendto, &[3, 1, 1, 0, 0, 0]), Verdict::Allow);
        for address in [1, 1 << 32, u64::MAX] {
            assert_eq!(decide(libc::SYS_sendto, &[3, 1, 1, 0, address, 16]), DENIED);
        }
        // F_SETOWN_EX and F_SETSIG are 15 and 10.
        for command in [libc::F_SETOWN as u64, 15, 10, libc::F_SETLEASE as u64] {
            assert_eq!(decide(libc::SYS_fcntl, &[3, command, 1]), DENIED);
        }
    }

    #[test]
    fn futexes_wait_and_wake() {
        for (operation, expected) in [
            (libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG, Verdict::Allow),
            (libc::FUTEX_WAIT_BITSET | libc::FUTEX_CLOCK_REALTIME, Verdict::Allow),
            (libc::FUTEX_LOCK_PI, DENIED),
            (libc::FUTEX_LOCK_PI | libc::FUTEX_PRIVATE_FLAG, DENIED),
            (libc::FUTEX_CMP_REQUEUE_PI, DENIED),
            (libc::FUTEX_WAKE_OP, DENIED),
            (libc::FUTEX_FD, DENIED),
        ] {
            assert_eq!(decide(libc::SYS_futex, &[0, operation as u64]), expected, "{operation:#x}");
        }
    }

    #[test]
    fn foreign_tables_of_system_calls_kill() {
        let filter = Filter::monitor();
        let of = |arch, number| filter.decide_in(arch, number, [0; 6]);
        assert_eq!(of(0x4000_0003, libc::SYS_read as u32), Verdict::Kill);
        assert_eq!(of(ARCH_X86_64, X32_BIT | libc::SYS_read as u32), Verdict::Kill);
    }
}
