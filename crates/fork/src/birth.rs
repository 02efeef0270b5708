//! Making the child: a keeper in new namespaces, and the copy of the process under it.
//!
//! ```text
//!  parent's main thread        keeper (process 1)              child (process 2)
//!  ────────────────────        ──────────────────              ─────────────────
//!  give_birth
//!   clone(KEEPER_FLAGS) ─────▶ on a stack of its own,
//!   stands still (vfork)       in the parent's memory
//!                              leave the parent's cgroup
//!                              clone(CHILD_FLAGS) ───────────▶ give_birth returns 0, on a
//!                              note the pidfd                  copy of the parent's stack
//!                              close everything                join the cgroup,
//!   returns ◀───────────────── execve(keeper)                  give up capabilities
//! ```
//!
//! Why two: namespaces of process ids nest, and one ends with its process 1. Were the child
//! process 1 itself, its own forks would die with it. The keeper stays until the last of them has
//! ended, and if the family's first keeper dies, the kernel ends all.
//!
//! Why the keeper may share memory with the parent: every thread of the parent stands still, the
//! main one inside this very call until the keeper executes its program (`CLONE_VFORK`), so the
//! copy that the keeper makes is of memory that nobody is changing. It runs on the main thread's
//! storage and therefore uses none of it.
//!
//! The new user namespace has no ids until the keeper's program has given it some; until then the
//! child cannot make a namespace itself (`has_ids`).

use core::cell::UnsafeCell;
use core::fmt;
use core::sync::atomic::{AtomicI32, AtomicUsize, Ordering::SeqCst};
use core::time::Duration;

use libc::c_int;

use crate::thread::Announced;
use crate::{CHILD_FLAGS, KEEPER_FLAGS, Step, sys};

/// Number of a descriptor.
pub type Fd = c_int;

/// The keeper's program, in the directory that is the root of every machine's process.
const KEEPER: &core::ffi::CStr = c"/panda-keeper";

/// Bytes of the keeper's stack: a handful of small frames.
const STACK: usize = 16 << 10;

/// Which side of the fork a call has returned on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The process that was there before; the child's pidfd.
    Parent(Fd),
    /// The copy.
    Child,
}

/// Why there is no child, or none that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BirthError {
    /// Where: one of `Keeper`, `Groups`, `Privileges` and `Child`.
    pub step: Step,
    /// Why.
    pub errno: c_int,
}

impl fmt::Display for BirthError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the process could not be copied: {:?} failed with errno {}",
            self.step, self.errno
        )
    }
}

impl core::error::Error for BirthError {}

/// What the keeper needs and what it leaves, in memory that it shares with the parent.
#[repr(C)]
struct Birth {
    /// Stack pointer in [`give_birth`]; first, because the assembly knows its place.
    stack: AtomicUsize,
    /// Control files that the keeper leaves the parent's cgroup through.
    groups: AtomicUsize,
    groups_len: AtomicUsize,
    pidfd: AtomicI32,
    /// The step that failed, as `Step`, or 0; and why.
    failed: AtomicI32,
    errno: AtomicI32,
}

#[repr(align(64))]
struct Stack(UnsafeCell<[u8; STACK]>);

// SAFETY: used by one keeper at a time, while the main thread waits for it.
unsafe impl Sync for Stack {}

static KEEPER_STACK: Stack = Stack(UnsafeCell::new([0; STACK]));
static BIRTH: Birth = Birth {
    stack: AtomicUsize::new(0),
    groups: AtomicUsize::new(0),
    groups_len: AtomicUsize::new(0),
    pidfd: AtomicI32::new(-1),
    failed: AtomicI32::new(0),
    errno: AtomicI32::new(0),
};

/// Whether the process has ids in its user namespace, without which it cannot be forked. Somebody
/// sees to that right after its birth.
pub fn has_ids() -> bool {
    /// What the kernel says of ids that a namespace does not have: `overflowuid`.
    const NOBODY: usize = 65534;
    sys::getuid() != Ok(NOBODY)
}

/// Waits until the process has ids, at most for `within`: it may have been forked a moment ago.
pub fn await_ids(within: Duration) -> Result<(), BirthError> {
    let within = u64::try_from(within.as_nanos()).unwrap_or(u64::MAX);
    let deadline = sys::now_ns().saturating_add(within);
    while !has_ids() {
        if sys::now_ns() > deadline {
            return Err(BirthError { step: Step::Keeper, errno: libc::ETIMEDOUT });
        }
        let _ = sys::sched_yield();
    }
    Ok(())
}

/// Forks the process. The keeper joins the groups behind `keeper_groups`. Returns twice: here, and
/// in the child, where the calling thread is the only one and has announced `thread` again. The
/// child has every capability in its own namespace until it settles.
///
/// # Safety
/// The calling thread is the process's main one. Every other thread has ended, or stands still
/// until this returns, outside of anything that the child is to use. `thread` is what the calling
/// thread announced.
pub unsafe fn fork(keeper_groups: &[Fd], thread: &Announced) -> Result<Side, BirthError> {
    BIRTH.groups.store(keeper_groups.as_ptr() as usize, SeqCst);
    BIRTH.groups_len.store(keeper_groups.len(), SeqCst);
    BIRTH.pidfd.store(-1, SeqCst);
    BIRTH.failed.store(0, SeqCst);
    let top = KEEPER_STACK.0.get() as usize + STACK;
    // SAFETY: the stack is long enough and in nobody's use; the memory that the keeper shares is
    // at rest until it executes its program. In the child this returns 0 on a copy of this stack.
    let keeper = unsafe { give_birth(&BIRTH, top, KEEPER_FLAGS as usize) };
    let keeper = sys::outcome(keeper).map_err(|errno| BirthError { step: Step::Keeper, errno })?;
    if keeper == 0 {
        thread.again();
        return Ok(Side::Child);
    }
    let pidfd = BIRTH.pidfd.load(SeqCst);
    let step = match BIRTH.failed.load(SeqCst) {
        0 => return Ok(Side::Parent(pidfd)),
        step if step == Step::Groups as i32 => Step::Groups,
        step if step == Step::Privileges as i32 => Step::Privileges,
        step if step == Step::Child as i32 => Step::Child,
        _ => Step::Keeper,
    };
    // The child, if there is one, ended with its namespace.
    if let Ok(pidfd) = usize::try_from(pidfd) {
        let _ = sys::close(pidfd);
    }
    Err(BirthError { step, errno: BIRTH.errno.load(SeqCst) })
}

/// Clones the keeper and waits for it. Returns its process id in the parent and 0 in the child.
#[unsafe(naked)]
unsafe extern "C" fn give_birth(birth: &Birth, stack: usize, flags: usize) -> isize {
    core::arch::naked_asm!(
        "push rbp", "push rbx", "push r12", "push r13", "push r14", "push r15",
        "mov [rdi], rsp",
        "mov r9, rdi",
        "mov rdi, rdx",
        "xor edx, edx", "xor r10d, r10d", "xor r8d, r8d",
        "mov eax, {clone}",
        "syscall",
        "test rax, rax",
        "jnz 2f",
        "xor ebp, ebp", // the end of the chain of frames
        "mov rdi, r9",
        "call {keep}",
        "ud2",
        "2:",
        "pop r15", "pop r14", "pop r13", "pop r12", "pop rbx", "pop rbp",
        "ret",
        clone = const libc::SYS_clone,
        keep = sym keep,
    )
}

/// Continues a function that pushed its registers in the order in which this takes them, and kept
/// its stack pointer: it returns 0 to its caller.
///
/// # Safety
/// `stack` must be what such a function kept, and its stack must be whole and in nobody's use.
#[unsafe(naked)]
pub unsafe extern "C" fn resume(stack: usize) -> ! {
    core::arch::naked_asm!(
        "mov rsp, rdi",
        "xor eax, eax",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
    )
}

/// The keeper, from its birth to its program.
extern "C" fn keep(birth: &Birth) -> ! {
    let ready =
        make_child(birth).and_then(|()| keep_for_ids().map_err(|errno| (Step::Privileges, errno)));
    let failed = match ready {
        Err((step, errno)) => (step, errno),
        Ok(()) => {
            // A table of descriptors of its own, with nothing in it.
            let _ = sys::close_range(0, u32::MAX as usize, libc::CLOSE_RANGE_UNSHARE as usize);
            let argv = [KEEPER.as_ptr(), core::ptr::null()];
            let envp = [core::ptr::null::<u8>()];
            let args =
                [KEEPER.as_ptr() as usize, argv.as_ptr() as usize, envp.as_ptr() as usize, 0, 0, 0];
            // SAFETY: null-terminated strings and arrays.
            let result = unsafe { sys::call(libc::SYS_execve, args) };
            (Step::Keeper, -result as c_int)
        }
    };
    birth.errno.store(failed.1, SeqCst);
    birth.failed.store(failed.0 as i32, SeqCst);
    sys::exit(1)
}

fn make_child(birth: &Birth) -> Result<(), (Step, c_int)> {
    // SAFETY: the slice that `fork` was called with, alive as long as its caller stands still.
    let groups = unsafe {
        core::slice::from_raw_parts(
            birth.groups.load(SeqCst) as *const Fd,
            birth.groups_len.load(SeqCst),
        )
    };
    join(groups).map_err(|errno| (Step::Groups, errno))?;
    let pidfd = birth.pidfd.as_ptr() as usize;
    let args = [CHILD_FLAGS as usize, 0, pidfd, 0, 0, 0];
    // SAFETY: without CLONE_VM the child gets a copy of this memory. It comes back from this very
    // instruction on the copy of our stack and leaves it at once.
    match unsafe { sys::call(libc::SYS_clone, args) } {
        // In the child: returns 0 from `give_birth`, on the copy of the stack it was called on.
        // SAFETY: that stack is whole, because its thread stands still.
        0 => unsafe { resume(birth.stack.load(SeqCst)) },
        result => sys::outcome(result).map(drop).map_err(|errno| (Step::Child, errno)),
    }
}

/// In the child, as long as it has one thread: joins its groups, gives up every capability, and
/// lets itself be read if it is to be.
pub fn settle(groups: &[Fd], readable: bool) -> Result<(), BirthError> {
    let failed = |step| move |errno| BirthError { step, errno };
    join(groups).map_err(failed(Step::Groups))?;
    drop_capabilities()
        .and_then(|()| sys::prctl(libc::PR_SET_DUMPABLE as usize, readable.into()))
        .map(drop)
        .map_err(failed(Step::Privileges))
}

/// Joins cgroups. A process with one thread moves itself: unlike a move by somebody else this
/// needs no RCU grace period.
fn join(groups: &[Fd]) -> Result<(), c_int> {
    groups.iter().try_for_each(|&group| sys::write(group as usize, b"0").map(drop))
}

/// A new user namespace brings every capability in it. A child needs none, so none stays, in no
/// set.
fn drop_capabilities() -> Result<(), c_int> {
    // CAP_LAST_CAP is below 64; numbers that the kernel does not know fail with EINVAL.
    for capability in 0..64 {
        let _ = sys::prctl(libc::PR_CAPBSET_DROP as usize, capability);
    }
    let no_root = libc::SECBIT_NOROOT | libc::SECBIT_NOROOT_LOCKED;
    sys::prctl(libc::PR_SET_SECUREBITS as usize, no_root as usize)?;
    set_capabilities(0)
}

/// Leaves the keeper, across its execve, what it takes to give the namespace its ids. Its program
/// gives these up as well.
fn keep_for_ids() -> Result<(), c_int> {
    /// Of capability.h.
    const SETGID: usize = 6;
    const SETUID: usize = 7;
    const SYS_ADMIN: usize = 21;
    let needed = [SETGID, SETUID, SYS_ADMIN];
    set_capabilities(needed.iter().fold(0, |set, capability| set | 1 << capability))?;
    needed.iter().try_for_each(|&capability| {
        let raise = libc::PR_CAP_AMBIENT_RAISE as usize;
        sys::prctl2(libc::PR_CAP_AMBIENT as usize, raise, capability).map(drop)
    })
}

/// Sets the effective, permitted and inheritable capabilities, all below 32.
fn set_capabilities(set: u32) -> Result<(), c_int> {
    /// `_LINUX_CAPABILITY_VERSION_3`.
    const VERSION: u32 = 0x2008_0522;
    let header = [VERSION, 0u32];
    let sets = [set, set, set, 0, 0, 0];
    let args = [header.as_ptr() as usize, sets.as_ptr() as usize, 0, 0, 0, 0];
    // SAFETY: capset(2) reads a header of two words and two sets of three.
    sys::outcome(unsafe { sys::call(libc::SYS_capset, args) }).map(drop)
}
