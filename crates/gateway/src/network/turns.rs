//! Turns: what woke, whose time has come and what was given something gets one, then all sleep.

use std::time::Duration;

use pandastack_policy::Protocol;

use super::{Client, Line, Network};
use crate::dns;
use crate::relay::flow::{After, Turn};
use crate::relay::poller::Token;

impl Network {
    pub(super) fn wake(&mut self, token: Token, readable: bool, writable: bool) {
        if let Some(line) = self.lines.get_mut(&token) {
            if let Line::Tcp(flow) = line {
                flow.woken(readable, writable);
            }
            self.busy.insert(token);
        }
    }

    pub(super) fn ring_alarms(&mut self) {
        while let Some((at, token)) = self.alarms.first().copied()
            && at <= self.now
        {
            self.alarms.remove(&(at, token));
            self.alarm_of.remove(&token);
            self.busy.insert(token);
        }
        if self.resolver.next_deadline().is_some_and(|at| at <= self.now) {
            let steps = self.resolver.tick(self.now);
            self.carry_out(steps);
        }
    }

    pub(super) fn set_alarm(&mut self, token: Token, at: Option<Duration>) {
        if let Some(old) = self.alarm_of.remove(&token) {
            self.alarms.remove(&(old, token));
        }
        if let Some(at) = at {
            self.alarms.insert((at, token));
            self.alarm_of.insert(token, at);
        }
    }

    /// Gives every busy line one turn.
    pub(super) fn give_turns(&mut self) {
        for token in std::mem::take(&mut self.busy) {
            let Some((mut line, mut turn)) = self.take_line(token) else { continue };
            match &mut line {
                Line::Tcp(flow) => match flow.pump(&mut turn) {
                    After::Going(at) => {
                        self.lines.insert(token, line);
                        self.schedule(token, at);
                    }
                    After::Over => self.drop_line(token, line, "closed"),
                },
                Line::Udp(flow) => {
                    let at = flow.pump(&mut turn);
                    if flow.is_over(self.now) {
                        self.drop_line(token, line, "was silent for a minute");
                    } else {
                        self.lines.insert(token, line);
                        self.schedule(token, Some(at));
                    }
                }
                Line::Asker(asker) => {
                    let (questions, after) = asker.pump(&mut turn);
                    match after {
                        After::Going(at) => {
                            self.lines.insert(token, line);
                            self.schedule(token, at);
                        }
                        After::Over => self.drop_line(token, line, "closed"),
                    }
                    for question in questions {
                        let (client, tcp) = (Client::Asker(token), dns::Transport::Tcp);
                        let steps =
                            self.resolver.ask(self.now, &question, client, tcp, &self.policy);
                        self.carry_out(steps);
                    }
                }
                Line::Dns(question) => {
                    let (key, heard) = (question.key, question.pump());
                    self.lines.insert(token, line);
                    self.heard(token, key, heard);
                }
            }
        }
    }

    pub(super) fn schedule(&mut self, token: Token, at: Option<Duration>) {
        let now = at.is_some_and(|at| at <= self.now);
        if now {
            self.busy.insert(token);
        }
        self.set_alarm(token, at.filter(|_| !now));
    }

    /// Forgets a line, with its last words.
    pub(super) fn drop_line(&mut self, token: Token, line: Line, why: &str) {
        self.set_alarm(token, None);
        match line {
            Line::Tcp(flow) => {
                let (port, server) = flow.ends();
                self.by_ends.remove(&(Protocol::Tcp, port, server));
                flow.close(&mut self.journal, self.now);
            }
            Line::Udp(flow) => {
                let (port, server) = flow.ends();
                self.by_ends.remove(&(Protocol::Udp, port, server));
                flow.close(why, &mut self.journal, self.now);
            }
            Line::Asker(asker) => {
                let (port, server) = asker.ends();
                self.by_ends.remove(&(Protocol::Tcp, port, server));
            }
            Line::Dns(question) => {
                self.questions.remove(&question.key);
            }
        }
    }

    pub(super) fn with_line(&mut self, token: Token, work: impl FnOnce(&mut Line, &mut Turn<'_>)) {
        if let Some((mut line, mut turn)) = self.take_line(token) {
            work(&mut line, &mut turn);
            self.lines.insert(token, line);
        }
    }

    /// Takes a line out, with what its turn works with.
    pub(super) fn take_line(&mut self, token: Token) -> Option<(Line, Turn<'_>)> {
        let line = self.lines.remove(&token)?;
        Some((line, self.turn()))
    }

    pub(super) fn turn(&mut self) -> Turn<'_> {
        Turn {
            now: self.now,
            port: &mut self.port,
            policy: &self.policy,
            site: &self.settings.site,
            up: &mut self.up,
            down: &mut self.down,
            journal: &mut self.journal,
            poller: &self.poller,
        }
    }
}
