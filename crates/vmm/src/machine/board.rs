//! The board: what the guest's accesses lead to, and how devices interrupt it.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::event::{EventfdFlags, eventfd};
use rustix::rand::{GetRandomFlags, getrandom};

use crate::GuestMemory;
use crate::boot;
use crate::devices::Devices;
use crate::ioapic::{Ioapic, Msi};
use crate::kvm::{Exit, Handler, Vm};
use crate::layout;
use crate::legacy::{Event, Ports};
use crate::virtio::Interrupts;

/// The wires from devices to local APICs.
pub struct Wiring {
    ioapic: Mutex<Ioapic>,
    /// The virtual machine, while there is one.
    vm: Mutex<Option<Arc<Vm>>>,
}

impl Wiring {
    /// Wires of a machine that begins, or was restored.
    pub fn new(ioapic: Ioapic) -> Self {
        Self { ioapic: Mutex::new(ioapic), vm: Mutex::new(None) }
    }

    /// Connects them to a virtual machine, or to none.
    pub fn connect(&self, vm: Option<Arc<Vm>>) {
        *lock(&self.vm) = vm;
    }

    /// The IOAPIC.
    pub fn ioapic(&self) -> MutexGuard<'_, Ioapic> {
        lock(&self.ioapic)
    }

    fn deliver(&self, message: Option<Msi>) {
        let (Some(message), Some(vm)) = (message, lock(&self.vm).clone()) else { return };
        // A local APIC that does not exist: the guest's own mistake.
        let _ = vm.signal(message.address, message.data);
    }
}

impl Interrupts for Wiring {
    fn raise(&self, gsi: u32) {
        let message = self.ioapic().assert(gsi);
        self.deliver(message);
    }
}

/// Everything that a guest can reach besides memory.
pub struct Board {
    /// Interrupts.
    pub wiring: Arc<Wiring>,
    ports: Mutex<Ports>,
    /// virtio devices.
    pub devices: Devices,
    /// Rung when a vCPU's thread ends by itself.
    bell: Mutex<Arc<OwnedFd>>,
}

impl Board {
    /// Puts the parts together.
    pub fn new(wiring: Arc<Wiring>, ports: Ports, devices: Devices) -> std::io::Result<Self> {
        Ok(Self { wiring, ports: Mutex::new(ports), devices, bell: Mutex::new(new_bell()?) })
    }

    /// Ports.
    pub fn ports(&self) -> MutexGuard<'_, Ports> {
        lock(&self.ports)
    }

    /// Readable when a vCPU's thread has ended by itself.
    pub fn bell(&self) -> Arc<OwnedFd> {
        lock(&self.bell).clone()
    }

    /// Rings the bell.
    pub fn ring(&self) {
        // The only failure is a counter that is full: it rings already.
        let _ = rustix::io::write(&*self.bell(), &1u64.to_ne_bytes());
    }

    /// In a copy: replaces what would be common with its source.
    pub fn renew(&self) -> std::io::Result<()> {
        *lock(&self.bell) = new_bell()?;
        self.devices.renew()
    }

    /// The thread of devices: works until [`Board::stop`].
    pub fn serve(&self) {
        if let Err(error) = self.devices.serve() {
            eprintln!("devices do not work any more: {error}");
        }
    }

    /// Ends [`Board::serve`].
    pub fn stop(&self) {
        self.devices.stop();
    }

    /// Tells the guest's kernel that it is a copy, so that it begins its random numbers anew.
    pub fn announce_copy(&self, memory: &GuestMemory) {
        let mut id = [0u8; 16];
        if getrandom(&mut id, GetRandomFlags::empty()) == Ok(id.len())
            && boot::write_generation_id(memory, id).is_ok()
        {
            self.wiring.raise(layout::GENERATION_GSI);
        }
    }
}

impl Handler for Board {
    fn port_read(&self, port: u16, data: &mut [u8]) {
        lock(&self.ports).read(port, data);
    }

    fn port_write(&self, port: u16, data: &[u8]) -> Option<Exit> {
        let event = self.ports().write(port, data)?;
        match event {
            Event::PowerOff => Some(Exit::PowerOff),
            Event::Reset => Some(Exit::Reset),
            Event::Interrupt(gsi) => {
                self.wiring.raise(gsi);
                None
            }
        }
    }

    fn memory_read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(offset) = in_ioapic(address) {
            self.wiring.ioapic().read(offset, data);
        } else {
            self.devices.read(address, data);
        }
    }

    fn memory_write(&self, address: u64, data: &[u8]) {
        if let Some(offset) = in_ioapic(address) {
            let message = self.wiring.ioapic().write(offset, data);
            self.wiring.deliver(message);
        } else {
            self.devices.write(address, data);
        }
    }

    fn interrupt_ended(&self, vector: u8) {
        let messages = self.wiring.ioapic().end_of_interrupt(vector);
        messages.into_iter().for_each(|message| self.wiring.deliver(Some(message)));
    }
}

fn in_ioapic(address: u64) -> Option<u64> {
    let offset = address.checked_sub(layout::IOAPIC_BASE)?;
    (offset < layout::IOAPIC_WINDOW).then_some(offset)
}

fn new_bell() -> std::io::Result<Arc<OwnedFd>> {
    Ok(Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing under these locks panics; if it did, its data is still whole.
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
