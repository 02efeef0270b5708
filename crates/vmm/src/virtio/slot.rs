//! A device in its place: behind its register window, with its queues and its interrupt.
//!
//! **Two kinds of threads meet here.** vCPUs come through [`Window`], for registers; the thread of
//! devices comes through [`Served`], for work. A lock is between them, which work holds for one
//! bounded turn. What a guest does all the time, notifying a queue and acknowledging an interrupt,
//! needs no lock.
//!
//! **A device that is not live does nothing**, and `queues` is there exactly while it is live. A
//! driver that breaks a rule ends in `DEVICE_NEEDS_RESET` and an interrupt that says so.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::device::{Broken, Device, DeviceState};
use super::mmio::{Effect, Face, INTERRUPT_CONFIG, INTERRUPT_QUEUE, Registers, offset};
use super::queue::{Queue, QueuePosition};
use super::serve::{Bell, Served, Waiting};
use crate::{GuestMemory, layout};

/// Most devices: each has an interrupt of its own, below the next thing that has one.
pub const MAX_SLOTS: usize = (layout::GENERATION_GSI - layout::VIRTIO_GSI) as usize;

/// The interrupt lines of the machine.
pub trait Interrupts: Send + Sync {
    /// Raises a global system interrupt once: an edge. Called by vCPUs and the thread of devices,
    /// without any lock of devices.
    fn raise(&self, gsi: u32);
}

/// What the devices of a machine have in common.
#[derive(Clone)]
pub struct Bus {
    /// The guest's memory.
    pub memory: GuestMemory,
    /// Its interrupt lines.
    pub interrupts: Arc<dyn Interrupts>,
    /// Wakes the thread of devices.
    pub bell: Arc<Bell>,
}

/// The slot that a guest-physical address belongs to, and the offset in its window.
pub fn slot_at(address: u64) -> Option<(usize, u64)> {
    let distance = address.checked_sub(layout::VIRTIO_BASE)?;
    let number = usize::try_from(distance / layout::VIRTIO_WINDOW).ok()?;
    (number < MAX_SLOTS).then_some((number, distance % layout::VIRTIO_WINDOW))
}

/// A register window, as a vCPU sees it.
pub trait Window: Send + Sync {
    /// Answers a load. Registers are 4 bytes, aligned; the configuration space has 1, 2, 4 or 8
    /// bytes anywhere. Everything else reads as zero.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Carries out a store; what is not an aligned 4-byte store to a register is ignored.
    fn write(&self, offset: u64, data: &[u8]);
}

/// A device, its registers, and its number: see the module.
pub struct Slot<D> {
    number: usize,
    face: Face,
    bus: Bus,
    /// `InterruptStatus`. Set only with the lock held, so that a reset finds everything.
    interrupt_status: AtomicU32,
    /// There may be something to do.
    notified: AtomicBool,
    inside: Mutex<Inside<D>>,
}

struct Inside<D> {
    device: D,
    registers: Registers,
    /// Exactly while it is live.
    queues: Option<Vec<Queue>>,
    /// Why it needs a reset.
    complaint: Option<Broken>,
    /// The driver has to be told of another configuration.
    config_changed: bool,
}

/// All that a snapshot knows of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotState {
    /// The transport's registers.
    pub registers: Registers,
    /// `InterruptStatus`.
    pub interrupt_status: u32,
    /// How far each queue has come, if the device is live.
    pub positions: Vec<QueuePosition>,
    /// What is the device's own.
    pub device: DeviceState,
}

/// A saved device that cannot be. The slot is of no use then.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// No driver can have done this.
    #[error("registers that make no sense: {0}")]
    Registers(&'static str),
    /// A ring is not what it should be.
    #[error("a queue that makes no sense")]
    Queue(#[source] Broken),
    /// The device does not take its state.
    #[error("a device that makes no sense")]
    Device(#[source] Broken),
}

impl<D: Device> Slot<D> {
    /// Puts a device in slot `number`, below [`MAX_SLOTS`].
    pub fn new(number: usize, device: D, bus: &Bus) -> Self {
        assert!(number < MAX_SLOTS, "a machine has {MAX_SLOTS} slots");
        let face = Face::of(&device);
        let registers = Registers::new(&face);
        Self {
            number,
            face,
            bus: bus.clone(),
            interrupt_status: AtomicU32::new(0),
            notified: AtomicBool::new(false),
            inside: Mutex::new(Inside {
                device,
                registers,
                queues: None,
                complaint: None,
                config_changed: false,
            }),
        }
    }

    /// Guest-physical address of its window.
    pub fn address(&self) -> u64 {
        layout::VIRTIO_BASE + self.number as u64 * layout::VIRTIO_WINDOW
    }

    /// Its interrupt.
    pub fn gsi(&self) -> u32 {
        layout::VIRTIO_GSI + self.number as u32
    }

    /// Does something to the device itself, such as to replace what it must not share after a
    /// fork. It gets a turn afterwards.
    pub fn with<R>(&self, change: impl FnOnce(&mut D) -> R) -> R {
        let result = change(&mut self.lock().device);
        self.notify();
        result
    }

    /// The same, where that changes the configuration space. The driver hears of it with the next
    /// turn: in a machine that stands still, once it runs.
    pub fn reconfigure<R>(&self, change: impl FnOnce(&mut D) -> R) -> R {
        let mut inside = self.lock();
        let result = change(&mut inside.device);
        inside.registers.change_config();
        inside.config_changed = true;
        drop(inside);
        self.notify();
        result
    }

    /// Why the device needs a reset, if it does.
    pub fn complaint(&self) -> Option<Broken> {
        self.lock().complaint
    }

    /// What a snapshot has to know. While nobody serves it, so that no work is half done.
    pub fn save(&self) -> SlotState {
        let inside = self.lock();
        SlotState {
            registers: inside.registers.clone(),
            interrupt_status: self.interrupt_status.load(Ordering::Relaxed),
            positions: inside.queues.iter().flatten().map(Queue::position).collect(),
            device: inside.device.save(),
        }
    }

    /// Becomes what a snapshot knows, in a machine whose memory is there already.
    pub fn restore(&self, state: SlotState) -> Result<(), RestoreError> {
        let SlotState { registers, interrupt_status, positions, device } = state;
        registers.check(&self.face).map_err(RestoreError::Registers)?;
        if interrupt_status & !(INTERRUPT_QUEUE | INTERRUPT_CONFIG) != 0 {
            return Err(RestoreError::Registers("an interrupt of an unknown kind"));
        }
        let live = registers.status().is_live();
        if positions.len() != if live { registers.queues().len() } else { 0 } {
            return Err(RestoreError::Registers("another number of queues at work"));
        }
        let mut inside = self.lock();
        inside.queues = None;
        inside.complaint = None;
        inside.config_changed = false;
        inside.device.reset();
        if live {
            let queues = self.queues(&registers, Some(&positions)).map_err(RestoreError::Queue)?;
            inside.device.start(registers.features());
            inside.queues = Some(queues);
        }
        inside.registers = registers;
        inside.device.restore(device).map_err(RestoreError::Device)?;
        self.interrupt_status.store(interrupt_status, Ordering::Relaxed);
        drop(inside);
        self.notify();
        Ok(())
    }

    /// Checks the rings that the driver set up and makes queues of them, which go on at
    /// `positions` or begin.
    fn queues(
        &self,
        registers: &Registers,
        positions: Option<&[QueuePosition]>,
    ) -> Result<Vec<Queue>, Broken> {
        let sizes = self.face.queue_sizes.iter();
        let setups = registers.queues().iter().zip(sizes).enumerate();
        setups
            .map(|(index, (&setup, &max))| match positions {
                Some(at) => Queue::restore(setup, max, at[index], &self.bus.memory),
                None => Queue::new(setup, max, &self.bus.memory),
            })
            .collect()
    }

    /// The rest of a status write.
    fn apply(&self, inside: &mut Inside<D>, effect: Effect) -> Signal {
        match effect {
            Effect::None => {}
            Effect::Reset => {
                inside.queues = None;
                inside.complaint = None;
                inside.config_changed = false;
                inside.device.reset();
                self.interrupt_status.store(0, Ordering::Relaxed);
            }
            Effect::Stop => inside.queues = None,
            Effect::Start => match self.queues(&inside.registers, None) {
                Ok(queues) => {
                    inside.device.start(inside.registers.features());
                    inside.queues = Some(queues);
                    // A notification may have come before the device was live.
                    self.notify();
                }
                Err(broken) => return self.give_up(inside, broken),
            },
        }
        Signal::None
    }

    /// The device stands still until the driver resets it.
    fn give_up(&self, inside: &mut Inside<D>, broken: Broken) -> Signal {
        inside.queues = None;
        inside.complaint = Some(broken);
        inside.registers.need_reset();
        self.interrupt_status.fetch_or(INTERRUPT_CONFIG, Ordering::AcqRel);
        Signal::Raise
    }

    /// One turn of the device: its work, and whether to interrupt for it.
    fn turn(&self, inside: &mut Inside<D>) -> Result<(bool, Signal), Broken> {
        let Some(queues) = &mut inside.queues else { return Ok((false, Signal::None)) };
        let more = inside.device.work(queues, &self.bus.memory)?;
        let mut why = 0;
        for queue in queues {
            if queue.take_interrupt(&self.bus.memory)? {
                why |= INTERRUPT_QUEUE;
            }
        }
        if std::mem::take(&mut inside.config_changed) {
            why |= INTERRUPT_CONFIG;
        }
        if why == 0 {
            return Ok((more, Signal::None));
        }
        self.interrupt_status.fetch_or(why, Ordering::AcqRel);
        Ok((more, Signal::Raise))
    }

    fn notify(&self) {
        self.notified.store(true, Ordering::Release);
        self.bus.bell.ring();
    }

    fn signal(&self, signal: Signal) {
        if signal == Signal::Raise {
            self.bus.interrupts.raise(self.gsi());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inside<D>> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether to raise the interrupt once the lock is free. It is raised even if it was not
/// acknowledged since the last time: an edge that a masked line swallowed is made up for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Signal {
    None,
    Raise,
}

impl<D: Device> Window for Slot<D> {
    fn read(&self, at: u64, data: &mut [u8]) {
        data.fill(0);
        if at >= offset::CONFIG {
            if matches!(data.len(), 1 | 2 | 4 | 8) {
                let config = self.lock().device.config();
                let rest = config.iter().skip((at - offset::CONFIG) as usize);
                data.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
            }
            return;
        }
        let Ok(data) = <&mut [u8; 4]>::try_from(data) else { return };
        let value = match at {
            offset::INTERRUPT_STATUS => self.interrupt_status.load(Ordering::Acquire),
            _ => self.lock().registers.read(&self.face, at),
        };
        *data = value.to_le_bytes();
    }

    fn write(&self, at: u64, data: &[u8]) {
        let Ok(data) = <[u8; 4]>::try_from(data) else { return };
        let value = u32::from_le_bytes(data);
        match at {
            // Its turn looks at all queues anyway.
            offset::QUEUE_NOTIFY => self.notify(),
            offset::INTERRUPT_ACK => {
                self.interrupt_status.fetch_and(!value, Ordering::AcqRel);
            }
            _ if at >= offset::CONFIG => {}
            _ => {
                let mut inside = self.lock();
                let effect = inside.registers.write(&self.face, at, value);
                let signal = self.apply(&mut inside, effect);
                drop(inside);
                self.signal(signal);
            }
        }
    }
}

impl<D: Device> Served for Slot<D> {
    fn take_notified(&self) -> bool {
        self.notified.swap(false, Ordering::AcqRel)
    }

    fn work(&self) -> bool {
        let mut inside = self.lock();
        let (more, signal) = match self.turn(&mut inside) {
            Ok(done) => done,
            Err(broken) => (false, self.give_up(&mut inside, broken)),
        };
        drop(inside);
        self.signal(signal);
        more
    }

    fn waiting(&self) -> Option<Waiting> {
        let inside = self.lock();
        inside.queues.as_ref()?;
        inside.device.interest().and_then(Waiting::of)
    }
}
