//! Host names: the one parser of them in the product.
//!
//! The invariant: **a [`Host`] has one spelling, and no other program reads it as something
//! else.** It is lower-case ASCII without a trailing dot, and nobody takes it for an address.
//! Questions to DNS, server names of TLS, HTTP authorities and rules all become a [`Host`] before
//! anything compares them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Serialize, Serializer};

/// A host name: labels of letters, digits, `-` and `_`, in lower case.
///
/// `_` is not in the grammar of host names, but it is in names that people must reach (buckets,
/// service labels), and every parser reads it the same way. Punycode (`xn--…`) is taken as it
/// comes, since what it stands for is decided by no program on the way.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Host(Arc<str>);

impl Host {
    /// The longest name in bytes, without a trailing dot.
    pub const MAX_LEN: usize = 253;
    /// The longest label in bytes.
    pub const MAX_LABEL: usize = 63;

    /// Reads a name from text, such as a TLS server name. One trailing dot is dropped.
    pub fn parse(text: &[u8]) -> Result<Self, HostError> {
        match text.strip_suffix(b".").unwrap_or(text) {
            b"" => Err(HostError::Empty),
            text => Self::from_labels(text.split(|byte| *byte == b'.')),
        }
    }

    /// Reads a name from its labels, as a DNS message has them. To join them first would be wrong:
    /// a label may contain a dot there.
    pub fn from_labels<'a>(labels: impl IntoIterator<Item = &'a [u8]>) -> Result<Self, HostError> {
        let (mut name, mut last) = (String::new(), &[][..]);
        for label in labels {
            check(label)?;
            if !name.is_empty() {
                name.push('.');
            }
            name.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
            if name.len() > Self::MAX_LEN {
                return Err(HostError::TooLong);
            }
            last = label;
        }
        if name.is_empty() {
            return Err(HostError::Empty);
        }
        if is_number(last) {
            return Err(HostError::Address);
        }
        Ok(Self(name.into()))
    }

    /// Reads `name` or `name:port`, as the Host field and `:authority` of HTTP have it.
    pub fn parse_authority(text: &[u8]) -> Result<(Self, Option<u16>), HostError> {
        let Some(colon) = text.iter().rposition(|byte| *byte == b':') else {
            return Ok((Self::parse(text)?, None));
        };
        let (name, port) = text.split_at(colon);
        let port = port.get(1..).and_then(decimal).ok_or(HostError::Port)?;
        Ok((Self::parse(name)?, Some(port)))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it has `apex` as its end and at least one label before it.
    pub fn is_below(&self, apex: &str) -> bool {
        self.0.strip_suffix(apex).is_some_and(|rest| rest.ends_with('.'))
    }
}

impl FromStr for Host {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        Self::parse(text.as_bytes())
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn check(label: &[u8]) -> Result<(), HostError> {
    for byte in label {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => {}
            0x80.. => return Err(HostError::NotAscii),
            other => return Err(HostError::Byte(*other)),
        }
    }
    match label {
        [] => Err(HostError::EmptyLabel),
        [b'-', ..] | [.., b'-'] => Err(HostError::Hyphen),
        label if label.len() > Host::MAX_LABEL => Err(HostError::LongLabel),
        _ => Ok(()),
    }
}

/// Whether a lenient reader of addresses takes a last label for a number. All its forms (dotted,
/// short, decimal, octal, hexadecimal) end in one, and no top-level domain is one.
fn is_number(label: &[u8]) -> bool {
    match label {
        [b'0', b'x' | b'X', digits @ ..] => digits.iter().all(u8::is_ascii_hexdigit),
        digits => digits.iter().all(u8::is_ascii_digit),
    }
}

/// A number of digits only, without a zero in front.
pub(crate) fn decimal(digits: &[u8]) -> Option<u16> {
    let plain = matches!(digits, [b'0'] | [b'1'..=b'9', ..]);
    let digits = str::from_utf8(digits).ok().filter(|d| d.bytes().all(|b| b.is_ascii_digit()))?;
    plain.then(|| digits.parse().ok())?
}

/// What a rule says about names.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostPattern {
    /// `*`: every name.
    Any,
    /// `*.example.com`: names with one or more labels before it, never `example.com` itself.
    Below(Host),
    /// This name alone.
    Exactly(Host),
}

impl HostPattern {
    /// Whether it speaks of this name.
    pub fn matches(&self, name: &Host) -> bool {
        match self {
            HostPattern::Any => true,
            HostPattern::Below(apex) => name.is_below(apex.as_str()),
            HostPattern::Exactly(own) => own == name,
        }
    }
}

impl FromStr for HostPattern {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        if text == "*" {
            return Ok(HostPattern::Any);
        }
        let apex = text.strip_prefix("*.");
        if apex.unwrap_or(text).contains('*') {
            return Err(HostError::Wildcard);
        }
        Ok(match apex {
            Some(apex) => HostPattern::Below(apex.parse()?),
            None => HostPattern::Exactly(text.parse()?),
        })
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostPattern::Any => f.write_str("*"),
            HostPattern::Below(apex) => write!(f, "*.{apex}"),
            HostPattern::Exactly(name) => name.fmt(f),
        }
    }
}

impl Serialize for HostPattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Text that is not a host name. The text itself is not repeated: it may be hostile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// No labels.
    #[error("a host name cannot be empty")]
    Empty,
    /// More than [`Host::MAX_LEN`] bytes.
    #[error("a host name has at most {} bytes", Host::MAX_LEN)]
    TooLong,
    /// Two dots in a row, or one in front.
    #[error("a host name cannot have an empty label")]
    EmptyLabel,
    /// More than [`Host::MAX_LABEL`] bytes between two dots.
    #[error("a label of a host name has at most {} bytes", Host::MAX_LABEL)]
    LongLabel,
    /// A label with a hyphen at an end.
    #[error("a label of a host name cannot start or end with '-'")]
    Hyphen,
    /// A byte that is in no host name.
    #[error("a host name cannot contain '{}'", .0.escape_ascii())]
    Byte(u8),
    /// A letter beyond ASCII.
    #[error("write a host name in ASCII: the punycode form (xn--…) of an international name")]
    NotAscii,
    /// Text that is an address, to somebody.
    #[error("this is an address, not a host name; a rule for addresses says cidr")]
    Address,
    /// A wildcard in another place than the first label, or as a part of it.
    #[error("'*' stands alone or is the whole first label, as in *.example.com")]
    Wildcard,
    /// What follows the colon of an authority.
    #[error("a port is a decimal number up to 65535")]
    Port,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_a_name() {
        let label = "a".repeat(63);
        let longest = format!("{label}.{label}.{label}.{}", "a".repeat(61));
        for (text, name) in [
            ("pypi.org", "pypi.org"),
            ("PyPI.Org.", "pypi.org"),
            ("xn--bcher-kva.example", "xn--bcher-kva.example"),
            ("my_bucket.s3.test", "my_bucket.s3.test"),
            ("r3---sn.test", "r3---sn.test"),
            ("1.2.3.4.test", "1.2.3.4.test"),
            ("0xg", "0xg"),
            ("metadata", "metadata"),
            (&longest, &longest),
        ] {
            assert_eq!(text.parse::<Host>().unwrap().as_str(), name);
        }
    }

    #[test]
    fn what_is_not() {
        use HostError::*;
        let label = "a".repeat(63);
        let too_long = format!("{label}.{label}.{label}.{}", "a".repeat(62));
        for (text, error) in [
            ("", Empty),
            (".", Empty),
            ("..", EmptyLabel),
            ("a..", EmptyLabel),
            (".a", EmptyLabel),
            ("-a.test", Hyphen),
            ("a-.test", Hyphen),
            ("xn--", Hyphen),
            ("evil\0.test", Byte(0)),
            ("a.test\r\n", Byte(b'\r')),
            ("a b", Byte(b' ')),
            ("user@a.test", Byte(b'@')),
            ("a%2etest", Byte(b'%')),
            ("[::1]", Byte(b'[')),
            ("fe80::1%eth0", Byte(b':')),
            ("*.a.test", Byte(b'*')),
            ("bücher.test", NotAscii),
            ("a\u{3002}test", NotAscii),
            (&"a".repeat(64), LongLabel),
            (&too_long, TooLong),
        ] {
            assert_eq!(text.parse::<Host>(), Err(error), "{text:?}");
        }
        for text in ["127.0.0.1", "127.1", "2130706433", "0x7f.1", "017700000001", "0X7F000001"] {
            assert_eq!(text.parse::<Host>(), Err(Address), "{text}");
            assert_eq!(format!("{text}.").parse::<Host>(), Err(Address), "{text}");
        }
        assert_eq!(Host::from_labels([&b"a.b"[..], b"test"]), Err(Byte(b'.')));
    }

    #[test]
    fn authorities() {
        let of =
            |text: &str| Host::parse_authority(text.as_bytes()).map(|(h, p)| (h.0.to_string(), p));
        assert_eq!(of("A.test:443"), Ok(("a.test".to_owned(), Some(443))));
        assert_eq!(of("a.test"), Ok(("a.test".to_owned(), None)));
        for bad in ["a.test:", "a.test:+1", "a.test:0443", "a.test:65536", "a.test: 1"] {
            assert_eq!(of(bad), Err(HostError::Port), "{bad}");
        }
        assert_eq!(of("a.test:80:443"), Err(HostError::Byte(b':')));
        assert_eq!(of("u:p@a.test:443"), Err(HostError::Byte(b':')));
    }

    #[test]
    fn patterns() {
        for bad in ["*a.test", "a.*.test", "*.*.test", "**", "a*", "*.*"] {
            assert_eq!(bad.parse::<HostPattern>(), Err(HostError::Wildcard), "{bad}");
        }
        assert_eq!("*.".parse::<HostPattern>(), Err(HostError::Empty));
        assert_eq!("*.1".parse::<HostPattern>(), Err(HostError::Address));
        let below: HostPattern = "*.Example.com.".parse().unwrap();
        assert_eq!(below.to_string(), "*.example.com");
        for (name, hit) in
            [("a.example.com", true), ("example.com", false), ("aexample.com", false)]
        {
            assert_eq!(below.matches(&name.parse().unwrap()), hit, "{name}");
        }
    }

    /// Reads addresses as leniently as inet_aton(3) does.
    fn is_lenient_address(text: &str) -> bool {
        let number = |part: &str| match part.strip_prefix("0x") {
            Some(hex) => hex.bytes().all(|b| b.is_ascii_hexdigit()),
            None => !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()),
        };
        let parts: Vec<_> = text.to_lowercase().split('.').map(str::to_owned).collect();
        parts.len() <= 4 && parts.iter().all(|part| number(part))
    }

    proptest! {
        /// Whatever is accepted is plain, and comes out of the parser again as it is.
        #[test]
        fn a_name_is_plain(
            text in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..20),
                "[a-zA-Z0-9_.*%@:\0 -]{0,300}".prop_map(String::into_bytes),
                "[a-zA-Z0-9-]{1,8}(\\.[a-zA-Z0-9_-]{1,8}){0,4}\\.?".prop_map(String::into_bytes),
            ],
        ) {
            if let Ok(host) = Host::parse(&text) {
                let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
                prop_assert!(host.as_str().bytes().all(plain));
                prop_assert!(host.as_str().len() <= 253 && !host.as_str().ends_with('.'));
                prop_assert_eq!(Host::parse(host.as_str().as_bytes()), Ok(host.clone()));
                let labels = host.as_str().split('.').map(str::as_bytes);
                prop_assert_eq!(Host::from_labels(labels), Ok(host.clone()));
            }
            let _ = Host::parse_authority(&text);
        }

        #[test]
        fn no_address_is_a_name(text in "(0[xX]?)?[0-9a-f]{0,4}(\\.(0[xX]?)?[0-9a-f]{0,3}){0,3}\\.?") {
            if let Ok(host) = text.parse::<Host>() {
                prop_assert!(!is_lenient_address(host.as_str()), "{}", host);
            }
        }

        /// A wildcard is what it is label by label.
        #[test]
        fn wildcards_match_labels(apex in "[ab](\\.[ab]){0,2}", name in "[ab](\\.[ab]){0,4}") {
            let pattern: HostPattern = format!("*.{apex}").parse().unwrap();
            let (apex, labels): (Vec<_>, Vec<_>) = (apex.split('.').collect(), name.split('.').collect());
            let model = labels.len() > apex.len() && labels[labels.len() - apex.len()..] == apex;
            prop_assert_eq!(pattern.matches(&name.parse().unwrap()), model);
        }
    }
}
