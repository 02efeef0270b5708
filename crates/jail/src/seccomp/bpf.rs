//! The few instructions of classic BPF that filters are made of, and what they compute.
//!
//! A filter runs on `struct seccomp_data`, which is fixed in size: the number of the system call,
//! the table it is from, and six arguments of 64 bits. It cannot follow a pointer.

use libc::{BPF_ABS, BPF_ALU, BPF_AND, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_JSET, BPF_K};
use libc::{BPF_LD, BPF_RET, BPF_W, SECCOMP_RET_KILL_PROCESS, c_long, sock_filter};

/// `AUDIT_ARCH_X86_64` of linux/audit.h: EM_X86_64 | 64 bit | little endian.
pub(super) const ARCH_X86_64: u32 = 0xc000_003e;
/// `__X32_SYSCALL_BIT`: the second, rarely used table of system calls of x86-64.
pub(super) const X32_BIT: u32 = 0x4000_0000;
/// Offsets in `struct seccomp_data`.
const OFFSET_NR: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const OFFSET_ARGS: u32 = 16;

/// Loads the number of the system call.
pub(super) fn load_number() -> sock_filter {
    load(OFFSET_NR)
}

/// Loads the low half of an argument, which is all that the kernel looks at where a system call
/// takes an `int`.
pub(super) fn load_low(argument: u8) -> sock_filter {
    load(OFFSET_ARGS + 8 * u32::from(argument))
}

/// Loads the high half of an argument.
pub(super) fn load_high(argument: u8) -> sock_filter {
    load(OFFSET_ARGS + 8 * u32::from(argument) + 4)
}

fn load(offset: u32) -> sock_filter {
    sock_filter { code: (BPF_LD | BPF_W | BPF_ABS) as u16, jt: 0, jf: 0, k: offset }
}

/// Clears the bits of the accumulator that are not in `mask`.
pub(super) fn and(mask: u32) -> sock_filter {
    sock_filter { code: (BPF_ALU | BPF_AND | BPF_K) as u16, jt: 0, jf: 0, k: mask }
}

/// Compares the accumulator with `k` and skips `jt` or `jf` instructions.
pub(super) fn jump(test: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: (BPF_JMP | test | BPF_K) as u16, jt, jf, k }
}

/// Ends the filter.
pub(super) fn answer(action: u32) -> sock_filter {
    sock_filter { code: (BPF_RET | BPF_K) as u16, jt: 0, jf: 0, k: action }
}

/// How every filter begins: other tables of system calls, in which the same numbers mean other
/// things, end the process. The number is loaded afterwards.
pub(super) fn prologue() -> Vec<sock_filter> {
    vec![
        load(OFFSET_ARCH),
        jump(BPF_JEQ, ARCH_X86_64, 1, 0),
        answer(SECCOMP_RET_KILL_PROCESS),
        load_number(),
        jump(BPF_JGE, X32_BIT, 0, 1),
        answer(SECCOMP_RET_KILL_PROCESS),
    ]
}

/// Decides the system call `number`, which is in the accumulator, by `body`, which must end with
/// an answer on every way through it, or with the number in the accumulator.
pub(super) fn on(program: &mut Vec<sock_filter>, number: c_long, body: &[sock_filter]) {
    let over = u8::try_from(body.len()).expect("a body that a jump can skip");
    program.push(jump(BPF_JEQ, number as u32, 0, over));
    program.extend_from_slice(body);
}

/// What the kernel's interpreter would answer.
pub(super) fn run(program: &[sock_filter], arch: u32, nr: u32, args: &[u64; 6]) -> u32 {
    let field = |offset: u32| match offset {
        OFFSET_NR => nr,
        OFFSET_ARCH => arch,
        _ => {
            let half = (offset - OFFSET_ARGS) / 4;
            (args[half as usize / 2] >> (32 * (half % 2))) as u32
        }
    };
    let (mut accumulator, mut at) = (0u32, 0usize);
    loop {
        let op = program[at];
        let code = u32::from(op.code);
        at += 1;
        match code {
            _ if code == BPF_LD | BPF_W | BPF_ABS => accumulator = field(op.k),
            _ if code == BPF_ALU | BPF_AND | BPF_K => accumulator &= op.k,
            _ if code == BPF_RET | BPF_K => return op.k,
            _ => {
                let holds = match code & !(BPF_JMP | BPF_K) {
                    BPF_JEQ => accumulator == op.k,
                    BPF_JGE => accumulator >= op.k,
                    BPF_JSET => accumulator & op.k != 0,
                    other => unreachable!("no filter of ours has the test {other:#x}"),
                };
                at += usize::from(if holds { op.jt } else { op.jf });
            }
        }
    }
}
