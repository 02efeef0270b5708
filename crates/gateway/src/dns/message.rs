//! What every DNS message is made of: a header, names, records.
//!
//! The invariant: **reading ends.** A name has at most 255 bytes and follows at most
//! [`MAX_JUMPS`] pointers, each to a place before the one it is at, so that no packet makes a loop
//! or much work of a few bytes.

use std::fmt;

/// Bytes of a header.
pub(super) const HEADER: usize = 12;
/// Longest name on the wire, with the lengths of its labels.
const MAX_NAME: usize = 255;
/// Most pointers of one name. Resolvers write one.
const MAX_JUMPS: usize = 16;

/// What carries messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// A datagram each.
    Udp,
    /// A connection.
    Tcp,
}

/// The type of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RecordType(pub u16);

impl RecordType {
    /// An IPv4 address.
    pub const A: Self = Self(1);
    /// Another name for the same.
    pub const CNAME: Self = Self(5);
    /// An IPv6 address.
    pub const AAAA: Self = Self(28);
    /// EDNS, which is no record.
    pub const OPT: Self = Self(41);
    /// How to reach a service.
    pub const SVCB: Self = Self(64);
    /// How to reach a web server.
    pub const HTTPS: Self = Self(65);

    /// Whether a resolver may be asked for it.
    pub fn is_forwarded(self) -> bool {
        matches!(self, Self::A | Self::AAAA | Self::SVCB | Self::HTTPS)
    }
}

impl fmt::Display for RecordType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            1 => "A",
            2 => "NS",
            5 => "CNAME",
            6 => "SOA",
            10 => "NULL",
            12 => "PTR",
            15 => "MX",
            16 => "TXT",
            28 => "AAAA",
            33 => "SRV",
            35 => "NAPTR",
            41 => "OPT",
            43 => "DS",
            48 => "DNSKEY",
            64 => "SVCB",
            65 => "HTTPS",
            252 => "AXFR",
            255 => "ANY",
            other => return write!(f, "TYPE{other}"),
        })
    }
}

/// The class of everything that is asked here.
pub(super) const INTERNET: u16 = 1;

/// What a message says about how it went.
pub(super) mod rcode {
    pub(crate) const NO_ERROR: u16 = 0;
    pub(crate) const FORMERR: u16 = 1;
    pub(crate) const SERVFAIL: u16 = 2;
    pub(crate) const NXDOMAIN: u16 = 3;
    pub(crate) const NOTIMP: u16 = 4;
    pub(crate) const REFUSED: u16 = 5;
    /// Its upper bits are in the record of EDNS.
    pub(crate) const BADVERS: u16 = 16;
}

/// Bits of the second word of a header.
pub(super) mod flag {
    pub(crate) const RESPONSE: u16 = 1 << 15;
    pub(crate) const TRUNCATED: u16 = 1 << 9;
    pub(crate) const RECURSION_DESIRED: u16 = 1 << 8;
    pub(crate) const RECURSION_AVAILABLE: u16 = 1 << 7;
}

/// The first twelve bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub id: u16,
    pub flags: u16,
    /// Questions, answers, authorities, additional records.
    pub counts: [u16; 4],
}

impl Header {
    pub fn opcode(self) -> u16 {
        self.flags >> 11 & 0xf
    }

    pub fn rcode(self) -> u16 {
        self.flags & 0xf
    }

    pub fn has(self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// A place in a packet. Everything it returns is inside.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a> {
    packet: &'a [u8],
    at: usize,
}

/// The labels of a name, from the first to the last, without the root's empty one.
pub(super) type Labels<'a> = Vec<&'a [u8]>;

/// A record, but for its name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record<'a> {
    pub kind: RecordType,
    pub class: u16,
    pub ttl: u32,
    /// Where its data begin in the packet: names in them may point elsewhere.
    pub data: Reader<'a>,
    pub len: usize,
}

impl<'a> Reader<'a> {
    pub fn new(packet: &'a [u8]) -> Self {
        Self { packet, at: 0 }
    }

    pub fn at(&self) -> usize {
        self.at
    }

    pub fn is_at_end(&self) -> bool {
        self.at == self.packet.len()
    }

    pub fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(len)?;
        let bytes = self.packet.get(self.at..end)?;
        self.at = end;
        Some(bytes)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    pub fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub fn header(&mut self) -> Option<Header> {
        let (id, flags) = (self.u16()?, self.u16()?);
        let counts = [self.u16()?, self.u16()?, self.u16()?, self.u16()?];
        Some(Header { id, flags, counts })
    }

    /// A name that has no pointers, which a question has no use for.
    pub fn plain_name(&mut self) -> Option<Labels<'a>> {
        self.labels(0)
    }

    /// A name, which may end with what stands somewhere before it.
    pub fn name(&mut self) -> Option<Labels<'a>> {
        self.labels(MAX_JUMPS)
    }

    fn labels(&mut self, mut jumps: usize) -> Option<Labels<'a>> {
        let (mut reader, mut labels, mut len) = (*self, Labels::new(), 1);
        let mut end = None;
        loop {
            let from = reader.at;
            match reader.u8()? {
                0 => break,
                size @ 1..=63 => {
                    labels.push(reader.bytes(size.into())?);
                    len += usize::from(size) + 1;
                    if len > MAX_NAME {
                        return None;
                    }
                }
                high @ 0xc0.. => {
                    let to = usize::from(high & 0x3f) << 8 | usize::from(reader.u8()?);
                    end.get_or_insert(reader.at);
                    jumps = jumps.checked_sub(1)?;
                    if to >= from {
                        return None;
                    }
                    reader.at = to;
                }
                _ => return None,
            }
        }
        self.at = end.unwrap_or(reader.at);
        Some(labels)
    }

    /// What follows the name of a record.
    pub fn record(&mut self) -> Option<Record<'a>> {
        let (kind, class, ttl) = (RecordType(self.u16()?), self.u16()?, self.u32()?);
        let len = usize::from(self.u16()?);
        let data = *self;
        self.bytes(len)?;
        Some(Record { kind, class, ttl, data, len })
    }
}

impl<'a> Record<'a> {
    /// All of the data.
    pub fn bytes(&self) -> Option<&'a [u8]> {
        self.data.clone().bytes(self.len)
    }
}
