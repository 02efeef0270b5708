//! The boot processor's registers, and the two tables in memory that they point to.
//!
//! Only the boot processor gets these. The others wait for a start-up interrupt in the state that
//! KVM makes them in, as on any machine; MSRs and FPU are the same for all. Local APICs stay as
//! they are made: there is no PIC behind LINT0, and nothing makes the NMI of LINT1.

use kvm_bindings::{kvm_dtable, kvm_fpu, kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::{Entry, Protocol};
use crate::{GuestMemory, layout};

/// Code and data selectors that Linux demands (boot.rst: `__BOOT_CS`, `__BOOT_DS`).
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
/// Descriptors: present, flat 4 GiB, accessed. Code for 64 and for 32 bits differs in L and D.
const CODE_64: u64 = 0x00af_9b00_0000_ffff;
const CODE_32: u64 = 0x00cf_9b00_0000_ffff;
const DATA_FLAT: u64 = 0x00cf_9300_0000_ffff;

/// CR0: protected mode, and the bit that is always set.
const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
/// EFER: long mode enabled and active.
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// RFLAGS: the bit that is always set. Interrupts are off.
const RFLAGS: u64 = 2;

/// Page table entries: present, writable; and a large page.
const TABLE: u64 = 3;
const LARGE_PAGE: u64 = 0x83;
/// Bytes of a large page, and entries of a table.
const LARGE: u64 = 2 << 20;
const ENTRIES: u64 = 512;

/// Registers of the boot processor. `sregs` is what KVM says after the vCPU was made: it knows
/// things that are none of ours, the APIC's base among them.
pub fn boot_processor(entry: Entry, sregs: kvm_sregs) -> (kvm_regs, kvm_sregs) {
    let regs = kvm_regs { rip: entry.address, rflags: RFLAGS, ..kvm_regs::default() };
    let data = segment(DATA, 0x3, false, true);
    let common = kvm_sregs {
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        gdt: kvm_dtable { base: layout::DESCRIPTORS, limit: 31, ..kvm_dtable::default() },
        // Nothing handles an exception: the first one ends the machine.
        idt: kvm_dtable::default(),
        cr2: 0,
        ..sregs
    };
    match entry.protocol {
        Protocol::Linux64 => (
            kvm_regs {
                rsi: layout::ZERO_PAGE,
                rsp: layout::BOOT_STACK,
                rbp: layout::BOOT_STACK,
                ..regs
            },
            kvm_sregs {
                cs: segment(CODE, 0xb, true, false),
                tr: task_segment(),
                cr0: CR0_PE | CR0_ET | CR0_PG,
                cr3: layout::PAGE_TABLES,
                cr4: CR4_PAE,
                efer: EFER_LME | EFER_LMA,
                ..common
            },
        ),
        Protocol::Pvh => (
            kvm_regs { rbx: layout::PVH_START, ..regs },
            kvm_sregs {
                cs: segment(CODE, 0xb, false, true),
                tr: task_segment(),
                cr0: CR0_PE | CR0_ET,
                cr3: 0,
                cr4: 0,
                efer: 0,
                ..common
            },
        ),
    }
}

/// The FPU of every processor, as FNINIT and a reset of SSE leave it.
pub fn fpu() -> kvm_fpu {
    kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..kvm_fpu::default() }
}

/// MSRs of every processor, by index (Intel SDM volume 4, AMD APM volume 2). CPUID must be set
/// before they are: it decides which exist.
pub fn msrs() -> Vec<(u32, u64)> {
    vec![
        (0x174, 0),       // SYSENTER_CS
        (0x175, 0),       // SYSENTER_ESP
        (0x176, 0),       // SYSENTER_EIP
        (0xc000_0081, 0), // STAR
        (0xc000_0082, 0), // LSTAR
        (0xc000_0083, 0), // CSTAR
        (0xc000_0084, 0), // SYSCALL_MASK
        (0xc000_0102, 0), // KERNEL_GS_BASE
        // The same on every processor, so that KVM takes them for synchronised.
        (0x10, 0), // TSC
        // String instructions are fast, says firmware.
        (0x1a0, 1), // MISC_ENABLE
        // Enabled, all memory write-back, as firmware would leave it: with MTRRs off all of it is
        // uncached. No fixed ranges, which would say otherwise of ACPI tables and generation id.
        (0x2ff, 1 << 11 | 6), // MTRRdefType
    ]
}

/// Writes descriptors, and page tables if the protocol starts with paging.
pub(crate) fn write_tables(
    memory: &GuestMemory,
    protocol: Protocol,
) -> Result<(), GuestMemoryError> {
    let code = match protocol {
        Protocol::Linux64 => CODE_64,
        Protocol::Pvh => CODE_32,
    };
    memory.write_obj([0, 0, code, DATA_FLAT], GuestAddress(layout::DESCRIPTORS))?;
    if protocol == Protocol::Pvh {
        return Ok(());
    }
    let [top, middle, low] =
        [0, 1, 2].map(|page| layout::PAGE_TABLES + page * ENTRIES * size_of::<u64>() as u64);
    memory.write_obj(middle | TABLE, GuestAddress(top))?;
    memory.write_obj(low | TABLE, GuestAddress(middle))?;
    for entry in 0..ENTRIES {
        let at = GuestAddress(low + entry * size_of::<u64>() as u64);
        memory.write_obj((entry * LARGE) | LARGE_PAGE, at)?;
    }
    Ok(())
}

/// A flat segment of 4 GiB, as the descriptors in memory say.
fn segment(selector: u16, kind: u8, long: bool, default_32: bool) -> kvm_segment {
    kvm_segment {
        selector,
        limit: u32::MAX,
        type_: kind,
        present: 1,
        s: 1,
        g: 1,
        l: long.into(),
        db: default_32.into(),
        ..kvm_segment::default()
    }
}

/// A busy task state segment, which the processor wants to see and nobody uses.
fn task_segment() -> kvm_segment {
    kvm_segment { limit: 0x67, type_: 0xb, present: 1, ..kvm_segment::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The parts of a descriptor that a segment register has (Intel SDM volume 3, 3.4.5).
    fn decode(descriptor: u64) -> (u32, u8, [u8; 5]) {
        let bit = |at: u32| (descriptor >> at & 1) as u8;
        let limit = (descriptor & 0xffff) as u32 | (descriptor >> 32 & 0xf_0000) as u32;
        let limit = if bit(55) == 1 { limit << 12 | 0xfff } else { limit };
        let kind = (descriptor >> 40 & 0xf) as u8;
        (limit, kind, [bit(44), bit(47), bit(53), bit(54), bit(55)])
    }

    fn parts(of: kvm_segment) -> (u32, u8, [u8; 5]) {
        (of.limit, of.type_, [of.s, of.present, of.l, of.db, of.g])
    }

    #[test]
    fn segment_registers_and_descriptors_say_the_same() {
        for (protocol, code) in [(Protocol::Linux64, CODE_64), (Protocol::Pvh, CODE_32)] {
            let (_, sregs) =
                boot_processor(Entry { protocol, address: 1 << 20 }, kvm_sregs::default());
            assert_eq!(parts(sregs.cs), decode(code));
            for segment in [sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss] {
                assert_eq!(parts(segment), decode(DATA_FLAT));
            }
            assert_eq!((sregs.cs.selector, sregs.ds.selector), (0x10, 0x18));
        }
    }

    #[test]
    fn a_64_bit_kernel_starts_in_long_mode() {
        let entry = Entry { protocol: Protocol::Linux64, address: 0x10_0200 };
        let before = kvm_sregs { cr0: 0x6000_0010, apic_base: 0xfee0_0900, ..kvm_sregs::default() };
        let (regs, sregs) = boot_processor(entry, before);
        assert_eq!((regs.rip, regs.rsi, regs.rflags), (0x10_0200, layout::ZERO_PAGE, 2));
        assert_eq!((sregs.cr0, sregs.cr4, sregs.efer), (0x8000_0011, 0x20, 0x500));
        assert_eq!(sregs.apic_base, 0xfee0_0900);
    }

    #[test]
    fn a_pvh_kernel_starts_without_paging() {
        let entry = Entry { protocol: Protocol::Pvh, address: 0x100_0b20 };
        let before = kvm_sregs { cr4: 0x20, efer: 0x500, ..kvm_sregs::default() };
        let (regs, sregs) = boot_processor(entry, before);
        assert_eq!((regs.rip, regs.rbx, regs.rflags), (0x100_0b20, layout::PVH_START, 2));
        assert_eq!((sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer), (0x11, 0, 0, 0));
    }

    #[test]
    fn page_tables_map_the_first_gib_to_itself() {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
        write_tables(&memory, Protocol::Linux64).unwrap();
        let read = |at: u64| memory.read_obj::<u64>(GuestAddress(at)).unwrap();
        let translate = |address: u64| {
            let mut table = layout::PAGE_TABLES;
            for level in [39, 30, 21] {
                let entry = read(table + (address >> level & 511) * 8);
                if entry & 1 == 0 {
                    return None;
                }
                if entry & 0x80 != 0 {
                    return Some((entry & !0x1f_ffff) | address & 0x1f_ffff);
                }
                table = entry & !0xfff;
            }
            None
        };
        for address in [0, 0x7000, 0x10_0000, 0x1234_5678, (1 << 30) - 1] {
            assert_eq!(translate(address), Some(address));
        }
        assert_eq!(translate(1 << 30), None);
    }
}
