//! A driver made of bytes: every sequence of bytes is something that a guest might do to a device.
//!
//! A fuzz target is one line per device, and the same bytes serve the tests here:
//!
//! ```ignore
//! fuzz_target!(|bytes: &[u8]| { hostile::drive(Rng, bytes); });
//! ```
//!
//! Nothing can be expected of such a driver but that the device lives on, in a state that makes
//! sense: whatever happened, it can be saved, and continues from there as itself.

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use super::device::Device;
use super::mmio::{VERSION_1, offset};
use super::serve::{Bell, Served};
use super::slot::{Bus, Interrupts, Slot, SlotState, Window};
use crate::{GuestMemory, layout};

/// Guest memory of such a machine, from address 0 on: a 16-bit address is inside.
pub const MEMORY: usize = 64 << 10;
/// Size of the queues that are set up properly; a device with smaller ones gets those.
const QUEUE_SIZE: u16 = 16;

/// A device and its driver.
pub struct Hostile<D> {
    slot: Slot<D>,
    memory: GuestMemory,
    queue_sizes: &'static [u16],
}

/// Nobody listens to these.
struct Nowhere;

impl Interrupts for Nowhere {
    fn raise(&self, _gsi: u32) {}
}

/// Does to a device what `bytes` say, and returns what it has become.
///
/// # Panics
/// If the device is not what it should be: this is for tests.
pub fn drive<D: Device>(device: D, bytes: &[u8]) -> SlotState {
    let driver = Hostile::new(device);
    driver.play(bytes);
    driver.check()
}

/// What is left of the bytes; they end anywhere.
#[derive(Clone, Copy, Debug)]
pub struct Script<'a>(pub &'a [u8]);

impl<'a> Script<'a> {
    /// The next `N` bytes.
    pub fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    /// The next byte.
    pub fn u8(&mut self) -> Option<u8> {
        self.take().map(u8::from_le_bytes)
    }

    /// The next two bytes.
    pub fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }

    /// The next four bytes.
    pub fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    /// The next eight bytes.
    pub fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    /// Up to `max` bytes, less than 255; a byte before them says how many.
    pub fn some(&mut self, max: u8) -> Option<&'a [u8]> {
        let len = usize::from(self.u8()? % (max + 1));
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }
}

impl<D: Device> Hostile<D> {
    /// A machine with one device.
    ///
    /// # Panics
    /// If the host has no memory or descriptors.
    pub fn new(device: D) -> Self {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("guest memory");
        let bell = Arc::new(Bell::new().expect("an eventfd"));
        let bus = Bus { memory: memory.clone(), interrupts: Arc::new(Nowhere), bell };
        let queue_sizes = device.queue_sizes();
        Self { slot: Slot::new(0, device, &bus), memory, queue_sizes }
    }

    /// Does to the device what `bytes` say.
    ///
    /// # Panics
    /// If the device is not what it should be.
    pub fn play(&self, bytes: &[u8]) {
        let mut script = Script(bytes);
        while self.step(&mut script).is_some() {}
    }

    /// The device in its place, for what else may happen to it.
    pub fn slot(&self) -> &Slot<D> {
        &self.slot
    }

    /// One thing, `None` at the end.
    fn step(&self, script: &mut Script<'_>) -> Option<()> {
        match script.u8()? % 8 {
            0 => self.set(u64::from(script.u8()?) & !3, script.u32()?),
            1 => {
                let at = u64::from(script.u16()?) % layout::VIRTIO_WINDOW;
                self.slot.write(at, script.some(9)?);
            }
            2 => {
                let at = u64::from(script.u16()?) % layout::VIRTIO_WINDOW;
                let len = usize::from(script.u8()? % 10);
                self.slot.read(at, &mut [0xff; 9][..len]);
            }
            3 => {
                let at = script.u16()?;
                self.poke(u64::from(at), script.some(64)?);
            }
            4 => {
                self.slot.work();
            }
            5 => self.bring_up(script.u32()?),
            6 => self.offer(script)?,
            _ => {
                self.check();
            }
        }
        Some(())
    }

    fn set(&self, at: u64, value: u32) {
        self.slot.write(at, &value.to_le_bytes());
    }

    fn get(&self, at: u64) -> u32 {
        let mut value = [0; 4];
        self.slot.read(at, &mut value);
        u32::from_le_bytes(value)
    }

    /// Memory has an end; what does not fit is not written.
    fn poke(&self, at: u64, bytes: &[u8]) {
        let _ = self.memory.write(bytes, GuestAddress(at));
    }

    /// What a proper driver does, so that the bytes get further.
    fn bring_up(&self, features: u32) {
        for status in [0, 1, 3] {
            self.set(offset::STATUS, status);
        }
        for (select, wanted) in [(0, features), (1, (VERSION_1 >> 32) as u32)] {
            self.set(offset::DEVICE_FEATURES_SELECT, select);
            self.set(offset::DRIVER_FEATURES_SELECT, select);
            self.set(offset::DRIVER_FEATURES, wanted & self.get(offset::DEVICE_FEATURES));
        }
        self.set(offset::STATUS, 0xb);
        for (index, max) in (0u32..).zip(self.queue_sizes) {
            let base = ring(index as usize);
            self.poke(base, &[0; 0x1000]);
            self.set(offset::QUEUE_SELECT, index);
            self.set(offset::QUEUE_SIZE, u32::from(QUEUE_SIZE.min(*max)));
            self.set(offset::QUEUE_DESCRIPTORS, base as u32);
            self.set(offset::QUEUE_AVAILABLE, base as u32 + 0x400);
            self.set(offset::QUEUE_USED, base as u32 + 0x800);
            self.set(offset::QUEUE_READY, 1);
        }
        self.set(offset::STATUS, 0xf);
    }

    /// Puts a chain into a queue where [`Hostile::bring_up`] has put it.
    fn offer(&self, script: &mut Script<'_>) -> Option<()> {
        let [queue, head, len] = script.take()?;
        let queue = usize::from(queue) % self.queue_sizes.len();
        let (base, size) = (ring(queue), QUEUE_SIZE.min(self.queue_sizes[queue]));
        let mut at = u16::from(head) % size;
        for left in (0..len % 5).rev() {
            let (start, len, flags) = (script.u16()?, script.u16()?, script.u8()?);
            let next = (at + 1) % size;
            let flags = u16::from(left > 0) | u16::from(flags & 2);
            let mut descriptor = [0; 16];
            descriptor[..2].copy_from_slice(&start.to_le_bytes());
            descriptor[8..10].copy_from_slice(&len.to_le_bytes());
            descriptor[12..14].copy_from_slice(&flags.to_le_bytes());
            descriptor[14..].copy_from_slice(&next.to_le_bytes());
            self.poke(base + 16 * u64::from(at), &descriptor);
            at = next;
        }
        let available = base + 0x400;
        let index: u16 = self.memory.read_obj(GuestAddress(available + 2)).ok()?;
        self.poke(
            available + 4 + 2 * u64::from(index % size),
            &(u16::from(head) % size).to_le_bytes(),
        );
        self.poke(available + 2, &index.wrapping_add(1).to_le_bytes());
        self.set(offset::QUEUE_NOTIFY, queue as u32);
        Some(())
    }

    /// The device makes sense: it can be saved and restored, and is the same then.
    ///
    /// # Panics
    /// If it is not.
    pub fn check(&self) -> SlotState {
        let state = self.slot.save();
        self.slot.restore(state.clone()).expect("a state that was saved");
        assert_eq!(self.slot.save(), state, "restored and saved again");
        state
    }
}

/// Where the rings of a queue are.
fn ring(queue: usize) -> u64 {
    0x1000 * (queue as u64 + 1)
}
