//! Flows, fed in one piece and in many.

mod framing;
mod http;
mod splits;
mod tls;

use pandastack_policy::{Denied, Host, Request};

use super::*;

fn host(name: &str) -> Host {
    name.parse().unwrap()
}

/// Allows `a.test` with a check, and `b.test` for its name; notes what it was asked.
struct Rules {
    check: Check,
    asked: Vec<String>,
}

impl Rules {
    fn new(check: Check) -> Self {
        Self { check, asked: Vec::new() }
    }

    fn verdict(&self, name: &Host) -> Verdict {
        match name.as_str() {
            "a.test" => Verdict::Allow { rule: 0, check: self.check },
            "b.test" => Verdict::Allow { rule: 1, check: Check::Name },
            _ => Verdict::Deny(Denied::Mismatch),
        }
    }
}

impl Judge for Rules {
    fn name(&mut self, name: &Host) -> Verdict {
        self.asked.push(name.to_string());
        self.verdict(name)
    }

    fn request(&mut self, request: &Request<'_>) -> Verdict {
        self.asked.push(format!("{} {} {}", request.host, request.method, request.target));
        if !request.target.starts_with('/') {
            return Verdict::Deny(Denied::Target);
        }
        match self.verdict(request.host) {
            Verdict::Allow { check: Check::Requests, .. } if request.target == "/no" => {
                Verdict::Deny(Denied::Request)
            }
            verdict => verdict,
        }
    }
}

/// What became of a flow.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    forwarded: Vec<u8>,
    refusal: Option<Refusal>,
    asked: Vec<String>,
    open: bool,
    passed: Check,
}

/// Feeds a flow in pieces of these lengths, by turns.
fn feed(check: Check, port: u16, flow: &[u8], pieces: &[usize]) -> Outcome {
    let (mut inspector, mut rules) = (Inspector::new(check, port), Rules::new(check));
    let (mut pending, mut forwarded, mut refusal) = (Vec::new(), Vec::new(), None);
    let mut pieces = pieces.iter().cycle();
    let mut rest = flow;
    while refusal.is_none() && !rest.is_empty() {
        let len = pieces.next().map_or(rest.len(), |len| *len.min(&rest.len())).max(1);
        let (piece, later) = rest.split_at(len);
        pending.extend(piece);
        rest = later;
        loop {
            match inspector.pass(&pending, &mut rules) {
                Ok(0) => break,
                Ok(len) => forwarded.extend(pending.drain(..len)),
                Err(why) => {
                    let again = inspector.pass(&pending, &mut rules);
                    assert_eq!(again, Err(why.clone()), "it stays");
                    refusal = Some(why);
                    break;
                }
            }
        }
        let longest = Inspector::MAX_PENDING + len;
        assert!(refusal.is_some() || pending.len() < longest, "what waits is bounded");
    }
    let (open, passed) = (inspector.is_open(), inspector.passed());
    Outcome { forwarded, refusal, asked: rules.asked, open, passed }
}

/// A flow to port 80 or 443, whichever fits, in one piece.
fn whole(check: Check, flow: impl AsRef<[u8]>) -> Outcome {
    feed(check, 443, flow.as_ref(), &[])
}

fn reason(outcome: &Outcome) -> Option<Reason> {
    outcome.refusal.as_ref().map(|refusal| refusal.reason)
}

/// A request of these fields, which have `|` for line ends.
fn request(lines: &str) -> Vec<u8> {
    format!("{lines}||").replace('|', "\r\n").into_bytes()
}

/// A hello, put together.
#[derive(Clone, Debug)]
struct Hello {
    extensions: Vec<(u16, Vec<u8>)>,
}

fn long(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat()
}

fn sni(names: &[(u8, &[u8])]) -> Vec<u8> {
    let list = names.iter().flat_map(|(kind, name)| [vec![*kind], long(name)].concat());
    long(&list.collect::<Vec<_>>())
}

impl Hello {
    fn to(name: &str) -> Self {
        Self { extensions: vec![(0, sni(&[(0, name.as_bytes())]))] }
    }

    fn with(mut self, kind: u16, data: &[u8]) -> Self {
        self.extensions.push((kind, data.to_vec()));
        self
    }

    fn body(&self) -> Vec<u8> {
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.push(32);
        body.extend([8; 32]);
        body.extend(long(&[0x13, 1, 0x13, 2]));
        body.extend([1, 0]);
        let extensions: Vec<u8> = self
            .extensions
            .iter()
            .flat_map(|(kind, data)| [kind.to_be_bytes().to_vec(), long(data)].concat())
            .collect();
        body.extend(long(&extensions));
        body
    }

    fn message(&self) -> Vec<u8> {
        message(&self.body())
    }

    /// In records of so many bytes.
    fn records(&self, len: usize) -> Vec<u8> {
        records(&self.message(), len)
    }
}

fn message(body: &[u8]) -> Vec<u8> {
    let len = (body.len() as u32).to_be_bytes();
    [&[1, len[1], len[2], len[3]], body].concat()
}

fn records(message: &[u8], len: usize) -> Vec<u8> {
    let record = |data: &[u8]| [&[22, 3, 1][..], &long(data)].concat();
    message.chunks(len).flat_map(record).collect()
}
