//! A disk: virtio-blk (virtio 1.2, section 5.2) over anything that can read and write at an
//! offset.
//!
//! ```text
//!  readable                      writable
//!  ┌──────┬──────────┬────────┐  ┌───────────────┬────────┐
//!  │ type │ reserved │ sector │  │ data of IN    │ status │
//!  │ u32  │ u32      │ u64    │  │ and of GET_ID │ u8     │
//!  ├──────┴──────────┴────────┤  └───────────────┴────────┘
//!  │ data of OUT              │
//!  └──────────────────────────┘
//! ```
//!
//! **The status byte is the last that is written**, and every chain that can hold one gets one:
//! what the disk cannot do is an answer, and the machine goes on. Only a chain without room for
//! header or status is a broken rule.
//!
//! Bytes go through one bounce buffer of fixed size: the guest may change its memory while they
//! are under way, and what is under the disk never sees guest memory.

use std::io;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_ID_BYTES,
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use super::device::{Broken, Device, DeviceState};
use super::queue::{Chain, Queue};
use crate::GuestMemory;

/// Size of a sector, whatever the disk's own blocks are (section 5.2.4).
pub const SECTOR: u64 = 512;

/// Requests are done one after the other, so a queue need only be deep enough that a large one
/// fits (504 KiB in single pages) and that a guest can prepare the next while one is done.
const QUEUE: &[u16] = &[128];
/// A guest keeps memory for every entry, also of the disk that it never uses.
const SHORT_QUEUE: &[u16] = &[64];
/// A turn ends after so many requests,
const TURN_REQUESTS: usize = 32;
/// or after so many bytes.
const TURN_BYTES: u64 = 1 << 20;
/// Size of the bounce buffer.
const BOUNCE: usize = 64 << 10;
/// Size of a request's header.
const HEADER: usize = 16;
/// Size of a serial number.
const SERIAL: usize = VIRTIO_BLK_ID_BYTES as usize;

/// What a disk is made of.
pub trait Storage: Send {
    /// Its size. Whatever is behind the last whole sector is not part of the disk.
    fn bytes(&self) -> u64;

    /// Fills `buffer` from `offset` on, all of it.
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes `bytes` from `offset` on, all of them.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes sure that what was written survives a crash of the host.
    fn flush(&mut self) -> io::Result<()>;
}

/// A place for a disk, which may be empty: without a sector, and every access fails.
impl<S: Storage> Storage for Option<S> {
    fn bytes(&self) -> u64 {
        self.as_ref().map_or(0, S::bytes)
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.as_mut().ok_or_else(empty)?.read_at(offset, buffer)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.as_mut().ok_or_else(empty)?.write_at(offset, bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.as_mut().map_or(Ok(()), S::flush)
    }
}

fn empty() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "there is no disk")
}

/// A disk.
pub struct Block<S> {
    storage: S,
    queue_sizes: &'static [u16],
    serial: [u8; SERIAL],
    read_only: bool,
    /// The driver does not know how to flush, so every write does.
    write_through: bool,
    /// Empty until it is needed: most of a machine's disks never are.
    bounce: Vec<u8>,
}

/// Why a request was not carried out.
enum Refusal {
    /// It failed, or cannot be done to this disk.
    Error,
    /// There is no such request.
    Unsupported,
    /// It was no request at all.
    Broken(Broken),
}

impl<S: Storage> Block<S> {
    /// A disk that guests find by its serial number, of which 20 bytes count.
    pub fn new(storage: S, serial: &str, read_only: bool) -> Self {
        let mut padded = [0; SERIAL];
        padded.iter_mut().zip(serial.bytes()).for_each(|(to, from)| *to = from);
        Self {
            storage,
            queue_sizes: QUEUE,
            serial: padded,
            read_only,
            write_through: false,
            bounce: Vec::new(),
        }
    }

    /// The same, with a queue that is shorter: for one that may never be used.
    pub fn with_short_queue(self) -> Self {
        Self { queue_sizes: SHORT_QUEUE, ..self }
    }

    /// What it is made of: to be replaced in a copy, by something of the same size, or by something
    /// of another size where the driver is told of that.
    pub fn storage(&mut self) -> &mut S {
        &mut self.storage
    }

    fn sectors(&self) -> u64 {
        self.storage.bytes() / SECTOR
    }

    /// Does one request, and says how many bytes were written to its chain.
    fn answer(&mut self, chain: &Chain, memory: &GuestMemory) -> Result<u32, Broken> {
        let Some(room) = chain.writable_bytes().checked_sub(1) else {
            return Err(Broken("a disk request without room for its status"));
        };
        let (status, written) = match self.carry_out(chain, room, memory) {
            Ok(written) => (VIRTIO_BLK_S_OK, written),
            Err(Refusal::Error) => (VIRTIO_BLK_S_IOERR, 0),
            Err(Refusal::Unsupported) => (VIRTIO_BLK_S_UNSUPP, 0),
            Err(Refusal::Broken(broken)) => return Err(broken),
        };
        chain.write(memory, room, &[status as u8])?;
        Ok(written + 1)
    }

    /// The part of a request before its status: `room` bytes of the chain can be written.
    fn carry_out(
        &mut self,
        chain: &Chain,
        room: u64,
        memory: &GuestMemory,
    ) -> Result<u32, Refusal> {
        let mut header = [0; HEADER];
        if chain.read(memory, 0, &mut header)? != HEADER {
            return Err(Broken("a disk request without a header").into());
        }
        let [a, b, c, d, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);
        match u32::from_le_bytes([a, b, c, d]) {
            VIRTIO_BLK_T_IN => self.read(chain, sector, room, memory),
            VIRTIO_BLK_T_OUT => self.write(chain, sector, memory),
            VIRTIO_BLK_T_FLUSH => {
                self.storage.flush()?;
                Ok(0)
            }
            VIRTIO_BLK_T_GET_ID => {
                let len = self.serial.len().min(room as usize);
                Ok(chain.write(memory, 0, &self.serial[..len])? as u32)
            }
            _ => Err(Refusal::Unsupported),
        }
    }

    fn read(
        &mut self,
        chain: &Chain,
        sector: u64,
        len: u64,
        memory: &GuestMemory,
    ) -> Result<u32, Refusal> {
        let start = self.extent(sector, len)?;
        self.bounce.resize(BOUNCE, 0);
        for (done, size) in portions(len) {
            let bounce = &mut self.bounce[..size];
            self.storage.read_at(start + done, bounce)?;
            chain.write(memory, done, bounce)?;
        }
        Ok(len as u32)
    }

    fn write(&mut self, chain: &Chain, sector: u64, memory: &GuestMemory) -> Result<u32, Refusal> {
        if self.read_only {
            return Err(Refusal::Error);
        }
        let len = chain.readable_bytes() - HEADER as u64;
        let start = self.extent(sector, len)?;
        self.bounce.resize(BOUNCE, 0);
        for (done, size) in portions(len) {
            let bounce = &mut self.bounce[..size];
            chain.read(memory, HEADER as u64 + done, bounce)?;
            self.storage.write_at(start + done, bounce)?;
        }
        if self.write_through {
            self.storage.flush()?;
        }
        Ok(0)
    }

    /// Where `len` bytes from a sector on begin, if they are whole sectors of the disk.
    fn extent(&self, sector: u64, len: u64) -> Result<u64, Refusal> {
        let end = sector.checked_add(len / SECTOR).ok_or(Refusal::Error)?;
        if !len.is_multiple_of(SECTOR) || end > self.sectors() {
            return Err(Refusal::Error);
        }
        Ok(sector * SECTOR)
    }
}

impl<S: Storage> Device for Block<S> {
    fn kind(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        let read_only = u64::from(self.read_only) << VIRTIO_BLK_F_RO;
        1 << VIRTIO_BLK_F_FLUSH | 1 << VIRTIO_BLK_F_SEG_MAX | read_only
    }

    fn queue_sizes(&self) -> &'static [u16] {
        self.queue_sizes
    }

    fn config(&self) -> Vec<u8> {
        // `struct virtio_blk_config`: capacity in sectors, size_max (not offered), seg_max.
        // Most pieces of one request: the queue without header and status.
        let pieces = self.queue_sizes.iter().map(|size| u64::from(*size) - 2).sum::<u64>();
        let [capacity, segments] = [self.sectors(), pieces << 32];
        [capacity.to_le_bytes(), segments.to_le_bytes()].concat()
    }

    fn start(&mut self, features: u64) {
        self.write_through = features & (1 << VIRTIO_BLK_F_FLUSH) == 0;
    }

    fn work(&mut self, queues: &mut [Queue], memory: &GuestMemory) -> Result<bool, Broken> {
        let [queue] = queues else { return Err(Broken("a disk has one queue")) };
        let mut bytes = 0;
        for _ in 0..TURN_REQUESTS {
            let Some(chain) = queue.pop(memory)? else { return Ok(false) };
            let written = self.answer(&chain, memory)?;
            queue.push(memory, chain.head, written)?;
            bytes += chain.readable_bytes() + chain.writable_bytes();
            if bytes >= TURN_BYTES {
                break;
            }
        }
        queue.has_available(memory)
    }

    fn save(&self) -> DeviceState {
        DeviceState::Nothing
    }

    fn restore(&mut self, state: DeviceState) -> Result<(), Broken> {
        state.expect_nothing()
    }
}

impl From<Broken> for Refusal {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}

impl From<io::Error> for Refusal {
    fn from(_: io::Error) -> Self {
        Self::Error
    }
}

/// `len` bytes in portions of the bounce buffer: where each begins, and its size.
fn portions(len: u64) -> impl Iterator<Item = (u64, usize)> {
    (0..len).step_by(BOUNCE).map(move |done| (done, (len - done).min(BOUNCE as u64) as usize))
}
