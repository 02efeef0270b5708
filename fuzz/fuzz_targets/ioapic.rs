//! The interrupt controller and the devices at I/O ports, by any sequence of accesses: every state
//! that they get into is one that a snapshot may have, and every message goes to a local APIC.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pandastack_fuzz::Script;
use pandastack_vmm::ioapic::{Ioapic, Msi};
use pandastack_vmm::layout;
use pandastack_vmm::legacy::serial::{RING, Serial};
use pandastack_vmm::legacy::{Event, Ports};

fuzz_target!(|bytes: &[u8]| {
    run(Script(bytes));
});

fn run(mut script: Script<'_>) -> Option<()> {
    let (mut ioapic, mut ports) = (Ioapic::new(), Ports::default());
    loop {
        match script.u8()? % 8 {
            0 => check(ioapic.write(script.u8()?.into(), script.some(9)?)),
            // A register of the table: selected, then written.
            1 => {
                check(ioapic.write(0, &u32::from(script.u8()? % 0x40).to_le_bytes()));
                check(ioapic.write(0x10, &script.take::<4>()?));
            }
            2 => {
                let before = ioapic.clone();
                let (at, len) = (script.u8()?, usize::from(script.u8()? % 9));
                ioapic.read(at.into(), &mut [0; 8][..len]);
                assert_eq!(ioapic, before, "reading changes nothing");
            }
            3 => check(ioapic.assert(script.u8()?.into())),
            4 => ioapic.deassert(script.u32()?),
            5 => {
                let messages = ioapic.end_of_interrupt(script.u8()?);
                assert!(messages.len() <= layout::IOAPIC_PINS as usize);
                messages.into_iter().for_each(|message| check(Some(message)));
            }
            6 => {
                let event = ports.write(port(&mut script)?, script.some(32)?);
                let serial = Event::Interrupt(layout::SERIAL_GSI);
                assert!(
                    [None, Some(Event::PowerOff), Some(Event::Reset), Some(serial)]
                        .contains(&event)
                );
                assert!(ports.serial.output().len() <= RING);
            }
            _ => {
                let (port, len) = (port(&mut script)?, usize::from(script.u8()? % 32));
                ports.read(port, &mut vec![0; len]);
            }
        }
        assert_eq!(Ioapic::restore(ioapic.save()).as_ref(), Ok(&ioapic));
        assert_eq!(Serial::restore(ports.serial.save()).save(), ports.serial.save());
        for pin in 0..=layout::IOAPIC_PINS {
            check(ioapic.message(pin));
        }
    }
}

/// Mostly one where somebody answers.
fn port(script: &mut Script<'_>) -> Option<u16> {
    Some(match script.u8()? {
        at @ 0..8 => layout::SERIAL_PORT + u16::from(at),
        8 => layout::I8042_COMMAND,
        9 => layout::SLEEP_CONTROL,
        _ => script.u16()?,
    })
}

/// An interrupt for a local APIC in a delivery mode that means something.
fn check(message: Option<Msi>) {
    let Some(Msi { address, data }) = message else { return };
    assert_eq!(address & !0xf_f004, layout::LAPIC_BASE, "{address:#x}");
    assert_eq!(data & !0xc7ff, 0, "{data:#x}");
    assert!([0, 1, 4].contains(&(data >> 8 & 7)), "{data:#x}");
}
