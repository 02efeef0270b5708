//! What the guest says: held until the inspector has decided, and refused in so many words.

use std::time::Duration;

use pandastack_policy::{Flow as Asked, Host, Policy, Protocol, Request, Site, Verdict};
use pandastack_types::EgressKind;

use super::{After, Flow, LAST_WORDS, Turn};
use crate::inspect::{Inspector, Judge};
use crate::relay::journal::Entry;

impl Flow {
    /// Takes what the guest has said and what is not the server's yet.
    pub(super) fn take_in(&mut self, turn: &mut Turn<'_>) {
        if self.inspector.is_open() && self.held.is_empty() {
            return; // goes straight through
        }
        let room = Inspector::MAX_PENDING.saturating_sub(self.held.len());
        let Some(guest) = &mut self.guest else { return };
        let mut left = room;
        while left > 0 && guest.socket().can_recv() {
            let held = &mut self.held;
            let taken = guest.socket().recv(|bytes| {
                let many = bytes.len().min(left);
                held.extend_from_slice(&bytes[..many]);
                (many, many)
            });
            match taken {
                Ok(many @ 1..) => left -= many,
                _ => break,
            }
        }
        if left < room {
            self.moved = turn.now;
        }
    }

    /// Lets the inspector decide.
    pub(super) fn inspect(&mut self, turn: &mut Turn<'_>) {
        while self.cleared < self.held.len() {
            let (policy, site) = (turn.policy, turn.site);
            let flow = Asked {
                protocol: Protocol::Tcp,
                address: self.server.ip(),
                port: self.server.port(),
                names: &self.names,
            };
            let mut jury = Jury { policy, site, flow, said: None, requests: Vec::new() };
            let outcome = self.inspector.pass(&self.held[self.cleared..], &mut jury);
            let Jury { said, requests, .. } = jury;
            for entry in requests {
                turn.journal.note(entry.to(self.server.ip(), self.server.port()), turn.now);
            }
            if let Some((name, rule)) = said {
                (self.names, self.rule) = (vec![name], rule);
            }
            match outcome {
                Ok(0) => break,
                Ok(many) => self.cleared += many,
                Err(refusal) => {
                    let mut entry = Entry::refused(EgressKind::Tcp, &refusal)
                        .name(refusal.name.as_ref().or(self.names.first()));
                    entry.set_rule(refusal.rule());
                    turn.journal.note(entry.to(self.server.ip(), self.server.port()), turn.now);
                    return self.refuse(refusal.response(), turn.now);
                }
            }
        }
    }

    /// Whether a changed policy allows what was said last.
    pub(super) fn stands(&self, policy: &Policy, site: &Site) -> bool {
        let flow = self.asked();
        self.inspector.stands(&mut Jury { policy, site, flow, said: None, requests: Vec::new() })
    }

    /// Says why, if that is possible, and nothing more.
    fn refuse(&mut self, answer: Option<Vec<u8>>, now: Duration) {
        (self.why, self.refused) = ("refused", Some(now + LAST_WORDS));
        self.hang_up();
        self.held = Vec::new();
        self.cleared = 0;
        let Some(guest) = &mut self.guest else { return };
        match answer {
            Some(answer) => {
                // The buffer is empty as nothing was answered yet, and larger than this.
                let _ = guest.socket().send_slice(&answer);
                guest.socket().close();
            }
            None => guest.socket().abort(),
        }
    }

    /// Waits until the guest has read why.
    pub(super) fn finish_refusal(&mut self, deadline: Duration, turn: &mut Turn<'_>) -> After {
        let Some(guest) = &mut self.guest else { return After::Over };
        // What it still says is nobody's.
        while guest.socket().can_recv() {
            if guest.socket().recv(|bytes| (bytes.len(), ())).is_err() {
                break;
            }
        }
        guest.speak(turn.port, turn.now);
        if guest.is_over() || turn.now >= deadline {
            self.cut("refused", turn);
            return After::Over;
        }
        After::Going(self.next(turn, Some(deadline)))
    }
}

/// Asks the policy about what a flow says.
struct Jury<'a> {
    policy: &'a Policy,
    site: &'a Site,
    flow: Asked<'a>,
    /// The name that was allowed, with its rule.
    said: Option<(Host, usize)>,
    requests: Vec<Entry>,
}

impl Judge for Jury<'_> {
    fn name(&mut self, name: &Host) -> Verdict {
        let verdict = self.policy.said(self.site, &self.flow, name);
        self.keep(name, verdict);
        verdict
    }

    fn request(&mut self, request: &Request<'_>) -> Verdict {
        let verdict = self.policy.request(self.site, &self.flow, request);
        if verdict.is_allow() {
            let mut entry = Entry::decided(EgressKind::Http, verdict).name(Some(request.host));
            entry.about(request.method, request.target);
            self.requests.push(entry);
        }
        self.keep(request.host, verdict);
        verdict
    }
}

impl Jury<'_> {
    fn keep(&mut self, name: &Host, verdict: Verdict) {
        if let Verdict::Allow { rule, .. } = verdict {
            self.said = Some((name.clone(), rule));
        }
    }
}
