//! Narrower system call filters for the threads that serve the guest.
//!
//! The whole process has the filter that its jail installed (`Filter::monitor`), which is as wide
//! as a restore and a fork need. The threads in which a guest's bytes are looked at need much less,
//! and say so before the first of them:
//!
//! ```text
//!   main thread        starts, restores, forks, ends     the process's filter
//!     ├─ vCPU threads  KVM_RUN, and what exits cause     + vcpu()
//!     └─ devices       queues, files, streams            + devices()
//! ```
//!
//! A filter cannot be taken off, and the kernel obeys the strictest. No thread with one of these
//! can make a thread, a process, a mapping of the machine or a request to KVM other than named
//! here, whatever the guest makes of it. The main thread takes none, because a copy of the process
//! is a copy of the thread that makes it.

use std::io;
use std::sync::OnceLock;

use pandastack_jail::Filter;
use pandastack_jail::seccomp::When::{Always, Null, OneOf};
use pandastack_jail::seccomp::{MEMORY, Rule, THREADS, allow, kvm};

/// Asks about a descriptor, not about a path.
const EMPTY_PATH: &[u32] = &[libc::AT_EMPTY_PATH as u32];

/// What a vCPU thread does besides being a thread.
const VCPU: &[Rule] = &[
    allow(libc::SYS_ioctl, OneOf(1, &[kvm::RUN, kvm::SIGNAL_MSI]), "the guest, its interrupts"),
    allow(libc::SYS_write, Always, "waking the devices' thread, complaints"),
    allow(libc::SYS_read, Always, "being woken"),
    allow(libc::SYS_poll, Always, "waiting while the machine stands still"),
    allow(libc::SYS_ppoll, Always, "waiting while the machine stands still"),
    allow(libc::SYS_close, Always, "its own descriptors, at its end"),
];

/// What the devices' thread does besides being a thread.
const DEVICES: &[Rule] = &[
    allow(libc::SYS_ioctl, OneOf(1, &[kvm::SIGNAL_MSI]), "interrupts"),
    allow(libc::SYS_poll, Always, "waiting for work"),
    allow(libc::SYS_ppoll, Always, "waiting for work"),
    allow(libc::SYS_read, Always, "events and streams"),
    allow(libc::SYS_write, Always, "events and streams"),
    allow(libc::SYS_readv, Always, "streams to the guest's memory"),
    allow(libc::SYS_writev, Always, "streams from the guest's memory"),
    allow(libc::SYS_pread64, Always, "disks"),
    allow(libc::SYS_pwrite64, Always, "disks"),
    allow(libc::SYS_preadv, Always, "disks to the guest's memory"),
    allow(libc::SYS_pwritev, Always, "disks from the guest's memory"),
    allow(libc::SYS_fdatasync, Always, "flushes"),
    allow(libc::SYS_fsync, Always, "flushes"),
    allow(libc::SYS_ftruncate, Always, "a layer that grows"),
    allow(libc::SYS_fallocate, Always, "what the guest discards"),
    allow(libc::SYS_lseek, Always, "the size of a layer"),
    allow(libc::SYS_fstat, Always, "the size of a layer"),
    allow(libc::SYS_newfstatat, OneOf(3, EMPTY_PATH), "the C library's fstat(3)"),
    allow(libc::SYS_statx, OneOf(2, EMPTY_PATH), "the standard library's fstat(3)"),
    allow(libc::SYS_recvfrom, Always, "frames"),
    allow(libc::SYS_sendto, Null(4), "frames, to the peer only"),
    allow(libc::SYS_shutdown, Always, "a half-closed stream"),
    allow(libc::SYS_close, Always, "streams that are done with"),
];

/// Narrows the calling thread to what a vCPU needs, for ever.
pub fn vcpu() -> io::Result<()> {
    static FILTER: OnceLock<Filter> = OnceLock::new();
    FILTER.get_or_init(|| Filter::allowing(&[VCPU, MEMORY, THREADS])).install()
}

/// Narrows the calling thread to what the devices need, for ever.
pub fn devices() -> io::Result<()> {
    static FILTER: OnceLock<Filter> = OnceLock::new();
    FILTER.get_or_init(|| Filter::allowing(&[DEVICES, MEMORY, THREADS])).install()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::FileExt;
    use std::os::unix::net::UnixStream;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use pandastack_jail::seccomp::Verdict;

    use super::*;

    /// A system call with plain numbers, and how it failed.
    fn fails(call: libc::c_long, args: [usize; 4]) -> Option<i32> {
        // SAFETY: null and nonsense pointers, which the kernel refuses, if it looks at them at all.
        let result = unsafe { libc::syscall(call, args[0], args[1], args[2], args[3]) };
        (result < 0).then(|| io::Error::last_os_error().raw_os_error()).flatten()
    }

    /// What neither kind of thread may do. Each call would succeed, or fail otherwise, without.
    fn assert_confined() {
        let path = c"/dev/null".as_ptr() as usize;
        for (call, args) in [
            (libc::SYS_openat, [libc::AT_FDCWD as usize, path, 0, 0]),
            (libc::SYS_open, [path, 0, 0, 0]),
            (libc::SYS_socket, [libc::AF_UNIX as usize, libc::SOCK_STREAM as usize, 0, 0]),
            (libc::SYS_execve, [path, 0, 0, 0]),
            (libc::SYS_clone, [libc::SIGCHLD as usize, 0, 0, 0]),
            (libc::SYS_mmap, [0, 4096, libc::PROT_EXEC as usize, 0x22]),
            (libc::SYS_memfd_create, [path, 0, 0, 0]),
            (libc::SYS_dup, [0, 0, 0, 0]),
            (libc::SYS_eventfd2, [0, 0, 0, 0]),
            (libc::SYS_prctl, [libc::PR_GET_DUMPABLE as usize, 0, 0, 0]),
            (libc::SYS_capset, [0, 0, 0, 0]),
            (libc::SYS_tgkill, [1, 1, 0, 0]),
            (libc::SYS_kill, [std::process::id() as usize, 0, 0, 0]),
            (libc::SYS_ioctl, [0, kvm::CREATE_VM as usize, 0, 0]),
            (libc::SYS_ioctl, [0, kvm::SET_USER_MEMORY_REGION as usize, 0, 0]),
        ] {
            assert_eq!(fails(call, args), Some(libc::EPERM), "call {call} {args:x?}");
        }
        assert!(std::thread::Builder::new().spawn(|| ()).is_err(), "a thread was made");
        // Not a word of the standard library's own that would need more.
        let all: Vec<_> = (0..100).map(|n| vec![n as u8; 1 << 16]).collect();
        let mut grown = vec![0u8; 1 << 20];
        grown.resize(8 << 20, 1);
        assert_eq!(all.len() + grown.len(), 100 + (8 << 20));
        std::thread::sleep(Duration::from_millis(1));
    }

    #[test]
    fn a_vcpu_thread_runs_raises_interrupts_and_wakes() {
        let event =
            Arc::new(rustix::event::eventfd(1, rustix::event::EventfdFlags::empty()).unwrap());
        let shared = Arc::new(Mutex::new(0));
        let (theirs, count) = (event.clone(), shared.clone());
        let thread = std::thread::spawn(move || {
            vcpu().unwrap();
            assert_confined();
            // Allowed, so that it is the descriptor that refuses.
            for request in [kvm::RUN, kvm::SIGNAL_MSI] {
                let args = [theirs.as_raw_fd() as usize, request as usize, 0, 0];
                assert_eq!(fails(libc::SYS_ioctl, args), Some(libc::ENOTTY));
            }
            assert_eq!(rustix::io::read(&*theirs, &mut [0u8; 8]), Ok(8));
            assert_eq!(rustix::io::write(&*theirs, &5u64.to_ne_bytes()), Ok(8));
            assert_eq!(fails(libc::SYS_pread64, [0; 4]), Some(libc::EPERM));
            assert_eq!(fails(libc::SYS_sendmsg, [0; 4]), Some(libc::EPERM));
            *count.lock().unwrap() += 1;
            assert!(std::panic::catch_unwind(|| panic!("unwinding needs no system call")).is_err());
        });
        thread.join().unwrap();
        let mut count = [0u8; 8];
        assert_eq!(rustix::io::read(&*event, &mut count), Ok(8));
        assert_eq!((u64::from_ne_bytes(count), *shared.lock().unwrap()), (5, 1));
        assert!(File::open("/dev/null").is_ok(), "other threads are as they were");
    }

    #[test]
    fn the_devices_thread_serves_files_and_streams() {
        let file = tempfile::tempfile().unwrap();
        let (here, there) = UnixStream::pair().unwrap();
        let thread = std::thread::spawn(move || {
            devices().unwrap();
            assert_confined();
            file.write_at(b"bamboo", 4096).unwrap();
            file.set_len(8192).unwrap();
            file.sync_data().unwrap();
            assert_eq!(file.metadata().unwrap().len(), 8192);
            let mut bytes = [0; 6];
            file.read_exact_at(&mut bytes, 4096).unwrap();
            rustix::net::send(&here, &bytes, rustix::net::SendFlags::NOSIGNAL).unwrap();
            let mut polled = [rustix::event::PollFd::new(&here, rustix::event::PollFlags::OUT)];
            assert_eq!(rustix::event::poll(&mut polled, None), Ok(1));
            let random = [bytes.as_mut_ptr() as usize, bytes.len(), 0, 0];
            assert_eq!(fails(libc::SYS_getrandom, random), None);
            let run = [here.as_raw_fd() as usize, kvm::RUN as usize, 0, 0];
            assert_eq!(fails(libc::SYS_ioctl, run), Some(libc::EPERM));
            // No descriptors come or go, and no message names its receiver.
            assert_eq!(fails(libc::SYS_sendmsg, [0; 4]), Some(libc::EPERM));
            assert_eq!(fails(libc::SYS_recvmsg, [0; 4]), Some(libc::EPERM));
            let interrupt = [here.as_raw_fd() as usize, kvm::SIGNAL_MSI as usize, 0, 0];
            assert_eq!(fails(libc::SYS_ioctl, interrupt), Some(libc::ENOTTY));
        });
        thread.join().unwrap();
        let mut bytes = [0; 16];
        let received = rustix::net::recv(&there, &mut bytes, rustix::net::RecvFlags::empty());
        assert_eq!(received.map(|(bytes, _)| bytes), Ok(6));
        assert_eq!(rustix::io::read(&there, &mut bytes), Ok(0), "the thread closed its end");
    }

    /// A thread's filter is of use only if it is part of that of the process.
    #[test]
    fn threads_need_nothing_that_their_process_may_not() {
        let process = Filter::monitor();
        for rule in [VCPU, DEVICES, MEMORY, THREADS].into_iter().flatten() {
            let arguments = match rule.when {
                OneOf(at, values) => values.iter().map(|v| (at, u64::from(*v))).collect(),
                _ => vec![(0, if rule.call == libc::SYS_tgkill { 2 } else { 0 })],
            };
            for (at, value) in arguments {
                let mut args = [0; 6];
                args[usize::from(at)] = value;
                assert_eq!(process.decide(rule.call, args), Verdict::Allow, "{rule:?}");
            }
        }
    }

    /// Requests carry the size of their argument, which the bindings know from the kernel.
    #[test]
    fn requests_have_the_sizes_of_the_bindings() {
        use kvm_bindings as kb;
        let size = |request: u32| (request >> 16 & 0x3fff) as usize;
        for (request, of) in [
            (kvm::SIGNAL_MSI, size_of::<kb::kvm_msi>()),
            (kvm::SET_USER_MEMORY_REGION, size_of::<kb::kvm_userspace_memory_region>()),
            (kvm::ENABLE_CAP, size_of::<kb::kvm_enable_cap>()),
            (kvm::X86_SET_MSR_FILTER, size_of::<kb::kvm_msr_filter>()),
            (kvm::GET_CLOCK, size_of::<kb::kvm_clock_data>()),
            (kvm::GET_REGS, size_of::<kb::kvm_regs>()),
            (kvm::GET_SREGS, size_of::<kb::kvm_sregs>()),
            (kvm::SET_SREGS2, size_of::<kb::kvm_sregs2>()),
            (kvm::GET_FPU, size_of::<kb::kvm_fpu>()),
            (kvm::GET_LAPIC, size_of::<kb::kvm_lapic_state>()),
            (kvm::GET_MP_STATE, size_of::<kb::kvm_mp_state>()),
            (kvm::GET_VCPU_EVENTS, size_of::<kb::kvm_vcpu_events>()),
            (kvm::GET_DEBUGREGS, size_of::<kb::kvm_debugregs>()),
            (kvm::GET_XSAVE, size_of::<kb::kvm_xsave>()),
            (kvm::GET_XCRS, size_of::<kb::kvm_xcrs>()),
            (kvm::GET_ONE_REG, size_of::<kb::kvm_one_reg>()),
            (kvm::SET_DEVICE_ATTR, size_of::<kb::kvm_device_attr>()),
        ] {
            assert_eq!(size(request), of, "{request:#x}");
        }
    }
}
