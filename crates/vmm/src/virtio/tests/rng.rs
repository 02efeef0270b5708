//! Entropy.

use super::driver::{DATA, Driver, get, slot};
use crate::virtio::mmio::offset;
use crate::virtio::rng::Rng;
use crate::virtio::serve::Served;

#[test]
fn every_answer_is_random_and_no_longer_than_a_page() {
    let (slot, bus, _) = slot(Rng);
    assert_eq!(get(&slot, offset::DEVICE_ID), 4);
    let mut driver = Driver::new(&slot, &bus);
    let mut answers = Vec::new();
    for (room, expected) in [(32, 32), (1, 1), (4096, 4096), (100_000, 4096), (32, 32)] {
        driver.poke(DATA, &vec![0; 5000]);
        let head = driver.offer(
            0,
            &[],
            &[(DATA, room / 2), (DATA + u64::from(room / 2), room - room / 2)],
        );
        slot.work();
        assert_eq!(driver.used(0), Some((head, expected)));
        assert_eq!(driver.peek(DATA + u64::from(expected), 8), [0; 8], "{room}");
        answers.push(driver.peek(DATA, expected as usize));
    }
    assert_ne!(answers[0], answers[4]);
    assert_ne!(answers[0], [0; 32]);
    // Both halves are filled: 2048 zeros by accident do not happen.
    assert!(answers[2][2048..].iter().any(|byte| *byte != 0));
}

#[test]
fn all_that_is_asked_for_is_answered_in_a_turn() {
    let (slot, bus, _) = slot(Rng);
    let mut driver = Driver::new(&slot, &bus);
    for _ in 0..8 {
        driver.offer(0, &[], &[(DATA, 16)]);
    }
    assert!(!slot.work());
    assert_eq!((0..10).take_while(|_| driver.used(0).is_some()).count(), 8);
}

#[test]
fn asking_for_nothing_is_a_broken_rule() {
    for (readable, writable) in [(16, 0), (0, 0)] {
        let (slot, bus, _) = slot(Rng);
        let mut driver = Driver::new(&slot, &bus);
        driver.offer(0, &[(DATA, readable)], &[(DATA, writable)]);
        slot.work();
        assert!(slot.complaint().is_some());
    }
}
