//! One sandbox's network: a thread that sleeps until its guest, a server or the clock has something.
//!
//! ```text
//!   frame ─▶ ARP, neighbours, echo, lease ─▶ answered here
//!        ├─▶ DNS ─────────────────────────▶ names: answered here, or asked of a resolver
//!        ├─▶ TCP, UDP of a flow ──────────▶ that flow
//!        ├─▶ TCP, UDP of none ────────────▶ the policy: a new flow, or a refusal
//!        └─▶ anything else ───────────────▶ a line in the log
//! ```
//!
//! The invariant: **a socket of the host is made in one place, behind the policy**
//! (`Network::open`); resolvers, which the operator chose, are the exception. Each network has
//! its own thread, so that a busy guest takes its turns from nobody: the kernel is fair between
//! threads.

mod frames;
mod names;
mod turns;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use pandastack_policy::{Check, Host, Pins, Policy, Protocol};
use pandastack_types::EgressEntry;

use crate::control::Settings;
use crate::dns::{self, Resolver};
use crate::net::port::Port;
use crate::net::tcp::Buffers;
use crate::relay::asker::Asker;
use crate::relay::bucket::{Bucket, PACKET};
use crate::relay::datagrams::Datagrams;
use crate::relay::flow::Flow;
use crate::relay::journal::Journal;
use crate::relay::poller::{Bell, Poller, Token};
use crate::relay::question::Question;

/// Most flows of a network whose policy does not say.
const MAX_FLOWS: u32 = 4096;
/// Frames taken in one turn.
const TURN: usize = 128;
/// Buffers of the first flows, and of those beyond them: a thousand flows are many small ones.
const WIDE: Buffers = Buffers(128 << 10);
const NARROW: Buffers = Buffers(16 << 10);
const WIDE_FLOWS: usize = 32;
/// Port of DNS.
const DNS: u16 = 53;

const PORT: Token = 0;
const BELL: Token = 1;

/// What a network is told.
#[derive(Debug)]
pub enum Order {
    /// Other settings.
    Settings(Arc<Settings>),
    /// Another policy. Told back when nothing is open that it forbids.
    Policy(Policy, std::sync::mpsc::SyncSender<()>),
    /// The end.
    End,
}

/// Takes lines of the log; false when it cannot take more at the moment.
pub type Sink = Box<dyn Fn(&[EgressEntry]) -> bool + Send>;

/// What a flow that may be opened begins with: the names that led there, the rule, and what it has
/// to show.
type Opened = (Vec<Host>, usize, Check);

/// Where a flow of the guest is found.
type Ends = (Protocol, u16, SocketAddr);

/// Who asked for a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    /// A port of the guest, by a datagram to this address of ours.
    Port(IpAddr, u16),
    /// A connection.
    Asker(Token),
}

/// Something that gets turns.
enum Line {
    Tcp(Box<Flow>),
    Udp(Datagrams),
    /// A guest that asks over TCP.
    Asker(Box<Asker>),
    /// A question to a resolver.
    Dns(Question),
}

/// A network.
pub struct Network {
    port: Port,
    poller: Poller,
    bell: Arc<Bell>,
    orders: Receiver<Order>,
    sink: Sink,
    settings: Arc<Settings>,
    policy: Policy,
    pins: Pins,
    resolver: Resolver<Client>,
    journal: Journal,
    up: Bucket,
    down: Bucket,
    lines: HashMap<Token, Line>,
    by_ends: HashMap<Ends, Token>,
    questions: HashMap<dns::Key, Token>,
    /// When lines want a turn.
    alarms: BTreeSet<(Duration, Token)>,
    alarm_of: HashMap<Token, Duration>,
    /// Lines that get a turn before the next sleep.
    busy: HashSet<Token>,
    next_token: Token,
    start: Instant,
    now: Duration,
}

impl Network {
    /// A network of a guest. Nothing is served before [`Network::run`].
    pub fn new(
        frames: OwnedFd,
        policy: Policy,
        settings: Arc<Settings>,
        (bell, orders): (Arc<Bell>, Receiver<Order>),
        sink: Sink,
    ) -> std::io::Result<Self> {
        let (port, poller, now) = (Port::new(frames), Poller::new()?, Duration::ZERO);
        poller.watch_input(&port, PORT)?;
        poller.watch_input(&*bell, BELL)?;
        let bandwidth = policy.bandwidth().unwrap_or_default();
        let mut journal = Journal::new(now);
        journal.set_on(policy.log());
        Ok(Self {
            port,
            poller,
            bell,
            orders,
            sink,
            resolver: Resolver::new(settings.resolvers.len()),
            settings,
            policy,
            pins: Pins::default(),
            journal,
            up: Bucket::new(bandwidth.up_bytes_per_second, PACKET, now),
            down: Bucket::new(bandwidth.down_bytes_per_second, PACKET, now),
            lines: HashMap::new(),
            by_ends: HashMap::new(),
            questions: HashMap::new(),
            alarms: BTreeSet::new(),
            alarm_of: HashMap::new(),
            busy: HashSet::new(),
            next_token: BELL + 1,
            start: Instant::now(),
            now,
        })
    }

    /// Serves until it is told to end, or the machine is gone.
    pub fn run(mut self) -> std::io::Result<()> {
        let mut output = false;
        loop {
            let woken = self.poller.wait(self.pause())?;
            self.now = self.start.elapsed();
            let mut frames = false;
            for woken in woken {
                match woken.token {
                    PORT => frames = true,
                    BELL => self.bell.hush(),
                    token => self.wake(token, woken.readable, woken.writable),
                }
            }
            if !self.obey() {
                return Ok(());
            }
            if frames && !self.take_frames() {
                return Ok(());
            }
            self.ring_alarms();
            self.give_turns();
            self.publish();
            if self.port.is_waiting() != output {
                output = !output;
                self.poller.change(&self.port, PORT, output)?;
            }
        }
    }

    /// How long there is nothing to do if nothing happens.
    fn pause(&self) -> Option<Duration> {
        if !self.busy.is_empty() {
            return Some(Duration::ZERO);
        }
        let alarm = self.alarms.first().map(|(at, _)| *at);
        let retry = self.journal.is_waiting().then(|| self.now + Duration::from_millis(50));
        let next = [alarm, self.resolver.next_deadline(), retry].into_iter().flatten().min()?;
        Some(next.saturating_sub(self.start.elapsed()))
    }

    /// Carries out what it was told. False at the end.
    fn obey(&mut self) -> bool {
        loop {
            match self.orders.try_recv() {
                Ok(Order::Settings(settings)) => {
                    self.resolver.set_resolvers(settings.resolvers.len());
                    self.settings = settings;
                    self.review("closed: the host's addresses have changed");
                }
                Ok(Order::Policy(policy, done)) => {
                    self.change(policy);
                    let _ = done.send(());
                }
                Err(TryRecvError::Empty) => return true,
                Ok(Order::End) | Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn change(&mut self, policy: Policy) {
        let bandwidth = policy.bandwidth().unwrap_or_default();
        self.up.set_rate(bandwidth.up_bytes_per_second, self.now);
        self.down.set_rate(bandwidth.down_bytes_per_second, self.now);
        self.journal.set_on(policy.log());
        self.policy = policy;
        self.pins.retain(|name| self.policy.name(name).is_allow());
        self.review("closed: the policy does not allow it any more");
    }

    /// Decides about every open flow anew.
    fn review(&mut self, why: &'static str) {
        let tokens: Vec<Token> = self.lines.keys().copied().collect();
        for token in tokens {
            let (policy, site) = (&self.policy, &self.settings.site);
            let stays = match self.lines.get_mut(&token) {
                Some(Line::Tcp(flow)) => flow.still_allowed(policy, site),
                Some(Line::Udp(flow)) => flow.still_allowed(policy, site),
                _ => true,
            };
            if stays {
                self.busy.insert(token);
                continue;
            }
            let Some((mut line, mut turn)) = self.take_line(token) else { continue };
            if let Line::Tcp(flow) = &mut line {
                flow.cut(why, &mut turn);
            }
            self.drop_line(token, line, why);
        }
    }

    fn publish(&mut self) {
        while self.journal.is_waiting() {
            let batch = self.journal.batch();
            if !(self.sink)(&batch) {
                return self.journal.put_back(batch);
            }
        }
    }

    fn new_token(&mut self) -> Token {
        let token = self.next_token;
        self.next_token += 1;
        token
    }
}
