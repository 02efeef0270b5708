//! The cable between the host and the internet, and who has which address.
//!
//! ```text
//!   host                                     internet
//!   uplink 100.66.0.1/30  ───────────────── 100.66.0.2/30 downlink
//!          2001:db8:66::1/64                2001:db8:66::2/64
//!          default routes ─▶                every address there is, v4 and v6
//! ```
//!
//! The internet takes every address in the world for its own. So whatever leaks from the host is
//! not only seen but answered, metadata services, public resolvers and private networks included.
//! Both ends know each other's hardware address, so that no packet waits for one and comes later
//! than those that were sent after it.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The host's address.
pub const HOST_V4: Ipv4Addr = Ipv4Addr::new(100, 66, 0, 1);
/// The same.
pub const HOST_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x66, 0, 0, 0, 0, 1);
/// The host's router.
pub const ROUTER_V4: Ipv4Addr = Ipv4Addr::new(100, 66, 0, 2);
/// The same.
pub const ROUTER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x66, 0, 0, 0, 0, 2);
/// A public address of the host: its neighbours on the same cable have public ones too.
pub const HOST_PUBLIC: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 129);
/// One of these neighbours.
pub const NEIGHBOUR_PUBLIC: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 140);
/// Hardware address of the host, by which the sniffer knows what comes from it.
pub const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// That of its router.
pub const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// Lays the cable, from the host's namespace to that of thread `internet`, and sets up this end.
pub fn host(internet: i32) -> Result<()> {
    ip(&format!(
        "link set lo up
         link add name uplink type veth peer name downlink netns {internet}
         link set uplink address 02:00:00:00:00:01 addrgenmode none
         addr add {HOST_V4}/30 dev uplink
         addr add {HOST_PUBLIC}/26 dev uplink
         addr add {HOST_V6}/64 dev uplink nodad
         link set uplink up
         neigh replace {ROUTER_V4} lladdr 02:00:00:00:00:02 nud permanent dev uplink
         neigh replace {ROUTER_V6} lladdr 02:00:00:00:00:02 nud permanent dev uplink
         neigh replace {NEIGHBOUR_PUBLIC} lladdr 02:00:00:00:00:02 nud permanent dev uplink
         route add default via {ROUTER_V4}
         -6 route add default via {ROUTER_V6}"
    ))
}

/// Sets up the other end, from within the internet's namespace.
pub fn internet() -> Result<()> {
    ip(&format!(
        "link set lo up
         link set downlink address 02:00:00:00:00:02 addrgenmode none
         addr add {ROUTER_V4}/30 dev downlink
         addr add {NEIGHBOUR_PUBLIC}/26 dev downlink
         addr add {ROUTER_V6}/64 dev downlink nodad
         link set downlink up
         neigh replace {HOST_V4} lladdr 02:00:00:00:00:01 nud permanent dev downlink
         neigh replace {HOST_V6} lladdr 02:00:00:00:00:01 nud permanent dev downlink
         neigh replace {HOST_PUBLIC} lladdr 02:00:00:00:00:01 nud permanent dev downlink
         route add local default dev lo table main
         -6 route add local default dev lo table main"
    ))?;
    // Servers may then have addresses that are on no device.
    for family in ["ipv4", "ipv6"] {
        let file = format!("/proc/sys/net/{family}/ip_nonlocal_bind");
        fs::write(&file, "1").with_context(|| format!("cannot write {file}"))?;
    }
    Ok(())
}

/// Runs commands of `ip`, one a line, in the namespace of the calling thread.
fn ip(commands: &str) -> Result<()> {
    for line in commands.lines().map(str::trim) {
        let output = Command::new("ip").args(line.split(' ')).output().context("cannot run ip")?;
        if !output.status.success() {
            bail!("ip {line}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
    }
    Ok(())
}
