//! What the fake resolver knows, and how it behaves.
//!
//! It answers like a recursive resolver: with a whole chain of aliases. A name may have several
//! rounds of records, one for each question of a type, the last one for ever: that is how names
//! are rebound.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Type A.
pub const A: u16 = 1;
/// Type CNAME.
pub const CNAME: u16 = 5;
/// Type TXT.
pub const TXT: u16 = 16;
/// Type AAAA.
pub const AAAA: u16 = 28;
/// Type SVCB.
pub const SVCB: u16 = 64;
/// Type HTTPS.
pub const HTTPS: u16 = 65;

/// A record of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its type.
    pub kind: u16,
    /// Its data, as it is on the wire.
    pub data: Vec<u8>,
}

impl Record {
    /// An address.
    pub fn address(address: &str) -> Self {
        match address.parse().expect("an address") {
            IpAddr::V4(v4) => Self { kind: A, data: v4.octets().to_vec() },
            IpAddr::V6(v6) => Self { kind: AAAA, data: v6.octets().to_vec() },
        }
    }

    /// An alias.
    pub fn alias(name: &str) -> Self {
        Self { kind: CNAME, data: wire_name(name) }
    }

    /// A text.
    pub fn text(text: &str) -> Self {
        let length = u8::try_from(text.len()).expect("a short text");
        Self { kind: TXT, data: [&[length], text.as_bytes()].concat() }
    }

    /// Anything.
    pub fn raw(kind: u16, data: &[u8]) -> Self {
        Self { kind, data: data.to_vec() }
    }
}

/// How the resolver treats a question.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Manner {
    /// As it should.
    #[default]
    Proper,
    /// By UDP it says that the answer is too long.
    Truncated,
    /// Never answers.
    Silent,
    /// Answers late.
    Late(Duration),
    /// Answers with another id.
    WrongId,
    /// Answers another question.
    WrongQuestion,
    /// Refuses.
    Refuses,
    /// Answers with bytes that are no message.
    Garbage,
}

#[derive(Clone, Debug, Default)]
struct Name {
    rounds: Vec<Vec<Record>>,
    asked: BTreeMap<u16, usize>,
    ttl: u32,
    manner: Manner,
}

/// All names; those that are not here do not exist.
#[derive(Clone, Default)]
pub struct Zone(Arc<Mutex<BTreeMap<String, Name>>>);

impl Zone {
    /// Gives a name its records, with a time to live of a minute.
    pub fn set(&self, name: &str, records: &[Record]) {
        self.set_rounds(name, 60, &[records]);
    }

    /// Gives a name its addresses, with a time to live of a minute.
    pub fn point(&self, name: &str, addresses: &[&str]) {
        let records: Vec<_> = addresses.iter().map(|address| Record::address(address)).collect();
        self.set(name, &records);
    }

    /// Gives a name other records at each question.
    pub fn set_rounds(&self, name: &str, ttl: u32, rounds: &[&[Record]]) {
        let rounds = rounds.iter().map(|records| records.to_vec()).collect();
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        names.insert(name.to_owned(), Name { rounds, ttl, ..Name::default() });
    }

    /// Says how questions for a name that there is are treated.
    pub fn behave(&self, name: &str, manner: Manner) {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        names.get_mut(name).expect("a name of the zone").manner = manner;
    }

    /// How a question for a name is to be treated. A name that there is not is under `*`.
    pub(super) fn manner(&self, name: &str) -> Manner {
        let names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        names.get(name).or_else(|| names.get("*")).map(|name| name.manner).unwrap_or_default()
    }

    /// Records that answer a question: owner, time to live, record. Nothing where there is no
    /// such name.
    pub(super) fn answer(&self, name: &str, kind: u16) -> Option<Vec<(String, u32, Record)>> {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut answers = Vec::new();
        let mut owner = name.to_owned();
        for _ in 0..8 {
            let key = if names.contains_key(&owner) { owner.as_str() } else { "*" };
            let Some(entry) = names.get_mut(key) else {
                return (!answers.is_empty()).then_some(answers);
            };
            let asked = entry.asked.entry(kind).or_default();
            let round = (*asked).min(entry.rounds.len().saturating_sub(1));
            *asked += 1;
            let records = entry.rounds.get(round).cloned().unwrap_or_default();
            let alias = records.iter().find(|record| record.kind == CNAME).cloned();
            let ttl = entry.ttl;
            answers.extend(
                records
                    .into_iter()
                    .filter(|r| r.kind == kind || r.kind == CNAME || kind == 255)
                    .map(|record| (owner.clone(), ttl, record)),
            );
            match alias.filter(|_| kind != CNAME) {
                Some(alias) => owner = read_name(&alias.data, 0).map_or(owner, |(name, _)| name),
                None => break,
            }
        }
        Some(answers)
    }
}

/// A name as it is in a message.
pub fn wire_name(name: &str) -> Vec<u8> {
    let mut wire = Vec::new();
    for label in name.split('.').filter(|label| !label.is_empty()) {
        wire.push(u8::try_from(label.len()).expect("a label"));
        wire.extend_from_slice(label.as_bytes());
    }
    wire.push(0);
    wire
}

/// A name of a message, in lower case, and where it ends. Without compression, which questions
/// have no use for.
pub(super) fn read_name(message: &[u8], mut at: usize) -> Option<(String, usize)> {
    let mut labels = Vec::new();
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        match length {
            0 => break,
            1..=63 => {
                let label = message.get(at..at + length)?;
                labels.push(String::from_utf8_lossy(label).to_lowercase());
                at += length;
            }
            _ => return None,
        }
    }
    Some((labels.join("."), at))
}
