//! The loader against made-up images, and against a real kernel where there is one.

use std::io::Cursor;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use linux_loader::loader::bootparam::{boot_params, setup_header};
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_start_info};
use proptest::prelude::*;
use vm_memory::ByteValued;

use super::*;

const MIB: u64 = 1 << 20;
/// Where the header of a bzImage is.
const HEADER: usize = 0x1f1;

fn memory(mib: u64) -> GuestMemory {
    GuestMemory::from_ranges(&[(GuestAddress(0), (mib * MIB) as usize)]).unwrap()
}

fn machine(command_line: &str) -> Machine<'_> {
    Machine { command_line, cpus: 2, devices: 3, serial: false }
}

fn read<T: ByteValued>(memory: &GuestMemory, address: u64) -> T {
    memory.read_obj(GuestAddress(address)).unwrap()
}

fn bytes(memory: &GuestMemory, address: u64, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
    bytes
}

/// A bzImage of one setup sector and 4 KiB of "compressed kernel".
fn bz_image(change: impl FnOnce(&mut setup_header)) -> Vec<u8> {
    let mut header = setup_header {
        setup_sects: 1,
        boot_flag: 0xaa55,
        header: 0x5372_6448,
        version: 0x20f,
        loadflags: 1,
        code32_start: 0x10_0000,
        initrd_addr_max: 0x7fff_ffff,
        kernel_alignment: 0x20_0000,
        relocatable_kernel: 1,
        xloadflags: 1,
        cmdline_size: 100,
        pref_address: 16 * MIB,
        init_size: 2 << 20,
        ..setup_header::default()
    };
    change(&mut header);
    let mut image = vec![0xcc; 1024 + 4096];
    image[..1024].fill(0);
    image[HEADER..HEADER + size_of::<setup_header>()].copy_from_slice(header.as_slice());
    image
}

/// An ELF file of one segment at 2 MiB, 4 KiB in the file and 8 KiB in memory, and a note.
fn elf(note: Option<(u32, &[u8])>, entry: u64) -> Vec<u8> {
    let mut file = vec![0; 8192];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &[2, 0, 62, 0, 1, 0, 0, 0]);
    put(24, &entry.to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(52, &[64, 0, 56, 0, 2, 0]);
    let mut header = |at: usize, kind: u32, fields: [u64; 6]| {
        put(at, &kind.to_le_bytes());
        for (index, field) in fields.iter().enumerate() {
            put(at + 8 + 8 * index, &field.to_le_bytes());
        }
    };
    header(64, 1, [4096, 0, 2 * MIB, 4096, 8192, 4096]);
    let (kind, descriptor) = note.unwrap_or((1, b"none"));
    header(120, 4, [1024, 0, 0, 16 + descriptor.len() as u64, 0, 4]);
    put(1024, &4u32.to_le_bytes());
    put(1028, &(descriptor.len() as u32).to_le_bytes());
    put(1032, &kind.to_le_bytes());
    put(1036, b"Xen\0");
    put(1040, descriptor);
    file[4096..].fill(0xcc);
    file
}

fn boot(memory: &GuestMemory, image: &[u8], initrd: &[u8]) -> Result<Entry, BootError> {
    load(memory, &mut Cursor::new(image), &mut Cursor::new(initrd), &machine("a=b quiet"))
}

#[test]
fn a_bz_image_starts_with_a_zero_page_of_its_own() {
    let memory = memory(64);
    let image = bz_image(|_| {});
    let entry = boot(&memory, &image, b"initramfs").unwrap();
    assert_eq!(entry, Entry { protocol: Protocol::Linux64, address: 0x10_0200 });
    assert_eq!(bytes(&memory, MIB, 4096), image[1024..]);
    assert_eq!(bytes(&memory, layout::COMMAND_LINE, 10), b"a=b quiet\0");

    let page: boot_params = read(&memory, layout::ZERO_PAGE);
    let header = page.hdr;
    assert_eq!({ header.header }, 0x5372_6448);
    assert_eq!((page.sentinel, header.type_of_loader), (0, 0xff));
    assert_eq!({ header.cmd_line_ptr }, 0x2_0000);
    assert_eq!({ page.acpi_rsdp_addr }, 0xe_0000);
    let initrd = u64::from(header.ramdisk_image);
    assert_eq!((initrd, { header.ramdisk_size }), (64 * MIB - 4096, 9));
    assert_eq!(bytes(&memory, initrd, 9), b"initramfs");
    assert_eq!(page.e820_entries, 3);
    let map: Vec<(u64, u64, u32)> =
        page.e820_table[..3].iter().map(|range| (range.addr, range.size, range.r#type)).collect();
    assert_eq!(
        map,
        [(0, 0x9_fc00, 1), (0x9_fc00, 0x10_0000 - 0x9_fc00, 2), (0x10_0000, 63 * MIB, 1)]
    );
    assert_eq!(bytes(&memory, layout::ACPI_RSDP, 8), b"RSD PTR ");
}

#[test]
fn an_elf_kernel_with_a_note_starts_by_pvh() {
    let memory = memory(8);
    let image = elf(Some((18, &0x20_0040u64.to_le_bytes())), 2 * MIB);
    let entry = boot(&memory, &image, b"initramfs").unwrap();
    assert_eq!(entry, Entry { protocol: Protocol::Pvh, address: 0x20_0040 });
    assert_eq!(bytes(&memory, 2 * MIB, 4096), image[4096..]);

    let start: hvm_start_info = read(&memory, layout::PVH_START);
    assert_eq!((start.magic, start.version, start.nr_modules), (0x336e_c578, 1, 1));
    assert_eq!((start.rsdp_paddr, start.cmdline_paddr), (0xe_0000, 0x2_0000));
    let [initrd, size]: [u64; 2] = read(&memory, start.modlist_paddr);
    assert_eq!((initrd, size), (8 * MIB - 4096, 9));
    assert_eq!(bytes(&memory, initrd, 9), b"initramfs");
    assert_eq!(start.memmap_entries, 3);
    let last: hvm_memmap_table_entry = read(&memory, start.memmap_paddr + 48);
    assert_eq!((last.addr, last.size, last.type_), (MIB, 7 * MIB, 1));
}

#[test]
fn an_elf_kernel_without_the_note_starts_in_long_mode() {
    let memory = memory(8);
    let entry = boot(&memory, &elf(None, 2 * MIB + 16), b"i").unwrap();
    assert_eq!(entry, Entry { protocol: Protocol::Linux64, address: 2 * MIB + 16 });
    let page: boot_params = read(&memory, layout::ZERO_PAGE);
    let header = page.hdr;
    assert_eq!(({ header.header }, header.boot_flag), (0x5372_6448, 0xaa55));
}

#[test]
fn an_entry_outside_of_the_kernel_is_refused() {
    for image in [
        elf(None, 3 * MIB),
        elf(Some((18, &0x20_2000u32.to_le_bytes())), 2 * MIB),
        elf(Some((18, &0x7000u32.to_le_bytes())), 2 * MIB),
    ] {
        assert!(matches!(boot(&memory(8), &image, b"i"), Err(BootError::OldKernel)));
    }
    let low = boot(&memory(8), &elf(None, 0x7000), b"i");
    assert!(matches!(low, Err(BootError::LoadKernel(_))));
}

#[test]
fn a_bz_image_without_a_64_bit_entry_is_refused() {
    let changes: [fn(&mut setup_header); 4] = [
        |header| header.version = 0x20b,
        |header| header.xloadflags = 0,
        |header| header.kernel_alignment = 0,
        |header| header.pref_address = u64::MAX,
    ];
    for change in changes {
        let refused = boot(&memory(64), &bz_image(change), b"i");
        assert!(matches!(refused, Err(BootError::OldKernel)));
    }
}

#[test]
fn a_kernel_that_does_not_fit_is_refused() {
    let unpacks = bz_image(|header| header.init_size = 49 << 20);
    assert!(matches!(
        boot(&memory(64), &unpacks, b"i"),
        Err(BootError::KernelSize { end, memory }) if (end, memory) == (65 * MIB, 64 * MIB)
    ));
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MIB as usize + 4096)]).unwrap();
    assert!(matches!(boot(&memory, &elf(None, 2 * MIB), b"i"), Err(BootError::LoadKernel(_))));
}

#[test]
fn an_initramfs_is_never_in_the_kernels_way() {
    let image = bz_image(|_| {});
    // The kernel unpacks itself from 16 to 18 MiB.
    let room = vec![1; (2 * MIB) as usize];
    boot(&memory(20), &image, &room).unwrap();
    assert!(matches!(
        boot(&memory(20), &image, &[room, vec![1]].concat()),
        Err(BootError::InitrdSize(size)) if size == 2 * MIB + 1
    ));
    let low = bz_image(|header| header.initrd_addr_max = 19 * MIB as u32 - 1);
    let memory = memory(64);
    boot(&memory, &low, b"i").unwrap();
    let page: boot_params = read(&memory, layout::ZERO_PAGE);
    assert_eq!({ page.hdr.ramdisk_image }, 19 * MIB as u32 - 4096);
}

#[test]
fn machines_of_impossible_shape_are_refused() {
    let image = bz_image(|_| {});
    let load = |memory: &GuestMemory, machine: Machine<'_>| {
        load(memory, &mut Cursor::new(&image), &mut Cursor::new(b"i"), &machine)
    };
    let good = machine("a");
    load(&memory(64), Machine { cpus: 8, devices: layout::VIRTIO_MAX, ..good }).unwrap();
    for cpus in [0, 9, 255] {
        let refused = load(&memory(64), Machine { cpus, ..good });
        assert!(matches!(refused, Err(BootError::Processors(n)) if n == cpus));
    }
    let refused = load(&memory(64), Machine { devices: layout::VIRTIO_MAX + 1, ..good });
    assert!(matches!(refused, Err(BootError::Devices(n)) if n == layout::VIRTIO_MAX + 1));
    let (long, header_max) = ("a".repeat(2048), "a".repeat(101));
    for line in [long.as_str(), header_max.as_str(), "a\nb", "ä", "\0"] {
        let refused = load(&memory(64), machine(line));
        assert!(matches!(refused, Err(BootError::CommandLine)), "{line:?}");
    }
    let regions: [&[(GuestAddress, usize)]; 4] = [
        &[(GuestAddress(0), 1 << 20)],
        &[(GuestAddress(4096), 64 << 20)],
        &[(GuestAddress(0), 4 << 20), (GuestAddress(32 << 20), 32 << 20)],
        &[(GuestAddress(0), (3 << 30) + 4096)],
    ];
    for regions in regions {
        let refused = load(&GuestMemory::from_ranges(regions).unwrap(), good);
        assert!(matches!(refused, Err(BootError::Memory)), "{regions:?}");
    }
}

#[test]
fn the_generation_id_is_where_the_tables_say() {
    let memory = memory(2);
    write_generation_id(&memory, *b"0123456789abcdef").unwrap();
    assert_eq!(bytes(&memory, 0xf_f000, 16), b"0123456789abcdef");
}

proptest! {
    /// Whatever a file has in it, loading it is a result.
    #[test]
    fn damaged_images_never_panic(
        bz in any::<bool>(),
        cut in 0usize..9000,
        damage in prop::collection::vec((0usize..2048, any::<u8>()), 0..16),
    ) {
        let mut image =
            if bz { bz_image(|_| {}) } else { elf(Some((18, &0x20_0040u32.to_le_bytes())), 2 * MIB) };
        for (at, byte) in damage {
            image[at] = byte;
        }
        image.truncate(cut.max(1));
        let _ = boot(&memory(20), &image, b"initramfs");
    }
}

/// A Debian kernel: the one that is named, or one of the templates that were built here.
fn real_kernel() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("PANDASTACK_TEST_KERNEL") {
        return Some(named.into());
    }
    let roots = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/pandastack/templates/roots");
    let mut roots = std::fs::read_dir(roots).ok()?;
    roots.find_map(|root| Some(root.ok()?.path().join("vmlinuz")).filter(|file| file.exists()))
}

#[test]
fn a_real_kernel_loads_both_ways() {
    let Some(path) = real_kernel() else {
        println!("skipped: no template was built, and PANDASTACK_TEST_KERNEL names no kernel");
        return;
    };
    let image = std::fs::read(&path).unwrap();
    let memory = memory(128);
    let entry = boot(&memory, &image, b"initramfs").unwrap();
    assert_eq!(entry, Entry { protocol: Protocol::Linux64, address: 0x10_0200 });
    let setup = (usize::from(image[HEADER]) + 1) * 512;
    let size = image.len() - setup;
    assert_eq!(bytes(&memory, MIB, size), image[setup..]);
    assert!(matches!(boot(&self::memory(32), &image, b"i"), Err(BootError::KernelSize { .. })));

    let Some(elf) = unpack(&image[setup..]) else {
        println!("skipped the half about PVH: no zstd");
        return;
    };
    let entry = boot(&memory, &elf, b"initramfs").unwrap();
    assert_eq!(entry.protocol, Protocol::Pvh);
    assert_ne!(bytes(&memory, entry.address, 16), [0; 16]);
}

/// The ELF file in a bzImage, behind the first magic number of zstd.
fn unpack(image: &[u8]) -> Option<Vec<u8>> {
    let start = image.windows(4).position(|at| at == [0x28, 0xb5, 0x2f, 0xfd])?;
    let directory = tempfile::tempdir().unwrap();
    let packed = directory.path().join("kernel.zst");
    std::fs::write(&packed, &image[start..]).unwrap();
    // Complains about what follows the kernel, after it has unpacked all of it.
    let output =
        Command::new("zstd").arg("-dcq").arg(packed).stderr(Stdio::null()).output().ok()?;
    Some(output.stdout)
}
