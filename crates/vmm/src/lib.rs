//! The virtual machine monitor: runs one guest under KVM, on descriptors it was born with.
//!
//! Everything here is designed from the fork backwards. Guest memory is a private mapping, so
//! `fork(2)` of the monitor's process copies the guest; what the kernel does not copy, the virtual
//! machine and its vCPUs, is saved before ([`kvm`]) and made anew by the child. Devices are plain
//! memory of the process and come along ([`virtio`]).
//!
//! There is no async runtime here, no HTTP, and no path is ever opened: every descriptor comes
//! over the control socket ([`control`]).

pub mod boot;
mod clock;
pub mod control;
mod devices;
pub mod disk;
pub mod ioapic;
pub mod kvm;
pub mod layout;
pub mod legacy;
mod lockdown;
mod machine;
pub mod memory;
mod monitor;
pub mod snapshot;
pub mod virtio;

pub use devices::{MAC as GUEST_MAC, VOLUMES as VOLUME_SLOTS};
pub use monitor::run;

/// The guest's memory, as everybody here sees it. Never make a slice of it: the guest writes to
/// it at any moment.
pub type GuestMemory = vm_memory::GuestMemoryMmap<()>;
