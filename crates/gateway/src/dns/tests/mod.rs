//! Questions, answers and everything between, with packets that are written by hand.

mod codec;
mod hostile;
mod resolver;
mod service;

use std::net::IpAddr;
use std::time::Duration;

use pandastack_policy::{Host, Policy, Site};
use serde_json::{Value, json};

use super::*;

const NOW: Duration = Duration::from_secs(1000);

fn host(name: &str) -> Host {
    name.parse().unwrap()
}

fn policy(json: Value) -> Policy {
    serde_json::from_value(json).unwrap()
}

fn every_name() -> Policy {
    policy(json!({ "allow": [{ "host": "*" }] }))
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A packet that is put together.
#[derive(Clone, Default)]
struct Packet(Vec<u8>);

impl Packet {
    fn header(id: u16, flags: u16, counts: [u16; 4]) -> Self {
        Self::default().words(&[id, flags]).words(&counts)
    }

    fn words(self, words: &[u16]) -> Self {
        self.bytes(&words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<_>>())
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    fn name(mut self, name: &str) -> Self {
        for label in name.split('.').filter(|label| !label.is_empty()) {
            self.0.push(label.len() as u8);
            self.0.extend(label.bytes());
        }
        self.bytes(&[0])
    }

    fn question(self, name: &str, kind: RecordType) -> Self {
        self.name(name).words(&[kind.0, 1])
    }

    fn record(self, name: &str, kind: RecordType, ttl: u32, data: &[u8]) -> Self {
        self.name(name)
            .words(&[kind.0, 1])
            .bytes(&ttl.to_be_bytes())
            .words(&[data.len() as u16])
            .bytes(data)
    }

    fn opt(self, size: u16, options: &[u8]) -> Self {
        self.bytes(&[0]).words(&[41, size, 0, 0, options.len() as u16]).bytes(options)
    }
}

/// What a guest's library asks.
fn ask(name: &str, kind: RecordType) -> Vec<u8> {
    Packet::header(7, 0x0100, [1, 0, 0, 0]).question(name, kind).0
}

/// The data of an address.
fn data(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// What a resolver says: this name is at these addresses.
fn answer(id: u16, name: &str, addresses: &[IpAddr]) -> Vec<u8> {
    let kind = match addresses {
        [IpAddr::V6(_), ..] => RecordType::AAAA,
        _ => RecordType::A,
    };
    let packet = Packet::header(id, 0x8180, [1, addresses.len() as u16, 0, 0]).question(name, kind);
    let record = |packet: Packet, address: &IpAddr| packet.record(name, kind, 60, &data(*address));
    addresses.iter().fold(packet, record).0
}

/// An answer of ours, read again.
#[derive(Debug, PartialEq, Eq)]
struct Reply {
    id: u16,
    flags: u16,
    question: Vec<u8>,
    /// Type, time to live, data.
    records: Vec<(u16, u32, Vec<u8>)>,
    /// The options of EDNS, and the upper bits of the code.
    edns: Option<(Vec<u8>, u16)>,
}

impl Reply {
    fn read(packet: &[u8]) -> Self {
        let mut reader = message::Reader::new(packet);
        let header = reader.header().unwrap();
        assert_eq!(header.counts[2], 0);
        if header.counts[0] == 1 {
            reader.plain_name().unwrap();
            reader.u32().unwrap();
        }
        let question = packet[12..reader.at()].to_vec();
        let asked = message::Reader::new(&question).plain_name().unwrap_or_default();
        let mut records = Vec::new();
        for _ in 0..header.counts[1] {
            assert_eq!(reader.name().unwrap(), asked, "of the name that was asked for");
            let record = reader.record().unwrap();
            records.push((record.kind.0, record.ttl, record.bytes().unwrap().to_vec()));
        }
        let edns = (header.counts[3] == 1).then(|| {
            assert!(reader.name().unwrap().is_empty());
            let record = reader.record().unwrap();
            assert_eq!((record.kind, record.class), (RecordType::OPT, MAX_UDP));
            (record.bytes().unwrap().to_vec(), (record.ttl >> 24) as u16)
        });
        assert!(reader.is_at_end());
        Self { id: header.id, flags: header.flags, question, records, edns }
    }

    fn code(&self) -> u16 {
        self.flags & 15
    }
}

/// A resolver of one sandbox with ids that count.
fn resolver(resolvers: usize) -> Resolver<u16> {
    let mut id = 100;
    Resolver::with_ids(resolvers, move || {
        id += 1;
        Some(id)
    })
}

/// What came out of a call, sorted.
#[derive(Debug, Default)]
struct Out {
    replies: Vec<(u16, Reply)>,
    sent: Vec<(Key, usize, Transport, Vec<u8>)>,
    closed: Vec<Key>,
    pins: Vec<(Host, Vec<IpAddr>, Duration)>,
    lines: Vec<Line>,
}

impl From<Vec<Step<u16>>> for Out {
    fn from(steps: Vec<Step<u16>>) -> Self {
        let mut out = Self::default();
        for step in steps {
            match step {
                Step::Reply { client, packet } => out.replies.push((client, Reply::read(&packet))),
                Step::Send { key, resolver, transport, packet } => {
                    out.sent.push((key, resolver, transport, packet));
                }
                Step::Close(key) => out.closed.push(key),
                Step::Pin { name, addresses, ttl } => {
                    assert!(out.replies.is_empty(), "a pin comes before the reply");
                    out.pins.push((name, addresses, ttl));
                }
                Step::Log(line) => out.lines.push(line),
            }
        }
        out
    }
}

impl Out {
    fn reply(&self) -> &Reply {
        let [(_, reply)] = &self.replies[..] else { panic!("one reply: {self:?}") };
        reply
    }

    fn key(&self) -> Key {
        let [(key, ..)] = &self.sent[..] else { panic!("one question: {self:?}") };
        *key
    }

    fn line(&self) -> &Line {
        let [line] = &self.lines[..] else { panic!("one line: {self:?}") };
        line
    }
}

/// Asks one question over UDP.
fn asked(resolver: &mut Resolver<u16>, name: &str, kind: RecordType, policy: &Policy) -> Out {
    resolver.ask(NOW, &ask(name, kind), 1, Transport::Udp, policy).into()
}

/// One question and its answer, under a policy.
fn told(policy: &Policy, site: &Site, name: &str, addresses: &[&str]) -> Out {
    let addresses: Vec<_> = addresses.iter().map(|text| address(text)).collect();
    let kind = if addresses[0].is_ipv4() { RecordType::A } else { RecordType::AAAA };
    let mut resolver = resolver(1);
    let out = asked(&mut resolver, name, kind, policy);
    let packet = answer(101, name, &addresses);
    let out: Out = resolver.answered(NOW, out.key(), &packet, policy, site).into();
    assert_eq!((resolver.pending(), resolver.next_deadline()), (0, None));
    out
}
