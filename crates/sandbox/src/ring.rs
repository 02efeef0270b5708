//! A bounded memory of what came lately, for readers who may come late or be slow.
//!
//! Writers never wait: the oldest items fall out when the bound is reached. A reader holds a
//! [`Cursor`] and asks for what came after it; one that was too slow misses items, it never
//! holds anybody up.

use std::collections::VecDeque;
use std::sync::Mutex;

use tokio::sync::watch;

use crate::sync::lock;

/// A reader's place in a ring: how many items there were before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor(u64);

impl Cursor {
    /// The place after the item with this number, counted from 1.
    pub fn behind(number: u64) -> Self {
        Self(number)
    }

    /// The number of the item before it.
    pub fn number(self) -> u64 {
        self.0
    }
}

/// The ring.
#[derive(Debug)]
pub(crate) struct Ring<T> {
    inner: Mutex<Inner<T>>,
    /// Count of items ever pushed, and whether more can come.
    signal: watch::Sender<(u64, bool)>,
}

#[derive(Debug)]
struct Inner<T> {
    items: VecDeque<(usize, T)>,
    /// Count of items ever pushed; the last item in the ring has number `pushed - 1`.
    pushed: u64,
    cost: usize,
    budget: usize,
}

impl<T: Clone> Ring<T> {
    /// A ring whose items together cost at most `budget`.
    pub(crate) fn new(budget: usize) -> Self {
        let inner = Inner { items: VecDeque::new(), pushed: 0, cost: 0, budget };
        Self { inner: Mutex::new(inner), signal: watch::Sender::new((0, true)) }
    }

    /// Adds an item and drops the oldest ones that no longer fit.
    pub(crate) fn push(&self, cost: usize, item: T) {
        self.push_numbered(cost, |_| item);
    }

    /// Adds an item that knows its number, counted from 1.
    pub(crate) fn push_numbered(&self, cost: usize, item: impl FnOnce(u64) -> T) {
        let pushed = {
            let mut inner = lock(&self.inner);
            inner.pushed += 1;
            let item = item(inner.pushed);
            inner.items.push_back((cost, item));
            inner.cost += cost;
            inner.trim();
            inner.pushed
        };
        self.signal.send_modify(|signal| signal.0 = signal.0.max(pushed));
    }

    /// Everything after `cursor`, and the place after it.
    pub(crate) fn after(&self, cursor: Cursor) -> (Vec<T>, Cursor) {
        let inner = lock(&self.inner);
        let missing = usize::try_from(inner.pushed - cursor.0.min(inner.pushed));
        let skip = inner.items.len().saturating_sub(missing.unwrap_or(usize::MAX));
        let items = inner.items.iter().skip(skip).map(|(_, item)| item.clone()).collect();
        (items, Cursor(inner.pushed))
    }

    /// The last `count` items that `keep` wants, oldest first, and the place after them.
    pub(crate) fn tail(&self, count: usize, keep: impl Fn(&T) -> bool) -> (Vec<T>, Cursor) {
        let inner = lock(&self.inner);
        let newest_first = inner.items.iter().rev().map(|(_, item)| item);
        let mut items: Vec<T> =
            newest_first.filter(|item| keep(item)).take(count).cloned().collect();
        items.reverse();
        (items, Cursor(inner.pushed))
    }

    /// Waits until there is something after `cursor`; `false` when nothing will ever be.
    pub(crate) async fn more(&self, cursor: Cursor) -> bool {
        let mut signal = self.signal.subscribe();
        let woken = signal.wait_for(|(pushed, open)| *pushed > cursor.0 || !open).await;
        woken.is_ok_and(|signal| signal.0 > cursor.0)
    }

    /// Makes do with less from now on, if `budget` is less.
    pub(crate) fn shrink(&self, budget: usize) {
        let mut inner = lock(&self.inner);
        inner.budget = inner.budget.min(budget);
        inner.trim();
        inner.items.shrink_to_fit();
    }

    /// Tells waiting readers that nothing will come any more.
    pub(crate) fn close(&self) {
        self.signal.send_modify(|signal| signal.1 = false);
    }
}

impl<T> Inner<T> {
    fn trim(&mut self) {
        while self.cost > self.budget {
            let Some((cost, _)) = self.items.pop_front() else { break };
            self.cost -= cost;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_fall_out_and_late_readers_get_what_is_left() {
        let ring = Ring::new(3);
        let (none, start) = ring.after(Cursor::default());
        assert!(none.is_empty());
        for item in 0..10 {
            ring.push(1, item);
        }
        assert_eq!(ring.after(start).0, [7, 8, 9]);
        let (_, cursor) = ring.tail(1, |_| true);
        ring.push(1, 10);
        assert_eq!(ring.after(cursor).0, [10]);
        assert_eq!(ring.tail(5, |item| item % 2 == 0).0, [8, 10]);
        ring.shrink(1);
        ring.push(1, 11);
        assert_eq!(ring.after(start).0, [11]);
    }

    #[test]
    fn an_item_larger_than_the_ring_is_not_kept() {
        let ring = Ring::new(3);
        ring.push(4, "big");
        assert!(ring.after(Cursor::default()).0.is_empty());
        ring.push(3, "fits");
        assert_eq!(ring.after(Cursor::default()).0, ["fits"]);
    }

    #[tokio::test]
    async fn readers_wake_for_items_and_for_the_end() {
        let ring = std::sync::Arc::new(Ring::new(10));
        let reader = tokio::spawn({
            let ring = ring.clone();
            async move {
                let mut seen = Vec::new();
                let mut cursor = Cursor::default();
                while ring.more(cursor).await {
                    let (items, next) = ring.after(cursor);
                    seen.extend(items);
                    cursor = next;
                }
                seen
            }
        });
        for item in 0..3 {
            ring.push(1, item);
            tokio::task::yield_now().await;
        }
        ring.close();
        assert_eq!(reader.await.unwrap(), [0, 1, 2]);
    }
}
