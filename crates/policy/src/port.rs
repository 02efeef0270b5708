//! Ports of rules. A number is a TCP port, since that is what people mean; the text forms are
//! `"8000-8999"` for a range and `"123/udp"` for UDP, which nothing but such an entry opens.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::host::decimal;

/// What is spoken on top of IP. Nothing else leaves a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        })
    }
}

/// A range of ports of one protocol, often of one port. Port 0 is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ports {
    protocol: Protocol,
    first: u16,
    last: u16,
}

impl Ports {
    /// One TCP port.
    pub(crate) fn tcp(port: u16) -> Result<Self, InvalidPorts> {
        if port == 0 {
            Err(InvalidPorts)
        } else {
            Ok(Self { protocol: Protocol::Tcp, first: port, last: port })
        }
    }

    /// Whether a port of a protocol is in it.
    pub fn contains(&self, protocol: Protocol, port: u16) -> bool {
        self.protocol == protocol && (self.first..=self.last).contains(&port)
    }

    /// Their protocol.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }
}

impl FromStr for Ports {
    type Err = InvalidPorts;

    fn from_str(text: &str) -> Result<Self, InvalidPorts> {
        let (range, protocol) = match text.split_once('/') {
            None => (text, Protocol::Tcp),
            Some((range, "tcp")) => (range, Protocol::Tcp),
            Some((range, "udp")) => (range, Protocol::Udp),
            Some(_) => return Err(InvalidPorts),
        };
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let port =
            |text: &str| decimal(text.as_bytes()).filter(|port| *port != 0).ok_or(InvalidPorts);
        let (first, last) = (port(first)?, port(last)?);
        if first <= last { Ok(Self { protocol, first, last }) } else { Err(InvalidPorts) }
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.first.fmt(f)?;
        if self.last != self.first {
            write!(f, "-{}", self.last)?;
        }
        match self.protocol {
            Protocol::Tcp => Ok(()),
            Protocol::Udp => f.write_str("/udp"),
        }
    }
}

impl Serialize for Ports {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.protocol == Protocol::Tcp && self.first == self.last {
            serializer.serialize_u16(self.first)
        } else {
            serializer.collect_str(self)
        }
    }
}

/// Not a port or a range of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a port is 1 to 65535, a range is \"8000-8999\", and UDP is \"123/udp\"")]
pub struct InvalidPorts;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_have_one_spelling() {
        for (text, canonical) in [
            ("443", "443"),
            ("443/tcp", "443"),
            ("123/udp", "123/udp"),
            ("1-65535/udp", "1-65535/udp"),
            ("80-80", "80"),
        ] {
            let ports: Ports = text.parse().unwrap();
            assert_eq!(ports.to_string(), canonical);
            assert_eq!(canonical.parse(), Ok(ports));
        }
        for bad in
            ["", "0", "65536", "0443", "+1", "80-", "-80", "90-80", "80/", "80/TCP", "*", "1-2-3"]
        {
            assert_eq!(bad.parse::<Ports>(), Err(InvalidPorts), "{bad}");
        }
        assert_eq!(Ports::tcp(0), Err(InvalidPorts));
    }

    #[test]
    fn a_protocol_is_a_part_of_a_port() {
        let ports: Ports = "100-200/udp".parse().unwrap();
        for (protocol, port, hit) in [
            (Protocol::Udp, 100, true),
            (Protocol::Udp, 200, true),
            (Protocol::Udp, 99, false),
            (Protocol::Udp, 201, false),
            (Protocol::Tcp, 150, false),
        ] {
            assert_eq!(ports.contains(protocol, port), hit, "{protocol} {port}");
        }
    }
}
