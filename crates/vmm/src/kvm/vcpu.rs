//! A vCPU and its thread's loop.
//!
//! ```text
//!   run ──▶ KVM_RUN ──▶ exit ──▶ Handler ─┐         stop: flag, then a signal
//!            ▲                            │           │
//!            └────────────────────────────┘           ▼
//!                       input and output completed ── back to whoever stopped it
//! ```
//!
//! A vCPU that was stopped has nothing half done: KVM finishes an instruction that left it for
//! input or output only when it is entered again, so that is done under `immediate_exit` before
//! the vCPU is given back. Otherwise its copy would execute the instruction once more.

use std::cell::Cell;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

use kvm_bindings::kvm_pre_fault_memory;
use kvm_ioctls::{VcpuExit, VcpuFd};
use pandastack_jail::seccomp::kvm;

use super::{KvmError, refused};
use crate::boot::{self, Entry};

/// What port and memory accesses of the guest lead to.
pub trait Handler: Send + Sync {
    /// The guest reads from an I/O port.
    fn port_read(&self, port: u16, data: &mut [u8]);
    /// The guest writes to an I/O port. An exit ends the machine.
    fn port_write(&self, port: u16, data: &[u8]) -> Option<Exit>;
    /// The guest reads from an address that is no memory.
    fn memory_read(&self, address: u64, data: &mut [u8]);
    /// The guest writes there.
    fn memory_write(&self, address: u64, data: &[u8]);
    /// A local APIC has seen the end of a level-triggered interrupt.
    fn interrupt_ended(&self, vector: u8);
}

/// Why a vCPU does not run any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It was told to stop.
    Stopped,
    /// The guest switched the machine off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest did something that cannot go on: a triple fault, or a state that KVM cannot run.
    Crash,
}

thread_local! {
    /// Where the vCPU that this thread runs is told not to enter the guest.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

/// The signal that gets a vCPU out of the guest.
pub struct Kick;

impl Kick {
    /// Number of the signal.
    pub fn signal() -> i32 {
        libc::SIGRTMIN()
    }

    /// Installs what the signal does, once per process; forks inherit it.
    pub fn install() -> std::io::Result<()> {
        extern "C" fn kicked(_: libc::c_int) {
            let exit = IMMEDIATE_EXIT.get();
            if !exit.is_null() {
                // SAFETY: the thread has set it to a byte of its own mapping, and takes it back
                // before that goes away.
                unsafe { ptr::write_volatile(exit, 1) };
            }
        }
        // SAFETY: an all-zero action is an empty one; the handler only writes a byte.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = kicked as *const () as usize;
            if libc::sigaction(Self::signal(), &raw const action, ptr::null_mut()) != 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    }
}

/// One vCPU.
pub struct Vcpu {
    fd: VcpuFd,
    index: u8,
}

impl Vcpu {
    pub(super) fn new(fd: VcpuFd, index: u8) -> Self {
        Self { fd, index }
    }

    pub(super) fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// Its place among its machine's.
    pub fn index(&self) -> u8 {
        self.index
    }

    /// Runs the guest until `stop` is set and the thread was signalled, or the machine is over.
    /// Nothing is pending afterwards. Fails only when KVM itself does.
    pub fn run(&mut self, handler: &dyn Handler, stop: &AtomicBool) -> Result<Exit, KvmError> {
        IMMEDIATE_EXIT.set(&raw mut self.fd.get_kvm_run().immediate_exit);
        let exit = self.until_stopped(handler, stop).and_then(|exit| {
            self.complete(handler)?;
            Ok(exit)
        });
        IMMEDIATE_EXIT.set(ptr::null_mut());
        self.fd.set_kvm_immediate_exit(0);
        exit
    }

    fn until_stopped(
        &mut self,
        handler: &dyn Handler,
        stop: &AtomicBool,
    ) -> Result<Exit, KvmError> {
        while !stop.load(Ordering::SeqCst) {
            if let Step::Over(exit) = self.step(handler)? {
                return Ok(exit);
            }
        }
        Ok(Exit::Stopped)
    }

    /// Lets KVM finish the instruction that the guest left it for, without another one. One
    /// instruction may take several exits.
    fn complete(&mut self, handler: &dyn Handler) -> Result<(), KvmError> {
        loop {
            self.fd.set_kvm_immediate_exit(1);
            match self.step(handler)? {
                Step::Interrupted | Step::Over(_) => return Ok(()),
                Step::Next => {}
            }
        }
    }

    /// Enters the guest once.
    fn step(&mut self, handler: &dyn Handler) -> Result<Step, KvmError> {
        let exit = match self.fd.run() {
            Ok(exit) => exit,
            Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => {
                return Ok(Step::Interrupted);
            }
            Err(e) => return Err(refused("run the guest")(e)),
        };
        let over = match exit {
            VcpuExit::IoIn(port, data) => {
                handler.port_read(port, data);
                None
            }
            VcpuExit::IoOut(port, data) => handler.port_write(port, data),
            VcpuExit::MmioRead(address, data) => {
                handler.memory_read(address, data);
                None
            }
            VcpuExit::MmioWrite(address, data) => {
                handler.memory_write(address, data);
                None
            }
            VcpuExit::IoapicEoi(vector) => {
                handler.interrupt_ended(vector);
                None
            }
            VcpuExit::Intr | VcpuExit::Hlt => None,
            // A triple fault.
            VcpuExit::Shutdown => Some(Exit::Crash),
            other => {
                // Bounded: it ends the machine.
                eprintln!("vCPU {} cannot go on: {other:?}", self.index);
                Some(Exit::Crash)
            }
        };
        Ok(over.map_or(Step::Next, Step::Over))
    }

    /// Maps guest memory where the processor looks for it, so that the guest's first touch of these
    /// bytes is no exit (`KVM_PRE_FAULT_MEMORY`, Linux 6.11, processors with nested paging). Fails
    /// where that is not known.
    pub fn premap(&self, start: u64, bytes: u64) -> std::io::Result<()> {
        let mut range = kvm_pre_fault_memory { gpa: start, size: bytes, ..Default::default() };
        while range.size > 0 {
            let fd = self.fd.as_raw_fd();
            let argument = &raw mut range;
            // SAFETY: the request takes this structure. What is left to do is written into it.
            if unsafe { libc::ioctl(fd, kvm::PRE_FAULT_MEMORY.into(), argument) } != 0 {
                let error = std::io::Error::last_os_error();
                let again = matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN));
                if !again {
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Gives what every processor starts with: model-specific registers and FPU.
    pub fn set_boot_state(&self) -> Result<(), KvmError> {
        super::state::set_boot_msrs(&self.fd, &boot::msrs())?;
        self.fd.set_fpu(&boot::fpu()).map_err(refused("set the floating point unit"))
    }

    /// Gives the registers that the boot processor enters a kernel with.
    pub fn set_boot_registers(&self, entry: Entry) -> Result<(), KvmError> {
        let sregs = self.fd.get_sregs().map_err(refused("read special registers"))?;
        let (regs, sregs) = boot::boot_processor(entry, sregs);
        self.fd.set_sregs(&sregs).map_err(refused("set special registers"))?;
        self.fd.set_regs(&regs).map_err(refused("set registers"))
    }
}

/// What entering the guest once came to.
enum Step {
    /// It may be entered again.
    Next,
    /// A signal, or `immediate_exit`.
    Interrupted,
    /// The machine is over.
    Over(Exit),
}
