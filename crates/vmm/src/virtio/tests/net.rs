//! A network card between a driver and a socket.

use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair,
};

use super::driver::{DATA, Driver, GSI, get, slot};
use crate::virtio::mmio::offset;
use crate::virtio::net::{MAX_FRAME, Net};
use crate::virtio::serve::Served;
use crate::virtio::slot::Window;

const MAC: [u8; 6] = [2, 0x70, 0x61, 0x6e, 0x64, 0x61];
const RX: usize = 0;
const TX: usize = 1;
const HEADER: u32 = 12;

fn wire(kind: SocketType) -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap()
}

fn take(peer: &OwnedFd) -> Option<Vec<u8>> {
    let mut buffer = vec![0; 4096];
    let len = recv(peer, &mut buffer[..], RecvFlags::DONTWAIT).ok()?.1;
    buffer.truncate(len);
    Some(buffer)
}

fn frame(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|at| seed.wrapping_add(at as u8)).collect()
}

/// Gives the card a frame to send, behind a header that wants something that is not offered.
fn transmit(driver: &mut Driver<'_>, at: u64, frame: &[u8]) -> u16 {
    driver.poke(at, &[0xff; HEADER as usize]);
    driver.poke(at + 12, frame);
    // A frame in two parts, the first with the header.
    let first = frame.len().min(5) as u32;
    let rest = frame.len() as u32 - first;
    driver.offer(TX, &[(at, HEADER + first), (at + 12 + u64::from(first), rest)], &[])
}

#[test]
fn a_card_has_an_address_and_nothing_else() {
    let (slot, _, _) = slot(Net::new(None, MAC));
    assert_eq!(get(&slot, offset::DEVICE_ID), 1);
    assert_eq!(get(&slot, offset::DEVICE_FEATURES), 1 << 5);
    let mut config = [0xff; 8];
    slot.read(0x100, &mut config);
    assert_eq!(config, [2, 0x70, 0x61, 0x6e, 0x64, 0x61, 0, 0]);
}

#[test]
fn frames_go_both_ways() {
    for kind in [SocketType::SEQPACKET, SocketType::DGRAM] {
        let (ours, peer) = wire(kind);
        let (slot, bus, interrupts) = slot(Net::new(Some(ours), MAC));
        let mut driver = Driver::new(&slot, &bus);
        for len in [14, 60, 1514, MAX_FRAME] {
            let head = transmit(&mut driver, DATA, &frame(1, len));
            slot.work();
            assert_eq!(driver.used(TX), Some((head, 0)));
            assert_eq!(take(&peer), Some(frame(1, len)));
            assert_eq!(take(&peer), None);

            driver.poke(DATA, &[0xee; 2000]);
            let head = driver.offer(RX, &[], &[(DATA, 20), (DATA + 20, 1980)]);
            send(&peer, &frame(2, len), SendFlags::empty()).unwrap();
            slot.work();
            assert_eq!(driver.used(RX), Some((head, len as u32 + HEADER)));
            assert_eq!(driver.peek(DATA, 12), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
            assert_eq!(driver.peek(DATA + 12, len), frame(2, len));
            assert_eq!(driver.peek(DATA + 12 + len as u64, 4), [0xee; 4]);
        }
        assert_eq!(interrupts.try_iter().collect::<Vec<_>>(), [GSI; 8]);
    }
}

#[test]
fn frames_that_cannot_be_are_lost_and_the_next_is_not() {
    let (ours, peer) = wire(SocketType::SEQPACKET);
    let (slot, bus, _) = slot(Net::new(Some(ours), MAC));
    let mut driver = Driver::new(&slot, &bus);
    for len in [0, 1, 13, MAX_FRAME + 1, 70_000] {
        let head = transmit(&mut driver, DATA, &frame(1, len));
        slot.work();
        assert_eq!(driver.used(TX), Some((head, 0)), "{len}");
    }
    // Not even a header.
    driver.offer(TX, &[(DATA, 3)], &[]);
    driver.offer(TX, &[], &[(DATA, 1514)]);
    transmit(&mut driver, DATA, &frame(3, 99));
    slot.work();
    assert_eq!(take(&peer), Some(frame(3, 99)));
    assert_eq!(take(&peer), None);

    let head = driver.offer(RX, &[], &[(DATA, 1000)]);
    for len in [1, 13, 989, 1514, MAX_FRAME + 1, 9000, 988] {
        send(&peer, &frame(4, len), SendFlags::empty()).unwrap();
    }
    slot.work();
    assert_eq!(driver.used(RX), Some((head, 1000)));
    assert_eq!(driver.peek(DATA + 12, 988), frame(4, 988));
    assert_eq!(driver.used(RX), None);
    // Not even where there is room for it, and no part of it.
    let head = driver.offer(RX, &[], &[(DATA, 20_000)]);
    for len in [MAX_FRAME + 1, 9000, 60] {
        send(&peer, &frame(5, len), SendFlags::empty()).unwrap();
    }
    slot.work();
    assert_eq!(driver.used(RX), Some((head, 72)));
}

#[test]
fn frames_wait_in_the_socket_for_buffers() {
    let (ours, peer) = wire(SocketType::SEQPACKET);
    let (slot, bus, _) = slot(Net::new(Some(ours), MAC));
    let mut driver = Driver::new(&slot, &bus);
    slot.work();
    assert!(slot.waiting().is_none(), "no buffer, so nothing to wait for");
    for seed in 0..3 {
        send(&peer, &frame(seed, 60), SendFlags::empty()).unwrap();
    }
    slot.work();
    assert!(slot.waiting().is_none());
    for seed in 0..3 {
        let head = driver.offer(RX, &[], &[(DATA, 2000)]);
        slot.work();
        assert_eq!(driver.used(RX), Some((head, 72)));
        assert_eq!(driver.peek(DATA + 12, 60), frame(seed, 60));
    }
    driver.offer(RX, &[], &[(DATA, 2000)]);
    slot.work();
    assert!(slot.waiting().is_some());
    assert_eq!(driver.used(RX), None);
    assert_eq!(slot.save().positions[RX].next_available, 3, "nothing is held");
    // With the last buffer used, there is nothing to wait for again.
    send(&peer, &frame(0, 60), SendFlags::empty()).unwrap();
    slot.work();
    assert!(driver.used(RX).is_some());
    assert!(slot.waiting().is_none());
}

#[test]
fn frames_wait_in_the_queue_for_the_socket() {
    let (ours, peer) = wire(SocketType::SEQPACKET);
    let ready = ours.try_clone().unwrap();
    let (slot, bus, _) = slot(Net::new(Some(ours), MAC));
    let mut driver = Driver::new(&slot, &bus);
    let (mut sent, mut taken, mut jams) = (0u32, 0u32, 0);
    while taken < 2000 {
        while sent - taken < 100_000 && slot.waiting().is_none() {
            transmit(&mut driver, DATA, &frame(0, 1000));
            sent += 1;
            slot.work();
            while driver.used(TX).is_some() {}
        }
        jams += 1;
        assert!(sent - taken < 100_000, "the socket is never full");
        // Given a turn, it stays where it is.
        assert!(!slot.work());
        assert!(slot.waiting().is_some());
        while take(&peer).is_some() {
            taken += 1;
        }
        let mut polled = [PollFd::new(&ready, PollFlags::OUT)];
        assert_eq!(poll(&mut polled, Some(&Timespec::default())).unwrap(), 1);
        slot.work();
        assert!(driver.used(TX).is_some(), "the one that waited");
        taken += u32::from(take(&peer).is_some());
    }
    assert_eq!(sent, taken, "none was lost");
    assert!(jams > 1);
}

#[test]
fn without_a_peer_everything_disappears() {
    let (ours, peer) = wire(SocketType::SEQPACKET);
    let (gone, _) = wire(SocketType::SEQPACKET);
    drop(peer);
    for socket in [None, Some(ours), Some(gone)] {
        let (slot, bus, _) = slot(Net::new(socket, MAC));
        let mut driver = Driver::new(&slot, &bus);
        driver.offer(RX, &[], &[(DATA, 2000)]);
        for _ in 0..10 {
            transmit(&mut driver, DATA + 4096, &frame(0, 100));
        }
        while slot.work() {}
        assert_eq!((0..20).take_while(|_| driver.used(TX).is_some()).count(), 10);
        assert_eq!(driver.used(RX), None);
        assert!(slot.waiting().is_none());
        assert_eq!(slot.complaint(), None);

        // A new peer, as a copy gets one, is talked to.
        let (ours, peer) = wire(SocketType::SEQPACKET);
        slot.with(|net| net.set_socket(Some(ours)));
        assert!(slot.take_notified());
        send(&peer, &frame(7, 60), SendFlags::empty()).unwrap();
        slot.work();
        assert!(driver.used(RX).is_some());
    }
}

#[test]
fn a_turn_is_bounded() {
    let (ours, peer) = wire(SocketType::SEQPACKET);
    let (slot, bus, _) = slot(Net::new(Some(ours), MAC));
    let mut driver = Driver::new(&slot, &bus);
    for _ in 0..100 {
        driver.offer(RX, &[], &[(DATA, 2000)]);
        driver.offer(TX, &[(DATA, 100)], &[]);
        send(&peer, &frame(0, 60), SendFlags::empty()).unwrap();
    }
    assert!(slot.work());
    for queue in [RX, TX] {
        assert_eq!((0..100).take_while(|_| driver.used(queue).is_some()).count(), 64);
    }
    while slot.work() {}
    for queue in [RX, TX] {
        assert_eq!((0..100).take_while(|_| driver.used(queue).is_some()).count(), 36);
    }
}
