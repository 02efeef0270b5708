//! Answers to the guest, written from scratch.

use super::MAX_UDP;
use super::message::{INTERNET, RecordType, Transport, flag};
use super::query::Frame;

/// The longest answer over UDP to who does not speak EDNS.
const SHORT_UDP: u16 = 512;
/// The name of the question, as a pointer to it.
const ASKED: [u8; 2] = [0xc0, 0x0c];
/// The option that says why, RFC 8914.
const EXTENDED_ERROR: u16 = 15;

/// What is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    pub code: u16,
    /// The data of the records, which have the name and the type of the question.
    pub records: Vec<Vec<u8>>,
    /// In seconds.
    pub ttl: u32,
    /// Why there is nothing.
    pub why: Option<Why>,
}

/// Why there is nothing, by the numbers of RFC 8914.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Why {
    pub code: WhyCode,
    pub text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WhyCode {
    Filtered = 17,
    Prohibited = 18,
    NotSupported = 21,
    Unreachable = 22,
}

impl Told {
    pub fn nothing(code: u16, why: WhyCode, text: impl Into<String>) -> Self {
        Self { code, why: Some(Why { code: why, text: text.into() }), ..Self::default() }
    }
}

impl Frame {
    /// An answer of nothing but an error.
    pub fn error(&self, code: u16) -> Vec<u8> {
        self.write(&Told { code, ..Told::default() }, 0)
    }

    /// The answer. Where it is too long for what carries it, the asker is told to come again over
    /// TCP.
    pub fn answer(&self, kind: RecordType, told: &Told, over: Transport) -> Vec<u8> {
        let whole = self.with_records(kind, told);
        let room = match over {
            Transport::Tcp => u16::MAX,
            Transport::Udp => self.edns.unwrap_or(SHORT_UDP).clamp(SHORT_UDP, MAX_UDP),
        };
        if whole.len() <= usize::from(room) {
            return whole;
        }
        self.write(&Told { code: told.code, ..Told::default() }, flag::TRUNCATED)
    }

    fn with_records(&self, kind: RecordType, told: &Told) -> Vec<u8> {
        let mut packet = self.head(told.code, 0, told.records.len());
        for data in &told.records {
            packet.extend(ASKED);
            put(&mut packet, [kind.0, INTERNET]);
            packet.extend(told.ttl.to_be_bytes());
            put(&mut packet, [length(data)]);
            packet.extend(data);
        }
        self.edns(&mut packet, told);
        packet
    }

    fn write(&self, told: &Told, flags: u16) -> Vec<u8> {
        let mut packet = self.head(told.code, flags, 0);
        self.edns(&mut packet, told);
        packet
    }

    fn head(&self, code: u16, flags: u16, answers: usize) -> Vec<u8> {
        let desired = if self.recursion_desired { flag::RECURSION_DESIRED } else { 0 };
        let always = flag::RESPONSE | flag::RECURSION_AVAILABLE | self.opcode << 11;
        let mut packet = Vec::with_capacity(512);
        put(&mut packet, [self.id, always | desired | flags | code & 0xf]);
        let questions = u16::from(!self.question.is_empty());
        let answers = u16::try_from(answers).unwrap_or(u16::MAX);
        put(&mut packet, [questions, answers, 0, u16::from(self.edns.is_some())]);
        packet.extend(&self.question);
        packet
    }

    /// The record of EDNS, for who speaks it.
    fn edns(&self, packet: &mut Vec<u8>, told: &Told) {
        if self.edns.is_none() {
            return;
        }
        packet.push(0);
        // The upper bits of the code, version 0, no flags.
        put(packet, [RecordType::OPT.0, MAX_UDP, (told.code >> 4) << 8, 0]);
        let mut options = Vec::new();
        if let Some(why) = &told.why {
            let text = &why.text[..why.text.floor_char_boundary(MAX_TEXT)];
            put(&mut options, [EXTENDED_ERROR, length(text.as_bytes()) + 2, why.code as u16]);
            options.extend(text.as_bytes());
        }
        put(packet, [length(&options)]);
        packet.extend(options);
    }
}

/// Longest explanation: with it, an answer without records is never too long.
const MAX_TEXT: usize = 160;

fn put<const N: usize>(packet: &mut Vec<u8>, words: [u16; N]) {
    packet.extend(words.iter().flat_map(|word| word.to_be_bytes()));
}

fn length(bytes: &[u8]) -> u16 {
    u16::try_from(bytes.len()).unwrap_or(u16::MAX)
}

/// The question to a resolver: made of nothing but the id, the name and the type.
pub(super) fn question(id: u16, name: &pandastack_policy::Host, kind: RecordType) -> Vec<u8> {
    let mut packet = Vec::with_capacity(name.as_str().len() + 32);
    put(&mut packet, [id, flag::RECURSION_DESIRED, 1, 0, 0, 1]);
    for label in name.as_str().split('.') {
        packet.push(u8::try_from(label.len()).unwrap_or_default());
        packet.extend(label.as_bytes());
    }
    packet.push(0);
    put(&mut packet, [kind.0, INTERNET]);
    packet.push(0);
    put(&mut packet, [RecordType::OPT.0, MAX_UDP, 0, 0, 0]);
    packet
}
