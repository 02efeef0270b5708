//! Queues over memory made of bytes, against a second opinion: what is taken out of a ring is what
//! the standard says is in it, lies within memory, and is refused exactly where it is not.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pandastack_fuzz::Script;
use pandastack_vmm::GuestMemory;
use pandastack_vmm::virtio::queue::MAX_CHAIN_BYTES;
use pandastack_vmm::virtio::{Chain, Queue, QueueSetup, Span};
use vm_memory::{Bytes, GuestAddress};

/// Guest memory, from 0 on: an address of 16 bits is inside.
const MEMORY: u64 = 64 << 10;
/// Largest queue of this device.
const MAX: u16 = 16;

fuzz_target!(|bytes: &[u8]| {
    run(Script(bytes));
});

fn run(mut script: Script<'_>) -> Option<()> {
    let ranges = [(GuestAddress(0), MEMORY as usize)];
    let memory = GuestMemory::from_ranges(&ranges).expect("guest memory");
    let setup = setup(&mut script)?;
    let queue = Queue::new(setup, MAX, &memory);
    assert_eq!(queue.is_ok(), is_sound(&setup), "{setup:?}");
    let mut queue = queue.ok()?;
    loop {
        match script.u8()? % 8 {
            0 => poke(&memory, script.u16()?, script.some(64)?),
            // A descriptor, where it counts.
            1 => {
                let at = setup.descriptors + 16 * u64::from(u16::from(script.u8()?) % MAX);
                let (start, len, flags, next) =
                    (script.u16()?, script.u16()?, script.u8()?, script.u8()?);
                let rest = u64::from(len) | u64::from(flags % 4) << 32 | u64::from(next) << 48;
                let _ = memory.write_obj([u64::from(start), rest], GuestAddress(at));
            }
            // An entry of the available ring, and the index behind it.
            2 => {
                let index = word(&memory, setup.available + 2);
                let at = setup.available + 4 + 2 * u64::from(index % setup.size);
                let _ = memory.write_obj(u16::from(script.u8()?), GuestAddress(at));
                let _ = memory.write_obj(index.wrapping_add(1), GuestAddress(setup.available + 2));
            }
            3 => {
                queue = Queue::restore(setup, MAX, queue.position(), &memory).expect("the same");
            }
            4 => {
                let (head, written) = (script.u16()?, script.u32()?);
                push(&mut queue, &memory, head, written);
            }
            5 => {
                let _ = queue.take_interrupt(&memory);
                assert_eq!(queue.take_interrupt(&memory), Ok(false), "asked for once");
            }
            _ => {
                if let Some(chain) = pop(&mut queue, &memory) {
                    queue.unpop();
                    assert_eq!(pop(&mut queue, &memory).as_ref(), Some(&chain), "taken again");
                    check(&chain, &memory, script)?;
                    push(&mut queue, &memory, chain.head, chain.writable_bytes() as u32);
                }
            }
        }
    }
}

/// Mostly a good one.
fn setup(script: &mut Script<'_>) -> Option<QueueSetup> {
    let [size, ready, odd] = script.take()?;
    let area = |script: &mut Script<'_>, mask: u64| match odd & 7 {
        0 => script.u64(),
        1 => script.u16().map(u64::from),
        _ => script.u16().map(|at| u64::from(at) & mask),
    };
    Some(QueueSetup {
        size: if odd & 8 == 0 { 1 << (size % 6) } else { u16::from(size) },
        ready: ready != 0,
        descriptors: area(script, !15)?,
        available: area(script, !1)?,
        used: area(script, !3)?,
    })
}

/// What virtio 1.2, section 2.7, asks of a queue.
fn is_sound(setup: &QueueSetup) -> bool {
    let size = u64::from(setup.size);
    let area = |start: u64, alignment: u64, bytes: u64| {
        start.is_multiple_of(alignment) && start.checked_add(bytes).is_some_and(|end| end <= MEMORY)
    };
    setup.ready
        && [1, 2, 4, 8, 16].contains(&setup.size)
        && area(setup.descriptors, 16, 16 * size)
        && area(setup.available, 2, 6 + 2 * size)
        && area(setup.used, 4, 6 + 8 * size)
}

/// Takes a chain and compares it with what is there.
fn pop(queue: &mut Queue, memory: &GuestMemory) -> Option<Chain> {
    let (setup, before) = (queue.setup(), queue.position());
    let expected = waiting(memory, &setup, before.next_available);
    let popped = queue.pop(memory);
    let moved = queue.position().next_available.wrapping_sub(before.next_available);
    assert_eq!(moved, u16::from(matches!(popped, Ok(Some(_)))), "moved by what was taken");
    assert_eq!(popped.ok(), expected, "{setup:?} at {before:?}");
    expected?
}

/// The chain that waits, `Some(None)` if there is none, `None` if the ring is broken.
fn waiting(memory: &GuestMemory, setup: &QueueSetup, next: u16) -> Option<Option<Chain>> {
    match word(memory, setup.available + 2).wrapping_sub(next) {
        0 => return Some(None),
        waiting if waiting > setup.size => return None,
        _ => {}
    }
    let head = word(memory, setup.available + 4 + 2 * u64::from(next % setup.size));
    let mut chain = Chain { head, ..Chain::default() };
    let (mut seen, mut at, mut bytes) = (Vec::new(), head, 0);
    loop {
        if at >= setup.size || seen.contains(&at) {
            return None;
        }
        seen.push(at);
        let entry = setup.descriptors + 16 * u64::from(at);
        let start: u64 = memory.read_obj(GuestAddress(entry)).expect("a checked table");
        let len: u32 = memory.read_obj(GuestAddress(entry + 8)).expect("a checked table");
        let (flags, next) = (word(memory, entry + 12), word(memory, entry + 14));
        bytes += u64::from(len);
        let inside = len == 0 || start.checked_add(len.into()).is_some_and(|end| end <= MEMORY);
        if !inside || bytes > MAX_CHAIN_BYTES || flags > 3 {
            return None;
        }
        let span = Span { start: GuestAddress(start), len };
        match flags & 2 {
            0 if chain.writable.is_empty() => chain.readable.push(span),
            0 => return None,
            _ => chain.writable.push(span),
        }
        if flags & 1 == 0 {
            return Some(Some(chain));
        }
        at = next;
    }
}

/// What the device reads is what is there, and what it writes gets there.
fn check(chain: &Chain, memory: &GuestMemory, mut script: Script<'_>) -> Option<()> {
    let (offset, len) = (u64::from(script.u16()?), usize::from(script.u8()?));
    let flat = |spans: &[Span]| -> Vec<u64> {
        let bytes = spans.iter().flat_map(|span| span.start.0..span.start.0 + u64::from(span.len));
        bytes.skip(offset as usize).take(len).collect()
    };
    let mut buffer = vec![0; len];
    let read = chain.read(memory, offset, &mut buffer).expect("checked memory");
    let bytes: Vec<u8> = flat(&chain.readable).into_iter().map(|at| byte(memory, at)).collect();
    assert_eq!(buffer[..read], bytes, "from {offset} of {:?}", chain.readable);

    let written = chain.write(memory, offset, &vec![0xa5; len]).expect("checked memory");
    let places = flat(&chain.writable);
    assert_eq!(written, places.len(), "from {offset} of {:?}", chain.writable);
    assert!(places.into_iter().all(|at| byte(memory, at) == 0xa5));
    Some(())
}

fn push(queue: &mut Queue, memory: &GuestMemory, head: u16, written: u32) {
    let (setup, at) = (queue.setup(), queue.position().next_used);
    queue.push(memory, head, written).expect("a checked ring");
    let entry = setup.used + 4 + 8 * u64::from(at % setup.size);
    let used: [u32; 2] = memory.read_obj(GuestAddress(entry)).expect("a checked ring");
    assert_eq!(used, [u32::from(head), written]);
    assert_eq!(word(memory, setup.used + 2), at.wrapping_add(1));
}

fn poke(memory: &GuestMemory, at: u16, bytes: &[u8]) {
    // What is beyond the end is not written.
    let _ = memory.write(bytes, GuestAddress(at.into()));
}

fn word(memory: &GuestMemory, at: u64) -> u16 {
    memory.read_obj(GuestAddress(at)).expect("a checked ring")
}

fn byte(memory: &GuestMemory, at: u64) -> u8 {
    memory.read_obj(GuestAddress(at)).expect("a checked span")
}
