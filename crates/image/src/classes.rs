//! Size classes: bakes of a template in other sizes than its own.
//!
//! Anybody may ask for a class, so there is a bound: what is used least goes. Invariant: a bake that
//! somebody uses is never removed. In this process that is whoever holds its [`Bake`]; other
//! processes hold a shared lock on a file named after it for as long as they know of it.

use std::fs::File;
use std::sync::Arc;
use std::time::SystemTime;

use pandastack_engine::Bake;
use pandastack_types::{Size, SizeView};
use rustix::fs::{FlockOperation, flock};

use crate::catalog::{BakeManifest, Catalog, Inner};
use crate::error::ImageError;
use crate::prune::Pruned;
use crate::recipe::Recipe;
use crate::shelf::Kind;

/// A bake that was found on the shelf, and the mark that keeps it there.
pub(crate) struct Found {
    pub(crate) bake: Arc<Bake>,
    mark: File,
}

impl Found {
    /// The bake, which was used just now.
    pub(crate) fn used(&self) -> Arc<Bake> {
        // Only tells which class goes first; without it an older time counts.
        let _ = self.mark.set_modified(SystemTime::now());
        self.bake.clone()
    }
}

/// A class that may be removed.
struct Candidate {
    key: String,
    used: SystemTime,
}

impl Catalog {
    /// The size classes of a template that are baked, its own included.
    pub fn classes(&self, recipe: &Recipe) -> Vec<SizeView> {
        let bakes = self.inner.bakes_of(recipe).unwrap_or_default();
        let mut sizes: Vec<Size> = bakes.into_iter().map(|(_, size)| size).collect();
        sizes.sort_unstable();
        sizes.into_iter().map(SizeView::baked).collect()
    }

    /// Removes the classes that were used longest ago, until no more than `keep` are left besides
    /// the templates' own sizes. Those in use stay, however many they are.
    pub fn evict(&self, keep: usize) -> Result<Pruned, ImageError> {
        let mut candidates = Vec::new();
        for recipe in &self.inner.recipes {
            let bakes = self.inner.bakes_of(recipe)?;
            let classes = bakes.into_iter().filter(|(_, size)| *size != recipe.size);
            candidates.extend(classes.map(|(key, _)| self.inner.candidate(key)));
        }
        let surplus = candidates.len().saturating_sub(keep);
        candidates.sort_by_key(|candidate| candidate.used);
        let mut pruned = Pruned::default();
        for candidate in candidates {
            if pruned.removed >= surplus {
                break;
            }
            if let Some(bytes) = self.remove_unused(&candidate.key)? {
                pruned.bytes += bytes;
                pruned.removed += 1;
            }
        }
        Ok(pruned)
    }

    /// Removes a bake unless somebody uses it; says how many bytes that freed.
    fn remove_unused(&self, key: &str) -> Result<Option<u64>, ImageError> {
        let mut found = self.found();
        let ours = found.iter().find(|(_, found)| found.bake.key == key);
        if let Some((id, entry)) = ours.map(|(id, entry)| (id.clone(), entry)) {
            if Arc::strong_count(&entry.bake) > 1 {
                return Ok(None);
            }
            // Gives up our own mark. Who asks meanwhile waits for the lock that we hold.
            found.remove(&id);
        }
        let mark = self.inner.mark(key)?;
        match flock(&mark, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => self.inner.shelf.remove(Kind::Bake, key).map(Some),
            Err(_) => Ok(None),
        }
    }
}

impl Inner {
    /// Marks a bake as in use. `None` while it is being removed.
    pub(crate) fn hold(&self, bake: Bake) -> Result<Option<Found>, ImageError> {
        let mark = self.mark(&bake.key)?;
        let held = flock(&mark, FlockOperation::NonBlockingLockShared);
        // It may have gone before the mark was there.
        let there = held.is_ok() && self.shelf.path(Kind::Bake, &bake.key).exists();
        Ok(there.then(|| Found { bake: Arc::new(bake), mark }))
    }

    /// Keeps a bake that is there or will be, for as long as the file is open.
    pub(crate) fn keep(&self, key: &str) -> Result<File, ImageError> {
        let mark = self.mark(key)?;
        // Whoever removes the old one has it for a moment, and then it is made anew.
        let _ = flock(&mark, FlockOperation::NonBlockingLockShared);
        Ok(mark)
    }

    fn mark(&self, key: &str) -> Result<File, ImageError> {
        let path = self.shelf.locks().join(format!("use-{key}"));
        let opened = File::options().create(true).truncate(false).write(true).open(&path);
        opened.map_err(ImageError::file("open", &path))
    }

    fn candidate(&self, key: String) -> Candidate {
        let path = self.shelf.locks().join(format!("use-{key}"));
        let used = path.metadata().and_then(|metadata| metadata.modified());
        Candidate { key, used: used.unwrap_or(SystemTime::UNIX_EPOCH) }
    }

    /// Keys and sizes of the bakes that this recipe and this engine lead to.
    fn bakes_of(&self, recipe: &Recipe) -> Result<Vec<(String, Size)>, ImageError> {
        let Some(image) = self.image(recipe)? else { return Ok(Vec::new()) };
        let keys = self.shelf.keys(Kind::Bake)?;
        let ours = keys.into_iter().filter_map(|key| {
            // What is damaged, or of another version, is not a class; pruning removes it.
            let manifest = self.shelf.manifest::<BakeManifest>(Kind::Bake, &key).ok()??;
            let same = manifest.image == image.digest
                && manifest.engine == self.engine.name()
                && self.engine.bake_key(&image, manifest.size) == key;
            same.then_some((key, manifest.size))
        });
        Ok(ours.collect())
    }
}
