//! What there is at I/O ports: a serial port, one command of the keyboard controller, and the ACPI
//! sleep registers. Everything else reads as all ones and takes no notice of writes, as a bus does
//! that nobody answers on.
//!
//! ```text
//!   0x064          0xfe ─────────────────────▶ reset
//!   0x3f8..0x400   serial port ──────────────▶ ring of the guest's last words   ([`serial`])
//!   0x600, 0x601   sleep enable, type S5 ────▶ power off
//! ```
//!
//! Data is taken byte by byte: KVM gives all repetitions of a string instruction at once, and
//! they go to the same port. No driver of these devices makes wider accesses.

pub mod serial;

pub use serial::{Serial, SerialState};

use crate::layout;

/// Sleep control register: sleep enable, and the type's position (ACPI 6.5, table 4.25).
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 7;

/// Last of the serial port's eight ports.
const SERIAL_LAST: u16 = layout::SERIAL_PORT + 7;

/// What a write means to the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The guest turned itself off.
    PowerOff,
    /// The guest wants to be reset. A machine is never booted twice, so this is an end as well.
    Reset,
    /// A device asserts this global system interrupt.
    Interrupt(u32),
}

/// All devices at I/O ports.
#[derive(Clone, Debug, Default)]
pub struct Ports {
    /// The serial port.
    pub serial: Serial,
}

impl Ports {
    /// The guest reads.
    pub fn read(&mut self, port: u16, data: &mut [u8]) {
        match port {
            layout::SERIAL_PORT..=SERIAL_LAST => {
                let register = port - layout::SERIAL_PORT;
                data.iter_mut().for_each(|byte| *byte = self.serial.read(register));
            }
            // Input buffer empty: ready for a command. And no sleep that one could wake up from.
            layout::I8042_COMMAND | layout::SLEEP_CONTROL | layout::SLEEP_STATUS => data.fill(0),
            _ => data.fill(0xff),
        }
    }

    /// The guest writes.
    pub fn write(&mut self, port: u16, data: &[u8]) -> Option<Event> {
        match port {
            layout::SERIAL_PORT..=SERIAL_LAST => {
                let register = port - layout::SERIAL_PORT;
                // One edge stands for all of them.
                let edges = data.iter().filter(|byte| self.serial.write(register, **byte)).count();
                (edges > 0).then_some(Event::Interrupt(layout::SERIAL_GSI))
            }
            layout::I8042_COMMAND => data.contains(&layout::RESET_COMMAND).then_some(Event::Reset),
            layout::SLEEP_CONTROL => {
                data.iter().any(|byte| is_off(*byte)).then_some(Event::PowerOff)
            }
            _ => None,
        }
    }
}

/// Whether a value of the sleep control register turns the machine off.
fn is_off(control: u8) -> bool {
    let kind = control >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK;
    control & SLEEP_ENABLE != 0 && kind == layout::SLEEP_TYPE_OFF
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_reset_is_one_command_of_one_port() {
        let mut ports = Ports::default();
        for command in 0..=255 {
            let event = ports.write(0x64, &[command]);
            assert_eq!(event == Some(Event::Reset), command == 0xfe);
            assert_eq!(ports.write(0x60, &[command]), None);
        }
        let mut status = [0xff];
        ports.read(0x64, &mut status);
        assert_eq!(status, [0]);
    }

    #[test]
    fn off_is_sleep_enable_with_the_type_of_the_tables() {
        let mut ports = Ports::default();
        for control in 0..=255u8 {
            let off = control & 0x3c == 0x20 | 5 << 2;
            assert_eq!(ports.write(0x600, &[control]) == Some(Event::PowerOff), off);
            assert_eq!(ports.write(0x601, &[control]), None);
        }
    }

    #[test]
    fn writing_to_the_serial_port_interrupts_whoever_asked_for_it() {
        let mut ports = Ports::default();
        assert_eq!(ports.write(0x3f8, b"silent"), None);
        assert_eq!(ports.write(0x3f9, &[2]), Some(Event::Interrupt(4)));
        assert_eq!(ports.write(0x3f8, b"loud"), None, "it did not look yet");
        ports.read(0x3fa, &mut [0]);
        assert_eq!(ports.write(0x3f8, b"!"), Some(Event::Interrupt(4)));
        assert_eq!(ports.serial.output(), b"silentloud!");
    }

    proptest! {
        #[test]
        fn nobody_answers_elsewhere(port: u16, length in 0usize..16, byte: u8) {
            let known = matches!(port, 0x64 | 0x3f8..=0x3ff | 0x600 | 0x601);
            let mut ports = Ports::default();
            let before = ports.serial.save();
            let event = ports.write(port, &vec![byte; length]);
            let mut data = vec![0x55; length];
            ports.read(port, &mut data);
            if !known {
                prop_assert_eq!(event, None);
                prop_assert_eq!(data, vec![0xff; length]);
                prop_assert_eq!(ports.serial.save(), before);
                prop_assert_eq!(ports.serial.output(), Vec::<u8>::new());
            }
        }
    }
}
