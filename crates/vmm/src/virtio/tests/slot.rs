//! A device in its slot: the way up, interrupts, broken rules, snapshots.

use super::driver::{Driver, Echo, GSI, bus, get, set, slot};
use crate::layout;
use crate::virtio::mmio::offset;
use crate::virtio::queue::QueuePosition;
use crate::virtio::serve::Served;
use crate::virtio::slot::{MAX_SLOTS, RestoreError, Slot, SlotState, Window, slot_at};
use crate::virtio::{Broken, DeviceState};

const STATUS: u64 = offset::STATUS;

/// Turns until the device has nothing more to do.
fn settle(slot: &Slot<Echo>) {
    let turns = (0..100).take_while(|_| slot.work()).count();
    assert!(turns < 100, "it does not come to rest");
}

#[test]
fn addresses_lead_to_windows() {
    let (bus, _) = bus();
    let slot = Slot::new(2, Echo::default(), &bus);
    assert_eq!(slot.address(), 0xd000_2000);
    assert_eq!(slot.gsi(), 7);
    assert_eq!(slot_at(slot.address() + 0x70), Some((2, 0x70)));
    assert_eq!(slot_at(layout::VIRTIO_BASE - 1), None);
    assert_eq!(slot_at(u64::MAX), None);
    let end = layout::VIRTIO_BASE + MAX_SLOTS as u64 * layout::VIRTIO_WINDOW;
    assert_eq!(slot_at(end - 1), Some((MAX_SLOTS - 1, 0xfff)));
    assert_eq!(slot_at(end), None);
}

#[test]
fn a_device_is_there_for_a_driver_to_find() {
    let (slot, _, _) = slot(Echo::default());
    assert_eq!(get(&slot, 0), u32::from_le_bytes(*b"virt"));
    assert_eq!(get(&slot, 4), 2);
    assert_eq!(get(&slot, 8), 42);
    assert_eq!(get(&slot, 0x10), 0x20);
    set(&slot, 0x14, 1);
    assert_eq!(get(&slot, 0x10), 0x101, "VERSION_1 is offered by itself");
    set(&slot, 0x14, 2);
    assert_eq!(get(&slot, 0x10), 0);
    // There is no shared memory.
    assert_eq!([get(&slot, 0xb0), get(&slot, 0xb4)], [u32::MAX; 2]);
}

#[test]
fn the_configuration_can_be_read_in_four_widths_and_not_be_written() {
    let (slot, _, _) = slot(Echo::default());
    for at in [0x100, 0x102, 0x105] {
        slot.write(at, b"x");
        slot.write(at, b"xxxx");
        slot.write(at, b"xxxxxxxx");
    }
    let read = |at: u64, len: usize| {
        let mut bytes = vec![0xff; len];
        slot.read(at, &mut bytes);
        bytes
    };
    assert_eq!(read(0x100, 1), b"c");
    assert_eq!(read(0x101, 2), b"on");
    assert_eq!(read(0x102, 4), b"nfig");
    assert_eq!(read(0x100, 8), b"config\0\0");
    assert_eq!(read(0x106, 4), [0; 4]);
    assert_eq!(read(0xfff, 8), [0; 8]);
    for len in [0, 3, 5, 6, 7, 9, 16] {
        assert_eq!(read(0x100, len), vec![0; len]);
    }
    assert_eq!(read(0xfe, 4), [0; 4]);
}

#[test]
fn registers_are_aligned_words_and_nothing_else() {
    let (slot, bus, _) = slot(Echo::default());
    let _driver = Driver::new(&slot, &bus);
    for len in [0, 1, 2, 3, 5, 8] {
        slot.write(STATUS, &vec![0; len]);
        let mut bytes = vec![0xff; len];
        slot.read(0, &mut bytes);
        assert_eq!(bytes, vec![0; len]);
    }
    for at in [STATUS - 1, STATUS + 1, STATUS + 2] {
        slot.write(at, &[0; 4]);
        assert_eq!(get(&slot, at), 0);
    }
    assert_eq!(get(&slot, STATUS), 0xf);
}

#[test]
fn chains_come_back_with_an_interrupt_that_says_why() {
    let (slot, bus, interrupts) = slot(Echo::default());
    let mut driver = Driver::new(&slot, &bus);
    assert!(slot.take_notified(), "a start is a notification");
    settle(&slot);
    assert_eq!(interrupts.try_iter().count(), 0);

    let head = driver.offer(1, &[(0x20_0000, 7)], &[(0x20_1000, 100), (0x20_2000, 11)]);
    driver.notify(1);
    assert!(slot.take_notified());
    assert!(!slot.take_notified());
    settle(&slot);
    assert_eq!(driver.used(1), Some((head, 111)));
    assert_eq!(driver.used(1), None);
    assert_eq!(interrupts.try_iter().collect::<Vec<_>>(), [GSI]);
    assert_eq!(get(&slot, offset::INTERRUPT_STATUS), 1);
    set(&slot, offset::INTERRUPT_ACK, 2);
    assert_eq!(get(&slot, offset::INTERRUPT_STATUS), 1);
    set(&slot, offset::INTERRUPT_ACK, 1);
    assert_eq!(get(&slot, offset::INTERRUPT_STATUS), 0);

    driver.want_interrupts(0, false);
    driver.offer(0, &[], &[(0x20_0000, 1)]);
    settle(&slot);
    assert!(driver.used(0).is_some());
    assert_eq!(interrupts.try_iter().count(), 0);
    assert_eq!(get(&slot, offset::INTERRUPT_STATUS), 0);
}

#[test]
fn a_device_works_from_driver_ok_to_reset() {
    let (slot, bus, _) = slot(Echo::default());
    // Notified and given turns before there is anything: nothing happens.
    set(&slot, offset::QUEUE_NOTIFY, 0);
    assert!(slot.take_notified());
    settle(&slot);
    assert_eq!(slot.with(|echo| echo.turns), 0);

    let mut driver = Driver::new(&slot, &bus);
    assert_eq!(slot.with(|echo| echo.started), Some(1 << 40 | 1 << 32 | 0x20));
    driver.offer(0, &[], &[(0x20_0000, 1)]);
    set(&slot, STATUS, 0);
    assert_eq!(slot.with(|echo| echo.started), None);
    settle(&slot);
    assert_eq!(driver.used(0), None);

    let mut driver = Driver::new(&slot, &bus);
    driver.offer(0, &[], &[(0x20_0000, 1)]);
    set(&slot, STATUS, 0x8f);
    settle(&slot);
    assert_eq!(driver.used(0), None, "a driver that gave up is left alone");
}

#[test]
fn a_reset_takes_interrupts_back() {
    let (slot, bus, _) = slot(Echo::default());
    let mut driver = Driver::new(&slot, &bus);
    driver.offer(0, &[], &[(0x20_0000, 1)]);
    settle(&slot);
    assert_eq!(get(&slot, offset::INTERRUPT_STATUS), 1);
    set(&slot, STATUS, 0);
    assert_eq!(get(&slot, offset::INTERRUPT_STATUS), 0);
}

/// Something wrong is in a queue: the device says so, and does nothing until it is reset.
fn breaks(expected: &str, wrong: impl FnOnce(&mut Driver<'_>)) {
    let (slot, bus, interrupts) = slot(Echo::default());
    let mut driver = Driver::new(&slot, &bus);
    wrong(&mut driver);
    driver.notify(0);
    settle(&slot);
    assert_eq!(slot.complaint().map(|broken| broken.0), Some(expected));
    assert_eq!(get(&slot, STATUS), 0x4f);
    assert_eq!(get(&slot, offset::INTERRUPT_STATUS) & 2, 2);
    assert_eq!(interrupts.try_iter().last(), Some(GSI));

    let turns = slot.with(|echo| echo.turns);
    driver.offer(1, &[], &[(0x20_0000, 1)]);
    settle(&slot);
    assert_eq!(slot.with(|echo| echo.turns), turns);
    assert_eq!(slot.save().positions, []);

    let mut driver = Driver::new(&slot, &bus);
    assert_eq!(slot.complaint(), None);
    driver.offer(0, &[], &[(0x20_0000, 5)]);
    settle(&slot);
    assert_eq!(driver.used(0), Some((0, 5)));
}

#[test]
fn chains_that_cannot_be_break_the_device() {
    breaks("a chain with a cycle", |driver| {
        driver.describe(0, 0, (0x20_0000, 1, 1, 1));
        driver.describe(0, 1, (0x20_0000, 1, 1, 0));
        driver.publish(0, 0);
    });
    breaks("a chain with a cycle", |driver| {
        driver.describe(0, 3, (0x20_0000, 1, 3, 3));
        driver.publish(0, 3);
    });
    breaks("a descriptor outside of its table", |driver| driver.publish(0, 8));
    breaks("a descriptor outside of its table", |driver| {
        driver.describe(0, 0, (0x20_0000, 1, 1, u16::MAX));
        driver.publish(0, 0);
    });
    for (start, len) in [(0x40_0000, 1), (0x3f_ffff, 2), (u64::MAX, 2), (0xd000_0000, 4)] {
        breaks("a descriptor outside of memory", |driver| {
            driver.offer(0, &[(start, len)], &[]);
        });
    }
    breaks("a descriptor outside of memory", |driver| {
        driver.offer(0, &[], &[(0, u32::MAX)]);
    });
    breaks("a descriptor outside of memory", |driver| {
        // Each fits, together they are too much.
        driver.offer(0, &[(0, 0x40_0000); 5], &[]);
    });
    breaks("a descriptor of an unknown kind or in the wrong place", |driver| {
        driver.describe(0, 0, (0x20_0000, 16, 4, 0));
        driver.publish(0, 0);
    });
    breaks("a descriptor of an unknown kind or in the wrong place", |driver| {
        driver.describe(0, 0, (0x20_0000, 16, 3, 1));
        driver.describe(0, 1, (0x20_0000, 16, 0, 0));
        driver.publish(0, 0);
    });
    for by in [9, 0x100, 0x8000, 0xffff] {
        breaks("an available index that jumped", |driver| driver.jump(0, by));
    }
}

#[test]
fn chains_that_overlap_the_rings_harm_the_guest_alone() {
    let (slot, bus, _) = slot(Echo::default());
    let mut driver = Driver::new(&slot, &bus);
    for at in [0x1_0000, 0x1_4000, 0x1_8000] {
        driver.offer(0, &[(at, 0x1000)], &[(at, 0x1000)]);
    }
    settle(&slot);
    assert_eq!(slot.with(|echo| echo.chains), 3);
}

#[test]
fn rings_that_cannot_be_are_found_out_at_driver_ok() {
    let wrong = [
        (offset::QUEUE_SIZE, 0),
        (offset::QUEUE_SIZE, 3),
        (offset::QUEUE_SIZE, 8),
        (offset::QUEUE_SIZE, 0x1_0004),
        (offset::QUEUE_READY, 0),
        (offset::QUEUE_DESCRIPTORS, 0x2_0008),
        (offset::QUEUE_DESCRIPTORS, 0x3f_ffd0),
        (offset::QUEUE_DESCRIPTORS + 4, 1),
        (offset::QUEUE_DESCRIPTORS + 4, u32::MAX),
        (offset::QUEUE_AVAILABLE, 0x2_0001),
        (offset::QUEUE_AVAILABLE, 0x3f_fff4),
        (offset::QUEUE_USED, 0x2_0002),
        (offset::QUEUE_USED, 0x3f_ffdc),
        (offset::QUEUE_USED, 0xd000_0000),
    ];
    for (at, value) in wrong {
        let (slot, bus, interrupts) = slot(Echo::default());
        // Once properly, for everything but the last step.
        let _ = Driver::new(&slot, &bus);
        let good = slot.save().registers;
        let resets = slot.with(|echo| echo.resets);
        for status in [0, 1, 3] {
            set(&slot, STATUS, status);
        }
        set(&slot, offset::DRIVER_FEATURES_SELECT, 1);
        set(&slot, offset::DRIVER_FEATURES, 1);
        set(&slot, STATUS, 0xb);
        for (index, queue) in (0..).zip(good.queues()) {
            set(&slot, offset::QUEUE_SELECT, index);
            set(&slot, offset::QUEUE_SIZE, u32::from(queue.size));
            set(&slot, offset::QUEUE_DESCRIPTORS, queue.descriptors as u32);
            set(&slot, offset::QUEUE_AVAILABLE, queue.available as u32);
            set(&slot, offset::QUEUE_USED, queue.used as u32);
            set(&slot, offset::QUEUE_READY, 1);
        }
        set(&slot, at, value);
        assert_eq!(interrupts.try_iter().count(), 0);
        set(&slot, STATUS, 0xf);
        assert_eq!(get(&slot, STATUS), 0x4f, "{at:#x} = {value:#x}");
        assert_eq!(interrupts.try_iter().collect::<Vec<_>>(), [GSI]);
        assert_eq!(get(&slot, offset::INTERRUPT_STATUS), 2);
        assert_eq!(slot.with(|echo| echo.started), None);
        assert_eq!(slot.with(|echo| echo.resets), resets + 1);
        // It is too late to mend it.
        set(&slot, offset::QUEUE_SIZE, 4);
        set(&slot, STATUS, 0xf);
        settle(&slot);
        assert_eq!(get(&slot, STATUS), 0x4f);
        assert_eq!(slot.with(|echo| echo.turns), 0);
    }
}

#[test]
fn a_live_queue_cannot_be_moved() {
    let (slot, bus, _) = slot(Echo::default());
    let mut driver = Driver::new(&slot, &bus);
    let before = slot.save();
    set(&slot, offset::QUEUE_SELECT, 0);
    for at in (0x38..0xb0).step_by(4).filter(|at| *at != STATUS) {
        set(&slot, at, 0x7fff_fff0);
    }
    assert_eq!(slot.save().registers.queues(), before.registers.queues());
    let head = driver.offer(0, &[], &[(0x20_0000, 9)]);
    settle(&slot);
    assert_eq!(driver.used(0), Some((head, 9)));
}

#[test]
fn a_saved_device_goes_on_elsewhere_as_itself() {
    let (slot, bus, _) = slot(Echo::default());
    let mut driver = Driver::new(&slot, &bus);
    for _ in 0..5 {
        driver.offer(0, &[], &[(0x20_0000, 1)]);
        settle(&slot);
        driver.used(0).unwrap();
    }
    driver.offer(0, &[], &[(0x20_0000, 77)]);
    set(&slot, offset::QUEUE_SELECT, 1);
    set(&slot, offset::DEVICE_FEATURES_SELECT, 1);
    let state = slot.save();
    let at = QueuePosition { next_available: 5, next_used: 5 };
    assert_eq!(state.positions[0], at);
    assert_eq!(state.interrupt_status, 1);
    let bytes = postcard::to_allocvec(&state).unwrap();
    assert_eq!(postcard::from_bytes::<SlotState>(&bytes).unwrap(), state);

    let other = Slot::new(3, Echo::default(), &bus);
    other.restore(state.clone()).unwrap();
    assert_eq!(other.save(), state);
    assert_eq!(get(&other, offset::DEVICE_FEATURES), 0x101);
    assert_eq!(get(&other, offset::INTERRUPT_STATUS), 1);
    assert_eq!(other.with(|echo| echo.started), Some(state.registers.features()));
    assert_eq!(other.with(|echo| echo.resets), 1, "whatever it was before");
    assert!(other.take_notified(), "a copy gets a turn");
    settle(&other);
    assert_eq!(driver.used(0), Some((5, 77)));
}

#[test]
fn a_state_that_cannot_be_is_refused() {
    let (original, bus, _) = slot(Echo::default());
    let fresh = original.save();
    let _ = Driver::new(&original, &bus);
    let live = original.save();
    let there = QueuePosition { next_available: 0, next_used: 0 };
    let registers = |state: SlotState| SlotState { registers: state.registers, ..live.clone() };
    let wrong: Vec<(&str, SlotState)> = vec![
        ("no positions", SlotState { positions: vec![], ..live.clone() }),
        ("too many positions", SlotState { positions: vec![there; 3], ..live.clone() }),
        ("positions of a fresh device", SlotState { positions: vec![there; 2], ..fresh.clone() }),
        ("positions, but not live", registers(fresh.clone())),
        ("unknown interrupts", SlotState { interrupt_status: 4, ..live.clone() }),
        (
            "other device",
            SlotState {
                device: DeviceState::Vsock { connection: None, told: None },
                ..live.clone()
            },
        ),
    ];
    for (what, state) in wrong {
        let other = Slot::new(3, Echo::default(), &bus);
        assert!(other.restore(state).is_err(), "{what}");
        // Of no use any more, but no harm either.
        settle(&other);
        let _ = other.save();
    }
    // A smaller machine does not have these rings.
    let memory = crate::GuestMemory::from_ranges(&[(vm_memory::GuestAddress(0), 0x1000)]).unwrap();
    let small = crate::virtio::Bus { memory, ..bus.clone() };
    let refused = Slot::new(3, Echo::default(), &small).restore(live).unwrap_err();
    assert!(matches!(refused, RestoreError::Queue(Broken("a queue outside of memory"))));
    assert!(Slot::new(3, Echo::default(), &small).restore(fresh).is_ok());
}
