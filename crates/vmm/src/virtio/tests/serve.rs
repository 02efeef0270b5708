//! The thread of devices: nothing is lost, and it stops when it is told to.

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use super::driver::{DATA, Driver, Echo, GSI, bus, get, set, slot};
use crate::virtio::mmio::offset;
use crate::virtio::serve::{Bell, Served, Waiting};
use crate::virtio::{Bus, Interest};

const SOON: Duration = Duration::from_secs(20);

/// Runs the thread of devices while `guest` does something.
fn while_served<R>(bus: &Bus, slots: &[&dyn Served], guest: impl FnOnce() -> R) -> R {
    thread::scope(|scope| {
        let server = scope.spawn(|| bus.bell.serve(slots));
        // Also if the guest fails: the scope waits for the server.
        let _stop = StopAtEnd(&bus.bell);
        let result = guest();
        bus.bell.stop();
        server.join().unwrap().unwrap();
        result
    })
}

struct StopAtEnd<'a>(&'a Bell);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.stop();
        }
    }
}

fn one_echo(driver: &mut Driver<'_>, interrupts: &Receiver<u32>) {
    let head = driver.offer(0, &[], &[(DATA, 3)]);
    driver.notify(0);
    assert_eq!(interrupts.recv_timeout(SOON), Ok(GSI));
    assert_eq!(driver.used(0), Some((head, 3)));
}

#[test]
fn a_notification_is_answered_with_an_interrupt_each_time() {
    let (slot, bus, interrupts) = slot(Echo::default());
    let mut driver = Driver::new(&slot, &bus);
    while_served(&bus, &[&slot], || (0..1000).for_each(|_| one_echo(&mut driver, &interrupts)));
}

#[test]
fn it_starts_and_stops_again_and_again() {
    let (slot, bus, interrupts) = slot(Echo::default());
    let mut driver = Driver::new(&slot, &bus);
    for _ in 0..100 {
        while_served(&bus, &[&slot], || one_echo(&mut driver, &interrupts));
        // With nothing in between, and with a stop that comes first.
        while_served(&bus, &[&slot], || ());
        bus.bell.stop();
        bus.bell.serve(&[&slot]).unwrap();
    }
    while_served(&bus, &[], || ());
}

#[test]
fn what_came_while_nobody_served_is_done_first() {
    let (slot, bus, interrupts) = slot(Echo::default());
    let mut driver = Driver::new(&slot, &bus);
    while_served(&bus, &[&slot], || one_echo(&mut driver, &interrupts));
    // Without a notification, as if it got lost with the thread of before.
    driver.offer(0, &[], &[(DATA, 3)]);
    while_served(&bus, &[&slot], || assert_eq!(interrupts.recv_timeout(SOON), Ok(GSI)));
}

#[test]
fn what_is_more_than_a_turn_is_done_without_being_asked_again() {
    let (slot, bus, interrupts) = slot(Echo::default());
    let mut driver = Driver::new(&slot, &bus);
    for _ in 0..8 {
        driver.offer(0, &[], &[(DATA, 3)]);
    }
    while_served(&bus, &[&slot], || {
        (0..8).for_each(|_| assert_eq!(interrupts.recv_timeout(SOON), Ok(GSI)));
    });
    assert_eq!(slot.with(|echo| echo.chains), 8);
}

#[test]
fn a_renewed_bell_is_not_heard_by_who_had_the_old_one() {
    let (slot, bus, interrupts) = slot(Echo::default());
    let mut driver = Driver::new(&slot, &bus);
    let old = bus.bell.event().try_clone_to_owned().unwrap();
    assert!(readable(&old), "a start rings");
    rustix::io::read(&old, &mut [0; 8]).unwrap();
    bus.bell.stop();
    bus.bell.renew().unwrap();
    assert!(!readable(&bus.bell.event()), "nothing is left of before");
    while_served(&bus, &[&slot], || one_echo(&mut driver, &interrupts));
    assert!(!readable(&old));
}

fn readable(fd: &impl AsFd) -> bool {
    let mut polled = [rustix::event::PollFd::new(fd, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut polled, Some(&rustix::event::Timespec::default())).unwrap() == 1
}

/// Something that waits for a descriptor, and says when it was given a turn.
struct Waits {
    fd: Mutex<Option<UnixStream>>,
    turns: Mutex<Sender<()>>,
    count: AtomicUsize,
    read: bool,
}

impl Served for Waits {
    fn take_notified(&self) -> bool {
        false
    }

    fn work(&self) -> bool {
        self.count.fetch_add(1, Ordering::Relaxed);
        if let Some(socket) = &*self.fd.lock().unwrap() {
            socket.set_nonblocking(true).unwrap();
            let _ = rustix::io::read(socket, &mut [0; 64]);
        }
        self.turns.lock().unwrap().send(()).unwrap();
        false
    }

    fn waiting(&self) -> Option<Waiting> {
        let socket = self.fd.lock().unwrap();
        let fd = socket.as_ref()?.as_fd();
        Waiting::of(Interest { fd, read: self.read, write: false })
    }
}

fn waits(read: bool) -> (Waits, UnixStream, Receiver<()>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (sender, receiver) = channel();
    let fd = Mutex::new(Some(ours));
    (Waits { fd, turns: Mutex::new(sender), count: AtomicUsize::new(0), read }, theirs, receiver)
}

#[test]
fn a_descriptor_that_is_ready_is_a_turn() {
    let (device, mut peer, turns) = waits(true);
    let (bus, _) = bus();
    while_served(&bus, &[&device], || {
        turns.recv_timeout(SOON).unwrap();
        for _ in 0..10 {
            peer.write_all(b"x").unwrap();
            turns.recv_timeout(SOON).unwrap();
        }
    });
    assert_eq!(device.count.load(Ordering::Relaxed), 11);
}

#[test]
fn who_waits_for_nothing_is_not_woken_by_a_hangup() {
    let (device, peer, turns) = waits(false);
    let (slot, bus, interrupts) = slot(Echo::default());
    let mut driver = Driver::new(&slot, &bus);
    drop(peer);
    while_served(&bus, &[&device, &slot], || {
        turns.recv_timeout(SOON).unwrap();
        (0..10).for_each(|_| one_echo(&mut driver, &interrupts));
    });
    assert_eq!(device.count.load(Ordering::Relaxed), 1);
}

#[test]
fn vcpus_that_storm_it_together_do_not_get_it_stuck() {
    let (slot, bus, interrupts) = slot(Echo::default());
    let storm = |seed: u64| {
        let mut random = seed;
        for _ in 0..20_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let (what, value) = (random >> 60, (random >> 40) as u32 & 0xf);
            match what {
                0..4 => set(&slot, offset::QUEUE_NOTIFY, value),
                4..6 => set(&slot, offset::INTERRUPT_ACK, value),
                6 => set(&slot, offset::STATUS, value),
                7 => slot.with(|echo| echo.chains = 0),
                _ => {
                    get(&slot, u64::from(value) * 8);
                }
            }
        }
    };
    while_served(&bus, &[&slot], || {
        thread::scope(|scope| {
            for seed in 0..3 {
                scope.spawn(move || storm(seed));
            }
            for _ in 0..200 {
                // Somebody else may reset it meanwhile, so that this gets as far as it gets.
                for (at, value) in stores_of_a_driver() {
                    set(&slot, at, value);
                }
            }
        });
        let mut driver = Driver::new(&slot, &bus);
        interrupts.try_iter().for_each(drop);
        one_echo(&mut driver, &interrupts);
    });
}

fn stores_of_a_driver() -> impl Iterator<Item = (u64, u32)> {
    let queue = |index: u32| {
        let base = 0x1_0000 * (index + 1);
        [
            (offset::QUEUE_SELECT, index),
            (offset::QUEUE_SIZE, 4),
            (offset::QUEUE_DESCRIPTORS, base),
            (offset::QUEUE_AVAILABLE, base + 0x4000),
            (offset::QUEUE_USED, base + 0x8000),
            (offset::QUEUE_READY, 1),
        ]
    };
    let agree = [
        (offset::STATUS, 0),
        (offset::STATUS, 1),
        (offset::STATUS, 3),
        (offset::DRIVER_FEATURES_SELECT, 1),
        (offset::DRIVER_FEATURES, 1),
        (offset::STATUS, 0xb),
    ];
    let queues = [queue(0), queue(1)].concat();
    agree.into_iter().chain(queues).chain([(offset::STATUS, 0xf)])
}
