//! Where things are in the guest's physical address space. Fixed, so that a snapshot means the
//! same to every monitor of a version.
//!
//! ```text
//!  0x0000_0000  RAM ─────────────────────────────── up to 3 GiB
//!    0x0000_0500  descriptor table
//!    0x0000_6000  PVH start information              0x0000_7000  zero page or PVH memory map
//!    0x0000_9000  page tables (64-bit boot)          0x0002_0000  command line
//!    0x000e_0000  ACPI tables, generation id         0x0010_0000  kernel
//!  0xd000_0000  virtio-mmio windows, 4 KiB each
//!  0xfec0_0000  IOAPIC                               0xfee0_0000  local APICs
//! ```

/// First byte that is not RAM any more: a machine has at most 3 GiB.
pub const RAM_END_MAX: u64 = 0xc000_0000;
/// Most vCPUs of a machine.
pub const CPUS_MAX: u8 = 8;

/// Global descriptor table at boot.
pub const DESCRIPTORS: u64 = 0x500;
/// `struct hvm_start_info` of a PVH boot.
pub const PVH_START: u64 = 0x6000;
/// Its list of modules, which is the initramfs alone.
pub const PVH_MODULES: u64 = 0x6040;
/// Memory map of a PVH boot.
pub const PVH_MEMORY_MAP: u64 = 0x7000;
/// `struct boot_params` of a 64-bit boot.
pub const ZERO_PAGE: u64 = 0x7000;
/// Stack of a 64-bit boot.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Page tables of a 64-bit boot: three pages that map the first GiB to itself.
pub const PAGE_TABLES: u64 = 0x9000;
/// The kernel's command line.
pub const COMMAND_LINE: u64 = 0x2_0000;
/// Longest command line, terminating NUL included.
pub const COMMAND_LINE_MAX: usize = 2048;
/// End of conventional memory, as the BIOS of a PC would say.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// The root system description pointer, where a kernel would look for it as well.
pub const ACPI_RSDP: u64 = 0xe_0000;
/// All other ACPI tables.
pub const ACPI_TABLES: u64 = 0xe_0040;
/// Page with the machine's generation id in its first 16 bytes.
pub const GENERATION_ID: u64 = 0xf_f000;
/// The kernel, and with it usable RAM, starts here.
pub const HIGH_RAM: u64 = 0x10_0000;

/// First virtio-mmio window.
pub const VIRTIO_BASE: u64 = 0xd000_0000;
/// Size of each window.
pub const VIRTIO_WINDOW: u64 = 0x1000;
/// Global system interrupt of the first virtio device; the others follow.
pub const VIRTIO_GSI: u32 = 5;
/// Most virtio devices: their interrupts end where [`GENERATION_GSI`] is.
pub const VIRTIO_MAX: u32 = GENERATION_GSI - VIRTIO_GSI;

/// IOAPIC, and the size of its window.
pub const IOAPIC_BASE: u64 = 0xfec0_0000;
/// Size of the IOAPIC's window.
pub const IOAPIC_WINDOW: u64 = 0x1000;
/// Its input lines.
pub const IOAPIC_PINS: u32 = 24;
/// Local APIC of every vCPU.
pub const LAPIC_BASE: u64 = 0xfee0_0000;

/// Interrupt of the serial port.
pub const SERIAL_GSI: u32 = 4;
/// Interrupt that announces a new generation id, by the generic event device: the last input line.
pub const GENERATION_GSI: u32 = IOAPIC_PINS - 1;

/// Serial port, eight I/O ports.
pub const SERIAL_PORT: u16 = 0x3f8;
/// Keyboard controller's command port: writing [`RESET_COMMAND`] resets the machine.
pub const I8042_COMMAND: u16 = 0x64;
/// Keyboard controller's command that resets.
pub const RESET_COMMAND: u8 = 0xfe;
/// ACPI sleep control and status registers (ACPI 6.5, 4.8.3.7), one byte each.
pub const SLEEP_CONTROL: u16 = 0x600;
/// See [`SLEEP_CONTROL`].
pub const SLEEP_STATUS: u16 = 0x601;
/// Sleep type of S5, soft off, as `\_S5` in the DSDT says.
pub const SLEEP_TYPE_OFF: u8 = 5;
