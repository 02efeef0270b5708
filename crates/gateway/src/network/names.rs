//! What the resolver wants done: answers to the guest, questions to resolvers, pins and lines.

use super::{Client, DNS, Line, Network};
use crate::dns::{self, Step};
use crate::net::packet;
use crate::relay::journal::Entry;
use crate::relay::poller::Token;
use crate::relay::question::{Heard, Question};

impl Network {
    /// Does what the resolver wants done.
    pub(super) fn carry_out(&mut self, steps: Vec<Step<Client>>) {
        for step in steps {
            match step {
                Step::Reply { client: Client::Port(own, port), packet } => {
                    self.port.give(packet::datagram((own, DNS), port, &packet));
                }
                Step::Reply { client: Client::Asker(token), packet } => {
                    if let Some(Line::Asker(asker)) = self.lines.get_mut(&token) {
                        asker.answer(&packet);
                        self.busy.insert(token);
                    }
                }
                Step::Send { key, resolver, transport, packet } => {
                    self.ask(key, resolver, transport, packet);
                }
                Step::Close(key) => {
                    if let Some(token) = self.questions.remove(&key) {
                        self.lines.remove(&token);
                    }
                }
                Step::Pin { name, addresses, ttl } => {
                    for address in addresses {
                        self.pins.add(&name, address, ttl, self.now);
                    }
                }
                Step::Log(line) => self.journal.note(Entry::resolved(line), self.now),
            }
        }
    }

    fn ask(&mut self, key: dns::Key, resolver: usize, transport: dns::Transport, packet: Vec<u8>) {
        let token = self.new_token();
        let asked = match self.settings.resolvers.get(resolver) {
            Some(server) => {
                Question::ask(key, *server, transport, packet, &self.poller, token).ok()
            }
            None => None,
        };
        match asked {
            Some(question) => {
                self.questions.insert(key, token);
                self.lines.insert(token, Line::Dns(question));
                self.busy.insert(token);
            }
            None => {
                let steps = self.resolver.failed(self.now, key);
                self.carry_out(steps);
            }
        }
    }

    pub(super) fn heard(&mut self, token: Token, key: dns::Key, heard: Heard) {
        let steps = match heard {
            Heard::Nothing => return,
            Heard::Message(message) => {
                // A wrong one was not the last one.
                self.busy.insert(token);
                let (policy, site) = (&self.policy, &self.settings.site);
                self.resolver.answered(self.now, key, &message, policy, site)
            }
            Heard::Failed => self.resolver.failed(self.now, key),
        };
        self.carry_out(steps);
    }
}
