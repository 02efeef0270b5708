//! Pruning: removing what no recipe leads to any more.
//!
//! Old roots, images and bakes are never removed on their own: another version of the program
//! may share the data directory and still restore machines from them. So pruning needs the
//! catalog's lock alone.

use std::collections::HashSet;

use rustix::fs::{FlockOperation, flock};

use crate::build;
use crate::catalog::{BakeManifest, Catalog, Inner};
use crate::error::ImageError;
use crate::shelf::Kind;

/// What pruning did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Roots, images and bakes removed.
    pub removed: usize,
    /// Bytes of disk they occupied.
    pub bytes: u64,
}

impl Catalog {
    /// Removes every root, image and bake that this program's recipes, agent and engine do not
    /// use. Fails with [`ImageError::InUse`] while another process has the catalog open.
    pub fn prune(&self) -> Result<Pruned, ImageError> {
        let _alone = Alone::take(&self.inner)?;
        let keep = Keep::of(&self.inner)?;
        let mut pruned = Pruned::default();
        for kind in Kind::ALL {
            for key in self.inner.shelf.keys(kind)? {
                if !keep.has(&self.inner, kind, &key) {
                    pruned.bytes += self.inner.shelf.remove(kind, &key)?;
                    pruned.removed += 1;
                }
            }
        }
        Ok(pruned)
    }
}

/// The catalog's lock, held by nobody else; shared again when dropped.
struct Alone<'a>(&'a Inner);

impl<'a> Alone<'a> {
    fn take(inner: &'a Inner) -> Result<Self, ImageError> {
        // Made first, because a failed attempt gives up the shared lock as well.
        let alone = Self(inner);
        match flock(&inner.in_use, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(alone),
            Err(_) => Err(ImageError::InUse),
        }
    }
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        if let Err(error) = flock(&self.0.in_use, FlockOperation::LockShared) {
            tracing::warn!(%error, "cannot mark the templates as in use");
        }
    }
}

/// Keys that recipes lead to.
struct Keep {
    roots: HashSet<String>,
    images: Vec<pandastack_engine::GuestImage>,
}

impl Keep {
    fn of(inner: &Inner) -> Result<Self, ImageError> {
        let roots = inner.recipes.iter().map(build::root_key).collect();
        let images = inner.recipes.iter().map(|recipe| inner.image(recipe));
        let images = images.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect();
        Ok(Self { roots, images })
    }

    fn has(&self, inner: &Inner, kind: Kind, key: &str) -> bool {
        match kind {
            Kind::Root => self.roots.contains(key),
            Kind::Image => self.images.iter().any(|image| image.digest == key),
            Kind::Bake => {
                // A damaged bake is of no use to anyone.
                let manifest = inner.shelf.manifest::<BakeManifest>(Kind::Bake, key);
                let Ok(Some(manifest)) = manifest else { return false };
                // One of another engine cannot be judged, so it stays as long as its image.
                self.images.iter().filter(|image| image.digest == manifest.image).any(|image| {
                    manifest.engine != inner.engine.name()
                        || inner.engine.bake_key(image, manifest.size) == key
                })
            }
        }
    }
}
