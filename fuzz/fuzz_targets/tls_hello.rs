//! The first bytes of TLS: however a hello is cut into records, and however those come in, it says
//! the same, and it opens a flow only with a name that is in it and allowed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pandastack_fuzz::Script;
use pandastack_gateway::inspect::tls::ClientHello;
use pandastack_gateway::inspect::{Inspector, Judge};
use pandastack_policy::{Check, Denied, Host, Request, Verdict};

/// Allows one name.
struct One(Option<Host>);

impl Judge for One {
    fn name(&mut self, name: &Host) -> Verdict {
        self.0 = Some(name.clone());
        match name.as_str() {
            "a.test" => Verdict::Allow { rule: 0, check: Check::Name },
            _ => Verdict::Deny(Denied::Mismatch),
        }
    }

    fn request(&mut self, _: &Request<'_>) -> Verdict {
        Verdict::Deny(Denied::Request)
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut script = Script(bytes);
    let (Some(what), Some(size)) = (script.u8(), script.u16()) else { return };
    if what & 1 == 0 {
        flow(script.0, usize::from(size));
        return;
    }
    // A message with any content, in records of two sizes.
    let body = &script.0[..script.0.len().min(16 << 10)];
    let len = (body.len() as u32).to_be_bytes();
    let message = [&[1, len[1], len[2], len[3]], body].concat();
    let whole = ClientHello::read(&records(&message, 1 << 14));
    let cut = records(&message, usize::from(size % 2048) + 1);
    assert_eq!(ClientHello::read(&cut), whole);
    assert!(!matches!(whole, Ok(None)), "all of it was there");
    flow(&cut, usize::from(size));
});

fn records(message: &[u8], len: usize) -> Vec<u8> {
    let record = |data: &[u8]| {
        let len = (data.len() as u16).to_be_bytes();
        [&[22, 3, 1, len[0], len[1]], data].concat()
    };
    message.chunks(len).flat_map(record).collect()
}

/// What is in the records, which may end anywhere in a name.
fn said(mut bytes: &[u8]) -> Vec<u8> {
    let mut said = Vec::new();
    while let Some((&[_, _, _, high, low], rest)) = bytes.split_first_chunk() {
        let (data, rest) = rest.split_at(usize::from(u16::from_be_bytes([high, low])).min(rest.len()));
        said.extend(data);
        bytes = rest;
    }
    said
}

fn flow(bytes: &[u8], cut: usize) {
    let whole = ClientHello::read(bytes);
    // More bytes change nothing once it is clear.
    let first = ClientHello::read(&bytes[..cut.min(bytes.len())]);
    assert!(first == Ok(None) || first == whole);
    let (mut inspector, mut judge) = (Inspector::new(Check::Name, 443), One(None));
    match inspector.pass(bytes, &mut judge) {
        Ok(0) => assert!(bytes.is_empty() || !inspector.is_open()),
        Ok(len) => {
            // Nothing is allowed here but TLS with this name.
            assert_eq!((len, inspector.is_open()), (bytes.len(), true));
            let Ok(Some(hello)) = whole else { panic!("{whole:?}") };
            assert_eq!(hello.name, Some(Ok("a.test".parse().expect("a name"))));
            assert!(!hello.hidden && judge.0.is_some());
            assert!(said(bytes).windows(6).any(|part| part.eq_ignore_ascii_case(b"a.test")));
        }
        Err(refusal) => {
            let again = inspector.pass(bytes, &mut judge);
            assert_eq!(again, Err(refusal));
        }
    }
}
