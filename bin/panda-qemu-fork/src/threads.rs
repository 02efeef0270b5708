//! Stopping the other threads of the process, and starting them again in a child.
//!
//! A thread is stopped by a signal: its whole state is then on its own stack, put there by the
//! kernel, and the handler waits. In a child that memory is all that is left of the thread, and
//! it is all that is needed: a new thread that gets the same thread-local storage and continues
//! the handler returns from the signal and is the old one.
//!
//! ```text
//!  parent                                    child
//!  ──────                                    ─────
//!  running ──SIGFPE──▶ on_signal             (memory only)
//!                        park ──▶ waits         │ begin: clone with the old TLS,
//!                        │        │             │ robust list, rseq
//!                        │   release            ▼
//!                        ◀────────┘          park returns, as in the parent
//!                      sigreturn             sigreturn
//!  running ◀────────────┘                    running
//! ```
//!
//! SIGFPE, because QEMU blocks every signal in its threads except those that a thread causes
//! itself. A real one is told apart by its `si_code` and does what it does without us.

use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering::SeqCst};

use libc::{c_int, c_void};
use pandastack_fork::Step;
use pandastack_fork::birth::resume;
use pandastack_fork::sys;
use pandastack_fork::thread::{Announced, robust_list, rseq_length, storage};

use crate::failure::Failure;
use crate::text;

/// Most threads of a process: vCPUs, the main loop, RCU, the monitor, and block workers.
const MAX_THREADS: usize = 128;
/// Time for all threads to stop. One that does not is in a system call that cannot be interrupted.
const DEADLINE_NS: u64 = 500_000_000;

const SIGNAL: c_int = libc::SIGFPE;

/// A thread of the parent. Everything about it is an atomic because the thread itself and the
/// main thread both touch it.
#[repr(C)]
struct Thread {
    /// Stack pointer inside [`park`]; first, because the assembly knows its place.
    stack: AtomicUsize,
    /// Base of its thread-local storage, which is also its `struct pthread`.
    storage: AtomicUsize,
    /// Its list of robust mutexes, which a new thread has to announce again: set_robust_list(2).
    robust: AtomicUsize,
    robust_bytes: AtomicUsize,
    /// Thread id as the thread sees it.
    id: AtomicU32,
    /// 1 once everything above is filled in.
    parked: AtomicU32,
}

static THREADS: [Thread; MAX_THREADS] = [const {
    Thread {
        stack: AtomicUsize::new(0),
        storage: AtomicUsize::new(0),
        robust: AtomicUsize::new(0),
        robust_bytes: AtomicUsize::new(0),
        id: AtomicU32::new(0),
        parked: AtomicU32::new(0),
    }
}; MAX_THREADS];
/// Entries in use.
static COUNT: AtomicUsize = AtomicUsize::new(0);
/// Changes when parked threads may go on.
static GENERATION: AtomicU32 = AtomicU32::new(0);
/// Where `struct pthread` keeps the thread's id; 0 until [`prepare`] has found it.
static ID_OFFSET: AtomicUsize = AtomicUsize::new(0);
/// Where a thread's rseq area is, relative to its storage, and how long; 0 without one.
static RSEQ_OFFSET: AtomicUsize = AtomicUsize::new(0);
static RSEQ_BYTES: AtomicUsize = AtomicUsize::new(0);

/// Finds out what is known only at run time. False on a C library that is laid out unexpectedly.
pub fn prepare() -> bool {
    // glibc's `struct pthread` has been within these bounds for decades; the field itself is not
    // public. 0x2d0 in 2.36 and 2.41.
    const WHERE: core::ops::Range<usize> = 0x100..0x800;
    let own = sys::gettid().unwrap_or(0) as u32;
    let storage = storage();
    // SAFETY: `struct pthread` is longer than this range and mapped for the thread's life.
    let found = WHERE.step_by(4).find(|&at| unsafe { *((storage + at) as *const u32) } == own);
    ID_OFFSET.store(found.unwrap_or(0), SeqCst);
    // Public symbols since glibc 2.35; absent before, when nothing was registered either.
    // SAFETY: dlsym takes null-terminated names, and the symbols are a ptrdiff_t and an unsigned.
    unsafe {
        let offset = libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_offset".as_ptr()) as *const isize;
        let size = libc::dlsym(libc::RTLD_DEFAULT, c"__rseq_size".as_ptr()) as *const u32;
        if !offset.is_null() && !size.is_null() && *size != 0 {
            RSEQ_OFFSET.store(*offset as usize, SeqCst);
            RSEQ_BYTES.store(rseq_length(*size as usize), SeqCst);
        }
    }
    found.is_some()
}

/// Stops every other thread. On failure all of them go on.
pub fn park_others() -> Result<(), Failure> {
    let parked = install_handler().and_then(|()| stop_all());
    if parked.is_err() {
        release();
    }
    parked
}

fn stop_all() -> Result<(), Failure> {
    COUNT.store(0, SeqCst);
    let deadline = sys::now_ns() + DEADLINE_NS;
    // A thread that runs can make another one after we looked. Once as many are parked as the
    // kernel counts, nobody is left who could.
    loop {
        signal_new_threads()?;
        let mut parked = 0;
        for thread in &THREADS[..COUNT.load(SeqCst)] {
            parked += usize::from(wait_until_parked(thread, deadline)?);
        }
        if parked + 1 == threads_of_process()? {
            return Ok(());
        }
        if sys::now_ns() > deadline {
            return Err(Failure { step: Step::Park, errno: libc::EAGAIN, subject: parked as i32 });
        }
    }
}

/// How many threads the kernel counts, this one included. A listing of a directory may leave some
/// out while others end.
fn threads_of_process() -> Result<usize, Failure> {
    let mut buffer = [0; text::FILE];
    let path = text::Path::new().text(b"/proc/self/status");
    let status = text::file(&path, &mut buffer).map_err(|errno| Failure {
        step: Step::Park,
        errno,
        subject: -1,
    })?;
    let count = text::field(status, b"Threads:").and_then(|count| text::number(count, 10));
    count.and_then(|count| usize::try_from(count).ok()).ok_or(Failure {
        step: Step::Park,
        errno: libc::EINVAL,
        subject: -1,
    })
}

fn signal_new_threads() -> Result<(), Failure> {
    let at = |errno, subject| Failure { step: Step::Park, errno, subject };
    let process = sys::getpid().map_err(|errno| at(errno, -1))?;
    let own = sys::gettid().map_err(|errno| at(errno, -1))? as u32;
    text::each_thread(|entry| {
        // The directory shows ids of the namespace that /proc was mounted in; signals take those
        // of our own, which come last in NSpid.
        let Some(id) = own_id(entry) else { return Ok(()) };
        let count = COUNT.load(SeqCst);
        if id == own || THREADS[..count].iter().any(|thread| thread.id.load(SeqCst) == id) {
            return Ok(());
        }
        let Some(thread) = THREADS.get(count) else { return Err((libc::EMFILE, entry)) };
        thread.parked.store(0, SeqCst);
        thread.id.store(id, SeqCst);
        COUNT.store(count + 1, SeqCst);
        match sys::tgkill(process, id as usize, SIGNAL as usize) {
            Ok(_) => Ok(()),
            Err(libc::ESRCH) => {
                COUNT.store(count, SeqCst); // it has just ended
                Ok(())
            }
            Err(errno) => Err((errno, entry)),
        }
    })
    .map_err(|(errno, thread)| at(errno, thread as i32))
}

/// A thread's id in its own namespace; nothing if it has ended.
fn own_id(entry: usize) -> Option<u32> {
    let mut buffer = [0; text::FILE];
    let path = text::Path::new().text(b"/proc/self/task/").number(entry).text(b"/status");
    let ids = text::field(text::file(&path, &mut buffer).ok()?, b"NSpid:")?;
    let last = ids.rsplit(|b| b.is_ascii_whitespace()).next()?;
    text::number(last, 10)?.try_into().ok()
}

/// Whether the thread is parked; false if it has ended instead, as one does that is past the
/// point where the C library blocks all signals for good.
fn wait_until_parked(thread: &Thread, deadline: u64) -> Result<bool, Failure> {
    const LOOK_AGAIN_NS: u64 = 1_000_000;
    let id = thread.id.load(SeqCst);
    let failed = |errno| Failure { step: Step::Park, errno, subject: id as i32 };
    let process = sys::getpid().map_err(failed)?;
    while thread.parked.load(SeqCst) == 0 {
        if sys::tgkill(process, id as usize, 0) == Err(libc::ESRCH) {
            return Ok(false);
        }
        if sys::now_ns() > deadline {
            return Err(failed(libc::EBUSY));
        }
        sys::futex_wait(&thread.parked, 0, Some(LOOK_AGAIN_NS));
    }
    let place = thread.storage.load(SeqCst) + ID_OFFSET.load(SeqCst);
    // SAFETY: `prepare` found this place in the main thread, and the structure is the same in
    // every thread of one C library.
    if unsafe { *(place as *const u32) } != id {
        return Err(failed(libc::ENOTSUP));
    }
    Ok(true)
}

/// Lets the parked threads of this process go on. A signal that comes late finds no entry, or a
/// generation that is over, and parks nobody.
pub fn release() {
    COUNT.store(0, SeqCst);
    GENERATION.fetch_add(1, SeqCst);
    sys::futex_wake(&GENERATION);
}

fn install_handler() -> Result<(), Failure> {
    // SAFETY: `sigaction` is plain data; the handler has the signature that SA_SIGINFO asks for.
    // glibc's sigaction is a system call and nothing else, apart from its own internal signals.
    let result = unsafe {
        let mut action: libc::sigaction = core::mem::zeroed();
        action.sa_sigaction = on_signal as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
        libc::sigfillset(&raw mut action.sa_mask);
        libc::sigaction(SIGNAL, &raw const action, core::ptr::null_mut())
    };
    if result == 0 {
        return Ok(());
    }
    Err(Failure { step: Step::Park, errno: libc::EINVAL, subject: -1 })
}

/// Runs in the thread that was signalled, with every signal blocked. Touches no thread-local
/// storage: in a child it ends in a thread whose storage was another's.
extern "C" fn on_signal(_signal: c_int, info: *const libc::siginfo_t, _context: *const c_void) {
    // SAFETY: the kernel passes a valid siginfo.
    if unsafe { (*info).si_code } != libc::SI_TKILL {
        // A division by zero of the program's own: returning repeats it, and the default ends it.
        // SAFETY: signal(2) with the default action.
        unsafe { libc::signal(SIGNAL, libc::SIG_DFL) };
        return;
    }
    // Before the table is looked at: see `release`.
    let generation = GENERATION.load(SeqCst);
    let Ok(own) = sys::gettid() else { return };
    let known = &THREADS[..COUNT.load(SeqCst).min(MAX_THREADS)];
    let Some(thread) = known.iter().find(|thread| thread.id.load(SeqCst) as usize == own) else {
        return; // a late signal of a request that was given up
    };
    if thread.parked.load(SeqCst) != 0 {
        return;
    }
    thread.storage.store(storage(), SeqCst);
    let (head, bytes) = robust_list();
    thread.robust.store(head, SeqCst);
    thread.robust_bytes.store(bytes, SeqCst);
    // SAFETY: `park` follows the calling convention, and `thread` is one of our own.
    unsafe { park(thread, generation) };
}

/// Keeps the stack pointer and the registers that a function must preserve, and waits. Returns
/// once in the thread that called it, and once in every child, there in a new thread on the copy
/// of the same stack. Everything else that a thread consists of, the vector unit's state too, is
/// in the signal frame below and comes back when the handler returns.
#[unsafe(naked)]
unsafe extern "C" fn park(thread: &Thread, generation: u32) {
    core::arch::naked_asm!(
        "push rbp", "push rbx", "push r12", "push r13", "push r14", "push r15",
        "mov [rdi], rsp",
        "sub rsp, 8", // calls want a multiple of 16
        "call {wait}",
        "add rsp, 8",
        "pop r15", "pop r14", "pop r13", "pop r12", "pop rbx", "pop rbp",
        "ret",
        wait = sym wait_for_release,
    )
}

extern "C" fn wait_for_release(thread: &Thread, generation: u32) {
    thread.parked.store(1, SeqCst);
    sys::futex_wake(&thread.parked);
    while GENERATION.load(SeqCst) == generation {
        sys::futex_wait(&GENERATION, generation, None);
    }
}

/// What the main thread, which calls this, announced to the kernel. Its id is to be written where
/// `struct pthread` keeps it: pthread_join and recursive mutexes read it.
pub fn main() -> Announced {
    let storage = storage();
    Announced { id: storage + ID_OFFSET.load(SeqCst), ..announced(storage, robust_list()) }
}

/// What a thread announced, less the place of its id.
fn announced(storage: usize, robust: (usize, usize)) -> Announced {
    let area = storage.wrapping_add(RSEQ_OFFSET.load(SeqCst));
    Announced { robust, rseq: (area, RSEQ_BYTES.load(SeqCst)), id: 0 }
}

/// In a child: starts all other threads where they were parked, and waits until each is there. The
/// table is free for the next request then.
pub fn start_again() -> Result<(), Failure> {
    let old = block_signals();
    let started = start_all();
    // SAFETY: the set that was in force before.
    unsafe { set_signals(old) };
    started?;
    for thread in parked() {
        while thread.parked.load(SeqCst) != 0 {
            sys::futex_wait(&thread.parked, 1, None);
        }
    }
    Ok(())
}

/// The threads that were parked; entries of those that ended meanwhile are left out.
fn parked() -> impl Iterator<Item = &'static Thread> {
    THREADS[..COUNT.load(SeqCst)].iter().filter(|thread| thread.parked.load(SeqCst) != 0)
}

/// Starts threads with all signals blocked, as they are in the handler that they continue: a
/// request that came before a thread is back in there would find it in no state to be parked.
fn start_all() -> Result<(), Failure> {
    let offset = ID_OFFSET.load(SeqCst);
    // As pthread_create does it, less CLONE_CHILD_SETTID. CLEARTID is what pthread_join waits for.
    const FLAGS: c_int = libc::CLONE_VM
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SYSVSEM
        | libc::CLONE_SETTLS
        | libc::CLONE_PARENT_SETTID
        | libc::CLONE_CHILD_CLEARTID;
    for thread in parked() {
        let storage = thread.storage.load(SeqCst);
        let id = storage + offset;
        // Below what `park` saved there is only the frame of its wait, which nobody needs in
        // this process. 128 bytes: the red zone of whatever was there.
        let stack = (thread.stack.load(SeqCst) - 128) & !15;
        // SAFETY: the stack, the storage and the place of the id are those of a thread that does
        // not exist in this process until now.
        let started = unsafe { clone_thread(FLAGS as usize, stack, id, id, storage, thread) };
        sys::outcome(started).map_err(|errno| Failure {
            step: Step::Threads,
            errno,
            subject: thread.id.load(SeqCst) as i32,
        })?;
    }
    Ok(())
}

/// clone(2) of a thread that begins in [`begin`].
#[unsafe(naked)]
unsafe extern "C" fn clone_thread(
    flags: usize,
    stack: usize,
    parent_id: usize,
    child_id: usize,
    storage: usize,
    thread: &Thread,
) -> isize {
    core::arch::naked_asm!(
        "mov r10, rcx",
        "mov eax, {clone}",
        "syscall",
        "test rax, rax",
        "jnz 2f",
        "xor ebp, ebp", // the end of the chain of frames
        "mov rdi, r9",
        "call {begin}",
        "ud2",
        "2: ret",
        clone = const libc::SYS_clone,
        begin = sym begin,
    )
}

/// First function of a thread in a child.
extern "C" fn begin(thread: &Thread) -> ! {
    let robust = (thread.robust.load(SeqCst), thread.robust_bytes.load(SeqCst));
    // Its id was put in place by clone(2).
    announced(thread.storage.load(SeqCst), robust).again();
    let stack = thread.stack.load(SeqCst);
    // From here on the entry may be another thread's.
    thread.parked.store(0, SeqCst);
    sys::futex_wake(&thread.parked);
    // SAFETY: the thread's stack holds what `park` put there, and nobody else uses it.
    unsafe { resume(stack) }
}

/// Blocks every signal in this thread and returns what was blocked before.
fn block_signals() -> u64 {
    // SAFETY: blocking is always sound.
    unsafe { set_signals(u64::MAX) }
}

/// Sets the blocked signals of this thread and returns those before.
///
/// # Safety
/// The program must be prepared for the signals that are no longer blocked.
unsafe fn set_signals(mask: u64) -> u64 {
    let mut old = 0u64;
    let how = libc::SIG_SETMASK as usize;
    let (new, old_place) = (&raw const mask as usize, &raw mut old as usize);
    let args = [how, new, old_place, size_of::<u64>(), 0, 0];
    // SAFETY: the kernel's sets of signals are eight bytes.
    let _ = unsafe { sys::call(libc::SYS_rt_sigprocmask, args) };
    old
}
