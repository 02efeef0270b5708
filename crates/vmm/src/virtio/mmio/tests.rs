//! Registers: what can be written when, and what follows.

use super::*;

const FACE: Face = Face { kind: 4, features: VERSION_1 | 0x21, queue_sizes: &[8, 4] };

fn write_all(registers: &mut Registers, writes: &[(u64, u32)]) -> Vec<Effect> {
    writes.iter().map(|&(at, value)| registers.write(&FACE, at, value)).collect()
}

/// Registers of a driver that is about to set up queues.
fn configuring() -> Registers {
    let mut registers = Registers::new(&FACE);
    let writes = [
        (offset::STATUS, 1),
        (offset::STATUS, 3),
        (offset::DRIVER_FEATURES_SELECT, 1),
        (offset::DRIVER_FEATURES, 1),
        (offset::STATUS, 0xb),
    ];
    write_all(&mut registers, &writes).iter().for_each(|effect| assert_eq!(*effect, Effect::None));
    assert_eq!(registers.status().bits(), 0xb);
    registers
}

#[test]
fn features_are_agreed_on_with_version_1_and_nothing_that_is_not_offered() {
    for (low, high, fine) in [
        (0, 1, true),
        (0x21, 1, true),
        (0x20, 1, true),
        (0x21, 0, false),
        (2, 1, false),
        (0, 3, false),
    ] {
        let mut registers = Registers::new(&FACE);
        let _ = write_all(
            &mut registers,
            &[
                (offset::STATUS, 1),
                (offset::STATUS, 3),
                (offset::DRIVER_FEATURES_SELECT, 0),
                (offset::DRIVER_FEATURES, low),
                (offset::DRIVER_FEATURES_SELECT, 1),
                (offset::DRIVER_FEATURES, high),
                (offset::DRIVER_FEATURES_SELECT, 2),
                (offset::DRIVER_FEATURES, u32::MAX),
                (offset::STATUS, 0xb),
            ],
        );
        let expected = if fine { 0xb } else { 3 };
        assert_eq!(registers.read(&FACE, offset::STATUS), expected, "{high:#x} {low:#x}");
        // Too late, or not too late.
        let _ = registers.write(&FACE, offset::DRIVER_FEATURES_SELECT, 1);
        let _ = registers.write(&FACE, offset::DRIVER_FEATURES, 0x77);
        assert_eq!(registers.features() >> 32 == 0x77, !fine);
    }
}

#[test]
fn features_wait_for_a_driver() {
    let mut registers = Registers::new(&FACE);
    for status in [0, 1] {
        let _ = registers.write(&FACE, offset::STATUS, status);
        let _ = registers.write(&FACE, offset::DRIVER_FEATURES, u32::MAX);
        assert_eq!(registers.features(), 0);
    }
}

#[test]
fn queues_can_be_written_between_features_and_driver_ok_alone() {
    let writes = [
        (offset::QUEUE_SELECT, 1),
        (offset::QUEUE_SIZE, 4),
        (offset::QUEUE_DESCRIPTORS, 0x1000),
        (offset::QUEUE_DESCRIPTORS + 4, 1),
        (offset::QUEUE_AVAILABLE, 0x2000),
        (offset::QUEUE_AVAILABLE + 4, 2),
        (offset::QUEUE_USED, 0x3000),
        (offset::QUEUE_USED + 4, 3),
        (offset::QUEUE_READY, 1),
    ];
    let mut registers = configuring();
    let _ = write_all(&mut registers, &writes);
    let set = QueueSetup {
        size: 4,
        ready: true,
        descriptors: 0x1_0000_1000,
        available: 0x2_0000_2000,
        used: 0x3_0000_3000,
    };
    assert_eq!(registers.queues(), [QueueSetup::default(), set]);
    assert_eq!(registers.write(&FACE, offset::STATUS, 0xf), Effect::Start);

    // CVE-2026-5747 was this, after DRIVER_OK.
    let frozen = registers.clone();
    let attack: Vec<_> = writes.iter().map(|(at, value)| (*at, value ^ 0x55)).collect();
    let _ = write_all(&mut registers, &attack);
    assert_eq!(registers.queues(), frozen.queues());

    for before in [0, 1, 3] {
        let mut registers = Registers::new(&FACE);
        for status in [1, 3].into_iter().take_while(|status| *status <= before) {
            let _ = registers.write(&FACE, offset::STATUS, status);
        }
        let _ = write_all(&mut registers, &writes);
        assert_eq!(registers.queues(), [QueueSetup::default(); 2]);
    }
}

#[test]
fn a_queue_that_is_not_there_is_not_there() {
    let mut registers = configuring();
    for select in [2, 3, 0x100, u32::MAX] {
        let _ = registers.write(&FACE, offset::QUEUE_SELECT, select);
        let _ = write_all(&mut registers, &[(offset::QUEUE_SIZE, 4), (offset::QUEUE_READY, 1)]);
        assert_eq!(registers.read(&FACE, offset::QUEUE_SIZE_MAX), 0);
        assert_eq!(registers.read(&FACE, offset::QUEUE_READY), 0);
    }
    assert_eq!(registers.queues(), [QueueSetup::default(); 2]);
}

#[test]
fn a_size_that_does_not_fit_is_impossible_and_not_cut() {
    let mut registers = configuring();
    let _ = registers.write(&FACE, offset::QUEUE_SIZE, 0x1_0004);
    assert_eq!(registers.queues()[0].size, 0);
}

#[test]
fn effects_come_once() {
    let mut registers = configuring();
    let effects = write_all(
        &mut registers,
        &[
            (offset::STATUS, 0xf),
            (offset::STATUS, 0xf),
            (offset::STATUS, 0x8f),
            (offset::STATUS, 0x8f),
            (offset::STATUS, 1),
            (offset::STATUS, 0),
            (offset::STATUS, 0),
        ],
    );
    use Effect::{None, Reset, Start, Stop};
    assert_eq!(effects, [Start, None, Stop, None, None, Reset, Reset]);
    assert_eq!(registers, Registers::new(&FACE));
}

#[test]
fn a_device_that_needs_a_reset_waits_for_it() {
    let mut registers = configuring();
    let _ = registers.write(&FACE, offset::STATUS, 0xf);
    registers.need_reset();
    for written in (1..=0xff).filter(|written| written & 0x80 == 0) {
        assert_eq!(registers.write(&FACE, offset::STATUS, written), Effect::None);
        assert_eq!(registers.read(&FACE, offset::STATUS), 0x4f);
    }
}

#[test]
fn saved_registers_are_those_that_a_driver_can_make() {
    let good = [Registers::new(&FACE), configuring()];
    for registers in &good {
        assert_eq!(registers.check(&FACE), Ok(()));
    }
    let ready = QueueSetup { ready: true, ..QueueSetup::default() };
    let bad = [
        Registers { status: Status(4), ..good[1].clone() },
        Registers { status: Status(0x4b), ..good[1].clone() },
        Registers { status: Status(0x1f), ..good[1].clone() },
        Registers { driver_features: 0, ..good[1].clone() },
        Registers { driver_features: VERSION_1 | 2, ..good[1].clone() },
        Registers { driver_features: VERSION_1, ..good[0].clone() },
        Registers { queues: vec![], ..good[1].clone() },
        Registers { queues: vec![QueueSetup::default(); 3], ..good[1].clone() },
        Registers { queues: vec![ready; 2], ..good[0].clone() },
    ];
    for registers in bad {
        assert!(registers.check(&FACE).is_err(), "{registers:?}");
    }
}

#[test]
fn a_driver_that_gave_up_changes_nothing_any_more() {
    let mut negotiating = Registers::new(&FACE);
    let _ = write_all(&mut negotiating, &[(offset::STATUS, 1), (offset::STATUS, 3)]);
    for (mut registers, status) in [(negotiating, 0x83), (configuring(), 0x8b)] {
        assert_eq!(registers.write(&FACE, offset::STATUS, status), Effect::None);
        let before = registers.clone();
        let writes = [
            (offset::DRIVER_FEATURES, 0x55),
            (offset::QUEUE_SIZE, 4),
            (offset::STATUS, 0xb),
            (offset::STATUS, 0xf),
            (offset::STATUS, 3),
        ];
        let _ = write_all(&mut registers, &writes);
        assert_eq!(registers, before);
    }
}
