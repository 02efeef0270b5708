//! Booting a kernel: everything that must be in guest memory before the first instruction.
//!
//! ```text
//!   kernel file ─▶ ELF with a PVH note ─▶ 32-bit entry, start information      ┐
//!              ├─▶ ELF without one     ─▶ 64-bit entry, zero page of our own   ├─▶ Entry
//!              └─▶ bzImage             ─▶ 64-bit entry, zero page from its own ┘
//! ```
//!
//! Happens once per template: a sandbox is forked and comes here never. Kernel and initramfs are
//! files of the operator, not of a tenant; still every size and address in them is checked, and
//! what does not fit is an error before anything runs.

mod acpi;
mod command_line;
mod info;
mod kernel;
mod registers;

use std::io::{self, Read, Seek, SeekFrom};

use linux_loader::loader;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion, ReadVolatile,
};

pub use command_line::command_line;
pub(crate) use registers::write_tables;
pub use registers::{boot_processor, fpu, msrs};

use crate::{GuestMemory, layout};

/// Size of a page of guest memory.
const PAGE: u64 = 4096;

/// Where and how the boot processor starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// In which state the kernel wants the processor.
    pub protocol: Protocol,
    /// Physical address of its first instruction.
    pub address: u64,
}

/// How a kernel is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// In long mode, with the zero page: Linux' `Documentation/arch/x86/boot.rst`, 64-bit protocol.
    Linux64,
    /// In protected mode without paging, with start information: Xen's `docs/misc/pvh.pandoc`.
    Pvh,
}

/// What a guest is told about its machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine<'a> {
    /// The kernel's command line, see [`command_line()`].
    pub command_line: &'a str,
    /// vCPUs, whose APIC ids count from 0: at most [`layout::CPUS_MAX`].
    pub cpus: u8,
    /// virtio-mmio windows, from [`layout::VIRTIO_BASE`] on: at most [`layout::VIRTIO_MAX`].
    pub devices: u32,
    /// Whether the serial port is announced. It is there in any case.
    pub serial: bool,
}

/// Why a machine cannot boot.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// Memory is not one region from 0 on, of whole pages, that ends where the layout allows.
    #[error("guest memory is no single region of 1 MiB to 3 GiB from address 0")]
    Memory,
    /// None, or more than the layout has room for.
    #[error("a machine of {0} vCPUs")]
    Processors(u8),
    /// More than there are interrupts for.
    #[error("a machine of {0} virtio devices")]
    Devices(u32),
    /// Too long for the kernel, or not of printable ASCII.
    #[error("an impossible command line")]
    CommandLine,
    /// The kernel's file cannot be read.
    #[error("the kernel cannot be read")]
    ReadKernel(#[source] io::Error),
    /// Neither bzImage nor ELF, damaged, or larger than memory.
    #[error("the kernel cannot be loaded")]
    LoadKernel(#[source] loader::Error),
    /// A bzImage without 64-bit entry, or with a header that contradicts itself.
    #[error("the kernel has no 64-bit entry")]
    OldKernel,
    /// The kernel and what it unpacks itself into do not fit below the end of memory.
    #[error("the kernel needs memory up to {end:#x}, which ends at {memory:#x}")]
    KernelSize {
        /// First byte that it does not need.
        end: u64,
        /// First byte that is not there.
        memory: u64,
    },
    /// The initramfs' file cannot be read.
    #[error("the initramfs cannot be read")]
    ReadInitrd(#[source] io::Error),
    /// The file became shorter while it was read.
    #[error("the initramfs cannot be loaded")]
    LoadInitrd(#[source] GuestMemoryError),
    /// No room between the kernel and the end of memory.
    #[error("an initramfs of {0} bytes does not fit above the kernel")]
    InitrdSize(u64),
    /// A table or page that is made here.
    #[error("guest memory cannot be written")]
    Write(#[from] GuestMemoryError),
}

/// Puts kernel, initramfs, and everything that describes the machine into memory, and says where
/// to start: [`boot_processor`] makes registers of it.
pub fn load<K, I>(
    memory: &GuestMemory,
    kernel: &mut K,
    initrd: &mut I,
    machine: &Machine<'_>,
) -> Result<Entry, BootError>
where
    K: Read + ReadVolatile + Seek,
    I: ReadVolatile + Seek,
{
    let memory_end = check(memory, machine)?;
    let kernel = kernel::load(memory, memory_end, kernel)?;
    if machine.command_line.len() > kernel.command_line_max {
        return Err(BootError::CommandLine);
    }
    let initrd = load_initrd(memory, memory_end, &kernel, initrd)?;
    write(memory, layout::COMMAND_LINE, machine.command_line.as_bytes())?;
    write(memory, layout::COMMAND_LINE + machine.command_line.len() as u64, &[0])?;
    for (address, table) in acpi::tables(machine) {
        write(memory, address, &table)?;
    }
    match kernel.entry.protocol {
        Protocol::Linux64 => info::write_zero_page(memory, memory_end, &kernel, initrd)?,
        Protocol::Pvh => info::write_start_info(memory, memory_end, initrd)?,
    }
    registers::write_tables(memory, kernel.entry.protocol)?;
    Ok(kernel.entry)
}

/// Writes the machine's generation id. A guest that runs learns of it by the interrupt
/// [`layout::GENERATION_GSI`]; what it may not see is an id that another machine had.
pub fn write_generation_id(memory: &GuestMemory, id: [u8; 16]) -> Result<(), GuestMemoryError> {
    memory.write_slice(&id, GuestAddress(layout::GENERATION_ID))
}

/// Where the initramfs is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Initrd {
    address: u64,
    size: u64,
}

/// Checks what the caller decides, and returns the end of memory.
fn check(memory: &GuestMemory, machine: &Machine<'_>) -> Result<u64, BootError> {
    let mut regions = memory.iter();
    let end = match (regions.next(), regions.next()) {
        (Some(only), None) if only.start_addr() == GuestAddress(0) => only.len(),
        _ => return Err(BootError::Memory),
    };
    if end <= layout::HIGH_RAM || end > layout::RAM_END_MAX || !end.is_multiple_of(PAGE) {
        return Err(BootError::Memory);
    }
    if machine.cpus == 0 || machine.cpus > layout::CPUS_MAX {
        return Err(BootError::Processors(machine.cpus));
    }
    if machine.devices > layout::VIRTIO_MAX {
        return Err(BootError::Devices(machine.devices));
    }
    let line = machine.command_line.as_bytes();
    let printable = |byte: &u8| (b' '..=b'~').contains(byte);
    if line.len() >= layout::COMMAND_LINE_MAX || !line.iter().all(printable) {
        return Err(BootError::CommandLine);
    }
    Ok(end)
}

/// Puts the initramfs as high as the kernel allows, where nothing of its start is in the way.
fn load_initrd(
    memory: &GuestMemory,
    memory_end: u64,
    kernel: &kernel::Kernel,
    file: &mut (impl ReadVolatile + Seek),
) -> Result<Initrd, BootError> {
    let size = file.seek(SeekFrom::End(0)).map_err(BootError::ReadInitrd)?;
    file.rewind().map_err(BootError::ReadInitrd)?;
    let top = memory_end.min(kernel.initrd_end_max);
    let address = top.checked_sub(size).map(|address| address / PAGE * PAGE);
    let address = address.filter(|address| *address >= kernel.end);
    let address = address.ok_or(BootError::InitrdSize(size))?;
    // Cannot wrap: it is less than memory has.
    let count = size as usize;
    memory
        .read_exact_volatile_from(GuestAddress(address), file, count)
        .map_err(BootError::LoadInitrd)?;
    Ok(Initrd { address, size })
}

fn write(memory: &GuestMemory, address: u64, bytes: &[u8]) -> Result<(), BootError> {
    Ok(memory.write_slice(bytes, GuestAddress(address))?)
}

#[cfg(test)]
mod tests;
