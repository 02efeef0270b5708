//! Requests in a flow: however it is cut up, the same of it goes through, and in what does a
//! reader of HTTP that is not ours finds no request that was not judged.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pandastack_fuzz::Script;
use pandastack_gateway::inspect::{Inspector, Judge, Refusal};
use pandastack_policy::{Check, Denied, Host, Request, Verdict};

/// Allows two names, and notes what it allows.
struct Rules {
    check: Check,
    allowed: Vec<String>,
}

impl Judge for Rules {
    fn name(&mut self, name: &Host) -> Verdict {
        let check = match name.as_str() {
            "a.test" => self.check,
            "b.test" => Check::Name,
            _ => return Verdict::Deny(Denied::Mismatch),
        };
        self.allowed.push(name.to_string());
        Verdict::Allow { rule: 0, check }
    }

    fn request(&mut self, request: &Request<'_>) -> Verdict {
        if request.target.starts_with('/') {
            return self.name(request.host);
        }
        Verdict::Deny(Denied::Target)
    }
}

/// What became of a flow.
#[derive(Debug, PartialEq)]
struct Outcome {
    forwarded: usize,
    refusal: Option<Refusal>,
    allowed: Vec<String>,
    open: bool,
    passed: Check,
}

fuzz_target!(|bytes: &[u8]| {
    let mut script = Script(bytes);
    let (Some(what), Some(cuts)) = (script.u8(), script.take::<4>()) else { return };
    let check = if what & 1 == 0 { Check::Name } else { Check::Requests };
    let port = if what & 2 == 0 { 80 } else { 5000 };
    let flow = script.0;
    let whole = feed(check, port, flow, &[]);
    assert_eq!(feed(check, port, flow, &cuts), whole);
    if whole.passed == Check::Requests {
        let hosts = read(&flow[..whole.forwarded]);
        assert!(whole.allowed.starts_with(&hosts), "{hosts:?} {whole:?}");
        // One may be allowed as such and still be refused, for an Upgrade in it.
        assert!(whole.allowed.len() <= hosts.len() + usize::from(whole.refusal.is_some()));
    } else {
        assert_eq!(check, Check::Name, "requests are read to the end");
    }
});

/// Feeds a flow, in pieces of these lengths by turns.
fn feed(check: Check, port: u16, flow: &[u8], cuts: &[u8]) -> Outcome {
    let mut inspector = Inspector::new(check, port);
    let mut rules = Rules { check, allowed: Vec::new() };
    let mut cuts = cuts.iter().map(|cut| usize::from(*cut) + 1).cycle();
    let (mut forwarded, mut there, mut refusal) = (0, 0, None);
    while there < flow.len() && refusal.is_none() {
        let piece = cuts.next().unwrap_or(flow.len()).min(flow.len() - there);
        there += piece;
        loop {
            match inspector.pass(&flow[forwarded..there], &mut rules) {
                Ok(0) => break,
                Ok(len) => forwarded += len,
                Err(why) => {
                    refusal = Some(why);
                    break;
                }
            }
        }
        let waits = there - forwarded;
        assert!(refusal.is_some() || waits < Inspector::MAX_PENDING + piece, "it is bounded");
    }
    let (open, passed) = (inspector.is_open(), inspector.passed());
    Outcome { forwarded, refusal, allowed: rules.allowed, open, passed }
}

/// The hosts of the requests in a stream, by a reader that takes it easy.
fn read(mut stream: &[u8]) -> Vec<String> {
    let mut hosts = Vec::new();
    loop {
        let mut fields = [httparse::EMPTY_HEADER; 128];
        let mut request = httparse::Request::new(&mut fields);
        let Ok(httparse::Status::Complete(len)) = request.parse(stream) else { return hosts };
        let field = |name: &str| {
            let field = request.headers.iter().rfind(|field| field.name.eq_ignore_ascii_case(name));
            field.map(|field| String::from_utf8_lossy(field.value).trim().to_lowercase())
        };
        let host = field("host").unwrap_or_default();
        let host = host.split(':').next().unwrap_or_default().trim_end_matches('.');
        hosts.push(host.to_owned());
        stream = &stream[len..];
        let rest = if field("transfer-encoding").is_some_and(|coding| coding.contains("chunked")) {
            after_chunks(stream)
        } else {
            let len = field("content-length").map_or(0, |len| len.parse().expect("a length"));
            stream.get(len..)
        };
        match rest {
            Some(rest) => stream = rest,
            None => return hosts,
        }
    }
}

fn after_chunks(mut stream: &[u8]) -> Option<&[u8]> {
    loop {
        let Ok(httparse::Status::Complete((line, size))) = httparse::parse_chunk_size(stream)
        else {
            return None;
        };
        let end = line.checked_add(usize::try_from(size).ok()?)?.checked_add(2)?;
        stream = stream.get(end..)?;
        if size == 0 {
            return Some(stream); // there are no trailers
        }
    }
}
