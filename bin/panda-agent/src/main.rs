//! The agent: PID 1 of every guest.
//!
//! It boots the guest, then serves one host over a virtio port or vsock: commands, files, identity.
//! See `pandastack_proto` for what goes over it, [`server`] for the loop.
//!
//! What a tenant does must never end it. So it does not panic on anything that comes from outside,
//! it needs no file after boot, and commands live in a cgroup whose limits they hit before the
//! agent feels anything.
//!
//! `panda-agent --socket-fd N` is the development mode: the same agent as a plain process, serving
//! an inherited socket until its other end closes. It changes nothing outside of itself except
//! what the host asks it to do with files and commands; an identity is acknowledged and only its
//! token is used.
#![deny(unsafe_code)]

mod boot;
mod dial;
mod exec;
mod failure;
mod files;
mod guest;
mod identity;
mod inlet;
mod lane;
mod link;
mod server;
mod session;
mod survey;
mod sys;
mod volumes;

use anyhow::{Context, bail};

use guest::Guest;
use link::Link;
use server::Server;

fn main() -> anyhow::Result<()> {
    if std::process::id() == 1 {
        return first_process();
    }
    let mut arguments = std::env::args().skip(1);
    match (arguments.next().as_deref(), arguments.next(), arguments.next()) {
        (Some("--socket-fd"), Some(number), None) => development(&number),
        _ => bail!("usage: panda-agent --socket-fd N (or as the first process of a guest)"),
    }
}

/// Until the server runs, an error ends the process and with it the guest: there is no tenant yet,
/// and the kernel's panic is what the host sees.
fn first_process() -> anyhow::Result<()> {
    let (init, link) = boot::boot()?;
    let mut server = Server::new(link, Guest::new(Some(init))?)?;
    loop {
        server.run();
    }
}

fn development(number: &str) -> anyhow::Result<()> {
    let number = number.parse().context("the descriptor is no number")?;
    sys::keep_descriptors().context("keep inherited descriptors from commands")?;
    let socket = sys::inherited(number).context("use the inherited descriptor")?;
    // Orphans of commands come to us, as they come to PID 1. Where the kernel has no such thing (an
    // emulator of system calls, say) they go to the real one.
    if let Err(error) = rustix::process::set_child_subreaper(Some(rustix::process::getpid())) {
        eprintln!("panda-agent: orphans are not ours: {error}");
    }
    let link = Link::new(socket, link::Kind::Socket).context("prepare the socket")?;
    Server::new(link, Guest::new(None)?)?.run();
    Ok(())
}
