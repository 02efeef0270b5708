//! A question of a guest.

use pandastack_policy::{Host, HostError};

use super::message::{HEADER, Header, INTERNET, Reader, RecordType, flag, rcode};

/// Most records behind the question. One is EDNS, and another may be a signature.
const MAX_RECORDS: u16 = 4;

/// A question, and what its answer must repeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    pub(super) frame: Frame,
    /// The name, if it is one of a host.
    pub name: Result<Host, HostError>,
    /// The type.
    pub kind: RecordType,
}

/// What the answer to a packet repeats of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub id: u16,
    pub opcode: u16,
    pub recursion_desired: bool,
    /// Name, type and class as they were written, with the case of their letters; or nothing.
    pub question: Vec<u8>,
    /// The longest answer over UDP that the asker takes, if it speaks EDNS.
    pub edns: Option<u16>,
}

/// A packet that is not a question for us.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// Nothing that an answer could be given to: too short, or an answer itself.
    #[error("not a question")]
    Silent,
    /// Something that is answered with an error.
    #[error("{reason}")]
    Answered {
        /// The packet to answer with.
        packet: Vec<u8>,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl Query {
    /// Reads one question of class IN.
    pub fn parse(packet: &[u8]) -> Result<Self, QueryError> {
        let mut reader = Reader::new(packet);
        let header = reader.header().ok_or(QueryError::Silent)?;
        if header.has(flag::RESPONSE) {
            return Err(QueryError::Silent);
        }
        let mut frame = Frame {
            id: header.id,
            opcode: header.opcode(),
            recursion_desired: header.has(flag::RECURSION_DESIRED),
            question: Vec::new(),
            edns: None,
        };
        read(header, reader, packet, &mut frame)
            .map_err(|(code, reason)| QueryError::Answered { packet: frame.error(code), reason })
            .map(|(name, kind)| Self { frame, name, kind })
    }

    /// Its id.
    pub fn id(&self) -> u16 {
        self.frame.id
    }

    /// The name as text, also if it is none of a host: what is not a letter in it is escaped.
    pub(super) fn shown(&self) -> String {
        let labels = Reader::new(&self.frame.question).plain_name().unwrap_or_default();
        let text = labels.join(&b"."[..]).escape_ascii().to_string();
        if text.is_empty() { ".".to_owned() } else { text.chars().take(Host::MAX_LEN).collect() }
    }
}

type Wrong = (u16, &'static str);

/// Fills the frame as far as the packet can be read.
fn read(
    header: Header,
    mut reader: Reader<'_>,
    packet: &[u8],
    frame: &mut Frame,
) -> Result<(Result<Host, HostError>, RecordType), Wrong> {
    if frame.opcode != 0 {
        return Err((rcode::NOTIMP, "something else than a question"));
    }
    let [questions, answers, authorities, additional] = header.counts;
    if (questions, answers, authorities) != (1, 0, 0) || additional > MAX_RECORDS {
        return Err((rcode::FORMERR, "not one question and nothing else"));
    }
    let malformed = (rcode::FORMERR, "a question that cannot be read");
    let labels = reader.plain_name().ok_or(malformed)?;
    let kind = reader.u16().map(RecordType).ok_or(malformed)?;
    let class = reader.u16().ok_or(malformed)?;
    frame.question = packet.get(HEADER..reader.at()).unwrap_or_default().to_vec();
    for _ in 0..additional {
        let labels = reader.name().ok_or(malformed)?;
        let record = reader.record().ok_or(malformed)?;
        if record.kind != RecordType::OPT {
            continue;
        }
        // Its class is a size, and its time to live has the version.
        if !labels.is_empty() || frame.edns.replace(record.class).is_some() {
            return Err(malformed);
        }
        if record.ttl >> 16 & 0xff != 0 {
            return Err((rcode::BADVERS, "another version of EDNS"));
        }
    }
    if !reader.is_at_end() {
        return Err((rcode::FORMERR, "bytes behind the question"));
    }
    if class != INTERNET {
        return Err((rcode::REFUSED, "another class than IN"));
    }
    Ok((Host::from_labels(labels), kind))
}
