//! What the kernel knows of a thread besides its memory and its registers.
//!
//! The C library tells the kernel three addresses when it makes a thread, all within the thread's
//! own storage. A clone has that storage but none of the addresses, so its first thread has to
//! announce them again before the C library can be used as before.

use core::arch::asm;

use crate::sys;

/// `RSEQ_SIG` of glibc for x86.
const RSEQ_SIGNATURE: usize = 0x5305_3053;

/// What a thread announced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Announced {
    /// Address and length of the head of its robust mutexes, set_robust_list(2); 0 without one.
    pub robust: (usize, usize),
    /// Address and length of its area for restartable sequences, rseq(2); length 0 without one.
    pub rseq: (usize, usize),
    /// Where its thread id is kept: the kernel clears it at the thread's end, and joining,
    /// signalling and recursive mutexes read it. 0 if that is not known.
    pub id: usize,
}

impl Announced {
    /// What this thread announced, as far as it can be found out in a program with glibc, static
    /// or not. With another C library only the robust list is known.
    pub fn by_this_thread() -> Self {
        let robust = robust_list();
        Self { robust, rseq: rseq_area(), id: id_beside(robust.0) }
    }

    /// Announces it again, in the thread of a clone that has the storage of the one that did.
    pub fn again(&self) {
        let (robust, robust_bytes) = self.robust;
        let (rseq, rseq_bytes) = self.rseq;
        // SAFETY: the addresses are those that the C library gave before, of this very thread, and
        // they are in this process too; what is written is this thread's id, at its place.
        unsafe {
            if robust != 0 {
                let _ = sys::call(libc::SYS_set_robust_list, [robust, robust_bytes, 0, 0, 0, 0]);
            }
            if rseq_bytes != 0 {
                let args = [rseq, rseq_bytes, 0, RSEQ_SIGNATURE, 0, 0];
                let _ = sys::call(libc::SYS_rseq, args);
            }
            if self.id != 0 {
                *(self.id as *mut u32) = sys::gettid().unwrap_or(0) as u32;
                let _ = sys::call(libc::SYS_set_tid_address, [self.id, 0, 0, 0, 0, 0]);
            }
        }
    }
}

/// Base of this thread's storage: its first word points to itself.
#[inline(always)]
pub fn storage() -> usize {
    let base: usize;
    // SAFETY: every thread of glibc has its storage at %fs:0 (x86-64 ABI, variant II).
    unsafe { asm!("mov {}, fs:0", out(reg) base, options(nostack, pure, readonly)) };
    base
}

/// This thread's robust list: address and length of its head.
pub fn robust_list() -> (usize, usize) {
    let (mut head, mut bytes) = (0usize, 0usize);
    let args = [0, &raw mut head as usize, &raw mut bytes as usize, 0, 0, 0];
    // SAFETY: get_robust_list(2) of the calling thread writes two words.
    if unsafe { sys::call(libc::SYS_get_robust_list, args) } < 0 {
        return (0, 0);
    }
    (head, bytes)
}

/// Where glibc keeps this thread's id: in its `struct pthread` the head of the robust list follows
/// two numbers of 32 bits, of which the id is the first, and one pointer. 0 where it is not there.
fn id_beside(robust: usize) -> usize {
    /// The structure begins at the storage's base and is shorter than this.
    const STRUCTURE: usize = 0x1000;
    let (base, place) = (storage(), robust.wrapping_sub(16));
    if !(base..base + STRUCTURE).contains(&place) {
        return 0;
    }
    // SAFETY: within the structure, which is mapped for the thread's life, and aligned like the
    // pointers that follow.
    let is_own = sys::gettid() == Ok(unsafe { *(place as *const u32) } as usize);
    if is_own { place } else { 0 }
}

/// Where glibc put this thread's area for restartable sequences.
fn rseq_area() -> (usize, usize) {
    let (offset, size): (*const isize, *const u32);
    // Public symbols since glibc 2.35. Weak, so that they are null without it.
    // SAFETY: reads two addresses that the linker knows.
    unsafe {
        asm!(
            ".weak __rseq_offset",
            ".weak __rseq_size",
            "mov {}, qword ptr [rip + __rseq_offset@GOTPCREL]",
            "mov {}, qword ptr [rip + __rseq_size@GOTPCREL]",
            out(reg) offset, out(reg) size,
            options(nostack, pure, readonly, preserves_flags),
        );
    }
    if offset.is_null() || size.is_null() {
        return (0, 0);
    }
    // SAFETY: a ptrdiff_t and an unsigned int, constant once the program has started.
    let (offset, size) = unsafe { (*offset, *size as usize) };
    if size == 0 {
        return (0, 0);
    }
    (storage().wrapping_add_signed(offset), rseq_length(size))
}

/// Length to register for a size of `__rseq_size`, which may count the used part only: what is
/// registered is never shorter than the original structure.
pub fn rseq_length(size: usize) -> usize {
    size.max(32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_c_library_announced_is_found() {
        for _ in 0..2 {
            // In a thread of its own too: ids of threads differ from that of the process.
            std::thread::spawn(|| {
                let announced = Announced::by_this_thread();
                assert_ne!(announced.robust.0, 0);
                assert_ne!(announced.id, 0, "glibc keeps the id beside the robust list");
                let (area, bytes) = announced.rseq;
                if bytes != 0 {
                    // Registering the same area again is refused as busy, another one as invalid.
                    let register = |area| {
                        let args = [area, bytes, 0, RSEQ_SIGNATURE, 0, 0];
                        // SAFETY: it is registered already, so that nothing changes.
                        sys::outcome(unsafe { sys::call(libc::SYS_rseq, args) })
                    };
                    assert_eq!(register(area), Err(libc::EBUSY));
                    assert_eq!(register(area + 32), Err(libc::EINVAL));
                }
            })
            .join()
            .unwrap();
        }
    }

    #[test]
    fn announcing_again_in_the_same_thread_changes_nothing() {
        let before = Announced::by_this_thread();
        before.again();
        assert_eq!(Announced::by_this_thread(), before);
        assert_eq!(std::thread::spawn(|| 5).join().unwrap(), 5);
    }
}
