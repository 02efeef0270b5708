//! Parked machines: restored and warmed up ahead of time, standing still, nobody's.
//!
//! ```text
//!   keeper ── park() ──▶ ready ── take() ──▶ a sandbox (never comes back)
//!                          │
//!                          └── died, unused for long, memory short, shutdown ──▶ killed
//! ```
//!
//! One keeper task per server fills the pool, one machine at a time and never while a create is
//! on its way, so that it costs creates nothing. Every parked machine has a watcher, so that one
//! that dies is noticed when it dies and not when somebody needs it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use pandastack_engine::Bake;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::admission::Admission;
use crate::boot::{self, Housed};
use crate::error::Chain;
use crate::sync::lock;

/// How often the keeper looks around without being called.
const TICK: Duration = Duration::from_secs(2);
/// Longest wait after parking failed or a parked machine died; doubles up to it from a tick.
const MAX_BACKOFF: Duration = Duration::from_secs(300);

/// The parked machines of a server.
pub(crate) struct Pool {
    shelves: Mutex<HashMap<String, Shelf>>,
    /// Machines per shelf.
    size: usize,
    idle: Duration,
    wake: Notify,
    closed: CancellationToken,
}

/// How full a pool is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parking {
    /// Machines that are parked.
    pub parked: usize,
    /// Machines that a full pool has.
    pub wanted: usize,
}

/// The parked machines of one bake.
struct Shelf {
    bake: Arc<Bake>,
    /// Of a template's default size: kept also when nobody uses it.
    pinned: bool,
    used: Instant,
    ready: Vec<Housed>,
    backoff: Backoff,
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

/// What the keeper needs of the server. Asked anew each time, so that the keeper keeps nothing
/// alive.
pub(crate) struct Workshop {
    pub(crate) engine: Arc<dyn pandastack_engine::Engine>,
    pub(crate) machines: std::path::PathBuf,
    pub(crate) admission: Arc<Admission>,
    pub(crate) deadline: Duration,
    /// Whether no create is on its way.
    pub(crate) quiet: Box<dyn Fn() -> bool + Send + Sync>,
}

impl Pool {
    pub(crate) fn new(size: usize, idle: Duration) -> Arc<Self> {
        Arc::new(Self {
            shelves: Mutex::default(),
            size,
            idle,
            wake: Notify::new(),
            closed: CancellationToken::new(),
        })
    }

    /// Says that machines of this bake are wanted; the keeper will park some.
    pub(crate) fn want(&self, bake: &Arc<Bake>, pinned: bool) {
        if self.size == 0 || self.closed.is_cancelled() {
            return;
        }
        let now = Instant::now();
        let mut shelves = lock(&self.shelves);
        let shelf = shelves.entry(bake.key.clone()).or_insert_with(|| Shelf {
            bake: bake.clone(),
            pinned,
            used: now,
            ready: Vec::new(),
            backoff: Backoff::none(now),
        });
        shelf.used = now;
        shelf.pinned |= pinned;
        drop(shelves);
        self.wake.notify_one();
    }

    /// Takes a parked machine of this bake. It leaves the pool for good.
    pub(crate) fn take(&self, bake: &Bake) -> Option<Housed> {
        // The one parked last: its pages are the most likely to be in memory still.
        let housed = {
            let mut shelves = lock(&self.shelves);
            let shelf = shelves.get_mut(&bake.key)?;
            let housed = shelf.ready.pop()?;
            // Parking works: one that was good enough to be taken is the proof.
            shelf.backoff = Backoff::none(Instant::now());
            housed
        };
        self.wake.notify_one();
        Some(housed)
    }

    /// How full the pool is.
    pub(crate) fn parking(&self) -> Parking {
        let shelves = lock(&self.shelves);
        Parking {
            parked: shelves.values().map(|shelf| shelf.ready.len()).sum(),
            wanted: shelves.len() * self.size,
        }
    }

    /// Kills what is parked and parks nothing any more.
    pub(crate) async fn close(&self) {
        self.closed.cancel();
        let shelves = std::mem::take(&mut *lock(&self.shelves));
        for housed in shelves.into_values().flat_map(|shelf| shelf.ready) {
            housed.machine.kill().await;
        }
    }

    /// The keeper: runs until the pool is closed.
    pub(crate) async fn keep(self: Arc<Self>, shop: Workshop) {
        if self.size == 0 {
            return;
        }
        while !self.closed.is_cancelled() {
            for housed in self.surplus(Instant::now(), shop.admission.is_short()) {
                housed.machine.kill().await;
            }
            if (shop.quiet)()
                && let Some(bake) = self.deficit(Instant::now(), &shop.admission)
            {
                self.fill(&shop, bake).await;
                continue;
            }
            tokio::select! {
                () = self.wake.notified() => {}
                () = tokio::time::sleep(TICK) => {}
                () = self.closed.cancelled() => {}
            }
        }
    }

    /// The bake that most needs another parked machine.
    fn deficit(&self, now: Instant, admission: &Admission) -> Option<Arc<Bake>> {
        lock(&self.shelves)
            .values()
            .filter(|shelf| shelf.ready.len() < self.size && shelf.backoff.until <= now)
            .filter(|shelf| admission.may_park(shelf.bake.size))
            .min_by_key(|shelf| (shelf.ready.len(), now - shelf.used))
            .map(|shelf| shelf.bake.clone())
    }

    /// Takes out what should not be parked any more: everything when memory is short, and
    /// shelves that nobody used for long.
    fn surplus(&self, now: Instant, short: bool) -> Vec<Housed> {
        let mut shelves = lock(&self.shelves);
        if short {
            let all = shelves.values_mut().flat_map(|shelf| shelf.ready.drain(..));
            return all.collect();
        }
        let idle: Vec<String> = shelves
            .iter()
            .filter(|(_, shelf)| !shelf.pinned && now - shelf.used >= self.idle)
            .map(|(key, _)| key.clone())
            .collect();
        idle.iter().filter_map(|key| shelves.remove(key)).flat_map(|shelf| shelf.ready).collect()
    }

    async fn fill(self: &Arc<Self>, shop: &Workshop, bake: Arc<Bake>) {
        let parking = boot::park(&*shop.engine, &shop.machines, &bake, shop.deadline);
        let parked = tokio::select! {
            parked = parking => parked,
            // Dropping the attempt kills its machine and removes its directory.
            () = self.closed.cancelled() => return,
        };
        match parked {
            Ok(housed) => self.shelve(&bake, housed).await,
            Err(error) => {
                tracing::warn!(bake = bake.key, error = %Chain(&error), "cannot park a machine");
                self.failed(&bake.key);
            }
        }
    }

    async fn shelve(self: &Arc<Self>, bake: &Bake, housed: Housed) {
        let name = housed.dir.name().to_owned();
        let machine = housed.machine.clone();
        let refused = {
            let mut shelves = lock(&self.shelves);
            match shelves.get_mut(&bake.key) {
                Some(shelf) if !self.closed.is_cancelled() => {
                    shelf.ready.push(housed);
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
    fn watch(
        self: &Arc<Self>,
        key: String,
        name: String,
        machine: Arc<dyn pandastack_engine::Machine>,
    ) {
        let pool: Weak<Self> = Arc::downgrade(self);
        tokio::spawn(async move {
            machine.exited().await;
            let Some(pool) = pool.upgrade() else { return };
            if pool.remove(&key, &name) {
                tracing::warn!(bake = key, "a parked machine died");
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
        shelf.ready.len() < before
    }

    fn failed(&self, key: &str) {
        if let Some(shelf) = lock(&self.shelves).get_mut(key) {
            shelf.backoff.failed(Instant::now());
        }
    }
}
