//! Writes the seeds: for each target a few inputs that get as far as proper ones do.
//!
//! `cargo run --example seeds` in this folder makes `corpus/` what it is, but for inputs that were
//! once findings, which are added by hand and stay.

mod gateway;

use std::fs;
use std::path::Path;

use kvm_bindings::{
    kvm_clock_data, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_regs,
    kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};
use pandastack_fork as fork;
use pandastack_fuzz::sparse;
use pandastack_proto as proto;
use pandastack_vmm::control::{
    Attach, DiskFork, End, Failure, Fork, Message, Reply, Request, Role, Start,
};
use pandastack_vmm::disk::Disk;
use pandastack_vmm::ioapic::Ioapic;
use pandastack_vmm::kvm::cpuid::CpuIdentity;
use pandastack_vmm::legacy::Serial;
use pandastack_vmm::memory::Extent;
use pandastack_vmm::virtio::hostile::drive;
use pandastack_vmm::virtio::vsock::Vsock;
use pandastack_vmm::virtio::{Block, Net, Rng};
use serde::Serialize;

fn main() {
    virtqueue();
    devices();
    vsock();
    mmio();
    ioapic();
    state_file();
    memory_files();
    control();
    qcow2();
    boot_kernel();
    agent_frames();
    gateway::seeds();
}

fn seed(target: &str, name: &str, bytes: &[u8]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&folder).expect("a folder");
    fs::write(folder.join(name), bytes).expect("a file");
}

fn postcard(message: &impl Serialize) -> Vec<u8> {
    postcard::to_stdvec(message).expect("memory")
}

/// What a driver does, as `virtio::hostile` reads it.
#[derive(Clone, Default)]
struct Driver(Vec<u8>);

impl Driver {
    /// Brought up with all features.
    fn up() -> Self {
        Self(vec![5, 0xff, 0xff, 0xff, 0xff])
    }

    fn poke(mut self, at: u16, bytes: &[u8]) -> Self {
        self.0.push(3);
        self.0.extend(at.to_le_bytes());
        self.0.push(bytes.len() as u8);
        self.0.extend(bytes);
        self
    }

    /// Offers a chain of parts, each with its start, its length, and whether it can be written.
    fn offer(mut self, queue: u8, head: u8, parts: &[(u16, u16, bool)]) -> Self {
        self.0.extend([6, queue, head, parts.len() as u8]);
        for (start, len, writable) in parts {
            self.0.extend(start.to_le_bytes());
            self.0.extend(len.to_le_bytes());
            self.0.push(u8::from(*writable) * 2);
        }
        self
    }

    fn work(mut self) -> Self {
        self.0.push(4);
        self
    }

    /// Saved and restored on the way.
    fn check(mut self) -> Self {
        self.0.push(7);
        self
    }

    /// As a turn of a target in which others have turns as well.
    fn turn(&self) -> Vec<u8> {
        let turns = self.0.chunks(254);
        turns.flat_map(|turn| [&[15, turn.len() as u8], turn].concat()).collect()
    }
}

/// A queue of 4 with a chain of two parts.
fn virtqueue() {
    let setup = [2, 1, 2, 0, 0x10, 0, 0x20, 0, 0x30];
    let descriptor = |at: u8, start: u16, len: u16, flags: u8, next: u8| {
        let (start, len) = (start.to_le_bytes(), len.to_le_bytes());
        [&[1, at][..], &start, &len, &[flags, next]].concat()
    };
    let chain = [descriptor(0, 0x4000, 32, 1, 1), descriptor(1, 0x5000, 64, 2, 0)].concat();
    let take = [2, 0, 7, 8, 0, 40, 5, 3];
    seed("virtqueue", "chain", &[&setup[..], &chain, &take, &take].concat());
    seed("virtqueue", "loop", &[&setup[..], &descriptor(0, 0x4000, 1, 1, 0), &take].concat());
}

fn devices() {
    let request =
        |kind: u32, sector: u64| [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
    let (status, header) = ((0xf800, 1, true), (0xe000, 16, false));
    let disk = |kind, data: (u16, u16, bool)| {
        let driver = Driver::up().poke(0xe000, &request(kind, 3));
        driver.offer(0, 0, &[header, data, status]).work().check()
    };
    let with = |fails: u8, driver: Driver| [&[0, fails][..], &driver.0].concat();
    let at = |sector| {
        let driver = Driver::up().poke(0xe000, &request(0, sector));
        driver.offer(0, 0, &[header, (0x8000, 1024, true), status]).work()
    };
    // The disk has 64 sectors.
    for sector in [62, 63, 64] {
        seed("block", &format!("at-{sector}"), &with(0, at(sector)));
    }
    seed("block", "read", &with(0, disk(0, (0x8000, 1024, true))));
    seed("block", "write", &with(0, disk(1, (0x8000, 1024, false))));
    seed("block", "fails", &with(0xff, disk(1, (0x8000, 512, false))));
    seed("block", "flush", &with(0, disk(4, (0x8000, 0, true))));
    seed("block", "serial", &with(0, disk(8, (0x8000, 20, true))));

    let entropy = Driver::up().offer(0, 0, &[(0x8000, 64, true), (0x9000, 5000, true)]);
    seed("rng", "request", &entropy.work().check().0);

    let sends = Driver::up().offer(1, 0, &[(0x8000, 12, false), (0x9000, 60, false)]).work();
    seed("net", "sends", &[&[0][..], &sends.turn(), &[3]].concat());
    for len in [13, 14, 1518, 1519] {
        let sends = Driver::up().offer(1, 0, &[(0x8000, 12 + len, false)]).work();
        seed("net", &format!("sends-{len}"), &[&[0][..], &sends.turn(), &[3]].concat());
    }
    let receives = Driver::up().offer(0, 0, &[(0x8000, 1530, true)]).work();
    let frame = [2, 100, 0];
    seed("net", "receives", &[&[1][..], &frame, &receives.turn(), &frame].concat());
}

/// A connection that is made, used both ways, and ended.
fn vsock() {
    let packet = |op: u16, len: u32| {
        let mut bytes = [3u64.to_le_bytes(), 2u64.to_le_bytes()].concat();
        [1000, 1024, len].iter().for_each(|word: &u32| bytes.extend(word.to_le_bytes()));
        [1, op].iter().for_each(|half: &u16| bytes.extend(half.to_le_bytes()));
        [0, 0x4000, 0].iter().for_each(|word: &u32| bytes.extend(word.to_le_bytes()));
        bytes
    };
    let room = |driver: Driver| {
        (0..3).fold(driver, |driver, head| driver.offer(0, head, &[(0x9000, 300, true)]))
    };
    let send = |driver: Driver, op, len: u16| {
        let driver = driver.poke(0x8000, &packet(op, len.into()));
        driver.offer(1, 0, &[(0x8000, 44, false), (0xa000, len, false)]).work()
    };
    let connected = send(room(Driver::up()), 1, 0).work();
    let host = [3, 100, 0];
    let talks = send(connected.clone(), 5, 200);
    seed("vsock", "talks", &[&talks.turn()[..], &host, &[5, 4, 200, 0]].concat());
    // More than the device has told the guest that it has room for.
    let (whole, part) = ((0, 0xffff, false), (0x8000, 44, false));
    let packet = Driver::default().poke(0x8000, &packet(5, 3 * 0xffff));
    let flood = packet.offer(1, 0, &[part, whole, whole, whole]).work().turn();
    seed("vsock", "flood", &[connected.turn(), flood.clone(), flood].concat());
    let ends = send(connected.clone(), 4, 0);
    seed("vsock", "ends", &[&ends.turn()[..], &[5]].concat());
    let event = Driver::default().offer(2, 0, &[(0xb000, 8, true)]).work();
    let again = event.clone().offer(2, 1, &[(0xb000, 8, true)]).work();
    let reset = [&connected.turn()[..], &[1], &event.turn(), &again.turn()].concat();
    seed("vsock", "reset", &reset);
    // Asks for a connection before it has given the event's buffer back.
    let early = send(Driver::default(), 1, 0).check().turn();
    let told = [&connected.turn()[..], &[1], &event.turn()].concat();
    seed("vsock", "early", &[&told[..], &early, &again.turn()].concat());
    seed("vsock", "replaced", &[&talks.turn()[..], &[0], &host, &[5]].concat());
}

fn mmio() {
    // Status, features, status, a queue, status: see the target.
    let status = |bit: u8| [0x70, 4, bit];
    let write = |at: u8, value: u8| [at, 2, value];
    let steps = [
        status(0),
        status(1),
        write(0x24, 1),
        [0x20, 6, 0],
        status(3),
        write(0x30, 0),
        write(0x38, 8),
        write(0x80, 0x10),
        write(0x44, 1),
        status(2),
        write(0x80, 0x20),
        status(7),
        write(0x70, 0),
    ];
    // The value of the third is not there: it is known.
    let bytes = steps.concat();
    let bytes = [&bytes[..11], &bytes[12..]].concat();
    seed("mmio", "registers", &[&[0], &bytes[..]].concat());
    let chain = [(0x8000, 16, false), (0x9000, 16, true)];
    let device = Driver::up().offer(0, 0, &chain).offer(1, 0, &chain).work().check();
    seed("mmio", "device", &[&[1], &device.0[..]].concat());
}

fn ioapic() {
    // Pin 4 by edges, kept while masked; pin 9 by levels, until the end of its interrupt.
    let entry = |pin: u8, low: u32| [&[1, 0x10 + 2 * pin][..], &low.to_le_bytes()].concat();
    let edge = [&entry(4, 0x1_0031)[..], &[3, 4], &entry(4, 0x31)].concat();
    let level = [&entry(9, 0x8041)[..], &[3, 9, 5, 0x41, 4, 9, 0, 0, 0]].concat();
    let serial = [6, 1, 1, 2, 6, 0, 2, b'h', b'i', 7, 2, 1];
    seed("ioapic", "pins", &[&edge[..], &level, &serial].concat());
}

fn state_file() {
    #[derive(Serialize)]
    struct Cpu {
        cpuid: Vec<kvm_cpuid_entry2>,
        mp_state: kvm_mp_state,
        regs: kvm_regs,
        sregs: kvm_sregs,
        xsave: Vec<u32>,
        xcrs: kvm_xcrs,
        debug_regs: kvm_debugregs,
        lapic: kvm_lapic_state,
        msrs: Vec<(u32, u64)>,
        events: kvm_vcpu_events,
        tsc_khz: u32,
    }
    let cpu = Cpu {
        cpuid: vec![kvm_cpuid_entry2::default()],
        mp_state: kvm_mp_state::default(),
        regs: kvm_regs::default(),
        sregs: kvm_sregs::default(),
        xsave: vec![0; 16],
        xcrs: kvm_xcrs::default(),
        debug_regs: kvm_debugregs::default(),
        lapic: kvm_lapic_state::default(),
        msrs: vec![(0x10, 1)],
        events: kvm_vcpu_events::default(),
        tsc_khz: 1,
    };
    let processor = CpuIdentity {
        vendor: *b"GenuineIntel",
        family: 6,
        model: 1,
        stepping: 1,
        features: [0; 32],
    };
    let disk = |read_only| Disk::plain(sparse(1 << 20), read_only).expect("a disk");
    let up = Driver::up().0;
    let live = vec![
        drive(Block::new(disk(true), "root", true), &up),
        drive(Block::new(disk(false), "disk", false), &up),
        drive(Vsock::new(None), &up),
        drive(Rng, &up),
        drive(Net::new(None, [2; 6]), &up),
    ];
    let (ioapic, serial) = (Ioapic::new().save(), Serial::default().save());
    let clock = kvm_clock_data::default();
    let state = |cpus: Vec<Cpu>, devices| {
        postcard(&(256u32, &processor, (cpus, clock), &ioapic, &serial, devices))
    };
    // Behind the pattern that memory is filled with.
    let with =
        |pattern: &[u8], state: Vec<u8>| [&[pattern.len() as u8], pattern, &state[..]].concat();
    seed("state_file", "empty", &with(&[], state(vec![], vec![])));
    seed("state_file", "live", &with(&[], state(vec![], live.clone())));
    seed("state_file", "live-over-ones", &with(&[0, 0, 1, 0], state(vec![], live)));
    seed("state_file", "cpu", &with(&[], state(vec![cpu], vec![])));
    // A whole file, but for its hash.
    let state = state(vec![], vec![]);
    let header = [&b"PANDSNAP\x02\0\0\0"[..], &(state.len() as u32).to_le_bytes(), &[0; 32]];
    seed("state_file", "no-hash", &[&header.concat()[..], &state].concat());
}

fn memory_files() {
    // Pages 1 and 2, 5, and 9 to 11 of 64.
    seed("memory_files", "diff", &[1, 64, 0, 0x12, 0x21, 0x33]);
    let extent = |start, count| Extent { start, count };
    let set = (vec![extent(1, 2), extent(9, 1)], vec![extent(60, 4), extent(u64::MAX, 2)]);
    seed("memory_files", "working-set", &[&[2], &postcard(&set)[..]].concat());
}

fn control() {
    let start = Start { cpus: 2, memory_mb: 512, boot: Some("quiet".to_owned()) };
    let disk = |slot| DiskFork { slot, freezes: true };
    let requests = [
        Request::Start(start),
        Request::Ready,
        Request::Run,
        Request::Fork(Fork { readable: true, disks: vec![disk(None), disk(Some(1))] }),
        Request::Attach(Attach { slot: 1, lasting: true }),
        Request::Save,
    ];
    for (index, body) in requests.into_iter().enumerate() {
        let roles = vec![Role::Agent, Role::Group];
        let message = postcard(&Message { body, roles });
        seed("control", &format!("request-{index}"), &[&[2, 0], &message[..]].concat());
    }
    let stages = vec![("park".to_owned(), 12)];
    let replies = [
        Reply::Done,
        Reply::Forked(stages),
        Reply::Console(b"Linux".to_vec()),
        Reply::Failed(Failure::Refused("no".to_owned())),
        Reply::Ended(End::Panic),
    ];
    for (index, body) in replies.into_iter().enumerate() {
        let message = postcard(&Message { body, roles: vec![] });
        seed("control", &format!("reply-{index}"), &[&[0, 1], &message[..]].concat());
    }
    // As many descriptors as there may be, a few more, and some that do not fit.
    for (roles, attached) in [(200, 200), (202, 202), (202, 210)] {
        let message = Message { body: Request::Run, roles: vec![Role::Layer; roles] };
        let name = format!("many-{roles}-{attached}");
        seed("control", &name, &[&[attached, 0], &postcard(&message)[..]].concat());
    }
    let mut request = fork::Request::new();
    let file = |inode| fork::FileId { device: 7, inode };
    assert!(request.add_replace(file(1), 0) && request.add_freeze(file(2), 1));
    assert!(request.add_keep(file(3)));
    let mut bytes = [0; fork::Request::MAX_BYTES];
    let len = request.encode(&mut bytes);
    seed("control", "fork-request", &[&[2, 2], &bytes[..len]].concat());
    let answer = fork::Answer::Failed { step: fork::Step::Park, errno: 11, subject: -1 };
    seed("control", "fork-answer", &[&[0, 2], &answer.encode()[..]].concat());
}

fn qcow2() {
    let access = |what: u8, kind: u8, at: u32, len: u32| {
        [&[what, kind][..], &at.to_le_bytes(), &len.to_le_bytes()].concat()
    };
    let write = |kind, at, len, fill: u8| [access(0, kind, at, len), vec![fill]].concat();
    let used = [
        write(7, 70_000, 1000, 1),
        write(3, 65_536, 0, 2),
        vec![7],
        write(7, 70_000, 9, 0),
        access(4, 3, 0, 0),
        access(4, 6, 600, 600),
    ]
    .concat();
    for size in 0..3 {
        seed("qcow2", &format!("intact-{size}"), &[&[0, size, 2], &used[..]].concat());
    }
    // One entry of the first-level table names a cluster of the file that is not there.
    let entry = [1, 0, 3, 2 | 4, 0, 0, 9];
    seed("qcow2", "damaged", &[&[1, 2, 1], &entry[..], &used].concat());
}

fn boot_kernel() {
    let machine = [255, 2, 4, 3];
    let put = |image: &mut Vec<u8>, at: usize, field: &[u8]| {
        image[at..at + field.len()].copy_from_slice(field);
    };
    // boot.rst, "The Real-Mode Kernel Header".
    let mut image = vec![0; 1024 + 64];
    put(&mut image, 0x1f1, &[1]); // sectors of setup code
    put(&mut image, 0x1fe, &[0x55, 0xaa]);
    put(&mut image, 0x202, b"HdrS\x0f\x02");
    put(&mut image, 0x211, &[1]); // loaded high
    put(&mut image, 0x214, &0x10_0000u32.to_le_bytes());
    put(&mut image, 0x22c, &0x7fff_ffffu32.to_le_bytes()); // highest initramfs
    put(&mut image, 0x230, &0x1000u32.to_le_bytes()); // alignment
    put(&mut image, 0x236, &[1, 0]); // 64-bit entry
    put(&mut image, 0x238, &255u32.to_le_bytes()); // longest command line
    put(&mut image, 0x258, &0x10_0000u64.to_le_bytes()); // preferred address
    put(&mut image, 0x260, &0x2000u32.to_le_bytes()); // bytes to unpack itself
    seed("boot_kernel", "bzimage", &[&machine, &image[..]].concat());
    // Kernel and initramfs fill three pages.
    seed("boot_kernel", "tight", &[&[3, 2, 4, 60], &image[..]].concat());

    // A segment at 1 MiB, and a note.
    let mut image = vec![0; 320];
    put(&mut image, 0, b"\x7fELF\x02\x01\x01");
    put(&mut image, 16, &[2, 0, 62, 0, 1, 0, 0, 0]);
    put(&mut image, 24, &0x10_0000u64.to_le_bytes());
    put(&mut image, 32, &64u64.to_le_bytes());
    put(&mut image, 52, &[64, 0, 56, 0, 2, 0]);
    let mut header = |at: usize, kind: u32, fields: [u64; 6]| {
        put(&mut image, at, &kind.to_le_bytes());
        for (index, field) in fields.iter().enumerate() {
            put(&mut image, at + 8 + 8 * index, &field.to_le_bytes());
        }
    };
    header(64, 1, [256, 0, 0x10_0000, 64, 4096, 4096]);
    header(120, 4, [192, 0, 0, 20, 0, 4]);
    seed("boot_kernel", "elf", &[&machine, &image[..]].concat());
    put(&mut image, 192, &[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0]);
    put(&mut image, 204, b"Xen\0");
    put(&mut image, 208, &0x10_0000u32.to_le_bytes());
    seed("boot_kernel", "pvh", &[&machine, &image[..]].concat());
}

fn agent_frames() {
    let cuts = [0, 3, 8, 0, 20];
    let mut encoder = proto::Encoder::new();
    let welcome = proto::Welcome { version: 1, init: true, kernel: "6.12".to_owned() };
    let outcome: proto::Outcome = Ok(proto::Reply::Done);
    encoder.message(proto::Kind::Welcome, 0, &welcome).expect("short");
    encoder.data(1, proto::Channel::Stdout, b"hello").expect("short");
    encoder.eof(1, proto::Channel::Stdout);
    encoder.credit(1, 500);
    encoder.message(proto::Kind::Reply, 1, &outcome).expect("short");
    seed("agent_frames", "agent", &[&cuts, encoder.pending()].concat());

    let mut encoder = proto::Encoder::new();
    let hello = proto::Hello { version: 1, nonce: [7; 16] };
    let request = proto::Request::Stat { path: "/etc".to_owned(), follow: true };
    let sealed = proto::Sealed { token: [0; 16], request };
    encoder.message(proto::Kind::Hello, 0, &hello).expect("short");
    encoder.message(proto::Kind::Request, 1, &sealed).expect("short");
    encoder.reset(1);
    seed("agent_frames", "host", &[&cuts, encoder.pending()].concat());
}
