//! The registers of one device: virtio-mmio version 2 (virtio 1.2, section 4.2.2).
//!
//! **Every write is gated by the [`Status`]**, so that what was checked once stays as it was
//! checked: queues cannot change while the device works on them, and features cannot change after
//! the device agreed. A write that is not for now is ignored; reading is always allowed.
//!
//! This is the registers alone: no device, no memory, no lock. The rest is in [`super::slot`],
//! together with the three registers that must be answered at once (QueueNotify, InterruptStatus,
//! InterruptACK) and the configuration space.

use serde::{Deserialize, Serialize};

use super::device::Device;
use super::queue::QueueSetup;
use super::status::Status;

/// Offsets in the window (virtio 1.2, table 4.1).
pub mod offset {
    /// Reads "virt".
    pub const MAGIC: u64 = 0x00;
    /// Reads 2.
    pub const VERSION: u64 = 0x04;
    /// Device type.
    pub const DEVICE_ID: u64 = 0x08;
    /// Who made the device.
    pub const VENDOR_ID: u64 = 0x0c;
    /// Half of the offered features.
    pub const DEVICE_FEATURES: u64 = 0x10;
    /// Which half: 0 is bits 0 to 31.
    pub const DEVICE_FEATURES_SELECT: u64 = 0x14;
    /// Half of the accepted features.
    pub const DRIVER_FEATURES: u64 = 0x20;
    /// Which half.
    pub const DRIVER_FEATURES_SELECT: u64 = 0x24;
    /// Which queue the other queue registers are about.
    pub const QUEUE_SELECT: u64 = 0x30;
    /// The largest size of the queue, 0 if there is no such queue.
    pub const QUEUE_SIZE_MAX: u64 = 0x34;
    /// Its size.
    pub const QUEUE_SIZE: u64 = 0x38;
    /// It is set up.
    pub const QUEUE_READY: u64 = 0x44;
    /// Number of a queue with new buffers.
    pub const QUEUE_NOTIFY: u64 = 0x50;
    /// Why the device interrupted: [`super::INTERRUPT_QUEUE`], [`super::INTERRUPT_CONFIG`].
    pub const INTERRUPT_STATUS: u64 = 0x60;
    /// Which of it is dealt with.
    pub const INTERRUPT_ACK: u64 = 0x64;
    /// Device status.
    pub const STATUS: u64 = 0x70;
    /// Descriptor table, low half; the high half is 4 bytes further, of the next two as well.
    pub const QUEUE_DESCRIPTORS: u64 = 0x80;
    /// Driver area.
    pub const QUEUE_AVAILABLE: u64 = 0x90;
    /// Device area.
    pub const QUEUE_USED: u64 = 0xa0;
    /// Length of a shared memory region, low half.
    pub const SHARED_MEMORY_LEN: u64 = 0xb0;
    /// Is another one after every change of the configuration space.
    pub const CONFIG_GENERATION: u64 = 0xfc;
    /// The configuration space begins here.
    pub const CONFIG: u64 = 0x100;
}

/// `VIRTIO_F_VERSION_1`: every device here offers it, every driver must accept it.
pub const VERSION_1: u64 = 1 << 32;
/// Interrupt status: a queue has used buffers.
pub const INTERRUPT_QUEUE: u32 = 1;
/// Interrupt status: the configuration or the status changed.
pub const INTERRUPT_CONFIG: u32 = 2;

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
/// "PAND", little-endian.
const VENDOR: u32 = 0x444e_4150;

/// What a device shows of itself in the registers. Never changes.
#[derive(Clone, Copy, Debug)]
pub struct Face {
    /// Device type.
    pub kind: u32,
    /// Everything that is offered.
    pub features: u64,
    /// Largest size of each queue.
    pub queue_sizes: &'static [u16],
}

impl Face {
    /// The face of a device.
    pub fn of(device: &impl Device) -> Self {
        Self {
            kind: device.kind(),
            features: device.features() | VERSION_1,
            queue_sizes: device.queue_sizes(),
        }
    }
}

/// What follows from writing a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Effect {
    /// Nothing.
    None,
    /// The driver is ready: the rings are to be checked and the device to be started.
    Start,
    /// The device is to stand still.
    Stop,
    /// The device is to be as it was made.
    Reset,
}

/// The registers that the driver can write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registers {
    status: Status,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queue_select: u32,
    config_generation: u32,
    queues: Vec<QueueSetup>,
}

impl Registers {
    /// Those of a device after reset.
    pub fn new(face: &Face) -> Self {
        Self {
            status: Status::default(),
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            queue_select: 0,
            config_generation: 0,
            queues: vec![QueueSetup::default(); face.queue_sizes.len()],
        }
    }

    /// The device status.
    pub fn status(&self) -> Status {
        self.status
    }

    /// What the driver accepted.
    pub fn features(&self) -> u64 {
        self.driver_features
    }

    /// What the driver wrote about each queue.
    pub fn queues(&self) -> &[QueueSetup] {
        &self.queues
    }

    /// The configuration space is another one.
    pub fn change_config(&mut self) {
        self.config_generation = self.config_generation.wrapping_add(1);
    }

    /// The device cannot go on.
    pub fn need_reset(&mut self) {
        self.status.need_reset();
    }

    /// Reads a register; 0 if there is none, or if it is only for writing.
    pub fn read(&self, face: &Face, at: u64) -> u32 {
        match at {
            offset::MAGIC => MAGIC,
            offset::VERSION => 2,
            offset::DEVICE_ID => face.kind,
            offset::VENDOR_ID => VENDOR,
            offset::DEVICE_FEATURES => half(face.features, self.device_features_select),
            offset::QUEUE_SIZE_MAX => {
                self.selected().map_or(0, |queue| u32::from(face.queue_sizes[queue]))
            }
            offset::QUEUE_READY => {
                self.selected().map_or(0, |queue| u32::from(self.queues[queue].ready))
            }
            offset::STATUS => u32::from(self.status.bits()),
            offset::CONFIG_GENERATION => self.config_generation,
            // "No such region" (section 4.2.2.1).
            _ if at & !4 == offset::SHARED_MEMORY_LEN => u32::MAX,
            _ => 0,
        }
    }

    /// Writes a register, if it is for now.
    pub fn write(&mut self, face: &Face, at: u64, value: u32) -> Effect {
        match at {
            offset::DEVICE_FEATURES_SELECT => self.device_features_select = value,
            offset::DRIVER_FEATURES_SELECT => self.driver_features_select = value,
            offset::QUEUE_SELECT => self.queue_select = value,
            offset::STATUS => return self.write_status(face, value),
            offset::DRIVER_FEATURES if self.status.is_negotiating() => {
                match self.driver_features_select {
                    0 => set_low(&mut self.driver_features, value),
                    1 => set_high(&mut self.driver_features, value),
                    _ => {}
                }
            }
            _ if self.status.is_configuring() => self.write_queue(at, value),
            _ => {}
        }
        Effect::None
    }

    fn write_status(&mut self, face: &Face, value: u32) -> Effect {
        let before = self.status;
        self.status = before.after(value, self.agrees(face));
        if value == 0 {
            *self = Self::new(face);
            Effect::Reset
        } else if self.status.is_live() && !before.is_live() {
            Effect::Start
        } else if !self.status.is_live() && before.is_live() {
            Effect::Stop
        } else {
            Effect::None
        }
    }

    fn write_queue(&mut self, at: u64, value: u32) {
        let Some(queue) = self.selected().and_then(|queue| self.queues.get_mut(queue)) else {
            return;
        };
        let field = match at & !4 {
            offset::QUEUE_DESCRIPTORS => &mut queue.descriptors,
            offset::QUEUE_AVAILABLE => &mut queue.available,
            offset::QUEUE_USED => &mut queue.used,
            _ => {
                match at {
                    // 0 is as impossible as what does not fit.
                    offset::QUEUE_SIZE => queue.size = u16::try_from(value).unwrap_or(0),
                    offset::QUEUE_READY => queue.ready = value == 1,
                    _ => {}
                }
                return;
            }
        };
        if at & 4 == 0 { set_low(field, value) } else { set_high(field, value) }
    }

    /// Index of the selected queue, if there is one.
    fn selected(&self) -> Option<usize> {
        usize::try_from(self.queue_select).ok().filter(|queue| *queue < self.queues.len())
    }

    fn agrees(&self, face: &Face) -> bool {
        self.driver_features & VERSION_1 != 0 && self.driver_features & !face.features == 0
    }

    /// Whether a driver could have made a device with this face look like this.
    pub fn check(&self, face: &Face) -> Result<(), &'static str> {
        let status = self.status;
        if !status.is_possible() {
            return Err("a status that cannot be");
        }
        if self.queues.len() != face.queue_sizes.len() {
            return Err("another number of queues");
        }
        if status.lacks(Status::DRIVER) && self.driver_features != 0 {
            return Err("features before there was a driver");
        }
        if status.has(Status::FEATURES_OK) && !self.agrees(face) {
            return Err("features that are not offered");
        }
        let untouched = self.queues.iter().all(|queue| *queue == QueueSetup::default());
        if status.lacks(Status::FEATURES_OK) && !untouched {
            return Err("queues before features");
        }
        Ok(())
    }
}

fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn set_low(field: &mut u64, value: u32) {
    *field = *field & !0xffff_ffff | u64::from(value);
}

fn set_high(field: &mut u64, value: u32) {
    *field = *field & 0xffff_ffff | u64::from(value) << 32;
}

#[cfg(test)]
mod tests;
