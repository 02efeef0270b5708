//! The virtio devices of a machine: always the same ones at the same places.
//!
//! | window | device |
//! | --- | --- |
//! | 0 | root file system, read-only |
//! | 1 | writable disk |
//! | 2 | the agent's stream |
//! | 3 | entropy |
//! | 4 | network |

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::GuestMemory;
use crate::disk::Disk;
use crate::virtio::block::Block;
use crate::virtio::net::Net;
use crate::virtio::rng::Rng;
use crate::virtio::vsock::Vsock;
use crate::virtio::{
    Bell, Bus, Interrupts, RestoreError, Served, Slot, SlotState, Window, slot_at,
};

/// How many devices a machine has.
pub const COUNT: u32 = 5;

/// Hardware address of every machine's network device: each is alone in its network, and its
/// gateway expects this one.
pub const MAC: [u8; 6] = [0x02, 0x50, 0x41, 0x4e, 0x44, 0x41];

/// Serial numbers by which the guest tells its disks apart.
const ROOT_SERIAL: &str = "panda-root";
const DISK_SERIAL: &str = "panda-disk";

/// What the devices lead to.
pub struct Backends {
    /// Root file system.
    pub root: Disk,
    /// Writable disk.
    pub disk: Disk,
    /// The agent's stream.
    pub agent: OwnedFd,
    /// Frames of the network device; without a socket its guest talks to nobody.
    pub net: Option<OwnedFd>,
}

/// The devices.
pub struct Devices {
    root: Slot<Block<Disk>>,
    disk: Slot<Block<Disk>>,
    agent: Slot<Vsock>,
    entropy: Slot<Rng>,
    net: Slot<Net>,
    bell: Arc<Bell>,
}

impl Devices {
    /// Plugs them in.
    pub fn new(
        backends: Backends,
        memory: GuestMemory,
        interrupts: Arc<dyn Interrupts>,
    ) -> io::Result<Self> {
        let bell = Arc::new(Bell::new()?);
        let bus = Bus { memory, interrupts, bell: bell.clone() };
        Ok(Self {
            root: Slot::new(0, Block::new(backends.root, ROOT_SERIAL, true), &bus),
            disk: Slot::new(1, Block::new(backends.disk, DISK_SERIAL, false), &bus),
            agent: Slot::new(2, Vsock::new(Some(backends.agent)), &bus),
            entropy: Slot::new(3, Rng, &bus),
            net: Slot::new(4, Net::new(backends.net, MAC), &bus),
            bell,
        })
    }

    /// Works until [`Devices::stop`].
    pub fn serve(&self) -> io::Result<()> {
        let served: [&dyn Served; COUNT as usize] =
            [&self.root, &self.disk, &self.agent, &self.entropy, &self.net];
        self.bell.serve(&served)
    }

    /// Ends [`Devices::serve`] between two turns.
    pub fn stop(&self) {
        self.bell.stop();
    }

    /// In a copy: replaces the kernel object that would be common with its source.
    pub fn renew(&self) -> io::Result<()> {
        self.bell.renew()
    }

    /// Answers a load of the guest; nothing at that address leaves the data alone.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        if let Some((window, offset)) = self.window(address) {
            window.read(offset, data);
        }
    }

    /// Carries out a store of the guest.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((window, offset)) = self.window(address) {
            window.write(offset, data);
        }
    }

    fn window(&self, address: u64) -> Option<(&dyn Window, u64)> {
        let (number, offset) = slot_at(address)?;
        let window: &dyn Window = match number {
            0 => &self.root,
            1 => &self.disk,
            2 => &self.agent,
            3 => &self.entropy,
            4 => &self.net,
            _ => return None,
        };
        Some((window, offset))
    }

    /// Does something to the writable disk.
    pub fn with_disk<R>(&self, change: impl FnOnce(&mut Disk) -> R) -> R {
        self.disk.with(|block| change(block.storage()))
    }

    /// In a copy: gives it streams of its own.
    pub fn replace_streams(&self, agent: OwnedFd, net: Option<OwnedFd>) {
        self.agent.with(|vsock| vsock.replace_stream(agent));
        self.net.with(|device| device.set_socket(net));
    }

    /// What a snapshot has to know, by window.
    pub fn save(&self) -> Vec<SlotState> {
        vec![
            self.root.save(),
            self.disk.save(),
            self.agent.save(),
            self.entropy.save(),
            self.net.save(),
        ]
    }

    /// Takes over what a snapshot knows.
    pub fn restore(&self, states: Vec<SlotState>) -> Result<(), RestoreError> {
        let mut states = states.into_iter();
        let mut next = || states.next().ok_or(RestoreError::Registers("a device is missing"));
        self.root.restore(next()?)?;
        self.disk.restore(next()?)?;
        self.agent.restore(next()?)?;
        self.entropy.restore(next()?)?;
        self.net.restore(next()?)?;
        match next() {
            Ok(_) => Err(RestoreError::Registers("a device too many")),
            Err(_) => Ok(()),
        }
    }
}
