//! An answer of a resolver, whose every byte may be an attacker's.
//!
//! The invariant: **nothing is taken from an answer but what was asked for.** Records count only
//! if a chain of CNAMEs, each within the answer, leads to them from the name of the question.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use pandastack_policy::Host;

use super::message::{INTERNET, Reader, Record, RecordType, flag, rcode};
use super::service;

/// Most CNAMEs from the name that was asked for to the one that has records.
const MAX_CHAIN: usize = 8;
/// Most records that are looked at.
const MAX_RECORDS: u16 = 256;
/// Most records that are told.
const MAX_TOLD: usize = 32;

/// What a resolver says about a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The names after the one that was asked for, in order: it is an alias of them.
    pub chain: Vec<Host>,
    /// Addresses, if those were asked for.
    pub addresses: Vec<IpAddr>,
    /// The data of the records, if services were asked for: rewritten.
    pub services: Vec<Vec<u8>>,
    /// How long all of it is true, in seconds.
    pub ttl: u32,
    /// Whether there is such a name.
    pub exists: bool,
}

/// An answer that says nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// It is to another question. Somebody guesses, or it is late: one waits on.
    #[error("an answer to another question")]
    Stranger,
    /// It did not fit: ask over TCP.
    #[error("an answer that was cut off")]
    Truncated,
    /// The resolver could not, or would not.
    #[error("the resolver failed")]
    Failed,
    /// It is to this question but no proper one.
    #[error("an answer that cannot be read")]
    Malformed,
}

impl Answer {
    /// Reads the answer to a question.
    pub fn parse(
        packet: &[u8],
        id: u16,
        name: &Host,
        kind: RecordType,
    ) -> Result<Self, AnswerError> {
        use AnswerError::{Failed, Malformed, Stranger, Truncated};
        let mut reader = Reader::new(packet);
        let header = reader.header().ok_or(Stranger)?;
        if header.id != id || !header.has(flag::RESPONSE) || header.opcode() != 0 {
            return Err(Stranger);
        }
        let [questions, answers, ..] = header.counts;
        if questions == 0 && !matches!(header.rcode(), rcode::NO_ERROR | rcode::NXDOMAIN) {
            return Err(Failed); // who does not want a question may not repeat it
        }
        if questions != 1 || !is_question(&mut reader, name, kind) {
            return Err(Stranger);
        }
        if header.has(flag::TRUNCATED) {
            return Err(Truncated);
        }
        let exists = match header.rcode() {
            rcode::NO_ERROR => true,
            rcode::NXDOMAIN => false,
            _ => return Err(Failed),
        };
        let records = Records::read(&mut reader, answers, kind).ok_or(Malformed)?;
        let answer = records.answer(name, kind, exists).ok_or(Malformed)?;
        Ok(answer)
    }
}

fn is_question(reader: &mut Reader<'_>, name: &Host, kind: RecordType) -> bool {
    let labels = reader.plain_name();
    let asked = labels.and_then(|labels| Host::from_labels(labels).ok());
    asked.as_ref() == Some(name) && reader.u16() == Some(kind.0) && reader.u16() == Some(INTERNET)
}

/// The records of an answer that may be about the question.
#[derive(Default)]
struct Records<'a> {
    aliases: Vec<(Host, Host, u32)>,
    others: Vec<(Host, Record<'a>)>,
}

impl<'a> Records<'a> {
    fn read(reader: &mut Reader<'a>, count: u16, kind: RecordType) -> Option<Self> {
        let mut records = Self::default();
        if count > MAX_RECORDS {
            return None;
        }
        for _ in 0..count {
            let labels = reader.name()?;
            let record = reader.record()?;
            // No name of a host is under a policy; such records are none to us.
            let Ok(owner) = Host::from_labels(labels) else { continue };
            if record.class != INTERNET {
                continue;
            }
            if record.kind == RecordType::CNAME {
                let mut data = record.data;
                let labels = data.name()?;
                if data.at() != record.data.at() + record.len {
                    return None;
                }
                let Ok(target) = Host::from_labels(labels) else { continue };
                records.aliases.push((owner, target, record.ttl));
            } else if record.kind == kind {
                records.others.push((owner, record));
            }
        }
        Some(records)
    }

    fn answer(self, name: &Host, kind: RecordType, exists: bool) -> Option<Answer> {
        let (mut last, mut chain, mut ttl) = (name, Vec::new(), u32::MAX);
        while let Some((_, target, life)) = self.aliases.iter().find(|(owner, ..)| owner == last) {
            if chain.len() == MAX_CHAIN {
                return None;
            }
            (last, ttl) = (target, ttl.min(seconds(*life)));
            chain.push(target.clone());
        }
        let (mut addresses, mut services) = (Vec::new(), Vec::new());
        for (_, record) in self.others.iter().filter(|(owner, _)| owner == last) {
            let data = record.bytes()?;
            if addresses.len() + services.len() == MAX_TOLD {
                break;
            }
            match kind {
                RecordType::A => {
                    addresses.push(Ipv4Addr::from(<[u8; 4]>::try_from(data).ok()?).into());
                }
                RecordType::AAAA => {
                    addresses.push(Ipv6Addr::from(<[u8; 16]>::try_from(data).ok()?).into());
                }
                _ => match service::rewrite(data, &[name, last]) {
                    Some(data) => services.push(data),
                    None => continue,
                },
            }
            ttl = ttl.min(seconds(record.ttl));
        }
        Some(Answer { chain, addresses, services, ttl, exists })
    }
}

/// A time to live with its first bit set is none, RFC 2181.
fn seconds(ttl: u32) -> u32 {
    if ttl > i32::MAX as u32 { 0 } else { ttl }
}
