//! Kernels: whatever the file is, what is loaded lies within memory, and what the guest is told
//! about its memory is true.
#![no_main]

use std::io::Cursor;

use libfuzzer_sys::fuzz_target;
use pandastack_fuzz::Script;
use pandastack_vmm::boot::{Machine, Protocol, load};
use pandastack_vmm::{GuestMemory, layout};
use vm_memory::{Bytes, GuestAddress};

fuzz_target!(|bytes: &[u8]| {
    run(Script(bytes));
});

fn run(mut script: Script<'_>) -> Option<()> {
    let [pages, cpus, devices, initrd] = script.take()?;
    let memory_end = layout::HIGH_RAM + u64::from(pages) * 0x1000;
    let ranges = [(GuestAddress(0), memory_end as usize)];
    let memory = GuestMemory::from_ranges(&ranges).expect("guest memory");
    let initrd = vec![0x5a; usize::from(initrd) * 64];
    let machine = Machine {
        command_line: "console=ttyS0 quiet",
        cpus: cpus % 10,
        devices: u32::from(devices % 16),
        serial: devices & 0x80 != 0,
    };
    let mut file = Cursor::new(script.0);
    let entry = load(&memory, &mut file, &mut Cursor::new(&initrd), &machine).ok()?;

    assert!((1..=layout::CPUS_MAX).contains(&machine.cpus));
    assert!((layout::HIGH_RAM..memory_end).contains(&entry.address), "{entry:?}");
    let word = |at: u64| memory.read_obj::<u32>(GuestAddress(at)).expect("low memory");
    let (address, size) = match entry.protocol {
        // `ramdisk_image` and `ramdisk_size` of the zero page (boot.rst).
        Protocol::Linux64 => (word(layout::ZERO_PAGE + 0x218), word(layout::ZERO_PAGE + 0x21c)),
        Protocol::Pvh => (word(layout::PVH_MODULES), word(layout::PVH_MODULES + 8)),
    };
    assert_eq!(size as usize, initrd.len());
    assert!(u64::from(address) >= layout::HIGH_RAM);
    assert!(u64::from(address) + u64::from(size) <= memory_end);
    let mut found = vec![0; initrd.len()];
    memory.read_slice(&mut found, GuestAddress(address.into())).expect("within memory");
    assert!(found == initrd, "the initramfs is where the guest is told");
    if !script.0.starts_with(b"\x7fELF") {
        // `pref_address` and `init_size` (boot.rst): where the kernel unpacks itself.
        let preferred: u64 = memory.read_obj(GuestAddress(layout::ZERO_PAGE + 0x258)).ok()?;
        let needed = u64::from(word(layout::ZERO_PAGE + 0x260));
        assert!(u64::from(address) >= preferred.max(layout::HIGH_RAM) + needed);
    }
    let mut line = [0; 20];
    memory.read_slice(&mut line, GuestAddress(layout::COMMAND_LINE)).expect("low memory");
    assert_eq!(&line, b"console=ttyS0 quiet\0");
    Some(())
}
