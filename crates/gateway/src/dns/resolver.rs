//! One sandbox's questions, from the packet of the guest to the packet for it.
//!
//! ```text
//!   ask ──▶ waiting ── answered ─────────────────────────────▶ told
//!             │  ▲ │
//!             │  │ └── cut off ──▶ the same resolver over TCP ─▶ …
//!             ▼  │
//!   failed, or its patience is over: the next resolver, until the last ──▶ SERVFAIL
//! ```
//!
//! The invariant: **everything is bounded**: the questions that wait, the attempts of each, the
//! time it takes. An earlier attempt stays open while a later one is made, so a slow resolver is
//! heard; whatever comes to a key that is closed is nothing.

use std::net::IpAddr;
use std::time::Duration;

use pandastack_policy::{Host, Policy, Site};

use super::answer::{Answer, AnswerError};
use super::message::{RecordType, Transport};
use super::query::{Query, QueryError};
use super::reply::{Told, question};
use super::tell::{Telling, lost, refused, unread};
use crate::random;

/// Names one attempt to have a question answered, and so a socket; never used twice by a
/// [`Resolver`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(pub u64);

/// Something to do, in order. Packets are DNS messages: over TCP, whoever has the connection puts
/// the two bytes of length before them and takes them away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step<C> {
    /// Give this to the guest.
    Reply {
        /// Who asked.
        client: C,
        /// The answer.
        packet: Vec<u8>,
    },
    /// Make a socket that is connected to this resolver, from a random port and for this key
    /// alone, and send.
    Send {
        /// What its answers are handed back under.
        key: Key,
        /// The place of the resolver in the settings.
        resolver: usize,
        /// Over what.
        transport: Transport,
        /// The question.
        packet: Vec<u8>,
    },
    /// Close the socket of this key. It comes once for each `Send`.
    Close(Key),
    /// The guest is told that the name is at these addresses: for [`pandastack_policy::Pins`]. It
    /// comes before the `Reply`, so that a fast guest finds the way open.
    Pin {
        /// The name that was asked for.
        name: Host,
        /// Where it is.
        addresses: Vec<IpAddr>,
        /// For how long: clamped already.
        ttl: Duration,
    },
    /// For the egress log.
    Log(Line),
}

/// A decision about a question or a part of an answer, without the time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The name, or what stands for one that is none; if the packet could be read so far.
    pub name: Option<String>,
    /// What of it was asked for.
    pub kind: Option<RecordType>,
    /// The address that was dropped, if it is about one.
    pub address: Option<IpAddr>,
    /// Whether it was allowed.
    pub allowed: bool,
    /// What decided, such as `allow/0`.
    pub rule: Option<String>,
    /// Why, in one line that also has the type.
    pub reason: String,
}

/// How long one attempt is waited for before the next. All of them are over before a guest's
/// library asks again, which takes five seconds.
const PATIENCE: Duration = Duration::from_millis(1500);
/// Most attempts over UDP.
const ATTEMPTS: usize = 3;
/// Most answers to other questions that an attempt gets over. More is somebody who guesses ids.
const STRANGERS: u8 = 8;

/// The questions of one sandbox that wait for an answer. `C` is who asked: an address and a port,
/// or a connection.
pub struct Resolver<C> {
    resolvers: usize,
    ids: Box<dyn FnMut() -> Option<u16> + Send>,
    next_key: u64,
    waiting: Vec<Waiting<C>>,
}

/// A question that waits.
struct Waiting<C> {
    query: Query,
    name: Host,
    client: C,
    from: Transport,
    attempts: Vec<Attempt>,
    /// How many attempts were made or left out.
    made: usize,
    /// Resolvers that said that they cannot.
    failed: Vec<usize>,
    due: Duration,
}

/// A socket that may bring the answer.
struct Attempt {
    key: Key,
    id: u16,
    resolver: usize,
    transport: Transport,
    strangers: u8,
}

impl<C: Copy + PartialEq> Resolver<C> {
    /// Most questions that wait at a time.
    pub const MAX_PENDING: usize = 64;

    /// For so many resolvers, with ids from the kernel.
    pub fn new(resolvers: usize) -> Self {
        Self::with_ids(resolvers, || random::bytes().ok().map(u16::from_ne_bytes))
    }

    /// The same with ids from elsewhere. Without an id nothing is asked.
    pub fn with_ids(resolvers: usize, ids: impl FnMut() -> Option<u16> + Send + 'static) -> Self {
        Self { resolvers, ids: Box::new(ids), next_key: 0, waiting: Vec::new() }
    }

    /// The settings have so many resolvers now. Questions that wait go on with those.
    pub fn set_resolvers(&mut self, resolvers: usize) {
        self.resolvers = resolvers;
        self.waiting.iter_mut().for_each(|waiting| waiting.failed.clear());
    }

    /// A packet from the guest.
    #[must_use]
    pub fn ask(
        &mut self,
        now: Duration,
        packet: &[u8],
        client: C,
        from: Transport,
        policy: &Policy,
    ) -> Vec<Step<C>> {
        let query = match Query::parse(packet) {
            Ok(query) => query,
            Err(QueryError::Silent) => {
                return vec![Step::Log(unread("a packet that is no question"))];
            }
            Err(QueryError::Answered { packet, reason }) => {
                return vec![Step::Log(unread(reason)), Step::Reply { client, packet }];
            }
        };
        let again = |waiting: &Waiting<C>| waiting.client == client && waiting.query == query;
        if self.waiting.iter().any(again) {
            return Vec::new(); // a library that asks again is told once
        }
        let full = self.waiting.len() >= Self::MAX_PENDING;
        let name = match refused(&query, policy, self.resolvers > 0, full) {
            Ok(name) => name,
            Err(refusal) => {
                let (told, line) = *refusal;
                return finish(&query, client, from, &told, vec![line]);
            }
        };
        let (attempts, failed) = (Vec::new(), Vec::new());
        let mut waiting =
            Waiting { query, name, client, from, attempts, made: 0, failed, due: now };
        let mut steps = Vec::new();
        if self.attempt(now, &mut waiting, &mut steps) {
            self.waiting.push(waiting);
        } else {
            give_up(&waiting, &mut steps);
        }
        steps
    }

    /// A packet that came over the socket of a key.
    #[must_use]
    pub fn answered(
        &mut self,
        now: Duration,
        key: Key,
        packet: &[u8],
        policy: &Policy,
        site: &Site,
    ) -> Vec<Step<C>> {
        let Some((place, at)) = self.find(key) else { return Vec::new() };
        let Some(waiting) = self.waiting.get_mut(place) else { return Vec::new() };
        let Some(attempt) = waiting.attempts.get_mut(at) else { return Vec::new() };
        match Answer::parse(packet, attempt.id, &waiting.name, waiting.query.kind) {
            Ok(answer) => {
                let waiting = self.waiting.swap_remove(place);
                tell(&waiting, answer, policy, site)
            }
            Err(AnswerError::Stranger) if attempt.strangers < STRANGERS => {
                attempt.strangers += 1;
                Vec::new()
            }
            Err(AnswerError::Truncated) if attempt.transport == Transport::Udp => {
                let mut waiting = self.waiting.swap_remove(place);
                let resolver = waiting.attempts.swap_remove(at).resolver;
                let mut steps = vec![Step::Close(key)];
                if self.send(&mut waiting, resolver, Transport::Tcp, &mut steps) {
                    waiting.due = now.saturating_add(PATIENCE);
                    self.waiting.push(waiting);
                } else {
                    give_up(&waiting, &mut steps);
                }
                steps
            }
            Err(_) => self.failed(now, key),
        }
    }

    /// The socket of a key is broken, or could not be made.
    #[must_use]
    pub fn failed(&mut self, now: Duration, key: Key) -> Vec<Step<C>> {
        let Some((place, at)) = self.find(key) else { return Vec::new() };
        let mut waiting = self.waiting.swap_remove(place);
        let attempt = waiting.attempts.swap_remove(at);
        waiting.failed.push(attempt.resolver);
        let mut steps = vec![Step::Close(key)];
        // An attempt that is still open has the time that it was given.
        if self.attempt(now, &mut waiting, &mut steps) || !waiting.attempts.is_empty() {
            self.waiting.push(waiting);
        } else {
            give_up(&waiting, &mut steps);
        }
        steps
    }

    /// Does what is due.
    #[must_use]
    pub fn tick(&mut self, now: Duration) -> Vec<Step<C>> {
        let mut steps = Vec::new();
        let (due, waiting) =
            std::mem::take(&mut self.waiting).into_iter().partition(|one| one.due <= now);
        self.waiting = waiting;
        for mut waiting in Vec::<Waiting<C>>::from_iter::<Vec<_>>(due) {
            if self.attempt(now, &mut waiting, &mut steps) {
                self.waiting.push(waiting);
            } else {
                give_up(&waiting, &mut steps);
            }
        }
        steps
    }

    /// When to call [`Resolver::tick`] next.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.waiting.iter().map(|waiting| waiting.due).min()
    }

    /// How many questions wait.
    pub fn pending(&self) -> usize {
        self.waiting.len()
    }

    fn find(&self, key: Key) -> Option<(usize, usize)> {
        self.waiting.iter().enumerate().find_map(|(place, waiting)| {
            let at = waiting.attempts.iter().position(|attempt| attempt.key == key)?;
            Some((place, at))
        })
    }

    /// Makes the next attempt, if there is one to make.
    fn attempt(
        &mut self,
        now: Duration,
        waiting: &mut Waiting<C>,
        steps: &mut Vec<Step<C>>,
    ) -> bool {
        while waiting.made < ATTEMPTS && self.resolvers > 0 {
            let resolver = waiting.made % self.resolvers;
            waiting.made += 1;
            if !waiting.failed.contains(&resolver) {
                waiting.due = now.saturating_add(PATIENCE);
                return self.send(waiting, resolver, Transport::Udp, steps);
            }
        }
        false
    }

    fn send(
        &mut self,
        waiting: &mut Waiting<C>,
        resolver: usize,
        transport: Transport,
        steps: &mut Vec<Step<C>>,
    ) -> bool {
        let Some(id) = (self.ids)() else { return false };
        let key = Key(self.next_key);
        self.next_key += 1;
        waiting.attempts.push(Attempt { key, id, resolver, transport, strangers: 0 });
        let packet = question(id, &waiting.name, waiting.query.kind);
        steps.push(Step::Send { key, resolver, transport, packet });
        true
    }
}

/// What an answer comes to.
fn tell<C: Copy>(
    waiting: &Waiting<C>,
    answer: Answer,
    policy: &Policy,
    site: &Site,
) -> Vec<Step<C>> {
    let Waiting { query, name, client, from, attempts, .. } = waiting;
    let telling = Telling::new(name, query.kind, answer, policy, site);
    let mut steps: Vec<_> = attempts.iter().map(|attempt| Step::Close(attempt.key)).collect();
    if !telling.addresses.is_empty() {
        let ttl = Duration::from_secs(telling.told.ttl.into());
        steps.push(Step::Pin { name: name.clone(), addresses: telling.addresses, ttl });
    }
    steps.extend(finish(query, *client, *from, &telling.told, telling.lines));
    steps
}

fn give_up<C: Copy>(waiting: &Waiting<C>, steps: &mut Vec<Step<C>>) {
    steps.extend(waiting.attempts.iter().map(|attempt| Step::Close(attempt.key)));
    let (told, line) = lost(&waiting.name, waiting.query.kind);
    steps.extend(finish(&waiting.query, waiting.client, waiting.from, &told, vec![line]));
}

fn finish<C>(
    query: &Query,
    client: C,
    from: Transport,
    told: &Told,
    lines: Vec<Line>,
) -> Vec<Step<C>> {
    let packet = query.frame.answer(query.kind, told, from);
    let lines = lines.into_iter().map(Step::Log);
    lines.chain([Step::Reply { client, packet }]).collect()
}
