//! The egress log of one network, on its way to the server.
//!
//! The invariant: **a guest cannot make the log grow.** Entries are let through at a bounded rate
//! and wait in a bounded list; those that are not are counted, and the next entry says how many.

use std::time::Duration;

use pandastack_policy::Verdict;
use pandastack_types::{EgressEntry, EgressKind, EgressVerdict};
use time::OffsetDateTime;

use super::bucket::Bucket;
use crate::dns::Line;

/// Entries per second.
const RATE: u64 = 200;
/// Entries that may come at once.
const BURST: u64 = 400;
/// Entries that wait for the server.
const MAX_WAITING: usize = 512;
/// Characters of a request's target that are shown.
const MAX_TARGET: usize = 120;
/// Entries of one message.
pub const BATCH: usize = 64;

/// The entries that nobody has taken yet.
#[derive(Debug)]
pub struct Journal {
    on: bool,
    waiting: Vec<EgressEntry>,
    /// Entries that were not let through since the last one that was.
    unshown: u64,
    tokens: u64,
    refill: Bucket,
}

impl Journal {
    /// An empty journal.
    pub fn new(now: Duration) -> Self {
        let refill = Bucket::new(Some(RATE), 1, now);
        Self { on: true, waiting: Vec::new(), unshown: 0, tokens: BURST, refill }
    }

    /// Whether anything is noted at all.
    pub fn set_on(&mut self, on: bool) {
        self.on = on;
    }

    /// Notes an entry, or counts it.
    pub fn note(&mut self, entry: Entry, now: Duration) {
        if !self.on {
            return;
        }
        let new = self.refill.room(now);
        self.refill.spend(new);
        self.tokens = (self.tokens + new as u64).min(BURST);
        if self.tokens == 0 || self.waiting.len() >= MAX_WAITING {
            self.unshown += 1;
            return;
        }
        self.tokens -= 1;
        let mut entry = entry.0;
        entry.unshown = std::mem::take(&mut self.unshown);
        self.waiting.push(entry);
    }

    /// Takes the oldest entries out, as many as fit into a message.
    pub fn batch(&mut self) -> Vec<EgressEntry> {
        let many = self.waiting.len().min(BATCH);
        self.waiting.drain(..many).collect()
    }

    /// Puts a batch back that the server did not take yet.
    pub fn put_back(&mut self, batch: Vec<EgressEntry>) {
        self.waiting.splice(..0, batch);
    }

    /// Whether there is something to take.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }
}

/// An entry in the making.
#[derive(Debug)]
pub struct Entry(EgressEntry);

impl Entry {
    /// About something that was let through or not.
    pub fn decided(kind: EgressKind, verdict: Verdict) -> Self {
        let word = if verdict.is_allow() { EgressVerdict::Allow } else { EgressVerdict::Deny };
        let mut entry = Self::new(kind, word, verdict.to_string());
        entry.0.rule = verdict.rule();
        entry
    }

    /// About something that no rule is about.
    pub fn refused(kind: EgressKind, reason: impl ToString) -> Self {
        Self::new(kind, EgressVerdict::Deny, format!("denied: {}", reason.to_string()))
    }

    /// About a name.
    pub fn resolved(line: Line) -> Self {
        let mut entry = if line.allowed {
            Self::new(EgressKind::Dns, EgressVerdict::Allow, line.reason)
        } else {
            Self::refused(EgressKind::Dns, line.reason)
        };
        (entry.0.name, entry.0.address, entry.0.rule) = (line.name, line.address, line.rule);
        entry
    }

    /// About a flow that is over.
    pub fn closed(kind: EgressKind, reason: &str, up: u64, down: u64) -> Self {
        let mut entry = Self::new(kind, EgressVerdict::Close, reason.to_owned());
        (entry.0.bytes_up, entry.0.bytes_down) = (Some(up), Some(down));
        entry
    }

    fn new(kind: EgressKind, verdict: EgressVerdict, reason: String) -> Self {
        Self(EgressEntry {
            time: OffsetDateTime::now_utc(),
            kind,
            verdict,
            name: None,
            address: None,
            port: None,
            rule: None,
            reason,
            bytes_up: None,
            bytes_down: None,
            unshown: 0,
        })
    }

    /// With the name that it is about.
    pub fn name(mut self, name: Option<impl ToString>) -> Self {
        self.0.name = name.map(|name| name.to_string());
        self
    }

    /// With where it went.
    pub fn to(mut self, address: std::net::IpAddr, port: impl Into<Option<u16>>) -> Self {
        (self.0.address, self.0.port) = (Some(address), port.into());
        self
    }

    /// With the rule that decided.
    pub fn set_rule(&mut self, rule: Option<String>) {
        self.0.rule = rule;
    }

    /// With what was asked for in it. Long targets are cut: a log is no way out.
    pub fn about(&mut self, method: &str, target: &str) {
        let target: String = target.chars().take(MAX_TARGET).collect();
        self.0.reason = format!("{} ({method} {target})", self.0.reason);
    }

    /// With the rule that let it through.
    pub fn rule(mut self, rule: Option<usize>) -> Self {
        self.0.rule = rule.map(|rule| format!("allow/{rule}"));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted_and_not_kept() {
        let mut journal = Journal::new(Duration::ZERO);
        for _ in 0..10_000 {
            journal.note(Entry::refused(EgressKind::Udp, "no"), Duration::ZERO);
        }
        let mut shown = 0;
        while journal.is_waiting() {
            let batch = journal.batch();
            assert!(batch.len() <= BATCH && batch.iter().all(|entry| entry.unshown == 0));
            shown += batch.len() as u64;
        }
        assert!((BURST..BURST + RATE).contains(&shown), "{shown}");
        journal.note(Entry::refused(EgressKind::Udp, "no"), Duration::from_secs(1));
        assert_eq!(journal.batch()[0].unshown, 10_000 - shown);
        journal.set_on(false);
        journal.note(Entry::refused(EgressKind::Udp, "no"), Duration::from_secs(9));
        assert!(!journal.is_waiting());
    }
}
