//! Machines that are made ahead of time: zygotes to fork, and parked machines to take.
//!
//! ```text
//!            restore, warm up            fork
//!   keeper ─────────────────▶ zygote ──────────▶ a sandbox     (the zygote stays)
//!                               │ fork
//!                               ▼
//!   keeper ───────────────▶   parked ── take ──▶ a sandbox     (never comes back)
//!            where nothing is    │
//!            forked: restore     └── died, unused for long, memory short, shutdown ──▶ killed
//! ```
//!
//! Both stand still, warm and nobody's; there is a [`Shelf`] of them per bake. A zygote is never
//! handed out, so that what it knows is known to all its forks and to no tenant: nothing but
//! warm-up lines has ever run in it. The keeper (see `keeper`) fills the shelves.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pandastack_engine::{Bake, EngineError, Machine};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::admission::Admission;
use crate::boot::{Housed, Source};
use crate::error::Chain;
use crate::forking::{Forking, Prover};
use crate::keeper::TICK;
use crate::sync::lock;

/// Longest wait after making a machine failed or one died; doubles up to it from a tick.
const MAX_BACKOFF: Duration = Duration::from_secs(300);

/// The machines that a server has made ahead of time.
pub(crate) struct Pool {
    shelves: Mutex<HashMap<String, Shelf>>,
    /// Parked machines per shelf.
    size: usize,
    idle: Duration,
    pub(crate) prover: Arc<Prover>,
    pub(crate) wake: Notify,
    pub(crate) closed: CancellationToken,
}

/// How full a pool is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parking {
    /// Machines that are parked.
    pub parked: usize,
    /// Machines that a full pool has.
    pub wanted: usize,
    /// Machines that are there to be forked.
    pub zygotes: usize,
}

/// The machines of one bake.
struct Shelf {
    bake: Arc<Bake>,
    /// Of a template's default size: kept also when nobody uses it.
    pinned: bool,
    used: Instant,
    zygote: Option<Arc<Housed>>,
    ready: Vec<Housed>,
    backoff: Backoff,
}

impl Shelf {
    fn drain(&mut self) -> impl Iterator<Item = Arc<Housed>> {
        self.ready.drain(..).map(Arc::new).chain(self.zygote.take())
    }
}

/// When a shelf may be filled again.
#[derive(Debug)]
struct Backoff {
    until: Instant,
    next: Duration,
}

impl Backoff {
    fn none(now: Instant) -> Self {
        Self { until: now, next: TICK }
    }

    fn failed(&mut self, now: Instant) {
        self.until = now + self.next;
        self.next = (self.next * 2).min(MAX_BACKOFF);
    }
}

/// What a shelf lacks most.
pub(crate) enum Need {
    /// A zygote.
    Zygote(Arc<Bake>),
    /// A parked machine: a fork of the zygote, if there is one.
    Parked(Arc<Bake>, Option<Arc<Housed>>),
}

impl Pool {
    pub(crate) fn new(size: usize, idle: Duration, prover: Arc<Prover>) -> Arc<Self> {
        Arc::new(Self {
            shelves: Mutex::default(),
            size,
            idle,
            prover,
            wake: Notify::new(),
            closed: CancellationToken::new(),
        })
    }

    /// Says that machines of this bake are wanted; the keeper will make some.
    pub(crate) fn want(&self, bake: &Arc<Bake>, pinned: bool) {
        if (self.size == 0 && !self.may_fork()) || self.closed.is_cancelled() {
            return;
        }
        let now = Instant::now();
        let mut shelves = lock(&self.shelves);
        let shelf = shelves.entry(bake.key.clone()).or_insert_with(|| Shelf {
            bake: bake.clone(),
            pinned,
            used: now,
            zygote: None,
            ready: Vec::new(),
            backoff: Backoff::none(now),
        });
        shelf.used = now;
        shelf.pinned |= pinned;
        drop(shelves);
        self.wake.notify_one();
    }

    /// What a create of this bake starts from: the quickest that there is.
    pub(crate) fn take(&self, bake: Arc<Bake>) -> Source {
        let mut shelves = lock(&self.shelves);
        let Some(shelf) = shelves.get_mut(&bake.key) else { return Source::restore(bake) };
        // The one parked last: its pages are the most likely to be in memory still.
        if let Some(housed) = shelf.ready.pop() {
            // Parking works: one that was good enough to be taken is the proof.
            shelf.backoff = Backoff::none(Instant::now());
            drop(shelves);
            self.wake.notify_one();
            return Source::Parked(housed);
        }
        match shelf.zygote.clone() {
            Some(zygote) => Source::fork(bake, zygote),
            None => Source::restore(bake),
        }
    }

    /// How full the pool is.
    pub(crate) fn parking(&self) -> Parking {
        let shelves = lock(&self.shelves);
        Parking {
            parked: shelves.values().map(|shelf| shelf.ready.len()).sum(),
            wanted: shelves.len() * self.size,
            zygotes: shelves.values().filter(|shelf| shelf.zygote.is_some()).count(),
        }
    }

    /// A fork of this bake's zygote became a sandbox: it is a good one.
    pub(crate) fn worked(&self, key: &str) {
        if let Some(shelf) = lock(&self.shelves).get_mut(key) {
            shelf.backoff = Backoff::none(Instant::now());
        }
    }

    /// This zygote could not be forked: it goes, and another is made after a while. Several
    /// forks of one zygote may fail at the same time; the first one reports it.
    pub(crate) async fn condemn(&self, key: &str, zygote: &Housed, error: &EngineError) {
        if self.remove(key, zygote.dir.name()) {
            tracing::warn!(bake = key, error = %Chain(error), "a zygote could not be forked");
            self.failed(key);
            zygote.machine.kill().await;
        }
    }

    /// Kills what was made ahead and makes nothing any more.
    pub(crate) async fn close(&self) {
        self.closed.cancel();
        let mut shelves = std::mem::take(&mut *lock(&self.shelves));
        for housed in shelves.values_mut().flat_map(Shelf::drain) {
            housed.machine.kill().await;
        }
    }

    /// Whether anything is made ahead at all.
    pub(crate) fn is_of_use(&self) -> bool {
        self.size > 0 || self.may_fork()
    }

    fn may_fork(&self) -> bool {
        matches!(self.prover.state(), Forking::Unproven | Forking::Proven)
    }

    /// What is needed most. Zygotes come first: with one, everything else of its bake is cheap.
    pub(crate) fn deficit(&self, now: Instant, admission: &Admission) -> Option<Need> {
        let shelves = lock(&self.shelves);
        let able = || {
            shelves
                .values()
                .filter(|shelf| shelf.backoff.until <= now && admission.may_park(shelf.bake.size))
        };
        if self.may_fork() {
            let bare = able().filter(|shelf| shelf.zygote.is_none());
            if let Some(shelf) = bare.min_by_key(|shelf| (!shelf.pinned, now - shelf.used)) {
                return Some(Need::Zygote(shelf.bake.clone()));
            }
        }
        able()
            .filter(|shelf| shelf.ready.len() < self.size)
            .min_by_key(|shelf| (shelf.ready.len(), now - shelf.used))
            .map(|shelf| Need::Parked(shelf.bake.clone(), shelf.zygote.clone()))
    }

    /// Takes out what should not be there any more: everything when memory is short, and
    /// shelves that nobody used for long.
    pub(crate) fn surplus(&self, now: Instant, short: bool) -> Vec<Arc<Housed>> {
        let mut shelves = lock(&self.shelves);
        if short {
            return shelves.values_mut().flat_map(Shelf::drain).collect();
        }
        let idle: Vec<String> = shelves
            .iter()
            .filter(|(_, shelf)| !shelf.pinned && now - shelf.used >= self.idle)
            .map(|(key, _)| key.clone())
            .collect();
        let mut removed: Vec<Shelf> = idle.iter().filter_map(|key| shelves.remove(key)).collect();
        removed.iter_mut().flat_map(Shelf::drain).collect()
    }

    /// Parks a machine.
    pub(crate) async fn shelve(self: &Arc<Self>, bake: &Bake, housed: Housed) {
        self.put(bake, housed, |shelf, housed| shelf.ready.push(housed)).await;
    }

    /// Installs a machine as the zygote of its bake.
    pub(crate) async fn enthrone(self: &Arc<Self>, bake: &Bake, housed: Housed) {
        // Only the keeper does this, and for shelves without one.
        self.put(bake, housed, |shelf, housed| shelf.zygote = Some(Arc::new(housed))).await;
    }

    async fn put(
        self: &Arc<Self>,
        bake: &Bake,
        housed: Housed,
        place: impl FnOnce(&mut Shelf, Housed),
    ) {
        let name = housed.dir.name().to_owned();
        let machine = housed.machine.clone();
        let refused = {
            let mut shelves = lock(&self.shelves);
            match shelves.get_mut(&bake.key) {
                Some(shelf) if !self.closed.is_cancelled() => {
                    place(shelf, housed);
                    None
                }
                _ => Some(housed),
            }
        };
        match refused {
            Some(housed) => housed.machine.kill().await,
            None => self.watch(bake.key.clone(), name, machine),
        }
    }

    /// Removes the machine from its shelf when it dies there.
    fn watch(self: &Arc<Self>, key: String, name: String, machine: Arc<dyn Machine>) {
        let pool = Arc::downgrade(self);
        tokio::spawn(async move {
            machine.exited().await;
            let Some(pool) = pool.upgrade() else { return };
            if pool.remove(&key, &name) {
                tracing::warn!(bake = key, "a machine that was made ahead died");
                pool.failed(&key);
            }
        });
    }

    /// Whether the machine was still on its shelf.
    fn remove(&self, key: &str, name: &str) -> bool {
        let mut shelves = lock(&self.shelves);
        let Some(shelf) = shelves.get_mut(key) else { return false };
        let before = shelf.ready.len();
        shelf.ready.retain(|housed| housed.dir.name() != name);
        let zygote = shelf.zygote.take_if(|zygote| zygote.dir.name() == name);
        zygote.is_some() || shelf.ready.len() < before
    }

    /// Making a machine of this bake failed, or one died: not again at once.
    pub(crate) fn failed(&self, key: &str) {
        if let Some(shelf) = lock(&self.shelves).get_mut(key) {
            shelf.backoff.failed(Instant::now());
        }
        self.wake.notify_one();
    }
}
