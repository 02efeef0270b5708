//! The split virtqueue (virtio 1.2, section 2.7), from the device's side.
//!
//! **Frozen.** A [`Queue`] is made of a [`QueueSetup`] once, when the driver is ready; its three
//! areas are checked then and never change, whatever the driver writes to registers afterwards.
//! The areas' content belongs to the guest and is read anew, and checked, every time.
//!
//! No feature of queues is offered: no indirect descriptors, no event index.

use std::sync::atomic::{Ordering, fence};

use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::device::Broken;
use crate::GuestMemory;

/// `VIRTQ_DESC_F_NEXT`.
const NEXT: u16 = 1;
/// `VIRTQ_DESC_F_WRITE`.
const WRITE: u16 = 2;
/// `VIRTQ_AVAIL_F_NO_INTERRUPT`.
const NO_INTERRUPT: u16 = 1;

/// Most bytes that one chain may describe.
pub const MAX_CHAIN_BYTES: u64 = 16 << 20;

/// What the driver wrote to the registers of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueSetup {
    /// Number of descriptors, a power of two.
    pub size: u16,
    /// The driver has set it up.
    pub ready: bool,
    /// Descriptor table, 16-byte aligned.
    pub descriptors: u64,
    /// Driver area, 2-byte aligned.
    pub available: u64,
    /// Device area, 4-byte aligned.
    pub used: u64,
}

/// A part of guest memory that is known to exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Where it begins.
    pub start: GuestAddress,
    /// Its bytes.
    pub len: u32,
}

/// A descriptor chain that was taken out of a queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Index of its first descriptor, which gives it back.
    pub head: u16,
    /// What the device may read, in order.
    pub readable: Vec<Span>,
    /// What the device may write, in order.
    pub writable: Vec<Span>,
}

/// A queue at work.
#[derive(Clone, Debug)]
pub struct Queue {
    setup: QueueSetup,
    next_available: u16,
    next_used: u16,
    /// Buffers were given back since the last interrupt.
    used_since: bool,
}

/// How far a queue has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueuePosition {
    /// Index of the next available entry.
    pub next_available: u16,
    /// Index of the next used entry.
    pub next_used: u16,
}

impl Queue {
    /// Checks what the driver set up. `max` is the device's limit of its size.
    pub fn new(setup: QueueSetup, max: u16, memory: &GuestMemory) -> Result<Self, Broken> {
        if !setup.ready || !setup.size.is_power_of_two() || setup.size > max {
            return Err(Broken("a queue of an impossible size"));
        }
        let size = usize::from(setup.size);
        let areas = [
            (setup.descriptors, 16, 16 * size),
            (setup.available, 2, 6 + 2 * size),
            (setup.used, 4, 6 + 8 * size),
        ];
        for (start, alignment, bytes) in areas {
            if start % alignment != 0 || !memory.check_range(GuestAddress(start), bytes) {
                return Err(Broken("a queue outside of memory"));
            }
        }
        Ok(Self { setup, next_available: 0, next_used: 0, used_since: false })
    }

    /// Continues a queue where a snapshot left it.
    pub fn restore(
        setup: QueueSetup,
        max: u16,
        at: QueuePosition,
        memory: &GuestMemory,
    ) -> Result<Self, Broken> {
        let queue = Self::new(setup, max, memory)?;
        Ok(Self { next_available: at.next_available, next_used: at.next_used, ..queue })
    }

    /// How far it has come.
    pub fn position(&self) -> QueuePosition {
        QueuePosition { next_available: self.next_available, next_used: self.next_used }
    }

    /// What it was made of.
    pub fn setup(&self) -> QueueSetup {
        self.setup
    }

    /// Whether the driver has put in something that was not taken yet.
    pub fn has_available(&self, memory: &GuestMemory) -> Result<bool, Broken> {
        Ok(self.waiting(memory)? > 0)
    }

    /// Takes the next chain, if there is one.
    pub fn pop(&mut self, memory: &GuestMemory) -> Result<Option<Chain>, Broken> {
        if self.waiting(memory)? == 0 {
            return Ok(None);
        }
        let slot = u64::from(self.next_available % self.setup.size);
        let head = self.read_u16(memory, self.setup.available + 4 + 2 * slot)?;
        let chain = self.walk(memory, head)?;
        self.next_available = self.next_available.wrapping_add(1);
        Ok(Some(chain))
    }

    /// Puts the last chain that was taken back, as if it had not been.
    pub fn unpop(&mut self) {
        self.next_available = self.next_available.wrapping_sub(1);
    }

    /// Gives a chain back with `written` bytes in its writable part.
    pub fn push(&mut self, memory: &GuestMemory, head: u16, written: u32) -> Result<(), Broken> {
        let slot = u64::from(self.next_used % self.setup.size);
        let entry = self.setup.used + 4 + 8 * slot;
        let broken = |_| Broken("a used ring that went away");
        memory.write_obj(u32::from(head), GuestAddress(entry)).map_err(broken)?;
        memory.write_obj(written, GuestAddress(entry + 4)).map_err(broken)?;
        self.next_used = self.next_used.wrapping_add(1);
        // The entry must be there before the index says so.
        fence(Ordering::Release);
        memory
            .store(self.next_used, GuestAddress(self.setup.used + 2), Ordering::Release)
            .map_err(broken)?;
        self.used_since = true;
        Ok(())
    }

    /// Whether the guest is to be interrupted for what was given back since the last call.
    pub fn take_interrupt(&mut self, memory: &GuestMemory) -> Result<bool, Broken> {
        if !std::mem::take(&mut self.used_since) {
            return Ok(false);
        }
        // The index must be there before the driver's wish is looked at.
        fence(Ordering::SeqCst);
        Ok(self.read_u16(memory, self.setup.available)? & NO_INTERRUPT == 0)
    }

    /// How many chains wait: never more than the queue has room for.
    fn waiting(&self, memory: &GuestMemory) -> Result<u16, Broken> {
        let index: u16 = memory
            .load(GuestAddress(self.setup.available + 2), Ordering::Acquire)
            .map_err(|_| Broken("an available ring that went away"))?;
        let waiting = index.wrapping_sub(self.next_available);
        if waiting > self.setup.size {
            return Err(Broken("an available index that jumped"));
        }
        Ok(waiting)
    }

    fn walk(&self, memory: &GuestMemory, head: u16) -> Result<Chain, Broken> {
        let mut chain = Chain { head, ..Chain::default() };
        let (mut at, mut bytes) = (head, 0u64);
        // A chain longer than the table has a cycle in it.
        for _ in 0..self.setup.size {
            if at >= self.setup.size {
                return Err(Broken("a descriptor outside of its table"));
            }
            let entry = self.setup.descriptors + 16 * u64::from(at);
            let [start, rest] = memory
                .read_obj::<[u64; 2]>(GuestAddress(entry))
                .map_err(|_| Broken("a descriptor table that went away"))?;
            let (len, flags, next) = (rest as u32, (rest >> 32) as u16, (rest >> 48) as u16);
            let span = Span { start: GuestAddress(start), len };
            bytes += u64::from(len);
            if bytes > MAX_CHAIN_BYTES || !memory.check_range(span.start, len as usize) {
                return Err(Broken("a descriptor outside of memory"));
            }
            match flags & !NEXT {
                0 if chain.writable.is_empty() => chain.readable.push(span),
                WRITE => chain.writable.push(span),
                _ => return Err(Broken("a descriptor of an unknown kind or in the wrong place")),
            }
            if flags & NEXT == 0 {
                return Ok(chain);
            }
            at = next;
        }
        Err(Broken("a chain with a cycle"))
    }

    fn read_u16(&self, memory: &GuestMemory, at: u64) -> Result<u16, Broken> {
        memory.read_obj(GuestAddress(at)).map_err(|_| Broken("a ring that went away"))
    }
}

impl Chain {
    /// Bytes that the device may read.
    pub fn readable_bytes(&self) -> u64 {
        total(&self.readable)
    }

    /// Bytes that the device may write.
    pub fn writable_bytes(&self) -> u64 {
        total(&self.writable)
    }

    /// Copies from its readable part, starting `offset` bytes into it, until `buffer` is full or
    /// the part ends. Says how many bytes that were.
    pub fn read(
        &self,
        memory: &GuestMemory,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, Broken> {
        let mut done = 0;
        for (start, len) in pieces(&self.readable, offset, buffer.len()) {
            let piece = &mut buffer[done..done + len];
            memory.read_slice(piece, start).map_err(|_| Broken("memory that went away"))?;
            done += len;
        }
        Ok(done)
    }

    /// Copies into its writable part, starting `offset` bytes into it, until `bytes` or the part
    /// ends. Says how many bytes that were.
    pub fn write(&self, memory: &GuestMemory, offset: u64, bytes: &[u8]) -> Result<usize, Broken> {
        let mut done = 0;
        for (start, len) in pieces(&self.writable, offset, bytes.len()) {
            let piece = &bytes[done..done + len];
            memory.write_slice(piece, start).map_err(|_| Broken("memory that went away"))?;
            done += len;
        }
        Ok(done)
    }
}

fn total(spans: &[Span]) -> u64 {
    spans.iter().map(|span| u64::from(span.len)).sum()
}

/// The contiguous parts of `spans` that hold `len` bytes from `offset` on.
fn pieces(
    spans: &[Span],
    offset: u64,
    len: usize,
) -> impl Iterator<Item = (GuestAddress, usize)> + '_ {
    let (mut skip, mut left) = (offset, len);
    spans.iter().filter_map(move |span| {
        let skipped = skip.min(u64::from(span.len));
        skip -= skipped;
        let len = left.min((u64::from(span.len) - skipped) as usize);
        left -= len;
        (len > 0).then_some((GuestAddress(span.start.0 + skipped), len))
    })
}
