//! What a guest is told, and what the egress log says about it.

use std::net::IpAddr;
use std::time::Duration;

use pandastack_policy::{Denied, Host, HostError, Pins, Policy, Site, Verdict};

use super::answer::Answer;
use super::message::{RecordType, rcode};
use super::query::Query;
use super::reply::{Told, WhyCode};
use super::resolver::Line;

/// What an answer of a resolver comes to under a policy.
pub(super) struct Telling {
    pub told: Told,
    /// The addresses in it.
    pub addresses: Vec<IpAddr>,
    pub lines: Vec<Line>,
}

/// A line about a packet that could not be read.
pub(super) fn unread(reason: &str) -> Line {
    let reason = reason.to_owned();
    Line { name: None, kind: None, address: None, allowed: false, rule: None, reason }
}

fn line(name: &Host, kind: RecordType, reason: impl std::fmt::Display) -> Line {
    Line {
        name: Some(name.to_string()),
        kind: Some(kind),
        reason: format!("{reason} ({kind})"),
        ..unread("")
    }
}

/// The name of a question that is to be asked elsewhere, or what is told without.
pub(super) fn refused(
    query: &Query,
    policy: &Policy,
    resolvers: bool,
    full: bool,
) -> Result<Host, Box<(Told, Line)>> {
    let kind = query.kind;
    let name = query.name.as_ref().map_err(|error| {
        let code = if *error == HostError::Empty { rcode::REFUSED } else { rcode::NXDOMAIN };
        let told = Told::nothing(code, WhyCode::Prohibited, error.to_string());
        let reason = format!("{error} ({kind})");
        let name = Some(query.shown());
        Box::new((told, Line { name, kind: Some(kind), ..unread(&reason) }))
    })?;
    let verdict = policy.name(name);
    let nothing = |code, why, text: String, allowed| {
        let line = Line { allowed, rule: verdict.rule(), ..line(name, kind, &text) };
        Err(Box::new((Told::nothing(code, why, text), line)))
    };
    if let Verdict::Deny(reason) = verdict {
        return nothing(rcode::NXDOMAIN, WhyCode::Prohibited, reason.to_string(), false);
    }
    if !kind.is_forwarded() {
        let text = "only A, AAAA, HTTPS and SVCB are answered here";
        return nothing(rcode::NO_ERROR, WhyCode::NotSupported, text.to_owned(), false);
    }
    if !resolvers {
        let text = "the operator has named no resolver";
        return nothing(rcode::SERVFAIL, WhyCode::Unreachable, text.to_owned(), true);
    }
    if full {
        let text = "too many questions at a time";
        return nothing(rcode::SERVFAIL, WhyCode::Unreachable, text.to_owned(), false);
    }
    Ok(name.clone())
}

/// What is told where no resolver has answered.
pub(super) fn lost(name: &Host, kind: RecordType) -> (Told, Line) {
    let text = "no resolver has answered";
    let told = Told::nothing(rcode::SERVFAIL, WhyCode::Unreachable, text);
    (told, Line { allowed: true, ..line(name, kind, text) })
}

impl Telling {
    /// The policy is asked once more about the name: it may be another one by now.
    pub fn new(
        name: &Host,
        kind: RecordType,
        answer: Answer,
        policy: &Policy,
        site: &Site,
    ) -> Self {
        let verdict = policy.name(name);
        if let Verdict::Deny(reason) = verdict {
            return Self::refuse(name, kind, rcode::NXDOMAIN, reason, String::new());
        }
        if let Some((alias, reason)) = denied_alias(&answer.chain, policy) {
            let by = format!(", for it is an alias of {alias}");
            return Self::refuse(name, kind, rcode::NO_ERROR, reason, by);
        }
        let mut lines = Vec::new();
        let (addresses, dropped) = judge(answer.addresses, policy, site);
        for (address, reason) in &dropped {
            let (address, rule) = (Some(*address), reason.rule());
            let reason = format!("the address is dropped from the answer: {reason}");
            lines.push(Line { address, rule, ..line(name, kind, reason) });
        }
        let ttl = Pins::ttl(Duration::from_secs(answer.ttl.into()));
        let mut told = Told {
            code: if answer.exists { rcode::NO_ERROR } else { rcode::NXDOMAIN },
            ttl: u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX),
            records: answer.services,
            why: None,
        };
        told.records.extend(addresses.iter().map(|address| match address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        }));
        let reason = match (addresses.first(), addresses.len(), told.records.len()) {
            (Some(first), 1, _) => format!("at {first}"),
            (Some(first), more, _) => format!("at {first} and {} more", more - 1),
            (None, _, 0) if !answer.exists => "there is no such name".to_owned(),
            (None, _, 0) if dropped.is_empty() => "it has none".to_owned(),
            (None, _, 0) => "no address is left".to_owned(),
            (None, _, services) => format!("{services} records"),
        };
        if let (true, Some((_, reason))) = (told.records.is_empty(), dropped.first()) {
            told = Told::nothing(told.code, WhyCode::Filtered, reason.to_string());
        }
        lines.push(Line { allowed: true, rule: verdict.rule(), ..line(name, kind, reason) });
        Self { told, addresses, lines }
    }

    fn refuse(name: &Host, kind: RecordType, code: u16, reason: Denied, by: String) -> Self {
        let text = format!("{reason}{by}");
        let lines = vec![Line { rule: reason.rule(), ..line(name, kind, &text) }];
        let told = Told::nothing(code, WhyCode::Filtered, text);
        Self { told, addresses: Vec::new(), lines }
    }
}

/// A name that the answer went through and that is denied for itself. That no rule allows it is no
/// reason: who allows a name allows whoever it is served by.
fn denied_alias<'a>(chain: &'a [Host], policy: &Policy) -> Option<(&'a Host, Denied)> {
    chain.iter().find_map(|alias| match policy.name(alias) {
        Verdict::Deny(reason) if reason != Denied::Name => Some((alias, reason)),
        _ => None,
    })
}

/// The addresses that may be told, each once, and those that may not.
fn judge(
    addresses: Vec<IpAddr>,
    policy: &Policy,
    site: &Site,
) -> (Vec<IpAddr>, Vec<(IpAddr, Denied)>) {
    let (mut kept, mut dropped) = (Vec::new(), Vec::new());
    for address in addresses {
        match policy.answer(site, address) {
            Ok(()) if kept.contains(&address) => {}
            Ok(()) => kept.push(address),
            Err(reason) => dropped.push((address, reason)),
        }
    }
    (kept, dropped)
}
