//! What a kind of device is, as its transport and the thread of devices see it.

use std::os::fd::BorrowedFd;

use serde::{Deserialize, Serialize};

use super::queue::Queue;
use super::vsock::Connection;
use crate::GuestMemory;

/// One device. It belongs to the thread of devices; the transport holds it behind a lock that
/// vCPUs take only for registers.
///
/// A fork copies a device as it is. What must not be common to both sides, its sockets and files,
/// the child replaces before anything else happens to it.
pub trait Device: Send {
    /// Device type: virtio 1.2, section 5.
    fn kind(&self) -> u32;

    /// Feature bits that it offers, besides `VIRTIO_F_VERSION_1`, which the transport adds.
    fn features(&self) -> u64;

    /// Largest size of each of its queues.
    fn queue_sizes(&self) -> &'static [u16];

    /// Its configuration space; whatever lies beyond reads as zero. Writes are ignored.
    fn config(&self) -> Vec<u8>;

    /// The driver is ready (`DRIVER_OK`) and has accepted these features.
    fn start(&mut self, _features: u64) {}

    /// The driver has reset the device: back to how it was made, descriptors kept.
    fn reset(&mut self) {}

    /// Does what can be done now: takes what is in the queues and what its descriptor has, within
    /// bounds, so that other devices get their turn. Called after a notification, after its
    /// descriptor became ready, and once after every start and copy. True if there is more to do at
    /// once. Queues that gained used buffers interrupt the guest afterwards, by themselves.
    fn work(&mut self, queues: &mut [Queue], memory: &GuestMemory) -> Result<bool, Broken>;

    /// The descriptor to wait for, if it has one and something to wait for. It must not wait for
    /// what its next turn would leave as it is, a hangup included: it would be woken without end.
    fn interest(&self) -> Option<Interest<'_>> {
        None
    }

    /// What a snapshot has to know of it.
    fn save(&self) -> DeviceState;

    /// Takes over what a snapshot knows: hostile input. Comes after `reset`, and after `start` if
    /// the device was live.
    fn restore(&mut self, state: DeviceState) -> Result<(), Broken>;
}

/// What to wait for.
#[derive(Clone, Copy, Debug)]
pub struct Interest<'a> {
    /// On which descriptor.
    pub fd: BorrowedFd<'a>,
    /// Until it can be read.
    pub read: bool,
    /// Until it can be written.
    pub write: bool,
}

/// A device's own state, besides transport and queues.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceState {
    /// It has none: block, entropy, network.
    Nothing,
    /// The socket device.
    Vsock {
        /// The agent's connection, which goes on in every copy.
        connection: Option<Connection>,
        /// The guest was told of a reset before, and had not acknowledged it: the driver's index of the
        /// event queue at that time.
        told: Option<u16>,
    },
}

impl DeviceState {
    /// The state of a device that has none.
    pub fn expect_nothing(self) -> Result<(), Broken> {
        match self {
            Self::Nothing => Ok(()),
            Self::Vsock { .. } => Err(Broken("the state of another kind of device")),
        }
    }
}

/// The driver, or a saved state, broke the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a virtio rule was broken: {0}")]
pub struct Broken(pub &'static str);
