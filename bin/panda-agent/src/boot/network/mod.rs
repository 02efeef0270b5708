//! The guest's network: one device with one neighbour, the same in every sandbox.
//!
//! Everything about it is known beforehand (`pandastack_proto::network`), so nothing is asked for:
//! no address from a server, no router from an advertisement, not even the gateway's hardware
//! address. It is set up once per template, before the bake, so a restored machine and a copy have
//! it from their first instant, and the kernel itself sends nothing that no program asked for.

mod request;

use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;

use anyhow::Context;
use pandastack_proto::network::{
    GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6, GUEST_V4, GUEST_V6, MTU, PREFIX_V4, PREFIX_V6,
};

use self::request::Kernel;
use super::{log, wait};

/// What sysfs says of a virtio device that is a network card (virtio 1.2, section 5).
const VIRTIO_NET: &str = "0x0001";

/// What an interface must not do by itself. Without an address made up from its hardware address
/// (`addr_gen_mode` 1) there is also nobody to look for routers.
const QUIET_V6: [(&str, &str); 6] = [
    ("addr_gen_mode", "1"),
    ("accept_ra", "0"),
    ("autoconf", "0"),
    ("accept_dad", "0"),
    ("router_solicitations", "0"),
    ("use_tempaddr", "0"),
];

/// Every group may send echo requests without being root; the kernel makes the packets.
const PING_GROUPS: &str = "0 2147483647";

/// Sets up the network, if the machine has a device for one.
pub fn bring_up() -> anyhow::Result<()> {
    if let Err(error) = fs::write("/proc/sys/net/ipv4/ping_group_range", PING_GROUPS) {
        log(&format!("only root can ping: {error}"));
    }
    let Some(device) = find_card() else {
        log("no network device");
        return Ok(());
    };
    let name = wait::until("the network interface", || {
        let mut entries = fs::read_dir(device.join("net")).ok()?;
        Some(entries.next()?.ok()?.file_name().to_string_lossy().into_owned())
    })?;
    let index = fs::read_to_string(device.join("net").join(&name).join("ifindex"))
        .context("read the interface's number")?;
    let index = index.trim().parse().context("read the interface's number")?;
    for (setting, value) in QUIET_V6 {
        if let Err(error) = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/{setting}"), value) {
            log(&format!("{setting} of {name} stays as it is: {error}"));
        }
    }
    let kernel = Kernel::connect().context("reach the kernel's routing")?;
    kernel.bring_up(index, MTU).with_context(|| format!("bring up {name}"))?;
    for (own, prefix, gateway) in [
        (IpAddr::from(GUEST_V4), PREFIX_V4, IpAddr::from(GATEWAY_V4)),
        (GUEST_V6.into(), PREFIX_V6, GATEWAY_V6.into()),
    ] {
        kernel.add_address(index, own, prefix).with_context(|| format!("take {own}"))?;
        kernel
            .add_neighbour(index, gateway, GATEWAY_MAC)
            .with_context(|| format!("note the hardware address of {gateway}"))?;
        kernel.add_gateway(index, gateway).with_context(|| format!("route through {gateway}"))?;
    }
    Ok(())
}

/// The virtio device that is a network card.
fn find_card() -> Option<PathBuf> {
    let devices = fs::read_dir("/sys/bus/virtio/devices").ok()?.flatten();
    devices.map(|entry| entry.path()).find(|device| {
        fs::read_to_string(device.join("device")).is_ok_and(|kind| kind.trim() == VIRTIO_NET)
    })
}
