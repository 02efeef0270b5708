//! A program that copies itself as a monitor does, and tries out what is left of its C library.
//!
//! `copier GENERATIONS`: every generation but the last makes the next one. Prints a line
//! `generation.name=value` for each thing tried, and `end=end`.
#![allow(clippy::unwrap_used, reason = "a test program fails by panicking")]

use std::cell::Cell;
use std::io::Read;
use std::sync::atomic::{AtomicI32, Ordering::SeqCst};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use pandastack_fork::birth::{self, BirthError, Side};
use pandastack_fork::{sys, thread::Announced};

thread_local! {
    static OWN: Cell<u32> = const { Cell::new(0) };
}

static SIGNALLED: AtomicI32 = AtomicI32::new(0);

extern "C" fn on_signal(_: libc::c_int) {
    // SAFETY: the thread's own id.
    SIGNALLED.store(unsafe { libc::gettid() }, SeqCst);
}

fn main() {
    let last: u32 = std::env::args().nth(1).unwrap().parse().unwrap();
    OWN.set(7);
    // SAFETY: the handler stores a number.
    unsafe { libc::signal(libc::SIGUSR1, on_signal as *const () as usize) };
    let mut generation = 0;
    live(generation);
    while generation < last {
        let on_the_stack = [generation; 512];
        match copy() {
            Ok(Side::Child) => {
                assert_eq!(on_the_stack, [generation; 512]);
                generation += 1;
                live(generation);
            }
            made => {
                println!("{generation}.forked={}", matches!(made, Ok(Side::Parent(0..))));
                if let Err(error) = made {
                    println!("{generation}.error={error}");
                }
                break;
            }
        }
    }
    println!("end=end");
    // Until the outside has seen enough.
    let _ = std::io::stdin().read(&mut [0u8; 1]);
}

fn copy() -> Result<Side, BirthError> {
    birth::await_ids(Duration::from_secs(5))?;
    // SAFETY: the threads of `live` were joined, and this is the main one.
    let side = unsafe { birth::fork(&[], &Announced::by_this_thread()) }?;
    if side == Side::Child {
        birth::settle(&[], false)?;
    }
    Ok(side)
}

/// Uses what depends on the C library knowing its threads.
fn live(generation: u32) {
    let say = |name: &str, value: bool| println!("{generation}.{name}={value}");
    say("pid", std::process::id() == 2);
    // SAFETY: no arguments.
    say("tid", unsafe { libc::gettid() } == 2);
    say("storage", OWN.get() == 7);
    say("announced", is_announced());
    // SAFETY: the handler is installed; raise(3) signals the thread that the C library takes this
    // one for.
    say("raise", unsafe { libc::raise(libc::SIGUSR1) } == 0 && SIGNALLED.swap(0, SeqCst) == 2);
    say("owner", recursive_mutex_has_owner());
    say("threads", threads_work());
    say("allocator", (0..1000).map(|n| vec![n; n]).map(|v| v.len()).sum::<usize>() == 499_500);
}

/// Whether the kernel has what the C library announced once.
fn is_announced() -> bool {
    let announced = Announced::by_this_thread();
    let (area, bytes) = announced.rseq;
    // SAFETY: this registers what is registered already, and fails.
    let again = unsafe { sys::call(libc::SYS_rseq, [area, bytes, 0, 0x5305_3053, 0, 0]) };
    let rseq = bytes == 0 || sys::outcome(again) == Err(libc::EBUSY);
    announced.robust.0 != 0 && announced.id != 0 && rseq
}

/// A recursive mutex tells its owner by the thread id.
fn recursive_mutex_has_owner() -> bool {
    // SAFETY: a mutex on this stack, used by this thread only and destroyed before it goes.
    unsafe {
        let mut kind: libc::pthread_mutexattr_t = std::mem::zeroed();
        let mut mutex: libc::pthread_mutex_t = std::mem::zeroed();
        libc::pthread_mutexattr_init(&mut kind);
        libc::pthread_mutexattr_settype(&mut kind, libc::PTHREAD_MUTEX_ERRORCHECK);
        libc::pthread_mutex_init(&mut mutex, &kind);
        let first = libc::pthread_mutex_lock(&mut mutex);
        let second = libc::pthread_mutex_lock(&mut mutex);
        let freed = libc::pthread_mutex_unlock(&mut mutex);
        libc::pthread_mutex_destroy(&mut mutex);
        (first, second, freed) == (0, libc::EDEADLK, 0)
    }
}

/// Several at once, named, that wait for each other; then as many again, on the kept stacks.
fn threads_work() -> bool {
    (0..3).all(|_| {
        let barrier = Arc::new(Barrier::new(5));
        let threads: Vec<_> = (0..4)
            .map(|n| {
                let barrier = barrier.clone();
                let named = std::thread::Builder::new().name(format!("worker {n}"));
                named
                    .spawn(move || {
                        OWN.set(n);
                        barrier.wait();
                        // SAFETY: no arguments.
                        (OWN.get() == n, unsafe { libc::gettid() }, vec![0u8; 1 << 20].len())
                    })
                    .unwrap()
            })
            .collect();
        barrier.wait();
        let done: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        let mut ids: Vec<_> = done.iter().map(|(_, id, _)| *id).collect();
        ids.sort_unstable();
        ids.dedup();
        ids.len() == 4 && done.iter().all(|(own, id, _)| *own && *id > 2)
    })
}
