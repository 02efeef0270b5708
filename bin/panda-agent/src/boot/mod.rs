//! From the kernel's first process to a guest that can run commands.
//!
//! ```text
//!   initramfs: /proc /sys /dev ─▶ modules ─▶ disks ─▶ overlay ─▶ switch root
//!        ─▶ /proc /sys /dev/… /run ─▶ limits ─▶ cgroup ─▶ network ─▶ identity files ─▶ link
//! ```
//!
//! All of it happens once per template, before any tenant, and is part of every snapshot. An
//! error here is fatal on purpose, but for the network: a guest without one is of use.

mod limits;
mod modules;
mod mounts;
mod network;
pub mod wait;

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::Context;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::net::{AddressFamily, SocketType, socket};

use crate::guest::Init;
use crate::link::{Kind, Link};
use crate::{identity, sys};

/// Name of the virtio port that leads to the host.
const PORT: &str = "agent";

/// The host's vsock port for agents.
const VSOCK_PORT: u32 = 1024;
/// The agent's own ports. Privileged ones, and the host takes no others: so no command that is not
/// root can pass itself off as the agent. More than one, because the kernel may not have forgotten
/// the connection before.
const VSOCK_SOURCES: Range<u32> = 1000..1008;
/// Longest wait for the host's answer, which its device gives by itself.
const VSOCK_PATIENCE: Duration = Duration::from_millis(200);

/// Boots the guest and opens the link to the host.
pub fn boot() -> anyhow::Result<(Init, Link)> {
    mounts::early()?;
    modules::load();
    mounts::switch_to_disk()?;
    mounts::late()?;
    limits::protect_self().context("protect the agent from the memory killer")?;
    let cgroups = limits::cgroups().context("make the cgroup of commands")?;
    loopback().context("bring up the loopback interface")?;
    if let Err(error) = network::bring_up() {
        log(&format!("no network: {error:#}"));
    }
    let identity = identity::Files::prepare()?;
    let proc_dir = openat(CWD, "/proc", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .context("open /proc")?;
    let (fd, kind) = wait::until("a way to the host", || {
        let port = open_port().map(|fd| (fd, Kind::Port));
        port.or_else(|| Some((dial().ok()?, Kind::Dialled(dial))))
    })?;
    let link = Link::new(fd, kind).context("prepare the link to the host")?;
    Ok((Init { proc_dir, identity, cgroups: Some(cgroups) }, link))
}

fn loopback() -> anyhow::Result<()> {
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    Ok(sys::loopback_up(std::os::fd::AsFd::as_fd(&socket))?)
}

/// Opens the port by its name; its device node depends on the order of the ports.
fn open_port() -> Option<OwnedFd> {
    for entry in std::fs::read_dir("/sys/class/virtio-ports").ok()?.flatten() {
        let name = std::fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim_end() == PORT {
            let node = format!("/dev/{}", entry.file_name().to_string_lossy());
            let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
            return openat(CWD, node, flags, Mode::empty()).ok();
        }
    }
    None
}

/// Connects over vsock, if the machine has such a device.
fn dial() -> rustix::io::Result<OwnedFd> {
    sys::vsock_connect(VSOCK_SOURCES, VSOCK_PORT, VSOCK_PATIENCE)
}

/// A line for the kernel's log. Never the console: whoever stops its output would stop the agent.
pub fn log(line: &str) {
    let message = format!("panda-agent: {line}\n");
    let _ = std::fs::write("/dev/kmsg", message);
}
