//! What a kernel finds when it starts: memory map, command line, initramfs, ACPI.

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{Bytes, GuestAddress};

use super::kernel::Kernel;
use super::{BootError, Initrd};
use crate::{GuestMemory, layout};

/// Usable memory, in both protocols' maps (`E820_TYPE_RAM`).
const RAM: u32 = 1;
/// Memory that is no kernel's business (`E820_TYPE_RESERVED`).
const RESERVED: u32 = 2;

/// A loader without a number of its own (boot.rst, `type_of_loader`).
const OTHER_LOADER: u8 = 0xff;
/// What the header of a kernel without one has to say (boot.rst, `boot_flag`, `header`).
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
const PROTOCOL: u16 = 0x20c;
const ALIGNMENT: u32 = 0x100_0000;

/// Xen's `XEN_HVM_START_MAGIC_VALUE`.
const START_MAGIC: u32 = 0x336e_c578;
/// The version that has a memory map.
const START_VERSION: u32 = 1;

/// One range of memory.
struct Range {
    start: u64,
    end: u64,
    kind: u32,
}

/// Conventional memory, the hole in which the ACPI tables are, and the rest.
fn memory_map(memory_end: u64) -> [Range; 3] {
    [
        Range { start: 0, end: layout::LOW_RAM_END, kind: RAM },
        Range { start: layout::LOW_RAM_END, end: layout::HIGH_RAM, kind: RESERVED },
        Range { start: layout::HIGH_RAM, end: memory_end, kind: RAM },
    ]
}

/// The zero page of a 64-bit boot.
pub(super) fn write_zero_page(
    memory: &GuestMemory,
    memory_end: u64,
    kernel: &Kernel,
    initrd: Initrd,
) -> Result<(), BootError> {
    let mut page = boot_params {
        hdr: kernel.header.unwrap_or(setup_header {
            boot_flag: BOOT_FLAG,
            header: HEADER_MAGIC,
            version: PROTOCOL,
            kernel_alignment: ALIGNMENT,
            ..setup_header::default()
        }),
        acpi_rsdp_addr: layout::ACPI_RSDP,
        ..boot_params::default()
    };
    page.hdr.type_of_loader = OTHER_LOADER;
    page.hdr.cmd_line_ptr = layout::COMMAND_LINE as u32;
    // All of it is below 4 GiB: memory is.
    page.hdr.ramdisk_image = initrd.address as u32;
    page.hdr.ramdisk_size = initrd.size as u32;
    let map = memory_map(memory_end);
    page.e820_entries = map.len() as u8;
    for (slot, range) in page.e820_table.iter_mut().zip(map) {
        *slot = boot_e820_entry {
            addr: range.start,
            size: range.end - range.start,
            r#type: range.kind,
        };
    }
    Ok(memory.write_obj(page, GuestAddress(layout::ZERO_PAGE))?)
}

/// The start information of a PVH boot.
pub(super) fn write_start_info(
    memory: &GuestMemory,
    memory_end: u64,
    initrd: Initrd,
) -> Result<(), BootError> {
    let map = memory_map(memory_end);
    let start = hvm_start_info {
        magic: START_MAGIC,
        version: START_VERSION,
        nr_modules: 1,
        modlist_paddr: layout::PVH_MODULES,
        cmdline_paddr: layout::COMMAND_LINE,
        rsdp_paddr: layout::ACPI_RSDP,
        memmap_paddr: layout::PVH_MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..hvm_start_info::default()
    };
    let module = hvm_modlist_entry {
        paddr: initrd.address,
        size: initrd.size,
        ..hvm_modlist_entry::default()
    };
    memory.write_obj(start, GuestAddress(layout::PVH_START))?;
    memory.write_obj(module, GuestAddress(layout::PVH_MODULES))?;
    for (at, range) in
        (layout::PVH_MEMORY_MAP..).step_by(size_of::<hvm_memmap_table_entry>()).zip(map)
    {
        let entry = hvm_memmap_table_entry {
            addr: range.start,
            size: range.end - range.start,
            type_: range.kind,
            reserved: 0,
        };
        memory.write_obj(entry, GuestAddress(at))?;
    }
    Ok(())
}
