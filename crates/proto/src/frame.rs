//! The frame's parts, its limits and the mark that starts a connection.

/// Version of everything in this crate; host and agent must agree exactly, since they are baked
/// together.
pub const VERSION: u16 = 2;

/// Starts a connection. Sixteen bytes that are neither in UTF-8 text, nor in a varint of more than
/// one field, nor in a header: see the crate's page. The first byte occurs only once, so looking
/// for it needs no backtracking.
pub const MAGIC: [u8; 16] = [
    0xFF, 0xFB, 0xF8, 0xFD, 0xFA, 0xFE, 0xF9, 0xFC, 0xF8, 0xFE, 0xFB, 0xFD, 0xF9, 0xFA, 0xFC, 0xFE,
];

/// Bytes of a [`Nonce`].
pub const NONCE_LEN: usize = 16;
/// Names one connection. Every byte is below `0x80`; see [`nonce_from`].
pub type Nonce = [u8; NONCE_LEN];

/// Bytes of a [`Token`].
pub const TOKEN_LEN: usize = 16;
/// What a request must carry to be served.
pub type Token = [u8; TOKEN_LEN];

/// Bytes of a frame's header.
pub const HEADER_LEN: usize = 9;
/// Longest payload.
pub const MAX_PAYLOAD: usize = 160 * 1024;
/// Most raw bytes in one DATA frame: the payload without the channel.
pub const MAX_DATA: usize = 64 * 1024 - 1;
/// What a DATA frame costs beyond its bytes, so that tiny frames are no way around the window.
pub const DATA_OVERHEAD: u32 = 64;
/// Credit of each direction of a new stream.
pub const INITIAL_WINDOW: u32 = 256 * 1024;
/// Most streams that are open at once.
pub const MAX_STREAMS: usize = 1024;
/// Most bytes of an earlier connection that a host skips before it gives up.
pub const MAX_STALE: usize = 8 * 1024 * 1024;

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// First frame of the host: [`Hello`](crate::Hello).
    Hello = 1,
    /// First frame of the agent: [`Welcome`](crate::Welcome).
    Welcome = 2,
    /// Opens a stream: [`Sealed`](crate::Sealed).
    Request = 3,
    /// Closes a stream: [`Outcome`](crate::Outcome).
    Reply = 4,
    /// A channel and raw bytes.
    Data = 5,
    /// A channel that gets no more data.
    Eof = 6,
    /// A `u32` of credit for the other side.
    Credit = 7,
    /// The host has lost interest.
    Reset = 8,
    /// The agent has made the connection that a stream is for: bytes flow from here on.
    Ready = 9,
}

impl Kind {
    /// The kind of a header's first byte.
    pub fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Hello,
            2 => Self::Welcome,
            3 => Self::Request,
            4 => Self::Reply,
            5 => Self::Data,
            6 => Self::Eof,
            7 => Self::Credit,
            8 => Self::Reset,
            9 => Self::Ready,
            _ => return None,
        })
    }
}

/// Which of a stream's byte streams a DATA or EOF frame belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Channel {
    /// Towards a command.
    Stdin = 0,
    /// From a command.
    Stdout = 1,
    /// From a command.
    Stderr = 2,
    /// A file's content, either way.
    File = 3,
    /// A postcard `Vec<DirEntry>` per frame.
    Entries = 4,
    /// A connection's bytes, either way.
    Tcp = 5,
}

impl Channel {
    /// The channel of a payload's first byte.
    pub fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Stdin,
            1 => Self::Stdout,
            2 => Self::Stderr,
            3 => Self::File,
            4 => Self::Entries,
            5 => Self::Tcp,
            _ => return None,
        })
    }
}

/// A frame, borrowed from the decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What it is for.
    pub kind: Kind,
    /// Its stream; 0 for the connection itself.
    pub stream: u32,
    /// At most [`MAX_PAYLOAD`] bytes.
    pub payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The channel and bytes of a DATA or EOF frame.
    pub fn channel(&self) -> Option<(Channel, &'a [u8])> {
        let (&first, rest) = self.payload.split_first()?;
        Some((Channel::from_byte(first)?, rest))
    }

    /// The number of a CREDIT frame.
    pub fn credit(&self) -> Option<u32> {
        Some(u32::from_le_bytes(self.payload.try_into().ok()?))
    }
}

/// A nonce from random bytes. The top bits are cleared: no byte of a nonce equals the first of
/// [`MAGIC`], and 112 random bits are plenty.
pub fn nonce_from(mut random: [u8; NONCE_LEN]) -> Nonce {
    for byte in &mut random {
        *byte &= 0x7F;
    }
    random
}

/// Length of the longest start of `bytes` that one DATA frame may carry towards the agent: at most
/// [`MAX_DATA`], and ending inside the first [`MAGIC`] if there is one. The next frame's header
/// then separates the two halves.
pub fn plain_prefix(bytes: &[u8]) -> usize {
    let bytes = &bytes[..bytes.len().min(MAX_DATA)];
    let mut from = 0;
    while let Some(at) = bytes[from..].iter().position(|&b| b == MAGIC[0]) {
        let at = from + at;
        if bytes[at..].starts_with(&MAGIC) {
            return at + 1;
        }
        from = at + 1;
    }
    bytes.len()
}
