//! The filter of QEMU: it denies what a machine's process never needs.
//!
//! It is in force before the program starts, so it must let the program be executed and load its
//! libraries. And it is in force in every fork of the program, so it must let a program fork, in
//! exactly one way ([`pandastack_fork`]): `clone` for a keeper in new namespaces, `clone` for the
//! child, and `execve`, by which the keeper lets go of the program's memory. Denied calls fail
//! with EPERM instead of killing, because libraries probe.
//!
//! Forks share a user id, a file system and namespaces other than those of users and processes.
//! What would let one reach another through these is denied too.

use libc::{BPF_JEQ, BPF_JSET, SECCOMP_RET_ALLOW};
use pandastack_fork::{CHILD_FLAGS, KEEPER_FLAGS, PROGRAM_PID};

use super::bpf::{answer, jump, load_high, load_low, on, prologue};
use super::{ABSENT, DENY, Filter};

const ALLOW: u32 = SECCOMP_RET_ALLOW;

/// Every `CLONE_NEW*` flag that clone(2) takes.
const CLONE_NAMESPACES: u32 = 0x7e02_0000;

/// `F_SETOWN` and `F_SETOWN_EX` of fcntl(2).
const OWN_BY_FCNTL: [u32; 2] = [libc::F_SETOWN as u32, 15];
/// `FIOSETOWN` and `SIOCSPGRP` of asm/sockios.h.
const OWN_BY_IOCTL: [u32; 2] = [0x8901, 0x8902];

/// Denied system calls, by theme.
const DENIED: &[libc::c_long] = &[
    // Sockets come inherited; nobody makes new ones.
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_kcmp,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_fork,
    libc::SYS_vfork,
    // What is common to an ipc namespace, which all forks of a program share.
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_shmctl,
    libc::SYS_shmdt,
    libc::SYS_semget,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_semctl,
    libc::SYS_msgget,
    libc::SYS_msgsnd,
    libc::SYS_msgrcv,
    libc::SYS_msgctl,
    libc::SYS_mq_open,
    libc::SYS_mq_unlink,
    libc::SYS_mq_timedsend,
    libc::SYS_mq_timedreceive,
    libc::SYS_mq_notify,
    libc::SYS_mq_getsetattr,
    // The file system's shape.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_mknod,
    libc::SYS_mknodat,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_fanotify_init,
    libc::SYS_fanotify_mark,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_quotactl,
    // Namespaces and privileges. Not capset(2), which never adds a capability: a fork gives up
    // with it those that come with a new user namespace.
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setgroups,
    // Kernel attack surface that an emulator has no use for.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_vmsplice,
    libc::SYS_syslog,
    libc::SYS_acct,
    libc::SYS_reboot,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_vhangup,
    libc::SYS_memfd_secret,
];

impl Filter {
    /// The filter for a machine's process.
    pub fn machine() -> Self {
        let mut program = prologue();
        // clone3 passes its flags by pointer, which a filter cannot read. ENOSYS makes the C
        // library fall back to clone, whose flags can be checked.
        on(&mut program, libc::SYS_clone3, &[answer(ABSENT)]);
        // Threads, keepers and children. The kernel takes the low half of the flags only.
        let clone = [
            load_low(0),
            jump(BPF_JEQ, KEEPER_FLAGS, 3, 0),
            jump(BPF_JEQ, CHILD_FLAGS, 2, 0),
            jump(BPF_JSET, CLONE_NAMESPACES, 2, 0),
            jump(BPF_JSET, libc::CLONE_THREAD as u32, 0, 1),
            answer(ALLOW),
            answer(DENY),
        ];
        on(&mut program, libc::SYS_clone, &clone);
        // Signals to its own threads. Every program has the same number in its own namespace, and
        // in there another number is a keeper or a fork.
        let tgkill = [
            load_high(0),
            jump(BPF_JEQ, 0, 0, 3),
            load_low(0),
            jump(BPF_JEQ, PROGRAM_PID, 0, 1),
            answer(ALLOW),
            answer(DENY),
        ];
        on(&mut program, libc::SYS_tgkill, &tgkill);
        // The other way to send a signal: as the news of a descriptor that somebody else owns.
        for (number, commands) in [(libc::SYS_fcntl, OWN_BY_FCNTL), (libc::SYS_ioctl, OWN_BY_IOCTL)]
        {
            let own = [
                load_low(1),
                jump(BPF_JEQ, commands[0], 1, 0),
                jump(BPF_JEQ, commands[1], 0, 1),
                answer(DENY),
                answer(ALLOW),
            ];
            on(&mut program, number, &own);
        }
        for &number in DENIED {
            on(&mut program, number, &[answer(DENY)]);
        }
        program.push(answer(ALLOW));
        Self { program }
    }
}

#[cfg(test)]
mod tests {
    use libc::c_long;

    use super::super::Verdict;
    use super::super::bpf::{ARCH_X86_64, X32_BIT};
    use super::*;

    const ALLOW: Verdict = Verdict::Allow;
    const DENY: Verdict = Verdict::Fail(libc::EPERM);

    /// The filter's decisions on a system call with one or two arguments.
    fn decider(number: c_long) -> impl Fn(u64, u64) -> Verdict {
        let filter = Filter::machine();
        move |arg0, arg1| filter.decide(number, [arg0, arg1, 0, 0, 0, 0])
    }

    #[test]
    fn every_denied_call_fails_and_others_pass() {
        for &number in DENIED {
            for argument in [0, 1, PROGRAM_PID.into(), u64::MAX] {
                assert_eq!(decider(number)(argument, argument), DENY, "call {number}");
            }
        }
        for number in [
            libc::SYS_read,
            libc::SYS_mmap,
            libc::SYS_execve,
            libc::SYS_futex,
            libc::SYS_wait4,
            libc::SYS_capset,
            libc::SYS_sendmsg,
            libc::SYS_close_range,
        ] {
            assert_eq!(decider(number)(0, 0), ALLOW, "call {number}");
        }
    }

    /// All 2^24 combinations of the flags that clone(2) has above the exit signal.
    #[test]
    fn clone_makes_threads_keepers_and_children_and_nothing_else() {
        let clone = decider(libc::SYS_clone);
        let (thread, namespaces) = (libc::CLONE_THREAD as u32, CLONE_NAMESPACES);
        for high in 0..1u32 << 24 {
            let flags = high << 8 | libc::SIGCHLD as u32;
            let is_thread = flags & thread != 0 && flags & namespaces == 0;
            let allowed = is_thread || flags == KEEPER_FLAGS || flags == CHILD_FLAGS;
            let got = clone(flags.into(), 0);
            assert_eq!(got, if allowed { ALLOW } else { DENY }, "flags {flags:#x}");
        }
        // What the C library makes threads with, and fork(3) a process.
        assert_eq!(clone(0x003d_0f00, 0), ALLOW);
        assert_eq!(clone(0x0120_0011, 0), DENY);
    }

    #[test]
    fn a_keeper_or_child_with_one_flag_more_or_less_is_refused() {
        let clone = decider(libc::SYS_clone);
        for right in [KEEPER_FLAGS, CHILD_FLAGS] {
            assert_eq!(clone(right.into(), 0), ALLOW);
            for bit in 0..32 {
                let wrong = right ^ (1 << bit);
                let thread = wrong & libc::CLONE_THREAD as u32 != 0;
                let allowed = thread && wrong & CLONE_NAMESPACES == 0;
                let got = clone(wrong.into(), 0);
                assert_eq!(got, if allowed { ALLOW } else { DENY }, "flags {wrong:#x}");
            }
            // As the kernel does.
            assert_eq!(clone(u64::from(right) | 1 << 32, 0), ALLOW);
        }
        for signal in 0..=u8::MAX {
            let expected = if signal == libc::SIGCHLD as u8 { ALLOW } else { DENY };
            let keeper = KEEPER_FLAGS & !0xff | u32::from(signal);
            assert_eq!(clone(keeper.into(), 0), expected, "exit signal {signal}");
        }
        let namespaces = [
            libc::CLONE_NEWUSER,
            libc::CLONE_NEWNS,
            libc::CLONE_NEWNET,
            libc::CLONE_NEWPID,
            libc::CLONE_NEWIPC,
            libc::CLONE_NEWUTS,
            libc::CLONE_NEWCGROUP,
        ];
        assert_eq!(namespaces.into_iter().fold(0, |all, flag| all | flag) as u32, CLONE_NAMESPACES);
    }

    #[test]
    fn flags_that_a_filter_cannot_read_are_refused_as_unknown() {
        assert_eq!(decider(libc::SYS_clone3)(0, 0), Verdict::Fail(libc::ENOSYS));
    }

    #[test]
    fn signals_go_to_the_program_itself_only() {
        let tgkill = decider(libc::SYS_tgkill);
        for process in (0..100_000).chain([u64::MAX, u64::from(u32::MAX), 1 << 31]) {
            let expected = if process == 2 { ALLOW } else { DENY };
            assert_eq!(tgkill(process, 2), expected, "process {process}");
        }
        for high in 0..32 {
            assert_eq!(tgkill(2 | 1 << (32 + high), 2), DENY, "bit {high} of the high half");
        }
    }

    #[test]
    fn nobody_else_gets_the_signals_of_a_descriptor() {
        for (number, commands) in [(libc::SYS_fcntl, OWN_BY_FCNTL), (libc::SYS_ioctl, OWN_BY_IOCTL)]
        {
            let decide = decider(number);
            for command in (0..0x1_0000u32).chain([u32::MAX]) {
                let expected = if commands.contains(&command) { DENY } else { ALLOW };
                assert_eq!(decide(3, command.into()), expected, "command {command:#x}");
                let high = u64::from(command) | 1 << 32;
                assert_eq!(decide(3, high), expected, "the kernel reads the low half");
            }
        }
    }

    #[test]
    fn foreign_tables_of_system_calls_kill() {
        let decide = |arch, nr| Filter::machine().decide_in(arch, nr, [0; 6]);
        assert_eq!(decide(0x4000_0003, libc::SYS_read as u32), Verdict::Kill);
        assert_eq!(decide(ARCH_X86_64, X32_BIT | libc::SYS_socket as u32), Verdict::Kill);
    }
}
