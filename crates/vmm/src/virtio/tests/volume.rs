//! A disk that is put into a place where there was none, under a driver that is there already.

use super::block::{BUFFER, HEADER, IN, IOERR, OK, OUT, Ram, SECTORS, STATUS, request};
use super::driver::{Driver, GSI, get, set, slot};
use crate::virtio::block::{Block, SECTOR};
use crate::virtio::mmio::offset;
use crate::virtio::serve::Served;
use crate::virtio::slot::{Slot, Window};

fn place() -> Block<Option<Ram>> {
    Block::new(None, "panda-volume-0", false).with_short_queue()
}

fn put(slot: &Slot<Block<Option<Ram>>>) {
    slot.reconfigure(|block| *block.storage() = Some(Ram::new()));
}

fn sectors(window: &dyn Window) -> u64 {
    let mut capacity = [0; 8];
    window.read(offset::CONFIG, &mut capacity);
    u64::from_le_bytes(capacity)
}

#[test]
fn an_empty_place_has_a_name_and_no_sector() {
    let (slot, bus, interrupts) = slot(place());
    let mut driver = Driver::new(&slot, &bus);
    while slot.work() {}
    assert_eq!((sectors(&slot), get(&slot, 0x10c)), (0, 62));
    assert_eq!(interrupts.try_iter().count(), 0);
    let span = [(BUFFER, 512)];
    assert_eq!(request(&slot, &mut driver, (IN, 0), &[], &span), (IOERR, 1));
    assert_eq!(request(&slot, &mut driver, (OUT, 0), &span, &[]), (IOERR, 1));
    assert_eq!(request(&slot, &mut driver, (super::block::FLUSH, 0), &[], &[]), (OK, 1));
    let (status, _) = request(&slot, &mut driver, (super::block::GET_ID, 0), &[], &[(BUFFER, 20)]);
    assert_eq!((status, &driver.peek(BUFFER, 15)[..]), (OK, &b"panda-volume-0\0"[..]));
}

#[test]
fn a_driver_is_told_of_the_size_with_the_next_turn() {
    let (slot, bus, interrupts) = slot(place());
    let mut driver = Driver::new(&slot, &bus);
    while slot.work() {}
    let before = get(&slot, offset::CONFIG_GENERATION);
    put(&slot);
    assert_ne!(get(&slot, offset::CONFIG_GENERATION), before);
    assert_eq!(interrupts.try_iter().count(), 0, "nobody serves it yet");
    assert!(slot.take_notified());
    while slot.work() {}
    assert_eq!(interrupts.try_iter().collect::<Vec<_>>(), [GSI]);
    assert_eq!(get(&slot, offset::INTERRUPT_STATUS), 2);
    set(&slot, offset::INTERRUPT_ACK, 2);
    assert_eq!(sectors(&slot), SECTORS);
    while slot.work() {}
    assert_eq!(interrupts.try_iter().count(), 0, "once");
    let last = (IN, SECTORS - 1);
    assert_eq!(request(&slot, &mut driver, last, &[], &[(BUFFER, 512)]), (OK, 513));
}

/// A driver that comes later reads the size when it comes.
#[test]
fn a_place_without_a_driver_can_be_filled() {
    let (slot, bus, _) = slot(place());
    put(&slot);
    while slot.work() {}
    let mut driver = Driver::new(&slot, &bus);
    assert_eq!(sectors(&slot), SECTORS);
    assert_eq!(request(&slot, &mut driver, (IN, 0), &[], &[(BUFFER, 512)]), (OK, 513));
}

/// The memory of a snapshot knows a volume that its device does not have until it is put in again:
/// what was asked of it before is answered then.
#[test]
fn a_request_that_was_under_way_in_a_snapshot_is_answered_by_the_volume_put_in_anew() {
    let (slot, bus, _) = slot(place());
    put(&slot);
    let mut driver = Driver::new(&slot, &bus);
    while slot.work() {}
    driver.poke(HEADER, &[&IN.to_le_bytes()[..], &[0; 4], &2u64.to_le_bytes()].concat());
    let head = driver.offer(0, &[(HEADER, 16)], &[(BUFFER, 512), (STATUS, 1)]);
    let state = slot.save();

    let restored = Slot::new(3, place(), &bus);
    restored.restore(state).unwrap();
    assert_eq!(sectors(&restored), 0);
    assert_eq!(driver.used(0), None);
    put(&restored);
    while restored.work() {}
    assert_eq!(sectors(&restored), SECTORS);
    assert_eq!(driver.used(0), Some((head, 513)));
    let expected = &Ram::new().bytes[2 * SECTOR as usize..][..512];
    assert_eq!((driver.peek(STATUS, 1)[0], &driver.peek(BUFFER, 512)[..]), (OK, expected));
    assert_eq!(get(&restored, offset::INTERRUPT_STATUS) & 2, 2);
}
