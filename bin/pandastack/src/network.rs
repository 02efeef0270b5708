//! The gateway of a server: what the operator and the host say about the network around it.
//!
//! The host's addresses and resolvers change while a server runs: a laptop is carried about, an
//! interface gets another lease. They are looked at again every few seconds.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use clap::builder::FalseyValueParser;
use pandastack_gateway::client::{Gateway, Parts, Settings};
use pandastack_policy::{Cidr, Site};

/// Programs of the gateway's jail, built together with this program.
static PARTS: Parts = Parts {
    keeper: crate::engines::KEEPER,
    gateway: include_bytes!(concat!(env!("OUT_DIR"), "/panda-gateway")),
};

/// How often the host is looked at again.
const LOOK: Duration = Duration::from_secs(5);
/// Most resolvers: those of a host, which has three in its configuration at most (resolv.conf(5)).
const MAX_RESOLVERS: usize = 3;
/// Port of DNS.
const DNS: u16 = 53;

/// What an operator decides about the network of sandboxes.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct NetworkArgs {
    /// Ask these resolvers for names that sandboxes may reach, such as 9.9.9.9 or 127.0.0.1:5353
    /// [default: the host's own, from /etc/resolv.conf]
    #[arg(
        long = "resolver",
        value_name = "ADDRESS",
        env = "PANDASTACK_RESOLVER",
        value_delimiter = ',',
        value_parser = resolver
    )]
    resolvers: Vec<SocketAddr>,
    /// Let policies open private networks (10.0.0.0/8 and the like), each by a cidr of its own
    #[arg(long, env = "PANDASTACK_ALLOW_PRIVATE", value_parser = FalseyValueParser::new())]
    allow_private: bool,
}

/// Starts the gateway of a server whose API answers at `api`. `dir` keeps the file system of its
/// jail.
pub async fn start(dir: &Path, args: NetworkArgs, api: SocketAddr) -> anyhow::Result<Gateway> {
    let settings = args.settings(api);
    let gateway = Gateway::start(dir, &PARTS, settings.clone()).await;
    let gateway = gateway.context("sandboxes have no network without the gateway")?;
    tracing::info!(pid = gateway.pid(), resolvers = ?settings.resolvers, "the gateway runs");
    tokio::spawn(keep_looking(gateway.downgrade(), args, api, settings));
    Ok(gateway)
}

/// Tells the gateway whenever the host has changed, for as long as there is one.
async fn keep_looking(
    gateway: pandastack_gateway::client::WeakGateway,
    args: NetworkArgs,
    api: SocketAddr,
    mut told: Settings,
) {
    loop {
        tokio::time::sleep(LOOK).await;
        let now = args.settings(api);
        let Some(gateway) = gateway.upgrade() else { return };
        if now != told {
            match gateway.set_settings(now.clone()).await {
                Ok(()) => told = now,
                Err(error) => {
                    tracing::warn!(%error, "the gateway does not know the host's changes")
                }
            }
        }
    }
}

impl NetworkArgs {
    fn settings(&self, api: SocketAddr) -> Settings {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let mut own = addresses_v4(&read("/proc/net/fib_trie"));
        own.extend(addresses_v6(&read("/proc/net/if_inet6")));
        let site = Site { own, control: vec![api.ip()], private: self.allow_private };
        let resolvers = match &self.resolvers[..] {
            [] => nameservers(&read("/etc/resolv.conf")),
            asked => asked.to_vec(),
        };
        Settings { site, resolvers }
    }
}

/// An address with or without a port.
fn resolver(text: &str) -> Result<SocketAddr, String> {
    let bare = || text.parse::<IpAddr>().ok().map(|address| SocketAddr::new(address, DNS));
    text.parse().ok().or_else(bare).ok_or_else(|| {
        "an address is wanted, such as 9.9.9.9, 127.0.0.1:5353 or [2620:fe::fe]:53".to_owned()
    })
}

/// The resolvers of resolv.conf(5).
fn nameservers(text: &str) -> Vec<SocketAddr> {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let address = (words.next()? == "nameserver").then(|| words.next()).flatten()?;
        address.parse::<IpAddr>().ok()
    };
    let all = text.lines().filter_map(line);
    all.take(MAX_RESOLVERS).map(|address| SocketAddr::new(address, DNS)).collect()
}

/// The host's IPv4 addresses: the local routes of the kernel's table, as it prints it.
fn addresses_v4(text: &str) -> Vec<Cidr> {
    let (mut address, mut found) = (None::<Ipv4Addr>, Vec::new());
    for line in text.lines().map(str::trim) {
        if let Some(leaf) = line.strip_prefix("|-- ") {
            address = leaf.parse().ok();
        } else if let Some(route) = line.strip_prefix('/')
            && let Some((prefix, "host LOCAL")) = route.split_once(' ')
            && let (Some(address), Ok(prefix)) = (address, prefix.parse())
        {
            found.extend(Cidr::new(address.into(), prefix));
        }
    }
    // The same table is printed once per name that it has.
    found.sort();
    found.dedup();
    found
}

/// The host's IPv6 addresses, a line each.
fn addresses_v6(text: &str) -> Vec<Cidr> {
    let address = |line: &str| {
        let bits = u128::from_str_radix(line.split_whitespace().next()?, 16).ok()?;
        Some(Cidr::single(Ipv6Addr::from_bits(bits).into()))
    };
    text.lines().filter_map(address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_addresses() {
        for (text, expected) in [
            ("9.9.9.9", "9.9.9.9:53"),
            ("127.0.0.1:5353", "127.0.0.1:5353"),
            ("2620:fe::fe", "[2620:fe::fe]:53"),
            ("[::1]:54", "[::1]:54"),
        ] {
            assert_eq!(resolver(text), Ok(expected.parse().unwrap()));
        }
        assert!(resolver("dns.example").is_err());
        let text = "# comment\nnameserver 10.0.0.2\nsearch a.b\nnameserver ::1 # x\nnameserver x\n\
                    nameserver 1.1.1.1\nnameserver 8.8.8.8\n";
        let expected = ["10.0.0.2:53", "[::1]:53", "1.1.1.1:53"].map(|a| a.parse().unwrap());
        assert_eq!(nameservers(text), expected);
    }

    #[test]
    fn the_hosts_addresses_are_in_the_kernels_tables() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n\
                    Local:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 10.1.2.3\n        /32 host LOCAL\n\
                    \x20    |-- 10.1.2.255\n        /32 link BROADCAST\n     |-- 127.0.0.0\n\
                    \x20       /8 host LOCAL\n     |-- 10.1.2.3\n        /32 host LOCAL\n";
        let expected = ["10.1.2.3/32", "127.0.0.0/8"].map(|cidr| cidr.parse().unwrap());
        assert_eq!(addresses_v4(trie), expected);
        let six = "00000000000000000000000000000001 01 80 10 80       lo\n\
                   20010db8000000000000000000000007 02 40 00 80     eth0\n";
        let expected = ["::1/128", "2001:db8::7/128"].map(|cidr| cidr.parse().unwrap());
        assert_eq!(addresses_v6(six), expected);
        assert!(addresses_v4("|-- 1.2.3.4\n/x host LOCAL\n/33 host LOCAL\nnoise").is_empty());
        // And here.
        let loopback = addresses_v4(&fs::read_to_string("/proc/net/fib_trie").unwrap());
        assert!(loopback.iter().any(|cidr| cidr.contains(Ipv4Addr::LOCALHOST.into())));
    }
}
