//! QEMU's command line.
//!
//! A machine is restored by a QEMU whose devices are exactly those of the one that baked it, so
//! both command lines come from here and differ only in what [`Start`] says. Everything that the
//! guest could tell apart is part of [`fingerprint`], and through it of the bake's key.

use std::ffi::CString;

use pandastack_proto::network::GUEST_MAC;
use pandastack_types::Size;

use super::runtime::FORK_LIBRARY;

/// Descriptor numbers of a machine's process; 0 to 2 are the standard ones. Low on purpose:
/// growing the descriptor table of a threaded process beyond 64 waits for an RCU grace period,
/// some 6 ms.
pub(super) mod fd {
    /// Monitor.
    pub const QMP: usize = 3;
    /// The guest agent's serial port.
    pub const AGENT: usize = 4;
    /// Requests to fork.
    pub const CONTROL: usize = 5;
    /// Frames of the network device.
    pub const NET: usize = 6;
    /// Guest memory.
    pub const MEMORY: usize = 7;
    /// Root file system, read-only.
    pub const ROOT: usize = 8;
    /// Writable disk (bake), or the private top layer (restore).
    pub const DISK: usize = 9;
    /// Kernel (bake), or the disk's lowest, read-only layer (restore).
    pub const KERNEL_OR_BASE: usize = 10;
    /// Initramfs (bake), or device state (restore).
    pub const INITRD_OR_STATE: usize = 11;
    /// First of the disk's other read-only layers, lowest first (restore).
    pub const LAYERS: usize = 12;
}

/// Agent port's name in the guest.
const AGENT_PORT: &str = "agent";

/// Like QEMU's EPYC, less what its translator lacks (it would warn about each). Keeps RDRAND,
/// without which the guest's first getrandom waits a second, and AVX2 for numeric libraries.
const CPU: &str = "EPYC,-rdseed,-sha-ni,-fxsr-opt,-misalignsse,-3dnowprefetch,-osvw,-topoext,\
                   -perfctr-core,-clzero,-xsaveerptr,-ibpb,-nrip-save,-xsavec,-xsaves";

/// What the network device does without. A frame is then always whole, and passes as it is:
/// without offloads, without a control queue, without a link that could be down. Those that depend
/// on these are named too, because QEMU complains of one without the other.
const PLAIN_NET: [&str; 21] = [
    "csum",
    "guest_csum",
    "gso",
    "guest_tso4",
    "guest_tso6",
    "guest_ecn",
    "guest_ufo",
    "host_tso4",
    "host_tso6",
    "host_ecn",
    "host_ufo",
    "mrg_rxbuf",
    "status",
    "guest_announce",
    "ctrl_vq",
    "ctrl_rx",
    "ctrl_vlan",
    "ctrl_rx_extra",
    "ctrl_mac_addr",
    "ctrl_guest_offloads",
    "mq",
];

/// Translated code kept, MiB. Touched lazily; below 64 the cache is flushed again and again, and
/// without a bound a guest could make the process grow by a GiB.
pub(super) const TRANSLATION_CACHE_MB: u32 = 128;

/// Devices for volumes. They are empty in a bake; what they hold is put in before a machine runs.
pub(super) const VOLUME_SLOTS: usize = 8;

/// Requests that a volume's device takes at a time. Each costs the guest memory that is in every
/// bake, so it is less than the usual 256.
const VOLUME_QUEUE: u32 = 64;

/// The device of a slot, by QEMU's name for it.
pub(super) fn volume_device(slot: usize) -> String {
    format!("/machine/peripheral/volume-{slot}")
}

/// How a machine comes to life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// Boots a kernel over memory that is shared with the supervisor, to be saved.
    Boot {
        /// The time stamp counter's frequency: the guest has no timer to measure it with.
        tsc_khz: u64,
    },
    /// Maps saved memory privately and waits for device state.
    Restore {
        /// Read-only layers of the disk above the lowest one.
        layers: usize,
    },
}

/// The environment: what loads the library that forks, and tells it where to listen.
pub(super) fn environment() -> Vec<CString> {
    [format!("LD_PRELOAD={FORK_LIBRARY}"), format!("PANDA_FORK_FD={}", fd::CONTROL)]
        .map(|line| CString::new(line).expect("no NUL in our own words"))
        .to_vec()
}

/// What of the command line a bake depends on.
pub(super) fn fingerprint(size: Size) -> String {
    let words = arguments("", size, Start::Restore { layers: 0 });
    words.iter().map(|w| w.to_string_lossy()).collect::<Vec<_>>().join(" ")
        + &kernel_command_line(0)
}

/// The whole command line, with the program's name first.
pub(super) fn arguments(program: &str, size: Size, start: Start) -> Vec<CString> {
    let mut words: Vec<String> =
        [program, "-nodefaults", "-no-user-config", "-display", "none"].map(String::from).to_vec();
    let mut add = |option: &str, value: String| words.extend([option.to_owned(), value]);

    add("-M", "microvm,acpi=on,rtc=on,memory-backend=memory,suppress-vmdesc=on".into());
    add("-accel", format!("tcg,thread=multi,tb-size={TRANSLATION_CACHE_MB}"));
    add("-cpu", CPU.into());
    add("-smp", size.cpu.to_string());
    add("-m", size.memory_mb.to_string());
    let share = if matches!(start, Start::Restore { .. }) { "off" } else { "on" };
    add(
        "-object",
        format!(
            "memory-backend-file,id=memory,size={}M,mem-path=/proc/self/fd/{},share={share}",
            size.memory_mb,
            fd::MEMORY
        ),
    );
    // What the guest prints before its agent is up, and its last words: kept in a bounded ring.
    add("-chardev", "ringbuf,id=console,size=65536".into());
    add("-serial", "chardev:console".into());
    add("-chardev", format!("socket,id=monitor,fd={}", fd::QMP));
    add("-mon", "chardev=monitor,mode=control".into());
    add("-chardev", format!("socket,id=agent,fd={}", fd::AGENT));
    add("-device", "virtio-serial-device,max_ports=2".into());
    add("-device", format!("virtserialport,chardev=agent,name={AGENT_PORT}"));
    add("-object", "rng-builtin,id=rng".into());
    add("-device", "virtio-rng-device,rng=rng".into());
    add_disks(&mut add, start);
    add_volume_slots(&mut add);
    add_network(&mut add);
    // A guest that ends stays until its last words are read; it is never rebooted.
    add("-action", "reboot=shutdown,shutdown=pause,panic=pause".into());
    // Not `spawn=deny`: it would forbid forks of this very process. The jail's filter allows
    // exactly those.
    add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,resourcecontrol=deny".into());
    match start {
        Start::Restore { .. } => {
            add("-incoming", "defer".into());
            // The state is that of devices alone, without the section that comes before it.
            add("-global", "migration.send-configuration=off".into());
            // Nobody has to hear that the guest is somewhere else now.
            add("-global", "migration.announce-rounds=0".into());
            words.push("-S".into());
        }
        Start::Boot { tsc_khz } => {
            add("-kernel", format!("/proc/self/fd/{}", fd::KERNEL_OR_BASE));
            add("-initrd", format!("/proc/self/fd/{}", fd::INITRD_OR_STATE));
            add("-append", kernel_command_line(tsc_khz));
        }
    }
    words.into_iter().map(|w| CString::new(w).expect("no NUL in our own words")).collect()
}

/// Two disks by descriptor: the root, and a writable one that is a single file while baking and
/// a private layer over that file ever after. No file name is ever read from an image.
fn add_disks(add: &mut impl FnMut(&str, String), start: Start) {
    let mut set = |number: usize, descriptor: usize| {
        add("-add-fd", format!("fd={descriptor},set={number}"));
    };
    set(1, fd::ROOT);
    set(2, fd::DISK);
    if let Start::Restore { layers } = start {
        set(3, fd::KERNEL_OR_BASE);
        (0..layers).for_each(|layer| set(4 + layer, fd::LAYERS + layer));
    }
    let file = |node: &str, set: usize, read_only: bool| {
        format!(
            r#"{{"driver":"file","node-name":"{node}","filename":"/dev/fdset/{set}","read-only":{read_only},"locking":"off","cache":{{"direct":false,"no-flush":true}}}}"#
        )
    };
    let raw = |node: &str, file: &str, read_only: bool| {
        format!(
            r#"{{"driver":"raw","node-name":"{node}","file":"{file}","read-only":{read_only}}}"#
        )
    };
    let qcow2 = |node: &str, file: &str, below: &str, read_only: bool| {
        format!(
            r#"{{"driver":"qcow2","node-name":"{node}","file":"{file}","backing":"{below}","read-only":{read_only}}}"#
        )
    };
    add("-blockdev", file("root-file", 1, true));
    add("-blockdev", raw("root", "root-file", true));
    add("-blockdev", file("disk-file", 2, false));
    match start {
        Start::Boot { .. } => add("-blockdev", raw("disk", "disk-file", false)),
        Start::Restore { layers } => {
            add("-blockdev", file("base-file", 3, true));
            add("-blockdev", raw("base", "base-file", true));
            let mut below = "base".to_owned();
            for layer in 0..layers {
                let node = format!("layer-{layer}");
                add("-blockdev", file(&format!("{node}-file"), 4 + layer, true));
                add("-blockdev", qcow2(&node, &format!("{node}-file"), &below, true));
                below = node;
            }
            add("-blockdev", qcow2("disk", "disk-file", &below, false));
        }
    }
    // A full or failing host disk is an I/O error in the guest, not a machine that stops.
    for (node, rest) in [("root", ""), ("disk", ",werror=report,rerror=report")] {
        add("-device", format!("virtio-blk-device,drive={node},serial=panda-{node}{rest}"));
    }
}

/// Empty disks, after which no descriptor stands.
fn add_volume_slots(add: &mut impl FnMut(&str, String)) {
    for slot in 0..VOLUME_SLOTS {
        let node = format!(r#"{{"driver":"null-co","node-name":"empty-{slot}","size":0}}"#);
        add("-blockdev", node);
        let rest = "num-queues=1,werror=report,rerror=report";
        add(
            "-device",
            format!(
                "virtio-blk-device,id=volume-{slot},drive=empty-{slot},serial=panda-volume-{slot},\
                 queue-size={VOLUME_QUEUE},{rest}"
            ),
        );
    }
}

/// The network device: one frame per datagram of an inherited socket, in both directions.
fn add_network(add: &mut impl FnMut(&str, String)) {
    add("-netdev", format!("dgram,id=net,local.type=fd,local.str={}", fd::NET));
    let mac = GUEST_MAC.map(|byte| format!("{byte:02x}")).join(":");
    let off: String = PLAIN_NET.iter().map(|feature| format!(",{feature}=off")).collect();
    add("-device", format!("virtio-net-device,netdev=net,mac={mac}{off}"));
}

/// Each word was measured or hit as a pitfall:
/// `tsc_early_khz`, `no_timer_check`: ACPI without legacy timers leaves nothing to calibrate with;
/// `tsc=reliable`: nor anything to compare with but a tick that is late on a busy host. A guest that
/// gave its TSC up during the bake ticked 250 times a second for ever, and so did all of its copies;
/// `norandmaps`: an address space that does not move keeps translated code valid between execs;
/// `nokaslr`, `mitigations=off`, `cryptomgr.notests`: faster boot, no wall of ours;
/// `panic=-1 reboot=t`: a panic becomes a reset, which ends the machine.
fn kernel_command_line(tsc_khz: u64) -> String {
    format!(
        "console=ttyS0 quiet panic=-1 reboot=t tsc_early_khz={tsc_khz} tsc=reliable no_timer_check \
         cryptomgr.notests mitigations=off nokaslr norandmaps random.trust_cpu=on"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(start: Start) -> Vec<String> {
        let size = Size::new(2, 512, 2048).unwrap();
        arguments("qemu", size, start).into_iter().map(|w| w.into_string().unwrap()).collect()
    }

    #[test]
    fn both_lines_have_the_same_devices() {
        let devices = |start| {
            let words = words(start);
            let pairs = words.windows(2).filter(|p| p[0] == "-device");
            pairs.map(|p| p[1].clone()).collect::<Vec<_>>()
        };
        assert_eq!(devices(Start::Restore { layers: 3 }), devices(Start::Boot { tsc_khz: 1 }));
    }

    #[test]
    fn a_restored_machine_maps_memory_privately_and_boots_nothing() {
        let line = words(Start::Restore { layers: 0 }).join(" ");
        assert!(line.contains("share=off") && line.contains("-incoming defer"));
        assert!(!line.contains("-kernel") && !line.contains("-append"));
        assert!(words(Start::Boot { tsc_khz: 7 }).join(" ").contains("tsc_early_khz=7 "));
    }

    #[test]
    fn the_only_way_to_a_network_is_an_inherited_socket() {
        for start in [Start::Restore { layers: 3 }, Start::Boot { tsc_khz: 1 }] {
            let words = words(start);
            let after = |option: &str| {
                let pairs = words.windows(2).filter(|pair| pair[0] == option);
                pairs.map(|pair| pair[1].clone()).collect::<Vec<_>>()
            };
            assert_eq!(after("-netdev"), ["dgram,id=net,local.type=fd,local.str=6"]);
            let devices = after("-device").into_iter().filter(|device| device.contains("net"));
            let [device] = &devices.collect::<Vec<_>>()[..] else { panic!("{words:?}") };
            let plain = "virtio-net-device,netdev=net,mac=02:50:41:4e:44:41,csum=off,";
            assert!(device.starts_with(plain), "{device}");
            assert!(!device.contains("=on"), "{device}");
            assert!(after("-nic").is_empty() && after("-net").is_empty());
        }
    }

    #[test]
    fn the_fingerprint_tells_sizes_apart() {
        assert_ne!(
            fingerprint(Size::new(1, 512, 2048).unwrap()),
            fingerprint(Size::new(2, 512, 2048).unwrap())
        );
    }
}
