//! A driver for tests: it does what a guest does, through the same window and memory.

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, GuestAddress};

use crate::virtio::mmio::offset;
use crate::virtio::queue::Queue;
use crate::virtio::slot::{Bus, Interrupts, Slot, Window};
use crate::virtio::{Bell, Broken, Device, DeviceState};
use crate::{GuestMemory, layout};

/// Guest memory in bytes: rings in the first half, data in the second.
pub const MEMORY: usize = 0x40_0000;
/// Where data may be.
pub const DATA: u64 = 0x20_0000;

/// Every interrupt, in order.
struct Line(Mutex<Sender<u32>>);

impl Interrupts for Line {
    fn raise(&self, gsi: u32) {
        let _ = self.0.lock().unwrap().send(gsi);
    }
}

/// What devices are connected to, and the interrupts that they raise.
pub fn bus() -> (Bus, Receiver<u32>) {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
    let (sender, receiver) = mpsc::channel();
    let interrupts = Arc::new(Line(Mutex::new(sender)));
    (Bus { memory, interrupts, bell: Arc::new(Bell::new().unwrap()) }, receiver)
}

/// A register, as a load of a vCPU.
pub fn get(window: &dyn Window, at: u64) -> u32 {
    let mut value = [0; 4];
    window.read(at, &mut value);
    u32::from_le_bytes(value)
}

/// A register, as a store of a vCPU.
pub fn set(window: &dyn Window, at: u64, value: u32) {
    window.write(at, &value.to_le_bytes());
}

/// A driver, and what it knows of its queues.
pub struct Driver<'a> {
    window: &'a dyn Window,
    memory: GuestMemory,
    rings: Vec<Ring>,
}

#[derive(Clone, Debug)]
struct Ring {
    base: u64,
    size: u16,
    /// Index of the next available entry, and of the next used one.
    available: u16,
    used: u16,
    /// The next descriptor to use.
    descriptor: u16,
}

impl<'a> Driver<'a> {
    /// Takes a device all the way up, with everything it offers.
    pub fn new(window: &'a dyn Window, bus: &Bus) -> Self {
        Self::with_features(window, bus, u64::MAX)
    }

    /// The same, with some of the features.
    pub fn with_features(window: &'a dyn Window, bus: &Bus, wanted: u64) -> Self {
        let mut driver = Self { window, memory: bus.memory.clone(), rings: Vec::new() };
        driver.negotiate(wanted);
        driver.set_up_queues();
        set(window, offset::STATUS, 0xf);
        assert_eq!(get(window, offset::STATUS), 0xf);
        driver
    }

    fn negotiate(&self, wanted: u64) {
        for status in [0, 1, 3] {
            set(self.window, offset::STATUS, status);
        }
        for (select, wanted) in [(0, wanted as u32), (1, (wanted >> 32) as u32)] {
            set(self.window, offset::DEVICE_FEATURES_SELECT, select);
            set(self.window, offset::DRIVER_FEATURES_SELECT, select);
            let offered = get(self.window, offset::DEVICE_FEATURES);
            set(self.window, offset::DRIVER_FEATURES, offered & wanted);
        }
        set(self.window, offset::STATUS, 0xb);
        assert_eq!(get(self.window, offset::STATUS), 0xb);
    }

    fn set_up_queues(&mut self) {
        for index in 0.. {
            set(self.window, offset::QUEUE_SELECT, index);
            let size = get(self.window, offset::QUEUE_SIZE_MAX) as u16;
            if size == 0 {
                break;
            }
            let base = 0x1_0000 * (u64::from(index) + 1);
            self.memory.write_slice(&[0; 0x1_0000], GuestAddress(base)).unwrap();
            set(self.window, offset::QUEUE_SIZE, u32::from(size));
            set(self.window, offset::QUEUE_DESCRIPTORS, base as u32);
            set(self.window, offset::QUEUE_AVAILABLE, base as u32 + 0x4000);
            set(self.window, offset::QUEUE_USED, base as u32 + 0x8000);
            set(self.window, offset::QUEUE_READY, 1);
            self.rings.push(Ring { base, size, available: 0, used: 0, descriptor: 0 });
        }
    }

    /// Puts a chain into a queue: what the device reads, what it writes. Returns its head.
    pub fn offer(&mut self, queue: usize, readable: &[(u64, u32)], writable: &[(u64, u32)]) -> u16 {
        let descriptors: Vec<_> = readable
            .iter()
            .map(|span| (*span, 0))
            .chain(writable.iter().map(|span| (*span, 2)))
            .collect();
        let size = self.rings[queue].size;
        let head = self.rings[queue].descriptor;
        for (left, ((start, len), flags)) in (0..descriptors.len()).rev().zip(&descriptors) {
            let at = self.rings[queue].descriptor;
            let next = (at + 1) % size;
            self.describe(queue, at, (*start, *len, flags | u16::from(left > 0), next));
            self.rings[queue].descriptor = next;
        }
        self.publish(queue, head);
        head
    }

    /// Writes a descriptor: start, length, flags, next.
    pub fn describe(&self, queue: usize, at: u16, descriptor: (u64, u32, u16, u16)) {
        let (start, len, flags, next) = descriptor;
        let base = self.rings[queue].base + 16 * u64::from(at);
        self.memory.write_obj(start, GuestAddress(base)).unwrap();
        self.memory.write_obj(len, GuestAddress(base + 8)).unwrap();
        self.memory.write_obj(flags, GuestAddress(base + 12)).unwrap();
        self.memory.write_obj(next, GuestAddress(base + 14)).unwrap();
    }

    /// Makes a chain available that begins at a descriptor.
    pub fn publish(&mut self, queue: usize, head: u16) {
        let ring = &mut self.rings[queue];
        let available = ring.base + 0x4000;
        let slot = available + 4 + 2 * u64::from(ring.available % ring.size);
        ring.available = ring.available.wrapping_add(1);
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.memory.write_obj(ring.available, GuestAddress(available + 2)).unwrap();
    }

    /// Moves the available index without putting anything in.
    pub fn jump(&mut self, queue: usize, by: u16) {
        let ring = &mut self.rings[queue];
        ring.available = ring.available.wrapping_add(by);
        let at = GuestAddress(ring.base + 0x4002);
        self.memory.write_obj(ring.available, at).unwrap();
    }

    /// Whether the device should interrupt for used buffers of a queue.
    pub fn want_interrupts(&self, queue: usize, wanted: bool) {
        let at = GuestAddress(self.rings[queue].base + 0x4000);
        self.memory.write_obj(u16::from(!wanted), at).unwrap();
    }

    /// Notifies the device of a queue.
    pub fn notify(&self, queue: usize) {
        set(self.window, offset::QUEUE_NOTIFY, queue as u32);
    }

    /// The next chain that came back: its head, and what the device says it wrote.
    pub fn used(&mut self, queue: usize) -> Option<(u16, u32)> {
        let ring = &mut self.rings[queue];
        let base = ring.base + 0x8000;
        let index: u16 = self.memory.read_obj(GuestAddress(base + 2)).unwrap();
        if index == ring.used {
            return None;
        }
        let entry = GuestAddress(base + 4 + 8 * u64::from(ring.used % ring.size));
        ring.used = ring.used.wrapping_add(1);
        let [head, len]: [u32; 2] = self.memory.read_obj(entry).unwrap();
        Some((head as u16, len))
    }

    /// Reads guest memory.
    pub fn peek(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    /// Writes guest memory.
    pub fn poke(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }
}

/// A device that gives every chain back, and counts.
#[derive(Debug, Default)]
pub struct Echo {
    pub turns: u32,
    pub chains: u32,
    /// It is started, with these features.
    pub started: Option<u64>,
    pub resets: u32,
}

impl Device for Echo {
    fn kind(&self) -> u32 {
        42
    }

    fn features(&self) -> u64 {
        0x20 | 1 << 40
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[8, 4]
    }

    fn config(&self) -> Vec<u8> {
        b"config".to_vec()
    }

    fn start(&mut self, features: u64) {
        self.started = Some(features);
    }

    fn reset(&mut self) {
        self.started = None;
        self.resets += 1;
    }

    fn work(&mut self, queues: &mut [Queue], memory: &GuestMemory) -> Result<bool, Broken> {
        assert!(self.started.is_some(), "work before start");
        self.turns += 1;
        for queue in &mut *queues {
            // One at a time, so that there is more to do.
            if let Some(chain) = queue.pop(memory)? {
                self.chains += 1;
                queue.push(memory, chain.head, chain.writable_bytes() as u32)?;
            }
        }
        let mut more = false;
        for queue in queues {
            more |= queue.has_available(memory)?;
        }
        Ok(more)
    }

    fn save(&self) -> DeviceState {
        DeviceState::Nothing
    }

    fn restore(&mut self, state: DeviceState) -> Result<(), Broken> {
        state.expect_nothing()
    }
}

/// A device in slot 3.
pub fn slot<D: Device>(device: D) -> (Slot<D>, Bus, Receiver<u32>) {
    let (bus, interrupts) = bus();
    (Slot::new(3, device, &bus), bus, interrupts)
}

/// The interrupt of slot 3.
pub const GSI: u32 = layout::VIRTIO_GSI + 3;
