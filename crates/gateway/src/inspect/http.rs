//! Requests of HTTP/1 in a stream: where each of them begins and ends, and what it asks for.
//!
//! ```text
//!   head ──▶ body of a known length ──▶ head …
//!        ──▶ size ──▶ chunk ──▶ size … ──▶ the last ──▶ head …
//! ```
//!
//! The invariant: **where a request ends is not a matter of opinion.** A head in which another
//! server could see another length, another name or another number of lines is an error, and so
//! is a body whose framing has any freedom: extensions of chunks, trailers, line ends without a
//! carriage return. So the head that is judged next is the one that the server reads next.

use pandastack_policy::{Host, Request};

/// Longest head.
pub(super) const MAX_HEAD: usize = 16 << 10;
/// Most fields of a head.
const MAX_FIELDS: usize = 64;
/// Most digits of a chunk's size, and of a length.
const MAX_DIGITS: usize = 15;

/// Fields by which some servers take another method, path or host than those of the request.
const OVERRIDES: &[&str] = &[
    "x-http-method-override",
    "x-http-method",
    "x-method-override",
    "x-original-url",
    "x-rewrite-url",
    "x-original-host",
    "x-forwarded-host",
    "x-host",
];

/// What is wrong with a request, for people.
pub(super) type Malformed = &'static str;

/// What follows a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// So many bytes, perhaps none.
    Sized(u64),
    /// Chunks.
    Chunked,
}

/// A head that was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head<'a> {
    /// Its length in bytes, with the empty line.
    pub len: usize,
    pub method: &'a str,
    pub target: &'a str,
    pub host: Named,
    pub body: Body,
    /// Whether another protocol may follow.
    pub upgrade: bool,
    /// Whether it is DNS over HTTP.
    pub dns: bool,
    /// Whether a field asks for something else than the first line.
    pub overridden: bool,
}

/// The name in a head.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Named {
    /// There is none.
    Missing,
    /// It is none of a host.
    Other,
    /// This one.
    Host(Host),
}

impl Head<'_> {
    /// The name, if there is one.
    pub fn name(&self) -> Option<&Host> {
        match &self.host {
            Named::Host(name) => Some(name),
            Named::Missing | Named::Other => None,
        }
    }

    /// What to ask a judge, given the name.
    pub fn request<'a>(&'a self, host: &'a Host) -> Request<'a> {
        Request { host, method: self.method, target: self.target }
    }
}

/// Where the head that `bytes` begin with ends; nothing while more bytes are needed. Every line
/// ends with CR LF, and neither byte is anywhere else.
pub(super) fn end_of_head(bytes: &[u8]) -> Result<Option<usize>, Malformed> {
    let (mut line, mut at) = (0, 0);
    while let Some(byte) = bytes.get(at) {
        match (byte, bytes.get(at + 1)) {
            (b'\r', None) => break,
            (b'\r', Some(b'\n')) if at == 0 => return Err("an empty line before a request"),
            (b'\r', Some(b'\n')) if at == line => return Ok(Some(at + 2)),
            (b'\r', Some(b'\n')) => {
                at += 2;
                line = at;
            }
            (b'\r' | b'\n', _) => return Err("a line that does not end with CR LF"),
            (b'\0', _) => return Err("a zero byte in the head of a request"),
            _ => at += 1,
        }
    }
    Ok(None)
}

/// Reads a head, all of which is there.
pub(super) fn read_head(bytes: &[u8]) -> Result<Head<'_>, Malformed> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    let len = match request.parse(bytes) {
        Ok(httparse::Status::Complete(len)) if len == bytes.len() => len,
        Err(httparse::Error::TooManyHeaders) => return Err("a request with too many fields"),
        _ => return Err("a request that cannot be read"),
    };
    let (Some(method), Some(target), Some(version)) =
        (request.method, request.path, request.version)
    else {
        return Err("a request that cannot be read");
    };
    let fields = Fields(request.headers);
    let body = fields.body(version)?;
    Ok(Head {
        len,
        method,
        target,
        host: fields.host()?,
        body,
        upgrade: method == "CONNECT" || fields.all("upgrade").next().is_some(),
        dns: fields.is_dns() || is_dns_query(target),
        overridden: OVERRIDES.iter().any(|name| fields.all(name).next().is_some()),
    })
}

struct Fields<'a>(&'a [httparse::Header<'a>]);

impl<'a> Fields<'a> {
    fn all(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        let fields = self.0.iter().filter(move |field| field.name.eq_ignore_ascii_case(name));
        fields.map(|field| field.value)
    }

    /// The value of a field that may be there once.
    fn one(&self, name: &str, twice: Malformed) -> Result<Option<&'a [u8]>, Malformed> {
        let mut values = self.all(name);
        match (values.next(), values.next()) {
            (_, Some(_)) => Err(twice),
            (value, None) => Ok(value),
        }
    }

    fn host(&self) -> Result<Named, Malformed> {
        Ok(match self.one("host", "a request with several Host fields")? {
            None => Named::Missing,
            Some(value) => match Host::parse_authority(value) {
                Ok((host, _)) => Named::Host(host),
                Err(_) => Named::Other,
            },
        })
    }

    fn body(&self, version: u8) -> Result<Body, Malformed> {
        let length = self.one("content-length", "a request with several lengths")?;
        let coding = self.one("transfer-encoding", "a request with several codings")?;
        match (length, coding) {
            (None, None) => Ok(Body::Sized(0)),
            (Some(length), None) => length_of(length).map(Body::Sized),
            (None, Some(coding)) if version > 0 && coding.eq_ignore_ascii_case(b"chunked") => {
                Ok(Body::Chunked)
            }
            (None, Some(_)) => Err("a request with another coding than chunked"),
            (Some(_), Some(_)) => Err("a request with a length and a coding"),
        }
    }

    fn is_dns(&self) -> bool {
        let kinds = self.all("content-type").chain(self.all("accept"));
        kinds.map(<[u8]>::to_ascii_lowercase).any(|value| {
            DNS_KINDS.iter().any(|kind| value.windows(kind.len()).any(|part| part == *kind))
        })
    }
}

/// Media types of DNS in HTTP.
const DNS_KINDS: &[&[u8]] =
    &[b"application/dns-message", b"application/dns-json", b"application/oblivious-dns-message"];

/// Whether a target is a question as RFC 8484 has it.
fn is_dns_query(target: &str) -> bool {
    let Some((path, query)) = target.split_once('?') else { return false };
    let asks = query.split('&').any(|part| part.starts_with("dns="));
    asks && path.trim_end_matches('/').ends_with("dns-query")
}

fn length_of(digits: &[u8]) -> Result<u64, Malformed> {
    let plain = matches!(digits, [b'0'] | [b'1'..=b'9', ..]) && digits.len() <= MAX_DIGITS;
    let number = str::from_utf8(digits).ok().filter(|_| plain).and_then(|text| {
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse().ok())?
    });
    number.ok_or("a request with a length that is no number")
}

/// Reads the line with the size of a chunk, and where it ends; nothing while more bytes are
/// needed. The last chunk ends with its empty line: that is the end of the body.
pub(super) fn chunk_size(bytes: &[u8]) -> Result<Option<(usize, u64)>, Malformed> {
    let digits = bytes.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    if digits > MAX_DIGITS {
        return Err("a chunk with a size that is too long");
    }
    let (number, rest) = bytes.split_at(digits);
    if rest.is_empty() {
        return Ok(None);
    }
    let text = str::from_utf8(number).unwrap_or_default();
    let size =
        u64::from_str_radix(text, 16).map_err(|_| "a chunk with a size that is no number")?;
    let end: &[u8] = if size == 0 { b"\r\n\r\n" } else { b"\r\n" };
    match rest.get(..end.len()) {
        Some(found) if found == end => Ok(Some((digits + end.len(), size))),
        None if end.starts_with(rest) => Ok(None),
        _ if size == 0 => Err("a body of chunks with a trailer or an extension"),
        _ => Err("a chunk with an extension, or a line that does not end with CR LF"),
    }
}

/// Reads what is behind a chunk.
pub(super) fn chunk_end(bytes: &[u8]) -> Result<Option<usize>, Malformed> {
    match bytes {
        [b'\r', b'\n', ..] => Ok(Some(2)),
        [] | [b'\r'] => Ok(None),
        _ => Err("a chunk that is longer than it says"),
    }
}

/// What the first bytes of a flow are to a server of HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum First {
    /// A request, or something that a lenient server would look for one in.
    Http,
    /// The preface of HTTP/2.
    Http2,
    /// Something else.
    Other,
    /// That cannot be said yet.
    Unclear,
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n";
/// Methods that no other protocol begins a line with.
const METHODS: &[&[u8]] = &[b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE"];

/// Looks at the first bytes of a flow. Other protocols have lines that begin with a word, too
/// (`EHLO a.test`); those of HTTP name it at their end, and there are servers that take any word
/// for a method. So a line that could still be a request is waited for.
pub(super) fn first(bytes: &[u8]) -> First {
    if bytes.starts_with(PREFACE) {
        return First::Http2;
    }
    if matches!(bytes, [b'\r' | b'\n' | b' ' | b'\t', ..]) {
        return First::Http; // and not a proper one, as some servers do not mind
    }
    let method = bytes.iter().take_while(|byte| is_token(**byte)).count();
    let (method, rest) = bytes.split_at(method);
    match rest {
        [] => First::Unclear,
        [b' ' | b'\t', ..] if METHODS.contains(&method) => First::Http,
        [b' ' | b'\t', ..] if !method.is_empty() => {
            // The end of the line, or for all but the methods of HTTP itself where it is none: so
            // that it makes no difference how much of it is there.
            let conventional = method.iter().all(|byte| byte.is_ascii_uppercase());
            let ends = |byte: &u8| *byte == b'\n' || !conventional && is_binary(*byte);
            match rest.iter().position(ends).map(|end| rest.split_at(end)) {
                Some((line, [b'\n', ..])) if names_http(line) => First::Http,
                Some(_) => First::Other, // another line, or what is none
                None => First::Unclear,
            }
        }
        _ => First::Other,
    }
}

fn names_http(line: &[u8]) -> bool {
    line.windows(5).any(|part| part.eq_ignore_ascii_case(b"HTTP/"))
}

/// What methods are made of (RFC 9110, 5.6.2 and 9.1).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// What is in no line of text.
fn is_binary(byte: u8) -> bool {
    byte.is_ascii_control() && !matches!(byte, b'\t' | b'\r')
}
