//! The end of a search: one sibling of a tree stays, the others may go.
//!
//! A tree is what one request for it made: the sandboxes with its id in the labels that only the
//! server writes. So nobody is deleted who was not made beside the winner.

use std::sync::Arc;

use pandastack_types::SandboxId;

use crate::error::{LifecycleError, PromoteError};
use crate::fault::{self, Point};
use crate::limits::Change;
use crate::manager::Manager;
use crate::metadata;
use crate::owner::Order;
use crate::sandbox::Sandbox;

/// What a promotion did.
#[derive(Debug)]
pub struct Promoted {
    /// The sandbox that stays.
    pub winner: SandboxId,
    /// The tree that it was one of.
    pub tree: String,
    /// Siblings that were deleted, in the order of the tree.
    pub deleted: Vec<SandboxId>,
    /// Siblings that are still there, and why.
    pub failures: Vec<(SandboxId, LifecycleError)>,
}

impl Manager {
    /// Lets a child of a tree live on as if it had been created by itself: it has as long as a
    /// create gives that names no time. Deletes its siblings if that is asked for. `tree` is the one
    /// that the requester means; its own when absent.
    pub async fn promote(
        &self,
        id: SandboxId,
        tree: Option<&str>,
        cleanup_siblings: bool,
    ) -> Result<Promoted, PromoteError> {
        // One at a time: of two siblings that are promoted at once, one is gone for the other.
        let _turn = self.core.promotions.lock().await;
        let winner = self.get(id)?;
        let own = metadata::tree(&winner.birth.metadata).ok_or(PromoteError::NoTree(id))?;
        if tree.is_some_and(|tree| tree != own) {
            return Err(PromoteError::OtherTree(id));
        }
        winner.order(Order::Limit(Change { as_created: true, ..Change::default() })).await?;
        fault::point(Point::PromoteKept);
        let siblings = if cleanup_siblings { self.siblings(&winner, own) } else { Vec::new() };
        let ending: Vec<_> = siblings
            .into_iter()
            .map(|sibling| (sibling.id(), tokio::spawn(async move { sibling.delete().await })))
            .collect();
        let (mut deleted, mut failures) = (Vec::new(), Vec::new());
        for (id, ended) in ending {
            match ended.await {
                // One that is gone already is as good.
                Ok(Ok(()) | Err(LifecycleError::NotFound(_))) | Err(_) => deleted.push(id),
                Ok(Err(error)) => failures.push((id, error)),
            }
        }
        Ok(Promoted { winner: id, tree: own.to_owned(), deleted, failures })
    }

    /// The others of a sandbox's tree, in order.
    fn siblings(&self, winner: &Sandbox, tree: &str) -> Vec<Arc<Sandbox>> {
        let mut siblings = self.core.all();
        siblings.retain(|other| {
            other.id() != winner.id() && metadata::tree(&other.birth.metadata) == Some(tree)
        });
        siblings.sort_by_key(|sibling| metadata::index(&sibling.birth.metadata));
        siblings
    }
}
