//! The first thing that a client of TLS says, RFC 8446: its ClientHello, in plaintext.
//!
//! The invariant: **a hello has one name or none, and hides no other.** A name counts only if it
//! is the only one in a hello that is well-formed to its last byte; whatever else could mean
//! another name to some server is an error.

use std::collections::BTreeSet;

use pandastack_policy::Host;

/// Longest record, and longest message that is read.
const MAX_RECORD: usize = 16 << 10;
/// Longest hello.
const MAX_HELLO: usize = 16 << 10;
/// Bytes before a record, and before a message in it.
const RECORD: usize = 5;
const MESSAGE: usize = 4;

/// Types of records: a handshake is one of them.
const HANDSHAKE: u8 = 22;
const RECORD_TYPES: std::ops::RangeInclusive<u8> = 20..=24;
const CLIENT_HELLO: u8 = 1;

const SERVER_NAME: u16 = 0;
const ALPN: u16 = 16;
/// Encrypted ClientHello (RFC 9849) and its drafts; ESNI, which came before it.
const HIDDEN: &[u16] = &[0xfe0d, 0xfe0f, 0xfe0e, 0xfe0c, 0xfe0b, 0xfe0a, 0xfe09, 0xfe08, 0xffce];

/// What a client says about where it wants to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientHello {
    /// The name of the server; an error if it is none of a host.
    pub name: Option<Result<Host, NotAName>>,
    /// Whether there may be another name in it that is encrypted. Many clients only pretend to
    /// (GREASE), so that those who do stand out less: nobody on the way can tell.
    pub hidden: bool,
    /// The protocols that it offers.
    pub alpn: Vec<Vec<u8>>,
}

/// A server name that no host has, for example an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAName;

/// Bytes that look like TLS and are not a proper hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a TLS hello that cannot be read")]
pub struct NotAHello;

/// Whether a flow that begins so may be TLS, or its predecessor SSL 2; `None` while that is open.
pub(super) fn may_be_tls(bytes: &[u8]) -> Option<bool> {
    match bytes {
        [] => None,
        [first, ..] if RECORD_TYPES.contains(first) => bytes.get(1).map(|major| *major == 3),
        // A length with its first bit set, a client hello, a version.
        [first, rest @ ..] if *first >= 0x80 => match rest {
            [_, CLIENT_HELLO, 0 | 3, ..] => Some(true),
            [] | [_] | [_, CLIENT_HELLO] => None,
            _ => Some(false),
        },
        _ => Some(false),
    }
}

impl ClientHello {
    /// Reads the hello that a flow begins with; nothing while more bytes are needed. Only whole
    /// records count, so what comes out does not depend on how the bytes come in.
    pub fn read(bytes: &[u8]) -> Result<Option<Self>, NotAHello> {
        let (mut message, mut rest) = (Vec::new(), bytes);
        while let Some((header, next)) = rest.split_first_chunk::<RECORD>() {
            let [HANDSHAKE, 3, _, high, low] = *header else { return Err(NotAHello) };
            let len = usize::from(u16::from_be_bytes([high, low]));
            if !(1..=MAX_RECORD).contains(&len) {
                return Err(NotAHello);
            }
            let Some((data, next)) = next.split_at_checked(len) else { break };
            message.extend(data);
            rest = next;
            let Some((header, hello)) = message.split_first_chunk::<MESSAGE>() else { continue };
            let [CLIENT_HELLO, a, b, c] = *header else { return Err(NotAHello) };
            let wanted = u32::from_be_bytes([0, a, b, c]) as usize;
            if wanted > MAX_HELLO || hello.len() > wanted {
                return Err(NotAHello); // what follows in a record would be another message
            }
            if hello.len() == wanted {
                return read(&mut Reader(hello)).map(Some).ok_or(NotAHello);
            }
        }
        Ok(None)
    }
}

/// Bytes that are read from the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }

    fn u8(&mut self) -> Option<u8> {
        self.bytes(1)?.first().copied()
    }

    fn u16(&mut self) -> Option<u16> {
        self.bytes(2)?.try_into().ok().map(u16::from_be_bytes)
    }

    /// Bytes that have their length before them, in one byte.
    fn short(&mut self) -> Option<&'a [u8]> {
        let len = self.u8()?;
        self.bytes(len.into())
    }

    /// The same with the length in two.
    fn long(&mut self) -> Option<&'a [u8]> {
        let len = self.u16()?;
        self.bytes(len.into())
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn read(hello: &mut Reader<'_>) -> Option<ClientHello> {
    let [3, _] = hello.bytes(2)? else { return None };
    hello.bytes(32)?; // random
    let session = hello.short()?;
    let (suites, compression) = (hello.long()?, hello.short()?);
    if session.len() > 32 || suites.is_empty() || suites.len() % 2 != 0 || compression.is_empty() {
        return None;
    }
    let mut found = ClientHello { name: None, hidden: false, alpn: Vec::new() };
    if hello.is_empty() {
        return Some(found); // as before there were extensions
    }
    let mut extensions = Reader(hello.long()?);
    let mut seen = BTreeSet::new();
    while !extensions.is_empty() {
        let (kind, data) = (extensions.u16()?, extensions.long()?);
        if !seen.insert(kind) {
            return None;
        }
        match kind {
            SERVER_NAME => found.name = Some(server_name(data)?),
            ALPN => found.alpn = protocols(data)?,
            kind if HIDDEN.contains(&kind) => found.hidden = true,
            _ => {}
        }
    }
    hello.is_empty().then_some(found)
}

/// The one name of a list. There is a type of names, of which nobody uses another than the first.
fn server_name(data: &[u8]) -> Option<Result<Host, NotAName>> {
    let mut data = Reader(data);
    let mut list = Reader(data.long()?);
    let (kind, name) = (list.u8()?, list.long()?);
    let one = kind == 0 && list.is_empty() && data.is_empty();
    one.then(|| Host::parse(name).map_err(|_| NotAName))
}

fn protocols(data: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut data = Reader(data);
    let (mut list, mut names) = (Reader(data.long()?), Vec::new());
    while !list.is_empty() {
        names.push(list.short()?.to_vec());
    }
    data.is_empty().then_some(names)
}
