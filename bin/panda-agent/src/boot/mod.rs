//! From the kernel's first process to a guest that can run commands.
//!
//! ```text
//!   initramfs: /proc /sys /dev ─▶ modules ─▶ disks ─▶ overlay ─▶ switch root
//!        ─▶ /proc /sys /dev/… /run ─▶ limits ─▶ cgroup ─▶ identity files ─▶ port
//! ```
//!
//! All of it happens once per template, before any tenant, and is part of every snapshot. An
//! error here is fatal on purpose.

mod limits;
mod modules;
mod mounts;
mod wait;

use std::os::fd::OwnedFd;

use anyhow::Context;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::net::{AddressFamily, SocketType, socket};

use crate::guest::Init;
use crate::{identity, sys};

/// Name of the virtio port that leads to the host.
const PORT: &str = "agent";

/// Boots the guest and opens the port.
pub fn boot() -> anyhow::Result<(Init, OwnedFd)> {
    mounts::early()?;
    modules::load();
    mounts::switch_to_disk()?;
    mounts::late()?;
    limits::protect_self().context("protect the agent from the memory killer")?;
    let cgroups = limits::cgroups().context("make the cgroup of commands")?;
    loopback().context("bring up the loopback interface")?;
    let identity = identity::Files::prepare()?;
    let proc_dir = openat(CWD, "/proc", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .context("open /proc")?;
    let port = open_port()?;
    Ok((Init { proc_dir, identity, cgroups: Some(cgroups) }, port))
}

fn loopback() -> anyhow::Result<()> {
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    Ok(sys::loopback_up(std::os::fd::AsFd::as_fd(&socket))?)
}

/// Opens the port by its name; its device node depends on the order of the ports.
fn open_port() -> anyhow::Result<OwnedFd> {
    wait::until("the port to the host", || {
        for entry in std::fs::read_dir("/sys/class/virtio-ports").ok()?.flatten() {
            let name = std::fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            if name.trim_end() == PORT {
                let node = format!("/dev/{}", entry.file_name().to_string_lossy());
                let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
                return openat(CWD, node, flags, Mode::empty()).ok();
            }
        }
        None
    })
}

/// A line for the kernel's log. Never the console: whoever stops its output would stop the agent.
pub fn log(line: &str) {
    let message = format!("panda-agent: {line}\n");
    let _ = std::fs::write("/dev/kmsg", message);
}
