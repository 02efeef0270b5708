//! The catalog with a root that is already there and an engine that only pretends.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use pandastack_engine::{EngineError, Machine};
use pandastack_types::Isolation;

use super::*;
use crate::progress::Quiet;

/// Counts its bakes and fails when told to.
#[derive(Default)]
struct FakeEngine {
    bakes: AtomicUsize,
    fails: bool,
    generation: &'static str,
}

#[async_trait]
impl Engine for FakeEngine {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn version(&self) -> String {
        "none".to_owned()
    }

    fn warms_by_running(&self) -> bool {
        true
    }

    fn isolation(&self) -> Isolation {
        Isolation::Emulated
    }

    fn bake_key(&self, image: &GuestImage, size: Size) -> String {
        let digest = &image.digest[..16];
        format!("{digest}-{}-{}{}", size.cpu, size.memory_mb, self.generation)
    }

    async fn bake(
        &self,
        image: &GuestImage,
        _: Size,
        out: &Path,
        log: &(dyn Fn(&str) + Send + Sync),
    ) -> Result<(), EngineError> {
        self.bakes.fetch_add(1, Ordering::SeqCst);
        assert!(image.initrd.exists() && image.root.exists() && image.kernel.exists());
        log("kernel started");
        fs::write(out.join("memory"), "m").unwrap();
        // Long enough for others to queue up behind this one.
        tokio::time::sleep(Duration::from_millis(200)).await;
        if self.fails {
            log("it hangs");
            return Err(EngineError::Deadline("the first boot"));
        }
        Ok(())
    }

    async fn restore(&self, _: &Bake, _: &Path) -> Result<Box<dyn Machine>, EngineError> {
        Err(EngineError::Monitor("only pretends".to_owned()))
    }
}

const RECIPE: &str = r#"
    name = "t"
    aliases = ["other"]
    description = "d"
    suite = "trixie"
    packages = ["bash"]
    cpu = 1
    memory_mb = 512
    disk_mb = 64
"#;

fn open_with(dir: &Path, engine: Arc<FakeEngine>, recipe: &str, agent: &'static [u8]) -> Catalog {
    let recipes = vec![Recipe::parse(recipe).unwrap()];
    Catalog::with_recipes(dir, engine, agent, recipes).unwrap()
}

fn open(dir: &Path, engine: Arc<FakeEngine>) -> Catalog {
    open_with(dir, engine, RECIPE, b"agent")
}

/// Puts a root on the shelf as if it had been built.
fn place_root(catalog: &Catalog) {
    let inner = &catalog.inner;
    let recipe = &inner.recipes[0];
    let staging = Staging::create(&inner.shelf).unwrap();
    fs::create_dir(staging.out.join("modules")).unwrap();
    for name in ["root.erofs", "vmlinuz", "modules/m.ko.xz"] {
        fs::write(staging.out.join(name), name).unwrap();
    }
    fs::write(staging.out.join("modules/order"), "m.ko.xz\n").unwrap();
    let manifest = image::describe_root(&staging.out, recipe).unwrap();
    inner.shelf.publish(&staging.out, Kind::Root, &build::root_key(recipe), &manifest).unwrap();
}

async fn bake(catalog: &Catalog) -> Result<Arc<Bake>, ImageError> {
    let recipe = &catalog.inner.recipes[0];
    catalog.bake(recipe, recipe.size(), Arc::new(Quiet)).await
}

fn count(path: &Path) -> usize {
    fs::read_dir(path).unwrap().count()
}

#[tokio::test]
async fn a_bake_is_published_and_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Arc::new(FakeEngine::default());
    let catalog = open(dir.path(), engine.clone());
    let recipe = catalog.resolve(&"other".parse().unwrap()).unwrap();
    assert!(!catalog.is_built(recipe));
    assert!(catalog.get(recipe.name()).unwrap().digest.is_empty());
    place_root(&catalog);
    let made = bake(&catalog).await.unwrap();
    assert!(made.dir.join("memory").exists());
    assert!(made.dir.join("manifest.json").exists());
    let view = catalog.get(recipe.name()).unwrap();
    assert!(view.built && view.size_bytes > 0 && view.digest.len() == 64);

    let again = open(dir.path(), engine.clone());
    let found = again.baked(recipe, recipe.size()).unwrap();
    assert_eq!((&found.key, &found.dir), (&made.key, &made.dir));
    assert_eq!(bake(&again).await.unwrap().key, made.key);
    assert_eq!(engine.bakes.load(Ordering::SeqCst), 1);
    assert_eq!(count(&dir.path().join("tmp")), 0);
    // Another size is another bake of the same image.
    let large = Size { cpu: 2, memory_mb: 1024, disk_mb: 4096 };
    let large = again.bake(recipe, large, Arc::new(Quiet)).await.unwrap();
    assert_eq!(large.image.digest, made.image.digest);
    assert_eq!(count(&dir.path().join("images")), 1);
    assert_eq!(count(&dir.path().join("bakes")), 2);
    let sizes: Vec<_> = again.classes(recipe).into_iter().map(|class| class.size).collect();
    assert_eq!(sizes, [recipe.size(), large.size]);
}

#[tokio::test]
async fn the_class_that_was_used_longest_ago_goes_first_and_one_in_use_never() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = open(dir.path(), Arc::default());
    let other = open(dir.path(), Arc::default());
    place_root(&catalog);
    bake(&catalog).await.unwrap();
    let recipe = catalog.inner.recipes[0].clone();
    let class = |cpu| Size { cpu, ..recipe.size() };
    let mut held = Vec::new();
    for cpu in [2, 3, 4, 5] {
        held.push(catalog.bake(&recipe, class(cpu), Arc::new(Quiet)).await.unwrap());
    }
    assert_eq!(catalog.evict(0).unwrap(), crate::Pruned::default(), "all are in use");
    drop(held);
    // Used again, so 3 is the one of longest ago; and another process knows 4.
    let second = catalog.baked(&recipe, class(2)).unwrap();
    other.baked(&recipe, class(4)).unwrap();
    let evicted = catalog.evict(3).unwrap();
    assert_eq!(evicted.removed, 1);
    assert!(evicted.bytes > 0);
    let left = || catalog.classes(&recipe).into_iter().map(|c| c.size.cpu).collect::<Vec<_>>();
    assert_eq!(left(), [1, 2, 4, 5]);
    assert!(catalog.baked(&recipe, class(3)).is_none());
    assert_eq!(catalog.evict(0).unwrap().removed, 1, "the others are in use");
    assert_eq!(left(), [1, 2, 4]);
    drop((second, other));
    assert_eq!(catalog.evict(0).unwrap().removed, 2);
    assert_eq!(left(), [1], "a template's own size is no class that goes");
    assert!(catalog.is_built(&recipe));
    // What went can be baked again.
    catalog.bake(&recipe, class(3), Arc::new(Quiet)).await.unwrap();
}

#[tokio::test]
async fn concurrent_callers_share_one_build() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Arc::new(FakeEngine::default());
    // Two catalogs stand for two processes: they share nothing but the directory.
    let (one, two) = (open(dir.path(), engine.clone()), open(dir.path(), engine.clone()));
    place_root(&one);
    let (a, b, c) = tokio::join!(bake(&one), bake(&one), bake(&two));
    assert_eq!(a.unwrap().key, b.unwrap().key);
    c.unwrap();
    assert_eq!(engine.bakes.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_failure_is_shared_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let engine = Arc::new(FakeEngine { fails: true, ..FakeEngine::default() });
    let catalog = open(dir.path(), engine.clone());
    place_root(&catalog);
    let (a, b) = tokio::join!(bake(&catalog), bake(&catalog));
    assert_eq!(engine.bakes.load(Ordering::SeqCst), 1);
    for error in [a.unwrap_err(), b.unwrap_err()] {
        assert!(matches!(error.cause(), ImageError::Bake { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("it hangs") && text.contains("logs/t-"), "{text}");
    }
    assert_eq!(count(&dir.path().join("bakes")), 0);
    assert_eq!(count(&dir.path().join("tmp")), 0);
    // The next caller tries again.
    bake(&catalog).await.unwrap_err();
    assert_eq!(engine.bakes.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_cancelled_bake_leaves_nothing_and_blocks_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = open(dir.path(), Arc::new(FakeEngine::default()));
    place_root(&catalog);
    let cancelled = tokio::time::timeout(Duration::from_millis(100), bake(&catalog)).await;
    assert!(cancelled.is_err());
    assert_eq!(count(&dir.path().join("tmp")), 0);
    bake(&catalog).await.unwrap();
}

#[tokio::test]
async fn leftovers_go_when_the_catalog_opens() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path(), Arc::default()));
    let leftover = dir.path().join("tmp/pandastack-build-x.1/out");
    fs::create_dir_all(&leftover).unwrap();
    fs::write(leftover.join("memory"), "half").unwrap();
    drop(open(dir.path(), Arc::default()));
    assert_eq!(count(&dir.path().join("tmp")), 0);
}

#[tokio::test]
async fn pruning_keeps_what_recipes_lead_to() {
    let dir = tempfile::tempdir().unwrap();
    let first = open(dir.path(), Arc::default());
    place_root(&first);
    bake(&first).await.unwrap();
    assert_eq!(first.prune().unwrap().removed, 0);

    // A new agent: the root stays, image and bake are new.
    let second = open_with(dir.path(), Arc::default(), RECIPE, b"new agent");
    assert!(matches!(second.prune(), Err(ImageError::InUse)));
    drop(first);
    bake(&second).await.unwrap();
    let pruned = second.prune().unwrap();
    assert_eq!(pruned.removed, 2);
    assert!(pruned.bytes > 0);
    assert!(second.is_built(&second.inner.recipes[0]));
    drop(second);

    // A new engine: only the bake is of no use.
    let engine = Arc::new(FakeEngine { generation: "-2", ..FakeEngine::default() });
    let third = open_with(dir.path(), engine, RECIPE, b"new agent");
    assert_eq!(third.prune().unwrap().removed, 1);
    drop(third);

    // A new recipe: nothing is.
    let recipe = RECIPE.replace("bash", "dash");
    let fourth = open_with(dir.path(), Arc::default(), &recipe, b"new agent");
    assert_eq!(fourth.prune().unwrap().removed, 2);
    assert_eq!(count(&dir.path().join("roots")), 0);
}
