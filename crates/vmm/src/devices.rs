//! The virtio devices of a machine: always the same ones at the same places.
//!
//! | window | device |
//! | --- | --- |
//! | 0 | root file system, read-only |
//! | 1 | writable disk |
//! | 2 | the agent's stream |
//! | 3 | entropy |
//! | 4 | network |
//! | 5 to 12 | volumes |
//!
//! The places for volumes are empty in a bake: a device without a sector, which costs the guest a
//! short queue and the monitor next to nothing. A volume is put in before a machine runs
//! ([`Devices::put`]).

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
pub const COUNT: u32 = FIXED as u32 + VOLUMES as u32;
/// How many volumes a machine can have.
pub const VOLUMES: usize = 8;
/// Devices that every machine uses.
const FIXED: usize = 5;

/// Hardware address of every machine's network device: each is alone in its network, and its
/// gateway expects this one.
pub const MAC: [u8; 6] = [0x02, 0x50, 0x41, 0x4e, 0x44, 0x41];

/// Serial numbers by which the guest tells its disks apart.
const ROOT_SERIAL: &str = "panda-root";
const DISK_SERIAL: &str = "panda-disk";

/// A place for a volume.
type Volume = Slot<Block<Option<Disk>>>;

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
    volumes: [Volume; VOLUMES],
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
        let volume = |slot| {
            let block = Block::new(None, &format!("panda-volume-{slot}"), false);
            Slot::new(FIXED + slot, block.with_short_queue(), &bus)
        };
        Ok(Self {
            root: Slot::new(0, Block::new(backends.root, ROOT_SERIAL, true), &bus),
            disk: Slot::new(1, Block::new(backends.disk, DISK_SERIAL, false), &bus),
            agent: Slot::new(2, Vsock::new(Some(backends.agent)), &bus),
            entropy: Slot::new(3, Rng, &bus),
            net: Slot::new(4, Net::new(backends.net, MAC), &bus),
            volumes: std::array::from_fn(volume),
            bell,
        })
    }

    /// Works until [`Devices::stop`].
    pub fn serve(&self) -> io::Result<()> {
        let mut served: Vec<&dyn Served> =
            vec![&self.root, &self.disk, &self.agent, &self.entropy, &self.net];
        served.extend(self.volumes.iter().map(|volume| volume as &dyn Served));
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
            _ => self.volumes.get(number - FIXED)?,
        };
        Some((window, offset))
    }

    /// Puts a volume into an empty place of a machine that stands still; false if there is none of
    /// this number. The guest hears of its size when it runs.
    pub fn put(&self, slot: usize, volume: Disk) -> bool {
        let Some(place) = self.volumes.get(slot) else { return false };
        let is_empty = place.with(|block| block.storage().is_none());
        if is_empty {
            place.reconfigure(|block| *block.storage() = Some(volume));
        }
        is_empty
    }

    /// Does something to a disk that is written to: that of a volume in a slot, or the one that
    /// every machine has. `None` if there is none.
    pub fn with_disk<R>(
        &self,
        slot: Option<usize>,
        change: impl FnOnce(&mut Disk) -> R,
    ) -> Option<R> {
        match slot {
            None => Some(self.disk.with(|block| change(block.storage()))),
            Some(slot) => {
                self.volumes.get(slot)?.with(|block| block.storage().as_mut().map(change))
            }
        }
    }

    /// Places that a volume is in.
    pub fn filled(&self) -> impl Iterator<Item = usize> + '_ {
        (0..VOLUMES).filter(|slot| self.with_disk(Some(*slot), |_| ()).is_some())
    }

    /// In a copy: gives it streams of its own.
    pub fn replace_streams(&self, agent: OwnedFd, net: Option<OwnedFd>) {
        self.agent.with(|vsock| vsock.replace_stream(agent));
        self.net.with(|device| device.set_socket(net));
    }

    /// What a snapshot has to know, by window.
    pub fn save(&self) -> Vec<SlotState> {
        let mut states = vec![
            self.root.save(),
            self.disk.save(),
            self.agent.save(),
            self.entropy.save(),
            self.net.save(),
        ];
        states.extend(self.volumes.iter().map(Slot::save));
        states
    }

    /// Takes over what a snapshot knows. Volumes are no part of it: they are put in anew.
    pub fn restore(&self, states: Vec<SlotState>) -> Result<(), RestoreError> {
        let mut states = states.into_iter();
        let mut next = || states.next().ok_or(RestoreError::Registers("a device is missing"));
        self.root.restore(next()?)?;
        self.disk.restore(next()?)?;
        self.agent.restore(next()?)?;
        self.entropy.restore(next()?)?;
        self.net.restore(next()?)?;
        self.volumes.iter().try_for_each(|volume| volume.restore(next()?))?;
        match next() {
            Ok(_) => Err(RestoreError::Registers("a device too many")),
            Err(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::path::Path;

    use super::*;
    use crate::disk::write_empty;
    use crate::layout;
    use crate::virtio::mmio::offset;

    struct Nowhere;

    impl Interrupts for Nowhere {
        fn raise(&self, _gsi: u32) {}
    }

    fn devices(dir: &Path) -> Devices {
        let plain = || {
            let file = tempfile::tempfile().unwrap();
            file.set_len(1 << 20).unwrap();
            Disk::plain(file, false).unwrap()
        };
        let (agent, _) = std::os::unix::net::UnixStream::pair().unwrap();
        let disk = volume(dir, "root", 1 << 20);
        let backends = Backends { root: plain(), disk, agent: agent.into(), net: None };
        let memory = GuestMemory::from_ranges(&[(vm_memory::GuestAddress(0), 4096)]).unwrap();
        Devices::new(backends, memory, Arc::new(Nowhere)).unwrap()
    }

    fn layer(dir: &Path, name: &str, bytes: u64) -> File {
        let mut options = File::options();
        let file = options.read(true).write(true).create_new(true).open(dir.join(name)).unwrap();
        write_empty(&file, bytes).unwrap();
        file
    }

    fn volume(dir: &Path, name: &str, bytes: u64) -> Disk {
        let base = tempfile::tempfile().unwrap();
        base.set_len(bytes).unwrap();
        Disk::layered(base, Vec::new(), layer(dir, name, bytes)).unwrap()
    }

    /// What the guest reads in the window of a slot's device.
    fn read(devices: &Devices, slot: usize, at: u64) -> u64 {
        let window = layout::VIRTIO_BASE + (FIXED + slot) as u64 * layout::VIRTIO_WINDOW;
        let mut bytes = [0; 8];
        devices.read(window + at, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    #[test]
    fn a_slot_takes_one_volume_and_there_are_eight() {
        let dir = tempfile::tempdir().unwrap();
        let devices = devices(dir.path());
        assert_eq!(devices.filled().count(), 0);
        assert!(devices.put(7, volume(dir.path(), "a", 2 << 20)));
        assert!(!devices.put(7, volume(dir.path(), "b", 4 << 20)), "it is full");
        assert!(!devices.put(8, volume(dir.path(), "c", 1 << 20)), "there is no such slot");
        assert_eq!(devices.filled().collect::<Vec<_>>(), [7]);
        assert_eq!(read(&devices, 7, offset::CONFIG), (2 << 20) / 512);
        assert_eq!(read(&devices, 6, offset::CONFIG), 0);
    }

    #[test]
    fn disks_are_frozen_each_by_itself() {
        let dir = tempfile::tempdir().unwrap();
        let (devices, bytes) = (devices(dir.path()), 2 << 20);
        assert!(devices.put(1, volume(dir.path(), "a", bytes)));
        let frozen = File::open(dir.path().join("a")).unwrap();
        let top = layer(dir.path(), "b", bytes);
        devices.with_disk(Some(1), |disk| disk.freeze(frozen, top)).unwrap().unwrap();
        let root = layer(dir.path(), "c", 1 << 20);
        devices.with_disk(None, |disk| disk.replace_top(root)).unwrap().unwrap();
        assert!(devices.with_disk(Some(0), |_| ()).is_none());
        assert!(devices.with_disk(Some(8), |_| ()).is_none());
    }

    #[test]
    fn a_snapshot_has_every_device_and_no_volume() {
        let dir = tempfile::tempdir().unwrap();
        let saved = devices(dir.path());
        assert!(saved.put(0, volume(dir.path(), "a", 2 << 20)));
        let states = saved.save();
        assert_eq!(states.len(), COUNT as usize);
        let other = tempfile::tempdir().unwrap();
        let restored = devices(other.path());
        assert!(restored.restore(states[1..].to_vec()).is_err());
        restored.restore(states).unwrap();
        assert_eq!(restored.filled().count(), 0);
        assert!(restored.put(0, volume(dir.path(), "b", 2 << 20)));
    }
}
