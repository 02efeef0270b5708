//! A 16550 that only listens: what the guest prints before its agent is up, and its last words.
//!
//! Invariant: whatever a guest prints costs the host [`RING`] bytes and no system call. There is
//! no limit of its rate, because nothing leaves the process: each byte is an exit that the guest
//! pays for with its own time. Nothing can be sent to a guest here.
//!
//! The transmitter is always empty. So its interrupt is due as soon as it is enabled, and again
//! after a byte, until the guest has looked at it; drivers that use it, which is everything but the
//! kernel's own console, would wait for ever without.
//!
//! Registers: data sheet of the PC16550D, section 8.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Bytes of output that are kept, the last ones.
pub const RING: usize = 16 << 10;

/// Registers, by offset from the port. The first two are the divisor while it is latched.
const DATA: u16 = 0;
const INTERRUPT_ENABLE: u16 = 1;
const IDENTIFICATION_OR_FIFO: u16 = 2;
const LINE_CONTROL: u16 = 3;
const MODEM_CONTROL: u16 = 4;
const LINE_STATUS: u16 = 5;
const MODEM_STATUS: u16 = 6;

/// Interrupt enable: transmitter empty; the bits that exist.
const TRANSMITTER: u8 = 1 << 1;
const INTERRUPTS: u8 = 0xf;
/// Interrupt identification: none, transmitter empty; FIFOs enabled.
const NONE: u8 = 1;
const TRANSMITTER_EMPTY: u8 = 1 << 1;
const FIFOS: u8 = 3 << 6;
/// FIFO control: enable.
const FIFO_ENABLE: u8 = 1;
/// Line control: the divisor is latched.
const DIVISOR_LATCH: u8 = 1 << 7;
/// Modem control: loop back; the bits that exist.
const LOOP: u8 = 1 << 4;
const MODEM: u8 = 0x1f;
/// Line status: transmitter and its holding register empty.
const IDLE: u8 = 3 << 5;
/// Modem status: carrier, data set ready, clear to send.
const CONNECTED: u8 = 1 << 7 | 1 << 5 | 1 << 4;

/// The serial port.
#[derive(Clone, Debug, Default)]
pub struct Serial {
    registers: SerialState,
    ring: VecDeque<u8>,
}

/// Its registers, as a snapshot has them. Each value of each is possible. What was printed is no
/// part of it: a copy has nothing to tell of what its source said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialState {
    /// Which interrupts are enabled.
    pub interrupt_enable: u8,
    /// The transmitter's interrupt is due and was not looked at yet.
    pub transmitter_due: bool,
    /// FIFOs are enabled.
    pub fifo: bool,
    /// Word length and divisor latch.
    pub line_control: u8,
    /// Lines to the other side.
    pub modem_control: u8,
    /// A byte for whoever wants to keep one.
    pub scratch: u8,
    /// Divisor of the clock, which sets no rate here.
    pub divisor: [u8; 2],
}

impl Serial {
    /// A port that was restored, without output.
    pub fn restore(registers: SerialState) -> Self {
        Self { registers, ring: VecDeque::new() }
    }

    /// For a snapshot.
    pub fn save(&self) -> SerialState {
        self.registers
    }

    /// The last [`RING`] bytes that were printed: a tenant's, so nothing to trust.
    pub fn output(&self) -> Vec<u8> {
        self.ring.iter().copied().collect()
    }

    /// Forgets what was printed, for the child of a fork.
    pub fn clear_output(&mut self) {
        self.ring = VecDeque::new();
    }

    /// The guest reads a register, 0 to 7.
    pub fn read(&mut self, register: u16) -> u8 {
        let state = &mut self.registers;
        match register {
            DATA | INTERRUPT_ENABLE if state.line_control & DIVISOR_LATCH != 0 => {
                state.divisor[usize::from(register)]
            }
            DATA => 0,
            INTERRUPT_ENABLE => state.interrupt_enable,
            IDENTIFICATION_OR_FIFO => {
                let fifos = if state.fifo { FIFOS } else { 0 };
                // To look at it is to have seen it.
                let due = std::mem::take(&mut state.transmitter_due);
                fifos | if due { TRANSMITTER_EMPTY } else { NONE }
            }
            LINE_CONTROL => state.line_control,
            MODEM_CONTROL => state.modem_control,
            LINE_STATUS => IDLE,
            MODEM_STATUS if state.modem_control & LOOP != 0 => looped(state.modem_control),
            MODEM_STATUS => CONNECTED,
            _ => state.scratch,
        }
    }

    /// The guest writes a register, 0 to 7. True if the port's interrupt becomes due: an edge.
    pub fn write(&mut self, register: u16, value: u8) -> bool {
        let state = &mut self.registers;
        match register {
            DATA | INTERRUPT_ENABLE if state.line_control & DIVISOR_LATCH != 0 => {
                state.divisor[usize::from(register)] = value;
            }
            DATA => {
                // Looped back, it would come to a receiver that is not there.
                let printed = state.modem_control & LOOP == 0;
                let before = state.transmitter_due;
                state.transmitter_due = state.interrupt_enable & TRANSMITTER != 0;
                let edge = state.transmitter_due && !before;
                if printed {
                    self.print(value);
                }
                return edge;
            }
            INTERRUPT_ENABLE => {
                let before = state.interrupt_enable & TRANSMITTER;
                state.interrupt_enable = value & INTERRUPTS;
                let wanted = state.interrupt_enable & TRANSMITTER;
                if before != wanted {
                    state.transmitter_due = wanted != 0;
                    return state.transmitter_due;
                }
            }
            IDENTIFICATION_OR_FIFO => state.fifo = value & FIFO_ENABLE != 0,
            LINE_CONTROL => state.line_control = value,
            MODEM_CONTROL => state.modem_control = value & MODEM,
            LINE_STATUS | MODEM_STATUS => {}
            _ => state.scratch = value,
        }
        false
    }

    fn print(&mut self, byte: u8) {
        if self.ring.len() == RING {
            self.ring.pop_front();
        }
        self.ring.push_back(byte);
    }
}

/// Modem status while looped back: request to send, terminal ready and both outputs come back as
/// clear to send, data set ready, ring and carrier.
fn looped(control: u8) -> u8 {
    let bit = |from: u8, to: u8| (control >> from & 1) << to;
    bit(1, 4) | bit(0, 5) | bit(2, 6) | bit(3, 7)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_ring_keeps_the_last_words() {
        let mut serial = Serial::default();
        for index in 0..RING + 10 {
            serial.write(DATA, (index % 251) as u8);
        }
        let expected: Vec<u8> = (10..RING + 10).map(|index| (index % 251) as u8).collect();
        assert_eq!(serial.output(), expected);
        assert!(serial.ring.capacity() <= 2 * RING);
        serial.clear_output();
        assert_eq!((serial.output().len(), serial.ring.capacity()), (0, 0));
    }

    #[test]
    fn the_transmitter_is_always_empty_and_nothing_is_received() {
        let mut serial = Serial::default();
        serial.write(DATA, b'x');
        assert_eq!((serial.read(LINE_STATUS), serial.read(DATA)), (0x60, 0));
    }

    #[test]
    fn a_latched_divisor_is_not_printed() {
        let mut serial = Serial::default();
        serial.write(LINE_CONTROL, 0x83);
        assert!(!serial.write(DATA, 1));
        assert!(!serial.write(INTERRUPT_ENABLE, 2));
        assert_eq!([serial.read(DATA), serial.read(INTERRUPT_ENABLE)], [1, 2]);
        serial.write(LINE_CONTROL, 0x03);
        assert_eq!([serial.read(DATA), serial.read(INTERRUPT_ENABLE)], [0, 0]);
        assert_eq!(serial.output(), b"");
    }

    #[test]
    fn the_transmitters_interrupt_is_due_when_enabled_and_after_bytes() {
        let mut serial = Serial::default();
        assert_eq!(serial.read(IDENTIFICATION_OR_FIFO), 1);
        assert!(serial.write(INTERRUPT_ENABLE, 0xff));
        assert_eq!(serial.read(INTERRUPT_ENABLE), 0xf);
        assert_eq!(serial.read(IDENTIFICATION_OR_FIFO), 2);
        assert_eq!(serial.read(IDENTIFICATION_OR_FIFO), 1, "once seen it is gone");
        assert!(!serial.write(INTERRUPT_ENABLE, 0x7), "it was enabled before");
        assert!(serial.write(DATA, b'x'));
        assert!(!serial.write(DATA, b'x'), "it is due already");
        serial.write(INTERRUPT_ENABLE, 0);
        assert_eq!(serial.read(IDENTIFICATION_OR_FIFO), 1);
        assert!(!serial.write(DATA, b'x'));
        serial.write(IDENTIFICATION_OR_FIFO, 1);
        assert_eq!(serial.read(IDENTIFICATION_OR_FIFO), 0xc1);
    }

    /// How a driver finds out that there is a port.
    #[test]
    fn modem_lines_come_back_in_a_loop() {
        let mut serial = Serial::default();
        assert_eq!(serial.read(MODEM_STATUS), 0xb0);
        serial.write(MODEM_CONTROL, 0x1a);
        assert_eq!(serial.read(MODEM_STATUS), 0x90);
        serial.write(MODEM_CONTROL, 0x15);
        assert_eq!(serial.read(MODEM_STATUS), 0x60);
        serial.write(DATA, b'x');
        assert_eq!(serial.output(), b"");
    }

    proptest! {
        /// A restored port answers as the one that was saved, and the ring never grows beyond its
        /// bound.
        #[test]
        fn a_copy_answers_like_its_source(
            writes in prop::collection::vec((0u16..8, any::<u8>()), 0..200),
        ) {
            let mut serial = Serial::default();
            for (register, value) in writes {
                serial.write(register, value);
            }
            prop_assert!(serial.ring.len() <= RING);
            let mut copy = Serial::restore(serial.save());
            prop_assert_eq!(copy.output(), Vec::<u8>::new());
            for register in 0..8 {
                prop_assert_eq!(copy.read(register), serial.read(register));
            }
        }
    }
}
