//! Who reads the files of a snapshot at the moment.
//!
//! A restore opens them one after the other, so they must stay until it has all of them: a delete
//! hides the snapshot at once and then waits for those that were let in before.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use pandastack_types::SnapshotId;
use tokio::sync::watch;

#[derive(Debug, Default)]
struct Table {
    readers: HashMap<SnapshotId, usize>,
    leaving: HashSet<SnapshotId>,
}

/// The readers of one shelf. Clones are the same.
#[derive(Clone, Debug, Default)]
pub(super) struct Uses(Arc<watch::Sender<Table>>);

impl Uses {
    /// Lets one more reader in, unless the snapshot is leaving.
    pub(super) fn lend(&self, id: SnapshotId) -> Option<Lease> {
        let lent = self.0.send_if_modified(|table| {
            let stays = !table.leaving.contains(&id);
            if stays {
                *table.readers.entry(id).or_default() += 1;
            }
            stays
        });
        lent.then(|| Lease { uses: self.clone(), id })
    }

    pub(super) fn is_leaving(&self, id: SnapshotId) -> bool {
        self.0.borrow().leaving.contains(&id)
    }

    /// Lets nobody in any more; `None` if somebody else has said so before.
    pub(super) fn leave(&self, id: SnapshotId) -> Option<Leaving> {
        let first = self.0.send_if_modified(|table| table.leaving.insert(id));
        first.then(|| Leaving { uses: self.clone(), id })
    }
}

/// One reader. Its files stay as long as this.
#[derive(Debug)]
pub(crate) struct Lease {
    uses: Uses,
    id: SnapshotId,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.uses.0.send_modify(|table| {
            let last = table.readers.get_mut(&self.id).is_none_or(|readers| {
                *readers -= 1;
                *readers == 0
            });
            if last {
                table.readers.remove(&self.id);
            }
        });
    }
}

/// A snapshot that is leaving. Dropping this without having removed it keeps it.
pub(super) struct Leaving {
    uses: Uses,
    id: SnapshotId,
}

impl Leaving {
    /// Waits until nobody reads it.
    pub(super) async fn unread(&self) {
        let mut table = self.uses.0.subscribe();
        // The sender is ours, so it is there.
        let _ = table.wait_for(|table| !table.readers.contains_key(&self.id)).await;
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.uses.0.send_modify(|table| {
            table.leaving.remove(&self.id);
        });
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    #[test]
    fn who_leaves_waits_for_those_inside_and_lets_nobody_in() {
        let (uses, id, other) = (Uses::default(), SnapshotId::random(), SnapshotId::random());
        let (one, two) = (uses.lend(id).unwrap(), uses.lend(id).unwrap());
        let leaving = uses.leave(id).unwrap();
        assert!(uses.leave(id).is_none(), "once");
        assert!(uses.lend(id).is_none() && uses.is_leaving(id));
        assert!(uses.lend(other).is_some() && !uses.is_leaving(other));
        {
            let mut unread = pin!(leaving.unread());
            let mut poll = || unread.as_mut().poll(&mut Context::from_waker(Waker::noop()));
            assert_eq!(poll(), Poll::Pending);
            drop(one);
            assert_eq!(poll(), Poll::Pending);
            drop(two);
            assert_eq!(poll(), Poll::Ready(()));
        }
        drop(leaving);
        assert!(uses.lend(id).is_some(), "it was not removed");
        assert!(uses.0.borrow().readers.is_empty());
    }
}
