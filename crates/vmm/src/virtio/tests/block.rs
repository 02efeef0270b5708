//! A disk against a model of one, and drivers that get requests wrong.

use std::io;

use proptest::prelude::*;

use super::driver::{DATA, Driver, get, slot};
use crate::virtio::block::{Block, SECTOR, Storage};
use crate::virtio::mmio::offset;
use crate::virtio::serve::Served;
use crate::virtio::slot::{Slot, Window};

pub const SECTORS: u64 = 300;
pub const OK: u8 = 0;
pub const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
pub const IN: u32 = 0;
pub const OUT: u32 = 1;
pub const FLUSH: u32 = 4;
pub const GET_ID: u32 = 8;

/// Where requests have their header, their data and their status.
pub const HEADER: u64 = DATA;
pub const STATUS: u64 = DATA + 0x1000;
pub const BUFFER: u64 = DATA + 0x1_0000;

/// A disk in memory, somewhat longer than its last sector.
pub struct Ram {
    pub bytes: Vec<u8>,
    flushes: u32,
    broken: bool,
}

impl Ram {
    pub fn new() -> Self {
        let bytes = (0..SECTORS * SECTOR + 100).map(|at| (at / 7) as u8).collect();
        Self { bytes, flushes: 0, broken: false }
    }

    fn works(&self) -> io::Result<()> {
        if self.broken { Err(io::Error::other("broken")) } else { Ok(()) }
    }
}

impl Storage for Ram {
    fn bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.works()?;
        buffer.copy_from_slice(&self.bytes[offset as usize..][..buffer.len()]);
        Ok(())
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.works()?;
        self.bytes[offset as usize..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.works()?;
        self.flushes += 1;
        Ok(())
    }
}

fn disk() -> Block<Ram> {
    Block::new(Ram::new(), "panda-root", false)
}

/// Parts of a buffer, one after the other with holes between them.
fn spans(sizes: &[u32]) -> Vec<(u64, u32)> {
    let mut at = BUFFER;
    let mut next = |len: u32| {
        let span = (at, len);
        at += u64::from(len) + 13;
        span
    };
    sizes.iter().map(|len| next(*len)).collect()
}

fn scatter(driver: &Driver<'_>, spans: &[(u64, u32)], mut bytes: &[u8]) {
    for (at, len) in spans {
        let (now, rest) = bytes.split_at(*len as usize);
        driver.poke(*at, now);
        bytes = rest;
    }
}

fn gather(driver: &Driver<'_>, spans: &[(u64, u32)]) -> Vec<u8> {
    spans.iter().flat_map(|(at, len)| driver.peek(*at, *len as usize)).collect()
}

/// Has one request done; returns its status and what the device says it wrote.
pub fn request<S: Storage>(
    slot: &Slot<Block<S>>,
    driver: &mut Driver<'_>,
    (kind, sector): (u32, u64),
    out: &[(u64, u32)],
    into: &[(u64, u32)],
) -> (u8, u32) {
    let header = [kind.to_le_bytes(), 7u32.to_le_bytes()].concat();
    driver.poke(HEADER, &[header, sector.to_le_bytes().to_vec()].concat());
    driver.poke(STATUS, &[0xee]);
    // The framing is the driver's: the header in two parts.
    let readable = [&[(HEADER, 3), (HEADER + 3, 13)], out].concat();
    let writable = [into, &[(STATUS, 1)]].concat();
    let head = driver.offer(0, &readable, &writable);
    driver.notify(0);
    while slot.work() {}
    let (back, written) = driver.used(0).expect("an answer");
    assert_eq!(back, head);
    (driver.peek(STATUS, 1)[0], written)
}

#[test]
fn a_driver_finds_size_segments_and_features() {
    let (slot, bus, _) = slot(disk());
    assert_eq!(get(&slot, offset::DEVICE_ID), 2);
    let mut config = [0xff; 8];
    slot.read(0x100, &mut config);
    assert_eq!(u64::from_le_bytes(config), SECTORS);
    assert_eq!(get(&slot, 0x10c), 126);
    assert_eq!(get(&slot, offset::DEVICE_FEATURES), 1 << 9 | 1 << 2);
    let read_only = Slot::new(0, Block::new(Ram::new(), "x", true), &bus);
    assert_eq!(get(&read_only, offset::DEVICE_FEATURES), 1 << 9 | 1 << 5 | 1 << 2);
}

#[test]
fn the_serial_number_is_twenty_bytes_or_as_many_as_there_is_room_for() {
    let id = |serial: &str, room: u32| {
        let (slot, bus, _) = slot(Block::new(Ram::new(), serial, false));
        let mut driver = Driver::new(&slot, &bus);
        driver.poke(BUFFER, &[0xaa; 32]);
        let (status, written) = request(&slot, &mut driver, (GET_ID, 0), &[], &[(BUFFER, room)]);
        assert_eq!(status, OK);
        assert_eq!(written, room.min(20) + 1);
        driver.peek(BUFFER, 24)
    };
    assert_eq!(id("panda-root", 20), b"panda-root\0\0\0\0\0\0\0\0\0\0\xaa\xaa\xaa\xaa");
    assert_eq!(id("panda-root", 32), id("panda-root", 20));
    assert_eq!(&id("panda-root", 3)[..4], b"pan\xaa");
    assert_eq!(&id("a-serial-number-that-is-long", 20)[..21], b"a-serial-number-that\xaa");
}

#[test]
fn what_is_outside_of_the_disk_or_not_whole_sectors_is_an_error() {
    let (slot, bus, _) = slot(disk());
    let mut driver = Driver::new(&slot, &bus);
    for (sector, len, expected) in [
        (SECTORS - 1, 512, OK),
        (SECTORS, 0, OK),
        (SECTORS - 1, 1024, IOERR),
        (SECTORS, 512, IOERR),
        (SECTORS + 1, 0, IOERR),
        (0, 511, IOERR),
        (0, 513, IOERR),
        (u64::MAX, 512, IOERR),
        (u64::MAX / SECTOR, 512, IOERR),
        (u64::MAX / SECTOR + 1, 512, IOERR),
    ] {
        let span = [(BUFFER, len)];
        let (status, written) = request(&slot, &mut driver, (IN, sector), &[], &span);
        assert_eq!(status, expected, "read {len} at {sector}");
        assert_eq!(written, if expected == OK { len + 1 } else { 1 });
        let (status, written) = request(&slot, &mut driver, (OUT, sector), &span, &[]);
        assert_eq!((status, written), (expected, 1), "write {len} at {sector}");
    }
}

#[test]
fn a_read_only_disk_is_not_written() {
    let (slot, bus, _) = slot(Block::new(Ram::new(), "x", true));
    let mut driver = Driver::new(&slot, &bus);
    driver.poke(BUFFER, &[0xaa; 512]);
    let answer = request(&slot, &mut driver, (OUT, 0), &[(BUFFER, 512)], &[]);
    assert_eq!(answer, (IOERR, 1));
    assert_eq!(slot.with(|disk| disk.storage().bytes.clone()), Ram::new().bytes);
    assert_eq!(request(&slot, &mut driver, (IN, 0), &[], &[(BUFFER, 512)]), (OK, 513));
}

#[test]
fn an_error_of_the_storage_is_an_answer_and_passes() {
    let (slot, bus, _) = slot(disk());
    let mut driver = Driver::new(&slot, &bus);
    for (broken, expected) in [(true, IOERR), (false, OK)] {
        slot.with(|disk| disk.storage().broken = broken);
        let read = request(&slot, &mut driver, (IN, 1), &[], &[(BUFFER, 512)]);
        let write = request(&slot, &mut driver, (OUT, 1), &[(BUFFER, 512)], &[]);
        let flush = request(&slot, &mut driver, (FLUSH, 0), &[], &[]);
        assert_eq!([read.0, write.0, flush.0], [expected; 3]);
    }
}

#[test]
fn who_cannot_flush_need_not() {
    for (features, flushes) in [(u64::MAX, 0), (!(1 << 9), 1)] {
        let (slot, bus, _) = slot(disk());
        let mut driver = Driver::with_features(&slot, &bus, features);
        request(&slot, &mut driver, (OUT, 0), &[(BUFFER, 512)], &[]);
        assert_eq!(slot.with(|disk| disk.storage().flushes), flushes);
    }
}

#[test]
fn a_chain_without_header_or_room_for_a_status_is_a_broken_rule() {
    type Spans<'a> = &'a [(u64, u32)];
    let wrong: [(Spans<'_>, Spans<'_>); 5] = [
        (&[], &[(STATUS, 1)]),
        (&[(HEADER, 15)], &[(STATUS, 1)]),
        (&[(HEADER, 8), (HEADER, 7)], &[(BUFFER, 512), (STATUS, 1)]),
        (&[(HEADER, 16)], &[]),
        (&[(HEADER, 16)], &[(STATUS, 0)]),
    ];
    for (readable, writable) in wrong {
        let (slot, bus, _) = slot(disk());
        let mut driver = Driver::new(&slot, &bus);
        driver.offer(0, readable, writable);
        assert!(!slot.work());
        assert!(slot.complaint().is_some());
        assert_eq!(driver.used(0), None);
    }
}

#[test]
fn a_turn_is_bounded() {
    let (slot, bus, _) = slot(disk());
    let mut driver = Driver::new(&slot, &bus);
    driver.poke(HEADER, &[0; 16]);
    // Many small ones.
    for _ in 0..40 {
        driver.offer(0, &[(HEADER, 16)], &[(BUFFER, 512), (STATUS, 1)]);
    }
    assert!(slot.work());
    assert_eq!((0..100).take_while(|_| driver.used(0).is_some()).count(), 32);
    assert!(!slot.work());
    assert_eq!((0..100).take_while(|_| driver.used(0).is_some()).count(), 8);
    // Large ones: they are errors here, but count.
    for _ in 0..4 {
        driver.offer(0, &[(HEADER, 16)], &[(BUFFER, 1 << 19), (STATUS, 1)]);
    }
    assert!(slot.work());
    assert_eq!((0..100).take_while(|_| driver.used(0).is_some()).count(), 2);
}

#[derive(Clone, Debug)]
enum Op {
    Read {
        sector: u64,
        sizes: Vec<u32>,
    },
    Write {
        sector: u64,
        sizes: Vec<u32>,
        seed: u8,
    },
    Flush,
    Other(u32),
    /// What a fork or a snapshot does in between.
    Copy,
}

/// Sizes that are whole sectors together, but not each, most of the time.
fn sizes() -> impl Strategy<Value = Vec<u32>> {
    (0..260u32, prop::collection::vec(0..140_000u32, 0..6), prop::bool::weighted(0.9)).prop_map(
        |(sectors, cuts, whole)| {
            let total = sectors * SECTOR as u32 + u32::from(!whole);
            let mut cuts: Vec<u32> = cuts.into_iter().map(|cut| cut.min(total)).collect();
            cuts.extend([0, total]);
            cuts.sort_unstable();
            cuts.windows(2).map(|pair| pair[1] - pair[0]).collect()
        },
    )
}

fn op() -> impl Strategy<Value = Op> {
    let sector = || prop_oneof![9 => 0..SECTORS + 4, 1 => any::<u64>()];
    prop_oneof![
        4 => (sector(), sizes()).prop_map(|(sector, sizes)| Op::Read { sector, sizes }),
        4 => (sector(), sizes(), any::<u8>())
            .prop_map(|(sector, sizes, seed)| Op::Write { sector, sizes, seed }),
        1 => Just(Op::Flush),
        1 => any::<u32>().prop_filter("known", |kind| ![IN, OUT, FLUSH, GET_ID].contains(kind))
            .prop_map(Op::Other),
        1 => Just(Op::Copy),
    ]
}

/// Said with numbers that cannot overflow.
fn is_inside(sector: u64, bytes: u64) -> bool {
    let end = u128::from(sector) * u128::from(SECTOR) + u128::from(bytes);
    bytes.is_multiple_of(SECTOR) && end <= u128::from(SECTORS * SECTOR)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_disk_is_what_was_written_to_it(ops in prop::collection::vec(op(), 1..30)) {
        let (slot, bus, _) = slot(disk());
        let mut driver = Driver::new(&slot, &bus);
        let mut model = Ram::new();
        for op in ops {
            match op {
                Op::Read { sector, sizes } => {
                    let spans = spans(&sizes);
                    let total: u64 = sizes.iter().map(|len| u64::from(*len)).sum();
                    let before = vec![0x5a; total as usize];
                    scatter(&driver, &spans, &before);
                    let answer = request(&slot, &mut driver, (IN, sector), &[], &spans);
                    let fine = is_inside(sector, total);
                    if fine {
                        prop_assert_eq!(answer, (OK, total as u32 + 1));
                        let there = &model.bytes[(sector * SECTOR) as usize..][..total as usize];
                        prop_assert!(gather(&driver, &spans) == there);
                    } else {
                        prop_assert_eq!(answer, (IOERR, 1));
                        prop_assert!(gather(&driver, &spans) == before);
                    }
                }
                Op::Write { sector, sizes, seed } => {
                    let spans = spans(&sizes);
                    let total: u64 = sizes.iter().map(|len| u64::from(*len)).sum();
                    let bytes: Vec<u8> =
                        (0..total).map(|at| seed.wrapping_add((at / 3) as u8)).collect();
                    scatter(&driver, &spans, &bytes);
                    let answer = request(&slot, &mut driver, (OUT, sector), &spans, &[]);
                    let fine = is_inside(sector, total);
                    prop_assert_eq!(answer, (if fine { OK } else { IOERR }, 1));
                    if fine {
                        model.write_at(sector * SECTOR, &bytes).unwrap();
                    }
                }
                Op::Flush => {
                    prop_assert_eq!(request(&slot, &mut driver, (FLUSH, 0), &[], &[]), (OK, 1));
                    model.flushes += 1;
                }
                Op::Other(kind) => {
                    let answer = request(&slot, &mut driver, (kind, 0), &[], &[(BUFFER, 512)]);
                    prop_assert_eq!(answer, (UNSUPP, 1));
                }
                Op::Copy => slot.restore(slot.save()).unwrap(),
            }
        }
        slot.with(|disk| {
            assert!(disk.storage().bytes == model.bytes);
            assert_eq!(disk.storage().flushes, model.flushes);
        });
    }
}
