//! Random stores and loads, in any order and width, against a model that is told the rules in
//! other words: a list of what is known of each register.

use std::collections::HashMap;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::driver::{Echo, MEMORY, get, slot};
use crate::virtio::serve::Served;
use crate::virtio::slot::Window;

/// How far driver and device are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Off,
    Noticed,
    Driven,
    Agreed,
    Live,
    Sick,
}

impl Phase {
    fn bits(self) -> u32 {
        match self {
            Self::Off => 0,
            Self::Noticed => 1,
            Self::Driven => 3,
            Self::Agreed => 11,
            Self::Live => 15,
            Self::Sick => 15 + 64,
        }
    }
}

const SIZES: [u32; 2] = [8, 4];
const OFFERED: [u32; 2] = [0x20, 0x101];
/// Registers of a queue.
const QUEUE: [u64; 8] = [0x38, 0x44, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4];

#[derive(Debug)]
struct Model {
    phase: Phase,
    failed: bool,
    /// What was written and taken, besides queues.
    plain: HashMap<u64, u32>,
    /// By half.
    features: [u32; 2],
    /// By queue and register.
    queues: HashMap<(u32, u64), u32>,
    interrupt: u32,
}

impl Model {
    fn new() -> Self {
        Self {
            phase: Phase::Off,
            failed: false,
            plain: HashMap::new(),
            features: [0; 2],
            queues: HashMap::new(),
            interrupt: 0,
        }
    }

    fn plain(&self, at: u64) -> u32 {
        self.plain.get(&at).copied().unwrap_or(0)
    }

    fn queue(&self, queue: u32, at: u64) -> u32 {
        self.queues.get(&(queue, at)).copied().unwrap_or(0)
    }

    fn status(&self) -> u32 {
        self.phase.bits() + if self.failed { 128 } else { 0 }
    }

    fn is_live(&self) -> bool {
        self.phase == Phase::Live && !self.failed
    }

    fn read(&self, at: u64) -> u32 {
        let selected = self.plain(0x30);
        match at {
            0x00 => 0x7472_6976,
            0x04 => 2,
            0x08 => 42,
            0x0c => u32::from_le_bytes(*b"PAND"),
            0x10 => OFFERED.get(self.plain(0x14) as usize).copied().unwrap_or(0),
            0x34 => SIZES.get(selected as usize).copied().unwrap_or(0),
            0x44 => u32::from(self.queue(selected, 0x44) == 1),
            0x60 => self.interrupt,
            0x70 => self.status(),
            0xb0 | 0xb4 => u32::MAX,
            0x100 => u32::from_le_bytes(*b"conf"),
            0x104 => u32::from_le_bytes(*b"ig\0\0"),
            _ => 0,
        }
    }

    fn write(&mut self, at: u64, value: u32) {
        let configuring = self.phase == Phase::Agreed && !self.failed;
        match at {
            0x14 | 0x24 | 0x30 => {
                self.plain.insert(at, value);
            }
            0x20 if self.phase == Phase::Driven && !self.failed => {
                let half = self.plain(0x24) as usize;
                if half < 2 {
                    self.features[half] = value;
                }
            }
            0x64 => self.interrupt &= !value,
            0x70 => self.write_status(value),
            _ if QUEUE.contains(&at) && configuring => {
                let queue = self.plain(0x30);
                if queue < 2 {
                    self.queues.insert((queue, at), value);
                }
            }
            _ => {}
        }
    }

    fn write_status(&mut self, value: u32) {
        let agreed = self.features[0] & !0x20 == 0
            && self.features[1] & !0x101 == 0
            && self.features[1] & 1 == 1;
        // The device's bit is not the driver's.
        let wanted = value & !64;
        match (self.phase, wanted) {
            _ if value == 0 => *self = Self::new(),
            _ if self.failed => {}
            (phase, wanted) if wanted == phase.bits() & !64 | 128 => self.failed = true,
            (Phase::Off, 1) => self.phase = Phase::Noticed,
            (Phase::Noticed, 3) => self.phase = Phase::Driven,
            (Phase::Driven, 11) if agreed => self.phase = Phase::Agreed,
            (Phase::Agreed, 15) if (0..2).all(|queue| self.is_sound(queue)) => {
                self.phase = Phase::Live;
            }
            (Phase::Agreed, 15) => self.get_sick(),
            _ => {}
        }
    }

    fn is_sound(&self, queue: u32) -> bool {
        let get = |at: u64| u128::from(self.queue(queue, at));
        let size = get(0x38);
        let inside = |at: u64, alignment: u128, bytes: u128| {
            let start = get(at + 4) * (1 << 32) + get(at);
            start % alignment == 0 && start + bytes <= MEMORY as u128
        };
        let sizes: &[u128] = if queue == 0 { &[1, 2, 4, 8] } else { &[1, 2, 4] };
        get(0x44) == 1
            && sizes.contains(&size)
            && inside(0x80, 16, 16 * size)
            && inside(0x90, 2, 2 * size + 6)
            && inside(0xa0, 4, 8 * size + 6)
    }

    fn get_sick(&mut self) {
        self.phase = Phase::Sick;
        self.interrupt |= 2;
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// A store of a word.
    Set(u64, u32),
    /// A load of a word.
    Get(u64),
    /// A store or load that no driver would do.
    Odd { at: u64, len: usize, byte: u8 },
    /// A proper driver, up to a status, with one register of a queue wrong.
    Up { until: u32, wrong: Option<(u32, u64, u32)> },
    /// The driver gives up.
    Fail,
    /// Something in guest memory, mostly where rings are.
    Poke(u64, Vec<u8>),
    /// A turn of the device.
    Turn,
    /// Saved and restored.
    Copy,
}

fn step() -> impl Strategy<Value = Step> {
    let register = || {
        prop_oneof![
            4 => (0..0x48u64).prop_map(|word| word * 4),
            2 => prop::sample::select(&QUEUE[..]),
            2 => prop::sample::select(&[0x14u64, 0x20, 0x24, 0x30, 0x50, 0x60, 0x64, 0x70][..]),
        ]
    };
    let value = || {
        prop_oneof![
            4 => prop::sample::select(&[0u32, 1, 2, 3, 4, 8, 11, 15, 0x20, 79, 131, 0x101][..]),
            1 => (0..0x40u32).prop_map(|page| page * 0x1_0000),
            1 => any::<u32>(),
        ]
    };
    let wrong = (0..3u32, prop::sample::select(&QUEUE[..]), value());
    let until = prop_oneof![1 => prop::sample::select(&[1u32, 3, 11][..]), 3 => Just(15u32)];
    let ring = (0..2u64, prop::sample::select(&[0u64, 0x4000, 0x8000][..]), 0..24u64)
        .prop_map(|(queue, area, at)| 0x1_0000 * (queue + 1) + area + at);
    let poked = prop::collection::vec(prop_oneof![3 => 0..8u8, 1 => any::<u8>()], 1..20);
    prop_oneof![
        6 => (register(), value()).prop_map(|(at, value)| Step::Set(at, value)),
        4 => register().prop_map(Step::Get),
        2 => (0..0x1000u64, 0..17usize, any::<u8>())
            .prop_map(|(at, len, byte)| Step::Odd { at, len, byte }),
        2 => (until, prop::option::weighted(0.3, wrong))
            .prop_map(|(until, wrong)| Step::Up { until, wrong }),
        1 => Just(Step::Fail),
        3 => (ring, poked).prop_map(|(at, bytes)| Step::Poke(at, bytes)),
        3 => Just(Step::Turn),
        1 => Just(Step::Copy),
    ]
}

/// The stores of [`Step::Up`].
fn stores(until: u32, wrong: Option<(u32, u64, u32)>) -> Vec<(u64, u32)> {
    let mut stores = vec![(0x70, 0), (0x70, 1)];
    if until >= 3 {
        stores.extend([(0x70, 3), (0x24, 1), (0x20, 1)]);
    }
    if until >= 11 {
        stores.push((0x70, 11));
        for (queue, size) in (0..).zip(SIZES) {
            let base = 0x1_0000 * (queue + 1);
            let areas = [(0x80, base), (0x90, base + 0x4000), (0xa0, base + 0x8000)];
            stores.extend([(0x30, queue), (0x38, size), (0x44, 1)]);
            stores.extend(areas);
        }
        stores.extend(wrong.iter().flat_map(|(queue, at, value)| [(0x30, *queue), (*at, *value)]));
    }
    if until == 15 {
        stores.push((0x70, 15));
    }
    stores
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn registers_are_what_the_model_says(steps in prop::collection::vec(step(), 0..60)) {
        let (slot, bus, interrupts) = slot(Echo::default());
        let mut model = Model::new();
        let store = |model: &mut Model, at: u64, value: u32| {
            slot.write(at, &value.to_le_bytes());
            model.write(at, value);
        };
        for step in steps {
            match step {
                Step::Set(at, value) => store(&mut model, at, value),
                Step::Get(at) => prop_assert_eq!(get(&slot, at), model.read(at), "{:#x}", at),
                Step::Odd { at, len, byte } => {
                    let is_word = at % 4 == 0 && len == 4 && at < 0x100;
                    if !is_word {
                        slot.write(at, &vec![byte; len]);
                        let mut loaded = vec![byte; len];
                        slot.read(at, &mut loaded);
                        let config = (at..at + len as u64).map(|at| {
                            let at = at.checked_sub(0x100).filter(|_| [1, 2, 4, 8].contains(&len));
                            at.and_then(|at| b"config".get(at as usize)).copied().unwrap_or(0)
                        });
                        let expected: Vec<u8> =
                            if at < 0x100 { vec![0; len] } else { config.collect() };
                        prop_assert_eq!(loaded, expected);
                    }
                }
                Step::Up { until, wrong } => {
                    for (at, value) in stores(until, wrong) {
                        store(&mut model, at, value);
                    }
                }
                Step::Fail => {
                    let value = get(&slot, 0x70) | 128;
                    store(&mut model, 0x70, value);
                }
                Step::Poke(at, bytes) => {
                    bus.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
                }
                Step::Turn => {
                    let before = slot.with(|echo| echo.turns);
                    // Of before.
                    interrupts.try_iter().for_each(drop);
                    slot.work();
                    let turns = slot.with(|echo| echo.turns) - before;
                    prop_assert_eq!(turns, u32::from(model.is_live()));
                    // What is in the rings is not the model's: it learns what came of it.
                    if model.is_live() && get(&slot, 0x70) == Phase::Sick.bits() {
                        model.get_sick();
                    }
                    let now = get(&slot, 0x60);
                    prop_assert_eq!(now & !1, model.interrupt & !1);
                    if turns == 1 {
                        let anew = interrupts.try_iter().count();
                        prop_assert!(anew <= 1);
                        prop_assert!(anew == 1 || now == model.interrupt);
                        model.interrupt = now;
                    }
                }
                Step::Copy => {
                    let state = slot.save();
                    slot.restore(state.clone()).unwrap();
                    prop_assert_eq!(slot.save(), state);
                }
            }
            prop_assert_eq!(get(&slot, 0x70), model.status());
            prop_assert_eq!(get(&slot, 0x60), model.interrupt);
            prop_assert!(!model.is_live() || slot.with(|echo| echo.started.is_some()));
        }
    }
}
