//! Records of services: SVCB and HTTPS, RFC 9460.
//!
//! The invariant: **a record leads nowhere that the gateway did not lead to.** Keys for encrypted
//! names (`ech`) would hide what the guest says, addresses in hints were never judged, and another
//! target would be reached under a name that did not lead there. What is left are the protocols
//! and the port of the very name that was asked for; a record that says more than that, or says it
//! in a way that two readers could understand differently, is dropped.

use pandastack_policy::Host;

use super::message::Reader;

/// Keys that must be understood by who uses the record.
const MANDATORY: u16 = 0;
/// Protocols, which are a list of short texts.
const ALPN: u16 = 1;
/// That the usual protocol is not spoken.
const NO_DEFAULT_ALPN: u16 = 2;
/// Another port. The policy decides about it when a flow comes.
const PORT: u16 = 3;

/// The data of a record, with what may stay; nothing if it cannot stay at all. `owners` are the
/// names that it may be about: the one that was asked for and what that is an alias of.
pub(super) fn rewrite(data: &[u8], owners: &[&Host]) -> Option<Vec<u8>> {
    let mut reader = Reader::new(data);
    let priority = reader.u16()?;
    if priority == 0 {
        return None; // an alias
    }
    let target = reader.plain_name()?;
    if !target.is_empty() && !owners.contains(&&Host::from_labels(target).ok()?) {
        return None;
    }
    let mut out = priority.to_be_bytes().to_vec();
    out.push(0); // the owner
    let (mut last, mut mandatory, mut kept) = (None, Vec::new(), Vec::new());
    while !reader.is_at_end() {
        let key = reader.u16()?;
        let len = reader.u16()?;
        let value = reader.bytes(len.into())?;
        if last.replace(key).is_some_and(|last| last >= key) {
            return None;
        }
        match key {
            MANDATORY => mandatory = keys(value)?,
            ALPN if is_list(value) => {}
            NO_DEFAULT_ALPN if value.is_empty() => {}
            PORT if value.len() == 2 => {}
            ALPN | NO_DEFAULT_ALPN | PORT => return None,
            _ => continue,
        }
        kept.push(key);
        out.extend([key, len].iter().flat_map(|word| word.to_be_bytes()));
        out.extend(value);
    }
    mandatory.iter().all(|key| kept.contains(key)).then_some(out)
}

/// A list of keys: in order, without itself.
fn keys(value: &[u8]) -> Option<Vec<u16>> {
    let (pairs, rest) = value.as_chunks::<2>();
    let keys: Vec<u16> = pairs.iter().map(|pair| u16::from_be_bytes(*pair)).collect();
    let proper = rest.is_empty() && !keys.is_empty() && !keys.contains(&MANDATORY);
    (proper && keys.is_sorted_by(|a, b| a < b)).then_some(keys)
}

/// Whether it is one or more texts, each with its length before it.
fn is_list(mut value: &[u8]) -> bool {
    let mut texts = 0;
    while let Some((len, rest)) = value.split_first() {
        match rest.get(usize::from(*len)..) {
            Some(rest) if *len > 0 => value = rest,
            _ => return false,
        }
        texts += 1;
    }
    texts > 0
}
