//! The register window: whatever is written to it, in whatever order and width, what was checked
//! stays as it was checked, and the device is only used while it is live.
//!
//! ```text
//!   registers   alone, every step looked at        (first byte even)
//!   a device    with rings, by a hostile driver    (first byte odd)
//! ```
#![no_main]

use libfuzzer_sys::fuzz_target;
use pandastack_fuzz::Script;
use pandastack_vmm::GuestMemory;
use pandastack_vmm::virtio::hostile::drive;
use pandastack_vmm::virtio::mmio::{Effect, Face, Registers, VERSION_1, offset};
use pandastack_vmm::virtio::{Broken, Device, DeviceState, Queue};

const FEATURES: u64 = 0x20 | 1 << 40;
const QUEUES: [u16; 3] = [16, 4, 1];

fuzz_target!(|bytes: &[u8]| {
    match bytes.split_first() {
        Some((kind, script)) if kind & 1 == 0 => {
            registers(Script(script));
        }
        Some((_, script)) => {
            drive(Echo { started: false }, script);
        }
        None => {}
    }
});

fn registers(mut script: Script<'_>) -> Option<()> {
    let face = Face { kind: 42, features: FEATURES | VERSION_1, queue_sizes: &QUEUES };
    let mut registers = Registers::new(&face);
    loop {
        let before = registers.clone();
        let (at, kind) = (u64::from(script.u8()?), script.u8()?);
        if kind & 1 == 1 {
            registers.read(&face, at);
            assert_eq!(registers, before, "reading changes nothing");
            continue;
        }
        // Steps of the status are rare among all values.
        let value = match kind & 6 {
            0 => script.u32()?,
            2 => u32::from(script.u8()?),
            4 => u32::from(before.status().bits()) | 1 << (script.u8()? % 8),
            _ => (face.features >> 32) as u32,
        };
        let effect = registers.write(&face, at, value);
        registers.check(&face).expect("a driver did it");
        let (was, is) = (before.status().is_live(), registers.status().is_live());
        match effect {
            Effect::Reset => assert_eq!(registers, Registers::new(&face)),
            Effect::Start => assert!(!was && is && before.status().bits() == 0xb),
            Effect::Stop => assert!(was && !is),
            Effect::None => assert_eq!(was, is),
        }
        let reset = at == offset::STATUS && value == 0;
        if before.status().bits() & 8 != 0 && !reset {
            assert_eq!(registers.features(), before.features(), "agreed");
        }
        if before.status().bits() & 4 != 0 && !reset {
            assert_eq!(registers.queues(), before.queues(), "frozen");
        }
        let gained = registers.status().bits() & !before.status().bits();
        assert!(gained.count_ones() <= 1, "one step at a time");
    }
}

/// A device that gives every chain back.
struct Echo {
    started: bool,
}

impl Device for Echo {
    fn kind(&self) -> u32 {
        42
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &QUEUES
    }

    fn config(&self) -> Vec<u8> {
        b"config".to_vec()
    }

    fn start(&mut self, features: u64) {
        assert!(!self.started && features & !(FEATURES | VERSION_1) == 0);
        self.started = true;
    }

    fn reset(&mut self) {
        self.started = false;
    }

    fn work(&mut self, queues: &mut [Queue], memory: &GuestMemory) -> Result<bool, Broken> {
        assert!(self.started && queues.len() == QUEUES.len());
        for (queue, max) in queues.iter_mut().zip(QUEUES) {
            assert!(queue.setup().size <= max);
            if let Some(chain) = queue.pop(memory)? {
                queue.push(memory, chain.head, chain.writable_bytes() as u32)?;
            }
        }
        Ok(false)
    }

    fn save(&self) -> DeviceState {
        DeviceState::Nothing
    }

    fn restore(&mut self, state: DeviceState) -> Result<(), Broken> {
        state.expect_nothing()
    }
}
