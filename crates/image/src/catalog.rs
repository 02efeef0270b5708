//! The catalog: templates by name, built when they are first needed.
//!
//! [`Catalog::baked`] answers from memory or from the shelf and never builds;
//! [`Catalog::bake`] makes whatever is missing, in the order root, image, bake. Each of the
//! three passes a gate of its own, so two templates on one root wait for each other only there.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pandastack_engine::{Bake, Engine, GuestImage};
use pandastack_types::{Size, TemplateName, TemplateView};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::build;
use crate::classes::Found;
use crate::error::ImageError;
use crate::gate::Gates;
use crate::image::{self, ImageManifest, RootManifest};
use crate::log::BuildLog;
use crate::progress::{Progress, Stage, Step, of_engine_line};
use crate::recipe::Recipe;
use crate::shelf::{Kind, Shelf, disk_bytes};
use crate::workdir::{self, Workdir};

/// What is written next to a bake.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BakeManifest {
    /// Digest of the image.
    pub(crate) image: String,
    /// vCPUs, memory and disk.
    pub(crate) size: Size,
    /// The engine that made it.
    pub(crate) engine: String,
}

/// All templates of a data directory. Clones share everything.
#[derive(Clone)]
pub struct Catalog {
    pub(crate) inner: Arc<Inner>,
}

/// What is on the shelf, as far as it was looked for.
pub(crate) type FoundBakes = HashMap<(TemplateName, Size), Found>;

pub(crate) struct Inner {
    pub(crate) shelf: Shelf,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) agent: &'static [u8],
    pub(crate) recipes: Vec<Recipe>,
    /// Held shared for as long as the catalog is open; pruning needs it alone.
    pub(crate) in_use: File,
    gates: Gates,
    /// Bakes that were found on the shelf.
    found: Mutex<FoundBakes>,
}

impl Catalog {
    /// Opens the catalog in `dir`, with the recipes that come with the program, and removes
    /// what interrupted builds left there. `agent` is the guest's `/init`.
    pub fn open(
        dir: &Path,
        engine: Arc<dyn Engine>,
        agent: &'static [u8],
    ) -> Result<Catalog, ImageError> {
        Self::with_recipes(dir, engine, agent, Recipe::embedded()?)
    }

    pub(crate) fn with_recipes(
        dir: &Path,
        engine: Arc<dyn Engine>,
        agent: &'static [u8],
        recipes: Vec<Recipe>,
    ) -> Result<Catalog, ImageError> {
        let shelf = Shelf::open(dir)?;
        let path = shelf.locks().join("in-use");
        let in_use = File::create(&path).map_err(ImageError::file("open", &path))?;
        // Waits while another process prunes, which takes a moment.
        flock(&in_use, FlockOperation::LockShared)
            .map_err(|error| ImageError::file("lock", &path)(error.into()))?;
        build::work_parents(&shelf.tmp()).iter().for_each(|parent| workdir::sweep(parent));
        let gates = Gates::new(shelf.locks());
        let found = Mutex::default();
        let inner = Inner { shelf, engine, agent, recipes, in_use, gates, found };
        Ok(Catalog { inner: Arc::new(inner) })
    }

    /// The recipe that `name` or alias leads to.
    pub fn resolve(&self, name: &TemplateName) -> Option<&Recipe> {
        self.inner.recipes.iter().find(|recipe| recipe.answers_to(name))
    }

    /// Every template.
    pub fn list(&self) -> Vec<TemplateView> {
        self.inner.recipes.iter().map(|recipe| self.view(recipe)).collect()
    }

    /// The template that `name` or alias leads to.
    pub fn get(&self, name: &TemplateName) -> Option<TemplateView> {
        self.resolve(name).map(|recipe| self.view(recipe))
    }

    /// Whether machines of the recipe's own size can be had at once.
    pub fn is_built(&self, recipe: &Recipe) -> bool {
        self.baked(recipe, recipe.size()).is_some()
    }

    /// The bake of `recipe` at `size`, if it is there.
    pub fn baked(&self, recipe: &Recipe, size: Size) -> Option<Arc<Bake>> {
        let id = (recipe.name().clone(), size);
        // Held throughout: a bake that somebody removes is not looked at meanwhile.
        let mut known = self.found();
        if let Some(found) = known.get(&id) {
            return Some(found.used());
        }
        let image = self.inner.image(recipe).or_damaged().flatten()?;
        let bake = self.inner.bake(&image, size).or_damaged().flatten()?;
        let found = self.inner.hold(bake).or_damaged().flatten()?;
        Some(known.entry(id).or_insert(found).used())
    }

    /// The bake of `recipe` at `size`, made if it is not there. Concurrent callers for the same
    /// thing share one build, also across processes. Dropping the future ends its build.
    pub async fn bake(
        &self,
        recipe: &Recipe,
        size: Size,
        progress: Arc<dyn Progress>,
    ) -> Result<Arc<Bake>, ImageError> {
        if let Some(bake) = self.baked(recipe, size) {
            return Ok(bake);
        }
        let job = Job { inner: self.inner.clone(), recipe: recipe.clone(), progress };
        let (root_key, root) = job.root().await?;
        let image = job.image(&root_key, &root).await?;
        // Before it is there, so that nobody removes it before it is found.
        let _kept = self.inner.keep(&self.inner.engine.bake_key(&image, size))?;
        let made = job.bake(&image, size).await?;
        self.baked(recipe, size).ok_or_else(|| self.inner.lost(Kind::Bake, &made.key))
    }

    /// The image of `recipe`, made if it is not there: everything up to the first boot.
    pub async fn image(
        &self,
        recipe: &Recipe,
        progress: Arc<dyn Progress>,
    ) -> Result<GuestImage, ImageError> {
        let job = Job { inner: self.inner.clone(), recipe: recipe.clone(), progress };
        let (root_key, root) = job.root().await?;
        job.image(&root_key, &root).await
    }

    pub(crate) fn found(&self) -> MutexGuard<'_, FoundBakes> {
        self.inner.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn view(&self, recipe: &Recipe) -> TemplateView {
        let inner = &self.inner;
        let root = inner.root(recipe).or_damaged().flatten();
        let bake = self.baked(recipe, recipe.size());
        let root_dir = root.as_ref().map(|(key, _)| inner.shelf.path(Kind::Root, key));
        let bake_dir = bake.as_ref().map(|bake| bake.dir.clone());
        TemplateView {
            name: recipe.name.clone(),
            aliases: recipe.aliases.clone(),
            digest: root.map(|(_, root)| root.content).unwrap_or_default(),
            built: bake.is_some(),
            rootfs_path: String::new(),
            size_bytes: root_dir.iter().chain(&bake_dir).map(|dir| disk_bytes(dir)).sum(),
            cpu: recipe.size.cpu,
            memory_mb: recipe.size.memory_mb,
            disk_mb: recipe.size.disk_mb,
            sizes: self.classes(recipe),
            is_global: true,
            description: recipe.description.clone(),
            tools: recipe.tools.clone(),
        }
    }
}

/// For callers that cannot build: what is damaged is not there.
trait OrDamaged<T> {
    fn or_damaged(self) -> Option<T>;
}

impl<T> OrDamaged<T> for Result<T, ImageError> {
    fn or_damaged(self) -> Option<T> {
        self.inspect_err(|error| tracing::warn!(%error, "a template cannot be used")).ok()
    }
}

/// What stands on the shelf.
impl Inner {
    /// The root of a recipe and its key.
    pub(crate) fn root(
        &self,
        recipe: &Recipe,
    ) -> Result<Option<(String, RootManifest)>, ImageError> {
        let key = build::root_key(recipe);
        Ok(self.shelf.manifest(Kind::Root, &key)?.map(|manifest| (key, manifest)))
    }

    /// The image of a recipe.
    pub(crate) fn image(&self, recipe: &Recipe) -> Result<Option<GuestImage>, ImageError> {
        let Some((key, root)) = self.root(recipe)? else { return Ok(None) };
        let image = image::image_of(&self.shelf, recipe, &key, &root, self.agent);
        let there = self.shelf.manifest::<ImageManifest>(Kind::Image, &image.digest)?;
        Ok(there.map(|_| image))
    }

    /// The bake of an image.
    fn bake(&self, image: &GuestImage, size: Size) -> Result<Option<Bake>, ImageError> {
        let key = self.engine.bake_key(image, size);
        let there = self.shelf.manifest::<BakeManifest>(Kind::Bake, &key)?;
        Ok(there.map(|_| Bake {
            dir: self.shelf.path(Kind::Bake, &key),
            image: image.clone(),
            size,
            key,
        }))
    }

    /// For what was published and is not there: someone else works in the directory.
    fn lost(&self, kind: Kind, key: &str) -> ImageError {
        ImageError::Damaged(self.shelf.path(kind, key))
    }

    /// Moves a filled work directory onto the shelf, off the async threads: it may have to
    /// flush a gigabyte. The thread owns the directory, so that a caller that is dropped
    /// meanwhile does not empty it under its hands.
    async fn publish<M: Serialize + Send + 'static>(
        self: &Arc<Self>,
        staging: Staging,
        kind: Kind,
        key: &str,
        manifest: M,
    ) -> Result<(), ImageError> {
        let (inner, key) = (self.clone(), key.to_owned());
        blocking(move || inner.shelf.publish(&staging.out, kind, &key, &manifest)).await
    }
}

/// The making of one bake, with everything it needs on the way.
struct Job {
    inner: Arc<Inner>,
    recipe: Recipe,
    progress: Arc<dyn Progress>,
}

impl Job {
    /// The root and its key.
    async fn root(&self) -> Result<(String, RootManifest), ImageError> {
        let inner = &self.inner;
        let key = build::root_key(&self.recipe);
        let ready = || inner.root(&self.recipe);
        let build = async {
            let missing = build::missing_programs();
            if !missing.is_empty() {
                return Err(ImageError::MissingPrograms(missing));
            }
            let staging = Staging::create(&inner.shelf)?;
            let log = self.log(&key)?;
            let report = |stage, detail: &str, done| self.step(stage, detail, Some(done));
            let tmp = inner.shelf.tmp();
            build::build_root(&self.recipe, &staging.out, &tmp, &log, &report).await?;
            let (recipe, out) = (self.recipe.clone(), staging.out.clone());
            let manifest = blocking(move || image::describe_root(&out, &recipe)).await?;
            inner.publish(staging, Kind::Root, &key, manifest).await?;
            inner.root(&self.recipe)?.ok_or_else(|| inner.lost(Kind::Root, &key))
        };
        inner.gates.once(&format!("root-{key}"), ready, || self.waiting(), build).await
    }

    /// The image of a root.
    async fn image(&self, root_key: &str, root: &RootManifest) -> Result<GuestImage, ImageError> {
        let inner = &self.inner;
        let image = image::image_of(&inner.shelf, &self.recipe, root_key, root, inner.agent);
        let ready = || inner.image(&self.recipe);
        let build = async {
            let staging = Staging::create(&inner.shelf)?;
            let root_dir = inner.shelf.path(Kind::Root, root_key);
            image::write_initrd(&root_dir, inner.agent, &staging.out)?;
            let manifest =
                ImageManifest { root: root_key.to_owned(), content: root.content.clone() };
            inner.publish(staging, Kind::Image, &image.digest, manifest).await?;
            Ok(image.clone())
        };
        let gate = format!("image-{}", image.digest);
        inner.gates.once(&gate, ready, || self.waiting(), build).await
    }

    /// The bake of an image.
    async fn bake(&self, image: &GuestImage, size: Size) -> Result<Bake, ImageError> {
        let inner = &self.inner;
        let key = inner.engine.bake_key(image, size);
        let ready = || inner.bake(image, size);
        let build = async {
            let staging = Staging::create(&inner.shelf)?;
            let log = self.log(&key)?;
            let line = |text: &str| {
                log.line(text);
                self.step(of_engine_line(text), text, None);
            };
            let baked = inner.engine.bake(image, size, &staging.out, &line).await;
            baked.map_err(|source| ImageError::Bake {
                template: self.recipe.name.clone(),
                log: log.path().to_owned(),
                tail: log.tail(),
                source: Box::new(source),
            })?;
            let engine = inner.engine.name().to_owned();
            let manifest = BakeManifest { image: image.digest.clone(), size, engine };
            inner.publish(staging, Kind::Bake, &key, manifest).await?;
            inner.bake(image, size)?.ok_or_else(|| inner.lost(Kind::Bake, &key))
        };
        inner.gates.once(&format!("bake-{key}"), ready, || self.waiting(), build).await
    }

    fn log(&self, key: &str) -> Result<BuildLog, ImageError> {
        let short = key.get(..12).unwrap_or(key);
        BuildLog::create(self.inner.shelf.logs().join(format!("{}-{short}.log", self.recipe.name)))
    }

    fn step(&self, stage: Stage, detail: &str, fraction: Option<f32>) {
        let template = self.recipe.name.clone();
        self.progress.step(&Step { template, stage, detail: detail.to_owned(), fraction });
    }

    fn waiting(&self) {
        self.step(Stage::Waiting, "for another build of the same", None);
    }
}

/// An empty directory to fill and publish, inside a work directory that goes away either way.
struct Staging {
    out: PathBuf,
    _workdir: Workdir,
}

impl Staging {
    fn create(shelf: &Shelf) -> Result<Self, ImageError> {
        let workdir = Workdir::create(&shelf.tmp())?;
        let out = workdir.path().join("out");
        std::fs::create_dir(&out).map_err(ImageError::file("create", &out))?;
        Ok(Self { out, _workdir: workdir })
    }
}

/// Runs file work where it may block. The work goes on if the caller is dropped, so it must own
/// what it works on.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

#[cfg(test)]
mod tests;
