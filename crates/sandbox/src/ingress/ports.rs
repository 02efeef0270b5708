//! Ports of a guest as people name them.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// A TCP port that may be reached from outside: 1 to 65535, and not 22, where templates of other
/// makers have a way in of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Port(u16);

impl Port {
    /// Refused whoever asks.
    const RESERVED: u16 = 22;

    /// The number.
    pub fn number(self) -> u16 {
        self.0
    }
}

impl TryFrom<i64> for Port {
    type Error = PortError;

    fn try_from(number: i64) -> Result<Self, PortError> {
        match u16::try_from(number) {
            Ok(Self::RESERVED) => Err(PortError::Reserved),
            Ok(number @ 1..) => Ok(Self(number)),
            _ => Err(PortError::Range),
        }
    }
}

impl FromStr for Port {
    type Err = PortError;

    /// Reads digits and nothing else: one port has one spelling.
    fn from_str(text: &str) -> Result<Self, PortError> {
        let plain = !text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse::<i64>().ok().filter(|_| plain).ok_or(PortError::Range)?;
        Self::try_from(number)
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What somebody said of a port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exposed {
    /// What it is for.
    pub label: Option<String>,
    /// Whether anybody may reach it, without a key.
    pub public: bool,
}

/// Why a port cannot be used or listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// Not the number of a port.
    #[error("port must be a number from 1 to 65535")]
    Range,
    /// One of those that are never reached from outside.
    #[error("port 22 is not reached from outside; choose another one")]
    Reserved,
    /// A list that is too long.
    #[error("a sandbox lists at most {} ports; take one off first", Ports::MAX)]
    TooMany,
    /// A label that is no label.
    #[error("label must have at most {} characters and none that control a terminal", Ports::LABEL)]
    Label,
}

/// The listed ports of a sandbox, in order. Its size is bounded.
#[derive(Clone, Debug, Default)]
pub struct Ports(BTreeMap<Port, Exposed>);

impl Ports {
    /// Most of them.
    const MAX: usize = 64;
    /// Most characters of a label.
    const LABEL: usize = 128;

    pub(super) fn expose(&mut self, port: Port, exposed: Exposed) -> Result<(), PortError> {
        if let Some(label) = &exposed.label
            && (label.chars().count() > Self::LABEL || label.contains(char::is_control))
        {
            return Err(PortError::Label);
        }
        if self.0.len() >= Self::MAX && !self.0.contains_key(&port) {
            return Err(PortError::TooMany);
        }
        self.0.insert(port, exposed);
        Ok(())
    }

    pub(super) fn close(&mut self, port: Port) -> bool {
        self.0.remove(&port).is_some()
    }

    /// What was said of a port.
    pub fn get(&self, port: Port) -> Option<&Exposed> {
        self.0.get(&port)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (Port, &Exposed)> {
        self.0.iter().map(|(port, exposed)| (*port, exposed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_has_one_spelling() {
        assert_eq!("8000".parse::<Port>().map(Port::number), Ok(8000));
        assert_eq!("65535".parse::<Port>().map(Port::number), Ok(65535));
        for bad in ["", "0", "00080", "080", "+80", "-1", "65536", "80 ", " 80", "0x50", "8e1"] {
            assert_eq!(bad.parse::<Port>(), Err(PortError::Range), "{bad:?}");
        }
        for bad in ["%38%30", "http", "\u{0668}\u{0660}", "80/", "99999999999999999999"] {
            assert_eq!(bad.parse::<Port>(), Err(PortError::Range), "{bad:?}");
        }
        assert_eq!("22".parse::<Port>(), Err(PortError::Reserved));
        assert_eq!(Port::try_from(22), Err(PortError::Reserved));
        assert_eq!(Port::try_from(-80), Err(PortError::Range));
    }

    #[test]
    fn lists_and_labels_are_bounded() {
        let mut ports = Ports::default();
        let port = |number: i64| Port::try_from(number).unwrap();
        for number in 0..Ports::MAX as i64 {
            ports.expose(port(1000 + number), Exposed::default()).unwrap();
        }
        assert_eq!(ports.expose(port(80), Exposed::default()), Err(PortError::TooMany));
        let labelled = |label: &str| Exposed { label: Some(label.to_owned()), public: false };
        ports.expose(port(1000), labelled("wéb")).unwrap();
        for bad in ["a\nb", "\u{1b}[31m", &"x".repeat(Ports::LABEL + 1)] {
            assert_eq!(ports.expose(port(1000), labelled(bad)), Err(PortError::Label));
        }
        assert_eq!(ports.get(port(1000)), Some(&labelled("wéb")));
        assert_eq!(ports.iter().count(), Ports::MAX);
    }
}
