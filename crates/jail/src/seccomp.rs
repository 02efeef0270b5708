//! A seccomp filter that denies what a machine's process never needs.
//!
//! It is in force before the program starts, so it must let the program be executed and load
//! its libraries; after that QEMU adds a filter of its own (`-sandbox`) that also forbids
//! `execve` and `fork`. Denied calls fail with EPERM instead of killing, because libraries probe.

use libc::{BPF_ABS, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W};
use libc::{SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, SECCOMP_RET_KILL_PROCESS, sock_filter};

/// `AUDIT_ARCH_X86_64` of linux/audit.h: EM_X86_64 | 64 bit | little endian.
const ARCH_X86_64: u32 = 0xc000_003e;
/// Offsets in `struct seccomp_data`: nr, arch, instruction pointer, six arguments.
const OFFSET_NR: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const OFFSET_ARG0: u32 = 16;
/// `__X32_SYSCALL_BIT`: the second, rarely used table of system calls of x86-64.
const X32_BIT: u32 = 0x4000_0000;
/// Every `CLONE_NEW*` flag that clone(2) takes: a jailed process makes threads, not namespaces.
const CLONE_NAMESPACES: u32 = 0x7e02_0000;

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
    // Namespaces and privileges.
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setgroups,
    libc::SYS_capset,
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
            answer(SECCOMP_RET_KILL_PROCESS),
            load(OFFSET_NR),
            jump(BPF_JGE, X32_BIT, 0, 1),
            answer(SECCOMP_RET_KILL_PROCESS),
            // clone3 passes its flags by pointer, which a filter cannot read. ENOSYS makes the C
            // library fall back to clone, whose flags are checked below.
            jump(BPF_JEQ, libc::SYS_clone3 as u32, 0, 1),
            answer(SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
            jump(BPF_JEQ, libc::SYS_clone as u32, 0, 4),
            load(OFFSET_ARG0),
            jump(BPF_JSET, CLONE_NAMESPACES, 0, 1),
            answer(SECCOMP_RET_ERRNO | libc::EPERM as u32),
            answer(SECCOMP_RET_ALLOW),
        ];
        for &number in DENIED {
            program.push(jump(BPF_JEQ, number as u32, 0, 1));
            program.push(answer(SECCOMP_RET_ERRNO | libc::EPERM as u32));
        }
        program.push(answer(SECCOMP_RET_ALLOW));
        Self { program }
    }

    /// The instructions, for the kernel.
    pub(crate) fn program(&self) -> &[sock_filter] {
        &self.program
    }
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
    fn decide(arch: u32, nr: u32, arg0: u32) -> u32 {
        let filter = Filter::machine();
        let (mut accumulator, mut at) = (0u32, 0usize);
        loop {
            let op = filter.program[at];
            at += 1;
            match u32::from(op.code) {
                code if code == BPF_LD | BPF_W | BPF_ABS => {
                    accumulator = match op.k {
                        OFFSET_ARCH => arch,
                        OFFSET_NR => nr,
                        OFFSET_ARG0 => arg0,
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

    #[test]
    fn every_denied_call_fails_and_others_pass() {
        let eperm = SECCOMP_RET_ERRNO | libc::EPERM as u32;
        for &number in DENIED {
            assert_eq!(decide(ARCH_X86_64, number as u32, 0), eperm, "call {number}");
        }
        for number in [libc::SYS_read, libc::SYS_mmap, libc::SYS_execve, libc::SYS_futex] {
            assert_eq!(decide(ARCH_X86_64, number as u32, 0), SECCOMP_RET_ALLOW);
        }
    }

    #[test]
    fn threads_are_allowed_and_namespaces_are_not() {
        let threads = (libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND) as u32;
        assert_eq!(decide(ARCH_X86_64, libc::SYS_clone as u32, threads), SECCOMP_RET_ALLOW);
        for flag in [
            libc::CLONE_NEWUSER,
            libc::CLONE_NEWNS,
            libc::CLONE_NEWNET,
            libc::CLONE_NEWPID,
            libc::CLONE_NEWIPC,
            libc::CLONE_NEWUTS,
            libc::CLONE_NEWCGROUP,
        ] {
            let got = decide(ARCH_X86_64, libc::SYS_clone as u32, flag as u32);
            assert_eq!(got, SECCOMP_RET_ERRNO | libc::EPERM as u32, "flag {flag:#x}");
        }
        let clone3 = decide(ARCH_X86_64, libc::SYS_clone3 as u32, 0);
        assert_eq!(clone3, SECCOMP_RET_ERRNO | libc::ENOSYS as u32);
    }

    #[test]
    fn foreign_tables_of_system_calls_kill() {
        assert_eq!(decide(0x4000_0003, libc::SYS_read as u32, 0), SECCOMP_RET_KILL_PROCESS);
        let x32 = X32_BIT | libc::SYS_socket as u32;
        assert_eq!(decide(ARCH_X86_64, x32, 0), SECCOMP_RET_KILL_PROCESS);
    }
}
