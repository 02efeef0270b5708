//! The IOAPIC: 24 input pins, each of which becomes a message to local APICs as its entry of the
//! redirection table says (Intel 82093AA data sheet; local APICs are KVM's).
//!
//! ```text
//!   edge:   assert ─▶ unmasked ─▶ message
//!                  └▶ masked ──▶ kept, one of however many ─▶ unmask ─▶ message
//!   level:  assert ─▶ high ─▶ unmasked and nothing in service ─▶ message, in service
//!           end of interrupt ─▶ out of service ─▶ still high ─▶ message, in service
//! ```
//!
//! Invariants: what is kept belongs to pins that are edge-triggered and masked; what is in service
//! to pins that are level-triggered. An edge on a masked pin is not lost, as the data sheet would
//! have it, because all of this machine's devices interrupt by edges and a lost edge is a request
//! that never completes; other hypervisors do the same.
//!
//! Messages leave by `KVM_SIGNAL_MSI`, or by an irqfd whose route is [`Ioapic::message`]. KVM
//! tells of the end of level-triggered interrupts only for vectors that are in its routes.

use serde::{Deserialize, Serialize};

use crate::layout;

/// Register select and data window, offsets in the page at [`layout::IOAPIC_BASE`].
const SELECT: u64 = 0x00;
const WINDOW: u64 = 0x10;

/// Registers behind the window: id, version, arbitration id, two per pin.
const ID: u8 = 0x00;
const VERSION: u8 = 0x01;
const ARBITRATION: u8 = 0x02;
const TABLE: u8 = 0x10;

/// Pins, as an array's length.
const PINS: usize = layout::IOAPIC_PINS as usize;
/// Version 0x11, which is the 82093AA's, and the number of the last pin.
const VERSION_VALUE: u32 = 0x11 | (layout::IOAPIC_PINS - 1) << 16;
/// The id has four bits.
const ID_MAX: u8 = 0xf;

/// Bits of an entry that software writes: vector, delivery mode, destination mode, polarity,
/// trigger mode, mask, and the destination.
const WRITABLE: u64 = 0xff00_0000_0001_afff;
const LOGICAL: u64 = 1 << 11;
/// Level-triggered, in service: set when a message left, cleared by its end.
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;

/// Delivery modes that mean something here: fixed, lowest priority, NMI. The others are for
/// firmware, for a PIC, or reserved, and deliver nothing.
const DELIVERED: [u64; 3] = [0, 1, 4];

/// An interrupt for local APICs, in the format of `KVM_SIGNAL_MSI` (Intel SDM volume 3, 11.11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msi {
    /// The address, all of which is below 4 GiB.
    pub address: u64,
    /// The data.
    pub data: u32,
}

/// The IOAPIC of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ioapic {
    state: IoapicState,
}

/// All of it, as a snapshot has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoapicState {
    /// Which register the window shows.
    pub select: u8,
    /// Identification.
    pub id: u8,
    /// The redirection table.
    pub table: [u64; PINS],
    /// Edges that came while masked, by pin.
    pub kept: u32,
    /// Levels that are high, by pin.
    pub high: u32,
}

/// A saved state that no IOAPIC can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an impossible IOAPIC: {0}")]
pub struct BadIoapic(&'static str);

impl Default for Ioapic {
    fn default() -> Self {
        Self::new()
    }
}

impl Ioapic {
    /// After a reset: every pin masked.
    pub fn new() -> Self {
        Self { state: IoapicState { select: 0, id: 0, table: [MASKED; PINS], kept: 0, high: 0 } }
    }

    /// For a snapshot.
    pub fn save(&self) -> IoapicState {
        self.state.clone()
    }

    /// Takes over what a snapshot has: hostile input.
    pub fn restore(state: IoapicState) -> Result<Self, BadIoapic> {
        if state.id > ID_MAX {
            return Err(BadIoapic("id"));
        }
        if (state.kept | state.high) >> PINS != 0 {
            return Err(BadIoapic("a pin that is not there"));
        }
        for (pin, entry) in state.table.iter().enumerate() {
            let level = entry & LEVEL != 0;
            if entry & !(WRITABLE | REMOTE_IRR) != 0 || entry & REMOTE_IRR != 0 && !level {
                return Err(BadIoapic("an entry of the table"));
            }
            let kept = state.kept >> pin & 1 == 1;
            if kept && (level || entry & MASKED == 0) {
                return Err(BadIoapic("an edge that was to be delivered"));
            }
        }
        Ok(Self { state })
    }

    /// The guest reads. Only whole, aligned registers have a value.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Ok(data) = <&mut [u8; 4]>::try_from(data) else { return };
        *data = match offset {
            SELECT => self.state.select.into(),
            WINDOW => self.register(),
            _ => 0,
        }
        .to_le_bytes();
    }

    /// The guest writes. Returns what has to be delivered because of it.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Option<Msi> {
        let value = u32::from_le_bytes(data.try_into().ok()?);
        match offset {
            SELECT => {
                self.state.select = value as u8;
                None
            }
            WINDOW => self.write_register(value),
            _ => None,
        }
    }

    /// A device interrupts: an edge, or a level that becomes high. Returns what has to be
    /// delivered. A pin that is not there does nothing.
    pub fn assert(&mut self, pin: u32) -> Option<Msi> {
        let entry = *self.state.table.get(pin as usize)?;
        if entry & LEVEL != 0 {
            self.state.high |= 1 << pin;
            return self.deliver_level(pin as usize);
        }
        if entry & MASKED != 0 {
            self.state.kept |= 1 << pin;
            return None;
        }
        message(entry)
    }

    /// A level is low again. Means nothing to edges.
    pub fn deassert(&mut self, pin: u32) {
        self.state.high &= !1u32.checked_shl(pin).unwrap_or(0);
    }

    /// A local APIC is done with a level-triggered interrupt. Returns what has to be delivered
    /// because a level is still high, one message for each pin of that vector.
    pub fn end_of_interrupt(&mut self, vector: u8) -> Vec<Msi> {
        let mut messages = Vec::new();
        for pin in 0..PINS {
            let entry = &mut self.state.table[pin];
            if *entry & REMOTE_IRR != 0 && *entry as u8 == vector {
                *entry &= !REMOTE_IRR;
                messages.extend(self.deliver_level(pin));
            }
        }
        messages
    }

    /// What an interrupt of this pin is at the moment, for a route in KVM; none while it is masked.
    pub fn message(&self, pin: u32) -> Option<Msi> {
        let entry = *self.state.table.get(pin as usize)?;
        if entry & MASKED == 0 { message(entry) } else { None }
    }

    fn register(&self) -> u32 {
        match self.state.select {
            ID | ARBITRATION => u32::from(self.state.id) << 24,
            VERSION => VERSION_VALUE,
            select => self.entry_of(select).map_or(0, |(pin, shift)| {
                // Truncated to the half that was selected.
                (self.state.table[pin] >> shift) as u32
            }),
        }
    }

    fn write_register(&mut self, value: u32) -> Option<Msi> {
        if self.state.select == ID {
            self.state.id = (value >> 24) as u8 & ID_MAX;
            return None;
        }
        let (pin, shift) = self.entry_of(self.state.select)?;
        let half = WRITABLE & (0xffff_ffff << shift);
        let before = self.state.table[pin];
        let mut entry = (before & !half) | (u64::from(value) << shift & half);
        if entry & LEVEL == 0 {
            // How older software ends an interrupt: it makes the pin edge-triggered for a moment.
            entry &= !REMOTE_IRR;
        } else {
            self.state.kept &= !(1 << pin);
        }
        self.state.table[pin] = entry;
        if entry & LEVEL != 0 {
            return self.deliver_level(pin);
        }
        let kept = entry & MASKED == 0 && self.state.kept >> pin & 1 == 1;
        if kept {
            self.state.kept &= !(1 << pin);
            return message(entry);
        }
        None
    }

    /// Pin, and position of the half, that a register of the table is.
    fn entry_of(&self, select: u8) -> Option<(usize, u32)> {
        let index = usize::from(select.checked_sub(TABLE)?);
        (index / 2 < PINS).then_some((index / 2, 32 * (index as u32 % 2)))
    }

    /// Delivers a level that is high, if it may be.
    fn deliver_level(&mut self, pin: usize) -> Option<Msi> {
        let entry = &mut self.state.table[pin];
        if *entry & (MASKED | REMOTE_IRR) != 0 || self.state.high >> pin & 1 == 0 {
            return None;
        }
        let message = message(*entry)?;
        *entry |= REMOTE_IRR;
        Some(message)
    }
}

/// The message that an entry stands for.
fn message(entry: u64) -> Option<Msi> {
    let (vector, mode, destination) = (entry & 0xff, entry >> 8 & 7, entry >> 56);
    if !DELIVERED.contains(&mode) {
        return None;
    }
    let logical = u64::from(entry & LOGICAL != 0);
    // Bit 14: asserted. Only level-triggered interrupts have it, and their trigger mode, bit 15.
    let level = if entry & LEVEL != 0 { 3 << 14 } else { 0 };
    Some(Msi {
        address: layout::LAPIC_BASE | destination << 12 | logical << 2,
        data: (vector | mode << 8 | level) as u32,
    })
}

#[cfg(test)]
mod tests;
