//! The virtual machine itself: what KVM keeps for us, and what has to be known to make it again.
//!
//! A virtual machine belongs to the address space of the process that made it, so a fork cannot
//! inherit one. What it inherits is memory; so the machine's state is read out before the fork
//! ([`state`]), and the child makes a machine of its own over the same memory.
//!
//! ```text
//!   Vm::new ── memslots ── irqchip ── vCPUs ── CPUID ──▶ boot registers, or a saved state
//! ```
//!
//! The order is worth milliseconds: see [`Vm::new`].

pub mod cpuid;
mod msrs;
pub mod proof;
pub mod state;
mod vcpu;
mod vm;

pub use state::{CpuState, VmState};
pub use vcpu::{Exit, Handler, Kick, Vcpu};
pub use vm::{Host, Vm};

/// The kernel refused something.
#[derive(Debug, thiserror::Error)]
#[error("the kernel refused to {what}")]
pub struct KvmError {
    /// What was asked of it.
    pub what: String,
    /// Its answer.
    #[source]
    pub source: std::io::Error,
}

/// For `map_err`: names what failed.
fn refused(what: &str) -> impl FnOnce(kvm_ioctls::Error) -> KvmError + '_ {
    move |errno| KvmError {
        what: what.to_owned(),
        source: std::io::Error::from_raw_os_error(errno.errno()),
    }
}
