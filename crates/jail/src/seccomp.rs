//! A seccomp filter that denies what a machine's process never needs.
//!
//! It is in force before the program starts, so it must let the program be executed and load its
//! libraries. And it is in force in every fork of the program, so it must let a program fork, in
//! exactly one way ([`pandastack_fork`]): `clone` for a keeper in new namespaces, `clone` for the
//! child, and `execve`, by which the keeper lets go of the program's memory. Denied calls fail
//! with EPERM instead of killing, because libraries probe.
//!
//! Forks share a user id, a file system and namespaces other than those of users and processes.
//! What would let one reach another through these is denied too.

use libc::{BPF_ABS, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W};
use libc::{SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, SECCOMP_RET_KILL_PROCESS, sock_filter};
use pandastack_fork::{CHILD_FLAGS, KEEPER_FLAGS, PROGRAM_PID};

/// `AUDIT_ARCH_X86_64` of linux/audit.h: EM_X86_64 | 64 bit | little endian.
const ARCH_X86_64: u32 = 0xc000_003e;
/// Offsets in `struct seccomp_data`: nr, arch, instruction pointer, six arguments of 64 bits.
const OFFSET_NR: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const OFFSET_ARG0: u32 = 16;
const OFFSET_ARG0_HIGH: u32 = 20;
const OFFSET_ARG1: u32 = 24;
/// `__X32_SYSCALL_BIT`: the second, rarely used table of system calls of x86-64.
const X32_BIT: u32 = 0x4000_0000;
/// Every `CLONE_NEW*` flag that clone(2) takes.
const CLONE_NAMESPACES: u32 = 0x7e02_0000;

const ALLOW: u32 = SECCOMP_RET_ALLOW;
const DENY: u32 = SECCOMP_RET_ERRNO | libc::EPERM as u32;
/// Says that the call does not exist.
const ABSENT: u32 = SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
const KILL: u32 = SECCOMP_RET_KILL_PROCESS;

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

/// A compiled filter. Compile once; installing it in a child allocates nothing.
pub struct Filter {
    program: Vec<sock_filter>,
}

impl Filter {
    /// The filter for a machine's process.
    pub fn machine() -> Self {
        let mut program = vec![
            load(OFFSET_ARCH),
            jump(BPF_JEQ, ARCH_X86_64, 1, 0),
            answer(KILL),
            load(OFFSET_NR),
            jump(BPF_JGE, X32_BIT, 0, 1),
            answer(KILL),
        ];
        // clone3 passes its flags by pointer, which a filter cannot read. ENOSYS makes the C
        // library fall back to clone, whose flags can be checked.
        on(&mut program, libc::SYS_clone3, &[answer(ABSENT)]);
        // Threads, keepers and children. The kernel takes the low half of the flags only.
        let clone = [
            load(OFFSET_ARG0),
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
            load(OFFSET_ARG0_HIGH),
            jump(BPF_JEQ, 0, 0, 3),
            load(OFFSET_ARG0),
            jump(BPF_JEQ, PROGRAM_PID, 0, 1),
            answer(ALLOW),
            answer(DENY),
        ];
        on(&mut program, libc::SYS_tgkill, &tgkill);
        // The other way to send a signal: as the news of a descriptor that somebody else owns.
        for (number, commands) in [(libc::SYS_fcntl, OWN_BY_FCNTL), (libc::SYS_ioctl, OWN_BY_IOCTL)]
        {
            let own = [
                load(OFFSET_ARG1),
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

    /// The instructions, for the kernel.
    pub(crate) fn program(&self) -> &[sock_filter] {
        &self.program
    }
}

/// Decides the system call `number`, which is in the accumulator, by `body`, which must end with
/// an answer on every way through it.
fn on(program: &mut Vec<sock_filter>, number: libc::c_long, body: &[sock_filter]) {
    program.push(jump(BPF_JEQ, number as u32, 0, body.len() as u8));
    program.extend_from_slice(body);
}

fn load(offset: u32) -> sock_filter {
    sock_filter { code: (BPF_LD | BPF_W | BPF_ABS) as u16, jt: 0, jf: 0, k: offset }
}

/// Compares the accumulator with `k` and skips `jt` or `jf` instructions.
fn jump(test: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: (BPF_JMP | test | BPF_K) as u16, jt, jf, k }
}

fn answer(action: u32) -> sock_filter {
    sock_filter { code: (BPF_RET | BPF_K) as u16, jt: 0, jf: 0, k: action }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Interprets the few instructions that [`Filter`] emits.
    fn interpret(program: &[sock_filter], arch: u32, nr: u32, args: [u64; 2]) -> u32 {
        let (mut accumulator, mut at) = (0u32, 0usize);
        loop {
            let op = program[at];
            at += 1;
            match u32::from(op.code) {
                code if code == BPF_LD | BPF_W | BPF_ABS => {
                    accumulator = match op.k {
                        OFFSET_ARCH => arch,
                        OFFSET_NR => nr,
                        OFFSET_ARG0 => args[0] as u32,
                        OFFSET_ARG0_HIGH => (args[0] >> 32) as u32,
                        OFFSET_ARG1 => args[1] as u32,
                        other => panic!("load of offset {other}"),
                    }
                }
                code if code == BPF_RET | BPF_K => return op.k,
                code => {
                    let holds = match code & !(BPF_JMP | BPF_K) {
                        BPF_JEQ => accumulator == op.k,
                        BPF_JGE => accumulator >= op.k,
                        BPF_JSET => accumulator & op.k != 0,
                        other => panic!("test {other:#x}"),
                    };
                    at += usize::from(if holds { op.jt } else { op.jf });
                }
            }
        }
    }

    /// The filter's decisions on a system call with one or two arguments.
    fn decider(number: libc::c_long) -> impl Fn(u64, u64) -> u32 {
        let filter = Filter::machine();
        move |arg0, arg1| interpret(filter.program(), ARCH_X86_64, number as u32, [arg0, arg1])
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
        assert_eq!(decider(libc::SYS_clone3)(0, 0), ABSENT);
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
        let decide = |arch, nr| interpret(Filter::machine().program(), arch, nr, [0; 2]);
        assert_eq!(decide(0x4000_0003, libc::SYS_read as u32), KILL);
        assert_eq!(decide(ARCH_X86_64, X32_BIT | libc::SYS_socket as u32), KILL);
    }
}
