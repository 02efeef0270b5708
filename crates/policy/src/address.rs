//! Addresses and names that no policy opens.
//!
//! The invariant: **what an address is, it is in every form.** A router on the way may translate
//! `64:ff9b::a9fe:a9fe` into the metadata server's address, so [`faces`] shows an address together
//! with the IPv4 addresses inside of it, and an address is never reachable if one of its faces is
//! not. Nobody but the caller knows what the host's own addresses are; they come in by a [`Site`].

use std::iter;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::cidr::Cidr;
use crate::host::Host;

/// Why an address or a name is never reachable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reserved {
    /// A cloud's metadata service, which gives the host's credentials away.
    #[error("a cloud's metadata service")]
    Metadata,
    /// This machine.
    #[error("loopback")]
    Loopback,
    /// "This network": some systems take such a destination for this machine.
    #[error("an unspecified address")]
    Unspecified,
    /// Link-local and the site-local addresses of old.
    #[error("link-local")]
    LinkLocal,
    /// Multicast.
    #[error("multicast")]
    Multicast,
    /// Broadcast, and the reserved range around it.
    #[error("broadcast or reserved")]
    Broadcast,
    /// A prefix of local translators: nobody else knows what is behind it.
    #[error("a local translator's prefix")]
    Translator,
    /// An address or network of the host that the sandbox runs on.
    #[error("the host's own")]
    Own,
    /// The address of PandaStack's control API.
    #[error("the control API's")]
    Control,
}

/// Never reachable; the first that fits gives the reason.
const NEVER: &[(Cidr, Reserved)] = &[
    (Cidr::v4([169, 254, 169, 254], 32), Reserved::Metadata),
    (Cidr::v4([100, 100, 100, 200], 32), Reserved::Metadata), // Alibaba Cloud
    (Cidr::v4([168, 63, 129, 16], 32), Reserved::Metadata),   // Azure's wire server
    (Cidr::v4([192, 0, 0, 192], 32), Reserved::Metadata),     // Oracle Cloud, the older one
    (Cidr::v6([0xfd00, 0x0ec2, 0, 0], 0x254, 128), Reserved::Metadata), // EC2
    (Cidr::v6([0xfd20, 0x00ce, 0, 0], 0x254, 128), Reserved::Metadata), // Google Cloud
    (Cidr::v6([0xfd00, 0x0042, 0, 0], 0x42, 128), Reserved::Metadata), // Scaleway
    (Cidr::v4([127, 0, 0, 0], 8), Reserved::Loopback),
    (Cidr::v6([0; 4], 1, 128), Reserved::Loopback),
    (Cidr::v4([0, 0, 0, 0], 8), Reserved::Unspecified),
    (Cidr::v6([0; 4], 0, 128), Reserved::Unspecified),
    (Cidr::v4([169, 254, 0, 0], 16), Reserved::LinkLocal),
    (Cidr::v6([0xfe80, 0, 0, 0], 0, 9), Reserved::LinkLocal), // with fec0::/10, site-local
    (Cidr::v4([224, 0, 0, 0], 4), Reserved::Multicast),
    (Cidr::v6([0xff00, 0, 0, 0], 0, 8), Reserved::Multicast),
    (Cidr::v4([240, 0, 0, 0], 4), Reserved::Broadcast),
    (Cidr::v6([0x64, 0xff9b, 1, 0], 0, 48), Reserved::Translator),
];

/// Networks that are not the internet: RFC 1918, carrier-grade NAT, benchmarks, unique local.
const PRIVATE: &[Cidr] = &[
    Cidr::v4([10, 0, 0, 0], 8),
    Cidr::v4([172, 16, 0, 0], 12),
    Cidr::v4([192, 168, 0, 0], 16),
    Cidr::v4([100, 64, 0, 0], 10),
    Cidr::v4([198, 18, 0, 0], 15),
    Cidr::v6([0xfc00, 0, 0, 0], 0, 7),
];

/// Names of metadata services, and of this machine. They and all names below them are refused:
/// their addresses are never reachable, and to ask for them tells somebody where we are.
const NAMES: &[&str] = &[
    "metadata",
    "metadata.google.internal",
    "metadata.goog",
    "instance-data",
    "instance-data.ec2.internal",
    "localhost",
];

/// Whether a name is refused whatever the policy says.
pub(crate) fn is_reserved(name: &Host) -> bool {
    NAMES.iter().any(|own| name.as_str() == *own || name.is_below(own))
}

/// Whether a network lies within one private range.
pub(crate) fn is_private(cidr: &Cidr) -> bool {
    PRIVATE.iter().any(|range| range.covers(cidr))
}

/// The address, then every IPv4 address that a translator or a tunnel may read out of it.
pub(crate) fn faces(address: IpAddr) -> impl Iterator<Item = IpAddr> {
    let address = address.to_canonical();
    let inner = match address {
        IpAddr::V4(_) => [None, None],
        IpAddr::V6(v6) => embedded(v6),
    };
    iter::once(address).chain(inner.into_iter().flatten().map(IpAddr::V4))
}

fn embedded(address: Ipv6Addr) -> [Option<Ipv4Addr>; 2] {
    let bits = address.to_bits();
    // The low 32 bits of what is left after a shift.
    let v4 = |bits: u128| Some(Ipv4Addr::from_bits(bits as u32));
    match address.segments() {
        [0, 0, 0, 0, 0, 0, ..] => [v4(bits), None], // IPv4-compatible, RFC 4291
        [0, 0, 0, 0, 0xffff, 0, ..] => [v4(bits), None], // IPv4-translated, RFC 2765
        [0x64, 0xff9b, 0, 0, 0, 0, ..] => [v4(bits), None], // NAT64, RFC 6052
        [0x2002, ..] => [v4(bits >> 80), None],     // 6to4, RFC 3056
        [0x2001, 0, ..] => [v4(bits >> 64), v4(!bits)], // Teredo, RFC 4380: server, client
        _ => [None, None],
    }
}

/// What an address is before any rule is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// On the internet.
    Public,
    /// In a network that only the operator can open.
    Private,
    /// Out of reach for ever.
    Never(Reserved),
}

/// What the operator knows about the place where sandboxes run: the same for all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
pub struct Site {
    /// The host's own addresses, and networks that nobody inside may see. Public ones too: a
    /// service that listens on all addresses is behind each of them.
    pub own: Vec<Cidr>,
    /// Where the control API answers, whether on this host or before it.
    pub control: Vec<IpAddr>,
    /// The operator's switch: rules may open private networks. Each must still be named by a
    /// cidr within a private range; `0.0.0.0/0` names none.
    pub private: bool,
}

impl Site {
    pub(crate) fn kind(&self, address: IpAddr) -> Kind {
        let mut kind = Kind::Public;
        for face in faces(address) {
            if let Some((_, reason)) = NEVER.iter().find(|(cidr, _)| cidr.contains(face)) {
                return Kind::Never(*reason);
            }
            // The lists may be in any form as well.
            if self.control.iter().any(|control| faces(*control).any(|own| own == face)) {
                return Kind::Never(Reserved::Control);
            }
            if self.own.iter().any(|cidr| cidr.contains(face)) {
                return Kind::Never(Reserved::Own);
            }
            if PRIVATE.iter().any(|cidr| cidr.contains(face)) {
                kind = Kind::Private;
            }
        }
        kind
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_hold_networks() {
        for cidr in NEVER.iter().map(|(cidr, _)| cidr).chain(PRIVATE) {
            assert_eq!(cidr.to_string().parse().as_ref(), Ok(cidr));
        }
        for name in NAMES {
            assert_eq!(name.parse::<Host>().unwrap().as_str(), *name);
        }
    }

    #[test]
    fn what_addresses_are() {
        use Reserved::*;
        let site = Site {
            own: vec!["198.51.100.7/32".parse().unwrap(), "2001:db8:7::/48".parse().unwrap()],
            control: vec!["::ffff:198.51.100.8".parse().unwrap()],
            private: true,
        };
        for (reason, addresses) in [
            (Metadata, "169.254.169.254 fd00:ec2::254 100.100.100.200 64:ff9b::a9fe:a9fe"),
            (Metadata, "::169.254.169.254 ::ffff:169.254.169.254 ::ffff:0:169.254.169.254"),
            // 6to4, and Teredo with it as the server and, inverted, as the client.
            (Metadata, "2002:a9fe:a9fe::1 2001:0:a9fe:a9fe:: 2001:0:808:808:0:0:5601:5601"),
            (Loopback, "127.255.255.255 ::1 64:ff9b::7f00:1"),
            (Unspecified, "0.0.0.0 0.255.0.1 ::"),
            (LinkLocal, "169.254.0.1 fe80::1 fec0::1 febf:ffff::"),
            (Multicast, "224.0.0.251 239.255.255.255 ff02::fb"),
            (Broadcast, "255.255.255.255 240.0.0.1"),
            (Translator, "64:ff9b:1::1"),
            (Own, "198.51.100.7 64:ff9b::198.51.100.7 2001:db8:7:1::1"),
            (Control, "198.51.100.8 2002:c633:6408::"),
        ] {
            for address in addresses.split(' ') {
                let kind = site.kind(address.parse().unwrap());
                assert_eq!(kind, Kind::Never(reason), "{address}");
            }
        }
        let private = "10.0.0.1 172.31.255.255 192.168.1.1 100.64.0.1 198.19.0.1 fc00::1 fdff::1 \
                       64:ff9b::10.0.0.1 2002:a00:1:: ::ffff:10.0.0.1";
        let public = "1.1.1.1 203.0.113.5 172.32.0.1 100.128.0.1 126.255.255.255 128.0.0.0 1.0.0.0 \
                      223.255.255.255 169.253.255.255 2606:4700::1111 64:ff9b::1.1.1.1 fe00::1";
        for (addresses, kind) in [(private, Kind::Private), (public, Kind::Public)] {
            for address in addresses.split(' ') {
                assert_eq!(site.kind(address.parse().unwrap()), kind, "{address}");
            }
        }
    }

    #[test]
    fn what_names_are() {
        let reserved = "metadata.google.internal Metadata.Google.Internal. metadata localhost \
                        x.metadata.google.internal a.localhost";
        let free = "google.internal metadata.example.com xmetadata";
        for (names, expected) in [(reserved, true), (free, false)] {
            for name in names.split(' ') {
                assert_eq!(is_reserved(&name.parse().unwrap()), expected, "{name}");
            }
        }
    }
}
