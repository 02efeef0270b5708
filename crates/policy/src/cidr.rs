//! Networks in CIDR notation.
//!
//! The invariant: **a [`Cidr`] has no bits set beyond its prefix, and IPv4 has one form**, never
//! the IPv4-mapped one of IPv6. So `::/0` is all of IPv6 and nothing of IPv4.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::host::decimal;

/// A network: an address and the number of its bits that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    network: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// A network, if no bit of the address beyond the prefix is set.
    pub fn new(address: IpAddr, prefix: u8) -> Result<Self, CidrError> {
        let (address, prefix) = match (address, address.to_canonical()) {
            (IpAddr::V6(_), mapped @ IpAddr::V4(_)) if prefix >= 96 => (mapped, prefix - 96),
            _ => (address, prefix),
        };
        let width = if address.is_ipv4() { 32 } else { 128 };
        if prefix > width {
            return Err(CidrError::Prefix);
        }
        let cidr = Self { network: first(address, prefix), prefix };
        if cidr.network == address { Ok(cidr) } else { Err(CidrError::HostBits(cidr)) }
    }

    /// One address alone.
    pub fn single(address: IpAddr) -> Self {
        let network = address.to_canonical();
        Self { network, prefix: if network.is_ipv4() { 32 } else { 128 } }
    }

    /// For tables; a test checks that these are networks.
    pub(crate) const fn v4([a, b, c, d]: [u8; 4], prefix: u8) -> Self {
        Self { network: IpAddr::V4(Ipv4Addr::new(a, b, c, d)), prefix }
    }

    /// For tables, from the first four groups and the last one.
    pub(crate) const fn v6([a, b, c, d]: [u16; 4], last: u16, prefix: u8) -> Self {
        Self { network: IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, last)), prefix }
    }

    /// Whether the address is in it. An IPv4-mapped address is the IPv4 address.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.network.is_ipv4() && first(address, self.prefix) == self.network
    }

    /// Whether all of another network is in it.
    pub fn covers(&self, other: &Cidr) -> bool {
        self.prefix <= other.prefix && self.contains(other.network)
    }
}

/// The first address of the network that an address is in.
fn first(address: IpAddr, prefix: u8) -> IpAddr {
    // A shift by the whole width, which is what /0 needs, is not one to the processor.
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32_u32.saturating_sub(prefix.into())).unwrap_or(0);
            Ipv4Addr::from_bits(v4.to_bits() & mask).into()
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(prefix.into())).unwrap_or(0);
            Ipv6Addr::from_bits(v6.to_bits() & mask).into()
        }
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        // The standard library's parser takes one form of IPv4 only, and no zones.
        let Some((address, prefix)) = text.split_once('/') else {
            let address: IpAddr = text.parse().map_err(|_| CidrError::Shape)?;
            return Err(CidrError::NoPrefix(Self::single(address)));
        };
        let address = address.parse().map_err(|_| CidrError::Shape)?;
        let prefix = decimal(prefix.as_bytes()).and_then(|prefix| u8::try_from(prefix).ok());
        Self::new(address, prefix.ok_or(CidrError::Prefix)?)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl Serialize for Cidr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Text that is not a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    /// Not an address and a prefix.
    #[error("a network is an address and a prefix, such as 203.0.113.0/24 or 2001:db8::/32")]
    Shape,
    /// A prefix that is no number, or longer than the address.
    #[error("a prefix is a number from 0 to 32 for IPv4, or to 128 for IPv6")]
    Prefix,
    /// An address alone.
    #[error("a network has a prefix: write {0} for this address alone")]
    NoPrefix(Cidr),
    /// Bits are set beyond the prefix.
    #[error("the address has bits beyond its prefix: write {0}, or a longer prefix")]
    HostBits(Cidr),
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn boundaries_are_exact() {
        for (cidr, inside, outside) in [
            (
                "0.0.0.0/0",
                &["0.0.0.0", "255.255.255.255", "::ffff:8.8.8.8"][..],
                &["::", "::1"][..],
            ),
            (
                "::/0",
                &["::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"],
                &["0.0.0.0", "::ffff:1.1.1.1"],
            ),
            ("255.255.255.255/32", &["255.255.255.255"], &["255.255.255.254"]),
            ("255.255.255.254/31", &["255.255.255.254", "255.255.255.255"], &["255.255.255.253"]),
            ("128.0.0.0/1", &["128.0.0.0", "255.255.255.255"], &["127.255.255.255"]),
            ("::1/128", &["::1"], &["::", "::2"]),
            (
                "::ffff:10.0.0.0/104",
                &["10.255.0.1", "::ffff:10.0.0.1"],
                &["11.0.0.0", "::10.0.0.1"],
            ),
        ] {
            let cidr: Cidr = cidr.parse().unwrap();
            assert!(inside.iter().all(|a| cidr.contains(a.parse().unwrap())), "{cidr}");
            assert!(!outside.iter().any(|a| cidr.contains(a.parse().unwrap())), "{cidr}");
        }
        let covers = |wide: &str, narrow: &str| {
            wide.parse::<Cidr>().unwrap().covers(&narrow.parse().unwrap())
        };
        assert!(covers("10.0.0.0/8", "10.0.0.0/8") && covers("10.0.0.0/8", "10.9.0.0/16"));
        // The wider network starts at the same address.
        assert!(!covers("10.0.0.0/8", "10.0.0.0/7") && !covers("::/0", "0.0.0.0/0"));
        let mapped: Cidr = "::ffff:0:0/96".parse().unwrap();
        assert_eq!(mapped.to_string(), "0.0.0.0/0");
    }

    #[test]
    fn errors_say_what_to_write() {
        let error = |text: &str| text.parse::<Cidr>().unwrap_err().to_string();
        assert!(error("10.0.0.1/8").contains("write 10.0.0.0/8,"));
        assert!(error("2001:db8::1/32").contains("write 2001:db8::/32,"));
        assert!(error("::ffff:0:0/95").contains("write ::fffe:0:0/95,"));
        assert!(error("255.255.255.255/0").contains("write 0.0.0.0/0,"));
        assert!(error("192.0.2.1").contains("write 192.0.2.1/32 "));
        for bad in ["10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0.0/+8", "10.0.0.0/08", "::/256"] {
            assert_eq!(bad.parse::<Cidr>(), Err(CidrError::Prefix), "{bad}");
        }
        for bad in
            ["", "/", "10/8", "010.0.0.0/8", "0x0a.0.0.0/8", "fe80::%1/64", "[::]/0", " ::/0"]
        {
            assert_eq!(bad.parse::<Cidr>(), Err(CidrError::Shape), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn v4_is_arithmetic(base: u32, prefix in 0_u8..=32, other: u32, near in 0_u32..=64) {
            let size = 1_u64 << (32 - prefix);
            let start = u64::from(base) / size * size;
            let cidr = Cidr::new(Ipv4Addr::from_bits(start as u32).into(), prefix).unwrap();
            let edge = (start + size).wrapping_sub(32).wrapping_add(near.into()) as u32;
            for address in [other, edge, base] {
                let model = (start..start + size).contains(&address.into());
                prop_assert_eq!(cidr.contains(Ipv4Addr::from_bits(address).into()), model);
                prop_assert_eq!(cidr.contains(Ipv4Addr::from_bits(address).to_ipv6_mapped().into()), model);
            }
            prop_assert_eq!(Cidr::new(Ipv4Addr::from_bits(base).into(), prefix).is_ok(), u64::from(base) == start);
            prop_assert_eq!(cidr.to_string().parse(), Ok(cidr));
        }

        #[test]
        fn v6_is_arithmetic(base: u128, prefix in 1_u8..=128, other: u128, near in 0_u128..=64) {
            let size = 1_u128 << (128 - prefix);
            let start = base / size * size;
            prop_assume!(Ipv6Addr::from_bits(start).to_ipv4_mapped().is_none());
            let cidr = Cidr::new(Ipv6Addr::from_bits(start).into(), prefix).unwrap();
            for address in [other, start.wrapping_add(size).wrapping_sub(32).wrapping_add(near), base] {
                let model = address >= start && address - start < size;
                prop_assert_eq!(cidr.contains(Ipv6Addr::from_bits(address).into()), model);
            }
            prop_assert_eq!(cidr.to_string().parse(), Ok(cidr));
        }

        #[test]
        fn any_text_is_read_without_a_panic(text in "[0-9a-f:./%+ -]{0,24}") {
            if let Ok(cidr) = text.parse::<Cidr>() {
                prop_assert_eq!(cidr.to_string().parse(), Ok(cidr));
            }
        }
    }
}
