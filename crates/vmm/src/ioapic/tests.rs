//! The IOAPIC by itself, and against a model of one pin.

use proptest::prelude::*;

use super::*;

const VECTOR: u64 = 0x31;

fn select(ioapic: &mut Ioapic, register: u8) {
    assert_eq!(ioapic.write(SELECT, &u32::from(register).to_le_bytes()), None);
}

fn put(ioapic: &mut Ioapic, register: u8, value: u32) -> Option<Msi> {
    select(ioapic, register);
    ioapic.write(WINDOW, &value.to_le_bytes())
}

fn get(ioapic: &mut Ioapic, register: u8) -> u32 {
    select(ioapic, register);
    let mut data = [0xff; 4];
    ioapic.read(WINDOW, &mut data);
    u32::from_le_bytes(data)
}

/// As drivers do: the high half first.
fn program(ioapic: &mut Ioapic, pin: u8, entry: u64) -> Option<Msi> {
    assert_eq!(put(ioapic, TABLE + 2 * pin + 1, (entry >> 32) as u32), None);
    put(ioapic, TABLE + 2 * pin, entry as u32)
}

#[test]
fn registers_are_those_of_the_data_sheet() {
    let mut ioapic = Ioapic::new();
    assert_eq!(get(&mut ioapic, VERSION), 0x0017_0011);
    put(&mut ioapic, ID, u32::MAX);
    assert_eq!(get(&mut ioapic, ID), 0x0f00_0000);
    assert_eq!(get(&mut ioapic, ARBITRATION), 0x0f00_0000);
    put(&mut ioapic, VERSION, 0);
    assert_eq!(get(&mut ioapic, VERSION), 0x0017_0011);
    for pin in 0..24 {
        assert_eq!(get(&mut ioapic, TABLE + 2 * pin), 0x1_0000);
        put(&mut ioapic, TABLE + 2 * pin, u32::MAX);
        put(&mut ioapic, TABLE + 2 * pin + 1, u32::MAX);
        // Delivery status and remote IRR are not for software to write.
        assert_eq!(get(&mut ioapic, TABLE + 2 * pin), 0x1_afff);
        assert_eq!(get(&mut ioapic, TABLE + 2 * pin + 1), 0xff00_0000);
    }
    for register in [0x03, 0x0f, TABLE + 48, 0xff] {
        assert_eq!(put(&mut ioapic, register, u32::MAX), None);
        assert_eq!(get(&mut ioapic, register), 0);
    }
}

#[test]
fn odd_accesses_do_nothing() {
    let mut ioapic = Ioapic::new();
    let before = ioapic.clone();
    for length in [0, 1, 2, 3, 5, 8] {
        assert_eq!(ioapic.write(SELECT, &vec![1; length]), None);
        let mut data = vec![0xff; length];
        ioapic.read(WINDOW, &mut data);
        assert_eq!(data, vec![0; length]);
    }
    for offset in [1, 4, 0x0c, 0x11, 0x40, u64::MAX] {
        assert_eq!(ioapic.write(offset, &[1; 4]), None);
        let mut data = [0xff; 4];
        ioapic.read(offset, &mut data);
        assert_eq!(data, [0; 4]);
    }
    assert_eq!(ioapic, before);
}

#[test]
fn messages_have_the_format_of_kvm() {
    let mut ioapic = Ioapic::new();
    program(&mut ioapic, 5, 3 << 56 | VECTOR);
    assert_eq!(ioapic.assert(5), Some(Msi { address: 0xfee0_3000, data: 0x31 }));
    program(&mut ioapic, 5, 0xff << 56 | LOGICAL | 1 << 8 | VECTOR);
    assert_eq!(ioapic.message(5), Some(Msi { address: 0xfeef_f004, data: 0x131 }));
    program(&mut ioapic, 5, LEVEL | VECTOR);
    assert_eq!(ioapic.assert(5), Some(Msi { address: 0xfee0_0000, data: 0xc031 }));
    for (mode, delivered) in [(2, false), (3, false), (4, true), (5, false), (6, false), (7, false)]
    {
        program(&mut ioapic, 6, mode << 8 | VECTOR);
        assert_eq!(ioapic.assert(6).is_some(), delivered, "mode {mode}");
    }
}

#[test]
fn an_edge_on_a_masked_pin_comes_once_it_is_unmasked() {
    let mut ioapic = Ioapic::new();
    assert_eq!([ioapic.assert(7), ioapic.assert(7), ioapic.message(7)], [None; 3]);
    assert_eq!(program(&mut ioapic, 7, MASKED | VECTOR), None);
    let message = Some(Msi { address: 0xfee0_0000, data: 0x31 });
    assert_eq!(program(&mut ioapic, 7, VECTOR), message);
    assert_eq!(program(&mut ioapic, 7, VECTOR), None, "and only once");
    assert_eq!(ioapic.assert(7), message);
}

#[test]
fn a_level_comes_again_until_it_is_low() {
    let mut ioapic = Ioapic::new();
    program(&mut ioapic, 9, LEVEL | VECTOR);
    let message = Msi { address: 0xfee0_0000, data: 0xc031 };
    assert_eq!(ioapic.assert(9), Some(message));
    assert_eq!(ioapic.assert(9), None, "in service");
    assert_eq!(get(&mut ioapic, TABLE + 18) >> 14 & 1, 1);
    assert_eq!(ioapic.end_of_interrupt(0x30), []);
    assert_eq!(ioapic.end_of_interrupt(0x31), [message]);
    ioapic.deassert(9);
    assert_eq!(ioapic.end_of_interrupt(0x31), []);
    assert_eq!(ioapic.end_of_interrupt(0x31), []);
    assert_eq!(ioapic.assert(9), Some(message));
}

#[test]
fn a_masked_level_comes_when_it_is_unmasked_and_still_high() {
    let mut ioapic = Ioapic::new();
    program(&mut ioapic, 9, LEVEL | MASKED | VECTOR);
    assert_eq!(ioapic.assert(9), None);
    assert!(program(&mut ioapic, 9, LEVEL | VECTOR).is_some());
    program(&mut ioapic, 10, LEVEL | MASKED | VECTOR);
    ioapic.assert(10);
    ioapic.deassert(10);
    assert_eq!(program(&mut ioapic, 10, LEVEL | VECTOR), None);
}

/// What Linux does with an IOAPIC of this version.
#[test]
fn a_moment_as_an_edge_ends_a_level() {
    let mut ioapic = Ioapic::new();
    program(&mut ioapic, 9, LEVEL | VECTOR);
    assert!(ioapic.assert(9).is_some());
    assert_eq!(put(&mut ioapic, TABLE + 18, (MASKED | VECTOR) as u32), None);
    assert!(put(&mut ioapic, TABLE + 18, (LEVEL | VECTOR) as u32).is_some());
}

#[test]
fn pins_that_share_a_vector_end_together() {
    let mut ioapic = Ioapic::new();
    for pin in [3, 4] {
        program(&mut ioapic, pin, u64::from(pin) << 56 | LEVEL | VECTOR);
        assert!(ioapic.assert(pin.into()).is_some());
    }
    let addresses: Vec<u64> = ioapic.end_of_interrupt(0x31).iter().map(|m| m.address).collect();
    assert_eq!(addresses, [0xfee0_3000, 0xfee0_4000]);
}

#[test]
fn pins_that_are_not_there_do_nothing() {
    let mut ioapic = Ioapic::new();
    for pin in [24, 31, 32, 33, u32::MAX] {
        assert_eq!((ioapic.assert(pin), ioapic.message(pin)), (None, None));
        ioapic.deassert(pin);
    }
    assert_eq!(ioapic, Ioapic::new());
}

#[test]
fn impossible_states_are_refused() {
    let good = Ioapic::new().save();
    assert_eq!(Ioapic::restore(good.clone()), Ok(Ioapic::new()));
    let changes: [fn(&mut IoapicState); 8] = [
        |state| state.id = 16,
        |state| state.kept = 1 << 24,
        |state| state.high = 1 << 31,
        |state| state.table[0] |= 1 << 12,
        |state| state.table[23] |= 1 << 40,
        |state| state.table[3] |= REMOTE_IRR,
        |state| (state.table[3], state.kept) = (VECTOR, 1 << 3),
        |state| (state.table[3], state.kept) = (MASKED | LEVEL, 1 << 3),
    ];
    for change in changes {
        let mut bad = good.clone();
        change(&mut bad);
        assert!(Ioapic::restore(bad.clone()).is_err(), "{bad:?}");
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Write(u64, u32),
    Assert(u32),
    Deassert(u32),
    End(u8),
    Entry { masked: bool, level: bool },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (prop_oneof![Just(SELECT), Just(WINDOW), 0u64..64], any::<u32>())
            .prop_map(|(at, value)| Step::Write(at, value)),
        (0u32..40).prop_map(Step::Assert),
        (0u32..40).prop_map(Step::Deassert),
        any::<u8>().prop_map(Step::End),
    ]
}

fn step_of_one_pin() -> impl Strategy<Value = Step> {
    prop_oneof![
        Just(Step::Assert(2)),
        Just(Step::Deassert(2)),
        Just(Step::End(VECTOR as u8)),
        (any::<bool>(), any::<bool>()).prop_map(|(masked, level)| Step::Entry { masked, level }),
    ]
}

proptest! {
    /// Whatever guest and devices do, the state is one that can be restored.
    #[test]
    fn every_reachable_state_is_possible(steps in prop::collection::vec(step(), 0..200)) {
        let mut ioapic = Ioapic::new();
        for step in steps {
            match step {
                Step::Write(at, value) => drop(ioapic.write(at, &value.to_le_bytes())),
                Step::Assert(pin) => drop(ioapic.assert(pin)),
                Step::Deassert(pin) => ioapic.deassert(pin),
                Step::End(vector) => drop(ioapic.end_of_interrupt(vector)),
                Step::Entry { .. } => {}
            }
            prop_assert_eq!(Ioapic::restore(ioapic.save()), Ok(ioapic.clone()));
        }
    }

    /// Against a model of one pin that knows nothing of registers.
    #[test]
    fn one_pin_does_what_a_pin_should(steps in prop::collection::vec(step_of_one_pin(), 0..100)) {
        let mut ioapic = Ioapic::new();
        let (mut masked, mut level) = (true, false);
        let (mut kept, mut high, mut serving) = (false, false, false);
        for step in steps {
            let delivered = match step {
                Step::Assert(pin) => ioapic.assert(pin).is_some(),
                Step::Deassert(pin) => { ioapic.deassert(pin); false }
                Step::End(vector) => !ioapic.end_of_interrupt(vector).is_empty(),
                Step::Entry { masked, level } => {
                    let bits = if masked { MASKED } else { 0 } | if level { LEVEL } else { 0 };
                    program(&mut ioapic, 2, bits | VECTOR).is_some()
                }
                Step::Write(..) => unreachable!(),
            };
            let mut edge = false;
            match step {
                Step::Assert(_) if level => high = true,
                Step::Assert(_) => edge = true,
                Step::Deassert(_) => high = false,
                Step::End(_) => serving = false,
                Step::Entry { masked: m, level: l } => {
                    (masked, level) = (m, l);
                    serving &= level;
                    kept &= !level;
                    edge = kept;
                }
                Step::Write(..) => unreachable!(),
            }
            let expected = !masked && if level { high && !serving } else { edge };
            if level {
                serving |= expected;
            } else {
                kept = (kept || edge) && masked;
            }
            prop_assert_eq!(delivered, expected, "{:?}", step);
        }
    }
}
