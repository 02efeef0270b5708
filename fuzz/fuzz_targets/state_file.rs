//! State files: bytes behind a header that is right, so that they are looked at, and all of the
//! machine's parts that take their state from them.
//!
//! A part that takes a state has exactly that state, and lives with it in whatever memory there
//! is. What KVM gets is KVM's to check, and needs a KVM.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use pandastack_fuzz::{content, file, sockets, sparse};
use pandastack_vmm::GuestMemory;
use pandastack_vmm::disk::Disk;
use pandastack_vmm::ioapic::Ioapic;
use pandastack_vmm::legacy::Serial;
use pandastack_vmm::snapshot::{Saved, VERSION};
use pandastack_vmm::virtio::vsock::Vsock;
use pandastack_vmm::virtio::{
    Bell, Block, Bus, Device, Interrupts, Net, Rng, Served, Slot, SlotState,
};
use rustix::net::SocketType;
use vm_memory::{Bytes, GuestAddress};

const MEMORY: usize = 64 << 10;

fuzz_target!(|bytes: &[u8]| {
    assert!(Saved::decode(bytes).is_err(), "bytes that have their own hash in them");
    // The first byte is the length of what memory is filled with.
    let Some((&len, rest)) = bytes.split_first() else { return };
    let Some((pattern, state)) = rest.split_at_checked(len.into()) else { return };
    let Ok(saved) = Saved::decode(&with_header(state)) else { return };
    assert_rewritten(&saved);
    restore(saved, &memory(pattern));
});

fn with_header(state: &[u8]) -> Vec<u8> {
    let mut bytes = b"PANDSNAP".to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend((state.len() as u32).to_le_bytes());
    bytes.extend(blake3::hash(state).as_bytes());
    bytes.extend(state);
    bytes
}

/// What was read can be written, and read again as the same.
fn assert_rewritten(saved: &Saved) {
    let write = |saved: &Saved| {
        let file = file(&[]);
        saved.write(&file).expect("a file");
        file
    };
    let first = write(saved);
    let again = Saved::read(&first).expect("what was written");
    assert!(content(&first) == content(&write(&again)), "written, read and written again");
}

/// Memory with a pattern all over it.
fn memory(pattern: &[u8]) -> GuestMemory {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("guest memory");
    if !pattern.is_empty() {
        let filled: Vec<u8> = pattern.iter().copied().cycle().take(MEMORY).collect();
        memory.write_slice(&filled, GuestAddress(0)).expect("guest memory");
    }
    memory
}

fn restore(saved: Saved, memory: &GuestMemory) {
    if let Ok(mut ioapic) = Ioapic::restore(saved.ioapic.clone()) {
        assert_eq!(ioapic.save(), saved.ioapic);
        (0..=255).for_each(|vector| drop(ioapic.end_of_interrupt(vector)));
    }
    assert_eq!(Serial::restore(saved.serial).save(), saved.serial);

    let disk = |read_only| Disk::plain(sparse(1 << 20), read_only).expect("a disk");
    let stream = |kind| Some(sockets(kind).0);
    let mut devices = saved.devices.into_iter();
    let mut device = || devices.next();
    let bus = bus(memory);
    live(0, Block::new(disk(true), "root", true), device(), &bus);
    live(1, Block::new(disk(false), "disk", false), device(), &bus);
    live(2, Vsock::new(stream(SocketType::STREAM)), device(), &bus);
    live(3, Rng, device(), &bus);
    live(4, Net::new(stream(SocketType::SEQPACKET), [2; 6]), device(), &bus);
    let volume = |disk| Block::new(disk, "volume", false).with_short_queue();
    live(5, volume(None), device(), &bus);
    live(6, volume(Some(disk(false))), device(), &bus);
}

/// Restores a device, gives it a turn, and saves it.
fn live<D: Device>(number: usize, device: D, state: Option<SlotState>, bus: &Bus) {
    let Some(state) = state else { return };
    let slot = Slot::new(number, device, bus);
    if slot.restore(state.clone()).is_err() {
        return;
    }
    assert_eq!(slot.save(), state, "what it was restored from");
    slot.work();
    let later = slot.save();
    slot.restore(later.clone()).expect("a state that was saved");
    assert_eq!(slot.save(), later);
}

fn bus(memory: &GuestMemory) -> Bus {
    /// Nobody listens to these.
    struct Nowhere;
    impl Interrupts for Nowhere {
        fn raise(&self, _gsi: u32) {}
    }
    let bell = Arc::new(Bell::new().expect("an eventfd"));
    Bus { memory: memory.clone(), interrupts: Arc::new(Nowhere), bell }
}
