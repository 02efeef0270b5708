//! Requests of ioctl(2) that a monitor makes.
//!
//! The numbers are those of linux/kvm.h and linux/fs.h, put together as `_IOC` of
//! asm-generic/ioctl.h does: direction, size of the argument, type, number.

use libc::c_ulong;

/// `KVMIO`: the type of every request of KVM.
const KVM: u32 = 0xae;

const fn ioc(direction: u32, kind: u32, number: u32, size: u32) -> u32 {
    direction << 30 | size << 16 | kind << 8 | number
}
const fn io(number: u32) -> u32 {
    ioc(0, KVM, number, 0)
}
const fn iow(number: u32, size: u32) -> u32 {
    ioc(1, KVM, number, size)
}
const fn ior(number: u32, size: u32) -> u32 {
    ioc(2, KVM, number, size)
}
const fn iowr(number: u32, size: u32) -> u32 {
    ioc(3, KVM, number, size)
}

macro_rules! requests {
    ($($(#[$doc:meta])* $name:ident = $value:expr;)*) => {
        $($(#[$doc])* pub const $name: u32 = $value;)*

        /// Every request above, by name.
        pub const NAMES: &[(&str, u32)] = &[$((stringify!($name), $name)),*];
    };
}

requests! {
    /// Runs a vCPU until something happens.
    RUN = io(0x80);
    /// Raises an interrupt: `struct kvm_msi`, 32 bytes.
    SIGNAL_MSI = iow(0xa5, 32);

    // Of /dev/kvm.
    /// The version of the interface, which is 12.
    GET_API_VERSION = io(0x00);
    /// Makes a virtual machine.
    CREATE_VM = io(0x01);
    /// Lists model-specific registers: `struct kvm_msr_list`.
    GET_MSR_INDEX_LIST = iowr(0x02, 4);
    /// Asks for a capability, of the host or of a machine.
    CHECK_EXTENSION = io(0x03);
    /// Size of the memory that a vCPU shares.
    GET_VCPU_MMAP_SIZE = io(0x04);
    /// What guests may see of the processor: `struct kvm_cpuid2`.
    GET_SUPPORTED_CPUID = iowr(0x05, 8);

    // Of a machine.
    /// Makes a vCPU.
    CREATE_VCPU = io(0x41);
    /// Gives the guest memory: `struct kvm_userspace_memory_region`.
    SET_USER_MEMORY_REGION = iow(0x46, 32);
    /// Place of the three pages that Intel's real mode needs.
    SET_TSS_ADDR = io(0x47);
    /// Place of the page table that Intel's real mode needs.
    SET_IDENTITY_MAP_ADDR = iow(0x48, 8);
    /// The guest's clock: `struct kvm_clock_data`.
    SET_CLOCK = iow(0x7b, 48);
    /// The guest's clock.
    GET_CLOCK = ior(0x7c, 48);
    /// Switches a capability on: `struct kvm_enable_cap`.
    ENABLE_CAP = iow(0xa3, 104);
    /// Which model-specific registers a guest may use: `struct kvm_msr_filter`.
    X86_SET_MSR_FILTER = iow(0xc6, 392);

    // Of a vCPU.
    /// General registers: `struct kvm_regs`.
    GET_REGS = ior(0x81, 144);
    /// General registers.
    SET_REGS = iow(0x82, 144);
    /// Segments and control registers: `struct kvm_sregs`.
    GET_SREGS = ior(0x83, 312);
    /// Segments and control registers.
    SET_SREGS = iow(0x84, 312);
    /// The same with the pointers to page directories: `struct kvm_sregs2`.
    GET_SREGS2 = ior(0xcc, 320);
    /// The same.
    SET_SREGS2 = iow(0xcd, 320);
    /// Model-specific registers: `struct kvm_msrs`.
    GET_MSRS = iowr(0x88, 8);
    /// Model-specific registers.
    SET_MSRS = iow(0x89, 8);
    /// Signals that interrupt [`RUN`]: `struct kvm_signal_mask`.
    SET_SIGNAL_MASK = iow(0x8b, 4);
    /// Floating point: `struct kvm_fpu`.
    GET_FPU = ior(0x8c, 416);
    /// Floating point.
    SET_FPU = iow(0x8d, 416);
    /// The local interrupt controller: `struct kvm_lapic_state`.
    GET_LAPIC = ior(0x8e, 1024);
    /// The local interrupt controller.
    SET_LAPIC = iow(0x8f, 1024);
    /// What the guest sees of its processor: `struct kvm_cpuid2`.
    SET_CPUID2 = iow(0x90, 8);
    /// What the guest sees of its processor.
    GET_CPUID2 = iowr(0x91, 8);
    /// Whether it runs or waits: `struct kvm_mp_state`.
    GET_MP_STATE = ior(0x98, 4);
    /// Whether it runs or waits.
    SET_MP_STATE = iow(0x99, 4);
    /// Exceptions and interrupts that are due: `struct kvm_vcpu_events`.
    GET_VCPU_EVENTS = ior(0x9f, 64);
    /// Exceptions and interrupts that are due.
    SET_VCPU_EVENTS = iow(0xa0, 64);
    /// Debug registers: `struct kvm_debugregs`.
    GET_DEBUGREGS = ior(0xa1, 128);
    /// Debug registers.
    SET_DEBUGREGS = iow(0xa2, 128);
    /// Frequency of the time stamp counter.
    SET_TSC_KHZ = io(0xa2);
    /// Frequency of the time stamp counter.
    GET_TSC_KHZ = io(0xa3);
    /// Extended state, up to 4 KiB: `struct kvm_xsave`.
    GET_XSAVE = ior(0xa4, 4096);
    /// Extended state of any size.
    SET_XSAVE = iow(0xa5, 4096);
    /// Extended state of any size.
    GET_XSAVE2 = ior(0xcf, 4096);
    /// Which extended state is in use: `struct kvm_xcrs`.
    GET_XCRS = ior(0xa6, 392);
    /// Which extended state is in use.
    SET_XCRS = iow(0xa7, 392);
    /// One register by its name: `struct kvm_one_reg`.
    GET_ONE_REG = iow(0xab, 16);
    /// One register by its name.
    SET_ONE_REG = iow(0xac, 16);
    /// Tells the guest that it stood still.
    KVMCLOCK_CTRL = io(0xad);
    /// Offset of the time stamp counter, among others: `struct kvm_device_attr`.
    SET_DEVICE_ATTR = iow(0xe1, 24);
    /// The same.
    GET_DEVICE_ATTR = iow(0xe2, 24);
    /// Whether there is such an attribute.
    HAS_DEVICE_ATTR = iow(0xe3, 24);
    /// Maps memory before the guest touches it: `struct kvm_pre_fault_memory`.
    PRE_FAULT_MEMORY = iowr(0xd5, 64);

    // Of others than KVM.
    /// Which pages were touched or written, of `/proc/PID/pagemap`: `struct pm_scan_arg`.
    PAGEMAP_SCAN = ioc(3, b'f' as u32, 16, 96);
    /// Whether a descriptor blocks; the standard library's way to say it.
    FIONBIO = libc::FIONBIO as c_ulong as u32;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a C program prints them that includes linux/kvm.h and linux/fs.h, one of each shape.
    #[test]
    fn numbers_are_those_of_the_kernel() {
        for (number, expected) in [
            (RUN, 0xae80),
            (SIGNAL_MSI, 0x4020_aea5),
            (GET_SUPPORTED_CPUID, 0xc008_ae05),
            (SET_USER_MEMORY_REGION, 0x4020_ae46),
            (GET_SREGS2, 0x8140_aecc),
            (SET_XSAVE, 0x5000_aea5),
            (GET_XSAVE2, 0x9000_aecf),
            (X86_SET_MSR_FILTER, 0x4188_aec6),
            (PAGEMAP_SCAN, 0xc060_6610),
            (FIONBIO, 0x5421),
        ] {
            assert_eq!(number, expected, "{number:#x}");
        }
    }

    #[test]
    fn every_name_has_a_number_of_its_own() {
        let mut numbers: Vec<_> = NAMES.iter().map(|(_, number)| number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), NAMES.len());
    }
}
