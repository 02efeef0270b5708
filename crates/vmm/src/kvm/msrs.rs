//! Which model-specific registers are state of a guest.
//!
//! KVM lists those that it can save ([`KVM_GET_MSR_INDEX_LIST`]); among them are many that the
//! guest cannot write, or that are the host's. The list here is what a guest's kernel and programs
//! leave in registers (Intel SDM volume 4, AMD APM volume 2 appendix A, the kernel's
//! `Documentation/virt/kvm/x86/msr.rst`). Only those in both are saved, and all of what was saved
//! must be accepted when it is restored.
//!
//! [`KVM_GET_MSR_INDEX_LIST`]: https://docs.kernel.org/virt/kvm/api.html

use std::ops::RangeInclusive;

/// Time stamp counter: set first, because the deadline is relative to it.
pub(super) const TSC: u32 = 0x10;
/// Deadline of the local APIC's timer: set last, or the timer fires at once or never.
pub(super) const TSC_DEADLINE: u32 = 0x6e0;

const STATE: &[RangeInclusive<u32>] = &[
    TSC..=TSC,
    0x3b..=0x3b,                 // TSC_ADJUST
    0x48..=0x48,                 // SPEC_CTRL
    0x122..=0x122,               // TSX_CTRL
    0x174..=0x176,               // SYSENTER_CS, _ESP, _EIP
    0x1a0..=0x1a0,               // MISC_ENABLE
    0x1c4..=0x1c5,               // XFD, XFD_ERR
    0x1d9..=0x1d9,               // DEBUGCTL
    0x200..=0x20f,               // variable MTRRs
    0x250..=0x250,               // fixed MTRRs
    0x258..=0x259,               //
    0x268..=0x26f,               //
    0x277..=0x277,               // PAT
    0x2ff..=0x2ff,               // MTRR default type
    0x6a0..=0x6a8,               // CET
    TSC_DEADLINE..=TSC_DEADLINE, //
    0xd90..=0xd90,               // BNDCFGS
    0xda0..=0xda0,               // XSS: without it XRSTORS of supervisor state faults
    0x4b56_4d00..=0x4b56_4d08,   // KVM: clock, wall clock, steal time, poll control, …
    0xc000_0081..=0xc000_0084,   // STAR, LSTAR, CSTAR, SFMASK
    0xc000_0102..=0xc000_0103,   // KERNEL_GS_BASE, TSC_AUX
    0xc001_0015..=0xc001_0015,   // HWCR
    0xc001_011f..=0xc001_011f,   // VIRT_SPEC_CTRL
];

/// Those of `known` that are state of a guest.
pub(super) fn with_state(known: &[u32]) -> Vec<u32> {
    known.iter().copied().filter(|index| is_state(*index)).collect()
}

/// Whether a guest's state may have a value for this register.
pub(super) fn is_state(index: u32) -> bool {
    STATE.iter().any(|range| range.contains(&index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_guest_cannot_write_is_not_its_state() {
        // Platform info, feature control, microcode version, local x2APIC registers.
        assert_eq!(with_state(&[0xce, 0x3a, 0x8b, 0x808, TSC, 0xda0]), [TSC, 0xda0]);
    }

    #[test]
    fn ranges_are_in_order_and_apart() {
        let apart = |pair: &[RangeInclusive<u32>]| pair[0].end() < pair[1].start();
        let (low, high): (Vec<_>, Vec<_>) =
            STATE.iter().cloned().partition(|range| *range.start() < 0x1_0000);
        assert!(low.windows(2).all(apart) && high.windows(2).all(apart));
    }
}
