//! The command line of a level-1 machine.
//!
//! Standard input and output of QEMU are sockets and become the two ports of the machine: control
//! and output. So nothing of a run has an address that another process could connect to.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::base::Base;
use super::machine::Machine;
use crate::qemu::{Version, folder};

/// An AMD processor, whose virtualisation TCG emulates, with nested paging.
const CPU: &str = "EPYC,+svm,+npt";
/// Without the kernel's self-tests, mitigations and address randomisation: less to emulate. A
/// panic ends QEMU.
const KERNEL: &str = "console=ttyS0 quiet panic=-1 nokaslr mitigations=off cryptomgr.notests";

/// A disk of the machine and what level 1 knows it by.
pub struct Disk<'a> {
    pub name: String,
    pub file: &'a Path,
    pub writable: bool,
}

/// QEMU in `dir`, ending with the thread that starts it. Its standard input and output must be
/// sockets.
///
/// Not the host's QEMU: in 7.2 `cmpxchg16b` leaves wrong flags behind, and of the kernels that use
/// it to allocate memory, such as 6.12, every second one panics or hangs early.
pub fn command(machine: &Machine, base: &Base, disks: &[Disk], dir: &Path) -> Result<Command> {
    let program = folder(Version::V10_0)?.join("qemu-system-x86_64");
    let mut command = Command::new("setpriv");
    command.current_dir(dir).args(["--pdeathsig", "KILL", "--"]).arg(program);
    command.args("-M q35 -nodefaults -no-user-config -no-reboot -display none".split(' '));
    if machine.icount {
        command.args("-accel tcg,thread=single -icount shift=0,sleep=off".split(' '));
    } else {
        command.args(["-accel", "tcg,thread=multi"]);
    }
    command.args(["-cpu", CPU, "-smp", &machine.cpus.to_string()]);
    command.args(["-m", &machine.memory_mb.to_string()]);
    command.arg("-kernel").arg(&base.kernel).arg("-initrd").arg(&base.initramfs);
    command.args(["-append", KERNEL, "-serial", "file:console", "-device", "virtio-serial-pci"]);
    for (descriptor, port) in [(0, "control"), (1, "output")] {
        command.args(["-chardev", &format!("socket,id={port},fd={descriptor}")]);
        command.args(["-device", &format!("virtserialport,chardev={port},name={port}")]);
    }
    for Disk { name, file, writable } in disks {
        let mut drive = OsString::from(format!("if=none,id={name},format=raw,cache=unsafe,"));
        drive.push(if *writable { "file=" } else { "readonly=on,file=" });
        drive.push(escaped(file));
        command.arg("-drive").arg(drive);
        command.args(["-device", &format!("virtio-blk-pci,drive={name},serial={name}")]);
    }
    Ok(command)
}

/// A path in a list of options: commas are doubled.
fn escaped(path: &Path) -> OsString {
    path.to_string_lossy().replace(',', ",,").into()
}
