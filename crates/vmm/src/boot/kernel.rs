//! Reading a kernel's file into memory.

use std::io::{Read, Seek};

use linux_loader::loader::bootparam::{XLF_KERNEL_64, setup_header};
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use linux_loader::loader::{BzImage, KernelLoader};
use vm_memory::{Address, GuestAddress, ReadVolatile};

use super::{BootError, Entry, Protocol};
use crate::{GuestMemory, layout};

/// First bytes of an ELF file.
const ELF_MAGIC: [u8; 4] = *b"\x7fELF";
/// Boot protocol 2.12, the first that says whether there is a 64-bit entry (`xloadflags`).
const PROTOCOL_MIN: u16 = 0x20c;
/// A bzImage's 64-bit entry, from its load address on (boot.rst, "64-bit Boot Protocol").
const ENTRY_64: u64 = 0x200;
/// End of the lowest 2 GiB, where an initramfs is safe with every kernel: what Linux' own header
/// says in `initrd_addr_max`, plus one.
const INITRD_END_MAX: u64 = 0x8000_0000;

/// A kernel in memory.
pub(super) struct Kernel {
    pub entry: Entry,
    /// The setup header of a bzImage, for the zero page.
    pub header: Option<setup_header>,
    /// First byte above all that it needs until it manages memory itself.
    pub end: u64,
    /// The initramfs ends here at the latest.
    pub initrd_end_max: u64,
    /// Longest command line that it takes, without the terminating NUL.
    pub command_line_max: usize,
}

/// Loads a kernel of any kind.
pub(super) fn load<K>(
    memory: &GuestMemory,
    memory_end: u64,
    file: &mut K,
) -> Result<Kernel, BootError>
where
    K: Read + ReadVolatile + Seek,
{
    let mut magic = [0; 4];
    file.rewind().and_then(|()| file.read_exact(&mut magic)).map_err(BootError::ReadKernel)?;
    let kernel = if magic == ELF_MAGIC { elf(memory, file)? } else { bz_image(memory, file)? };
    if kernel.end > memory_end {
        return Err(BootError::KernelSize { end: kernel.end, memory: memory_end });
    }
    Ok(kernel)
}

fn elf<K>(memory: &GuestMemory, file: &mut K) -> Result<Kernel, BootError>
where
    K: Read + ReadVolatile + Seek,
{
    let high = Some(GuestAddress(layout::HIGH_RAM));
    let loaded = Elf::load(memory, None, file, high).map_err(BootError::LoadKernel)?;
    let entry = match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(at) => {
            Entry { protocol: Protocol::Pvh, address: at.raw_value() }
        }
        PvhBootCapability::PvhEntryNotPresent | PvhBootCapability::PvhEntryIgnored => {
            Entry { protocol: Protocol::Linux64, address: loaded.kernel_load.raw_value() }
        }
    };
    if !(layout::HIGH_RAM..loaded.kernel_end).contains(&entry.address) {
        return Err(BootError::OldKernel);
    }
    Ok(Kernel {
        entry,
        header: None,
        end: loaded.kernel_end,
        initrd_end_max: INITRD_END_MAX,
        command_line_max: layout::COMMAND_LINE_MAX - 1,
    })
}

fn bz_image<K>(memory: &GuestMemory, file: &mut K) -> Result<Kernel, BootError>
where
    K: Read + ReadVolatile + Seek,
{
    let start = GuestAddress(layout::HIGH_RAM);
    let loaded =
        BzImage::load(memory, Some(start), file, Some(start)).map_err(BootError::LoadKernel)?;
    let header = loaded.setup_header.ok_or(BootError::OldKernel)?;
    if header.version < PROTOCOL_MIN || header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(BootError::OldKernel);
    }
    let unpacked = unpacked_end(&header).ok_or(BootError::OldKernel)?;
    Ok(Kernel {
        entry: Entry { protocol: Protocol::Linux64, address: layout::HIGH_RAM + ENTRY_64 },
        header: Some(header),
        end: unpacked.max(loaded.kernel_end),
        initrd_end_max: u64::from(header.initrd_addr_max) + 1,
        command_line_max: header.cmdline_size as usize,
    })
}

/// End of what a bzImage needs to unpack itself. It does so at its preferred address, or above
/// the address it was loaded to if that is higher (boot.rst, `init_size`).
fn unpacked_end(header: &setup_header) -> Option<u64> {
    let alignment = u64::from(header.kernel_alignment);
    let loaded = layout::HIGH_RAM.checked_next_multiple_of(alignment)?;
    let start = loaded.max(header.pref_address);
    start.checked_add(u64::from(header.init_size))
}
