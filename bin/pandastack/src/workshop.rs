//! Engine and templates of a data directory: what every command that runs machines starts with.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use pandastack_engine::Bake;
use pandastack_engine::qemu::{Parts, QemuEngine};
use pandastack_image::{Catalog, Recipe};
use pandastack_types::{Size, TemplateName};

use crate::progress::BuildProgress;

/// The guest's `/init`, built together with this program.
static AGENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/panda-agent"));

/// What a jailed QEMU runs with, built together with this program.
static PARTS: Parts = Parts {
    keeper: include_bytes!(concat!(env!("OUT_DIR"), "/panda-keeper")),
    fork_library: include_bytes!(concat!(env!("OUT_DIR"), "/libpanda_qemu_fork.so")),
};

/// Engine and templates. Any number of processes may have the same ones open.
#[derive(Clone)]
pub struct Workshop {
    /// Runs the machines.
    pub engine: Arc<QemuEngine>,
    /// What the machines are copies of.
    pub catalog: Catalog,
}

impl Workshop {
    /// Opens the engine and the templates in `data_dir`.
    pub fn open(data_dir: &Path) -> anyhow::Result<Self> {
        let engine = QemuEngine::open(&data_dir.join("runtime"), &PARTS).context(
            "this host cannot run sandboxes yet; `pandastack doctor` says what to do about it",
        )?;
        let engine = Arc::new(engine);
        let catalog = Catalog::open(&data_dir.join("templates"), engine.clone(), AGENT)
            .context("cannot open the templates")?;
        Ok(Self { engine, catalog })
    }

    /// The recipe behind a template's name or alias.
    pub fn recipe(&self, name: &TemplateName) -> anyhow::Result<&Recipe> {
        self.catalog.resolve(name).with_context(|| {
            let known: Vec<_> =
                self.catalog.list().iter().map(|view| view.name.to_string()).collect();
            format!("unknown template \"{name}\"; there are {}", known.join(", "))
        })
    }

    /// Makes sure that machines of this template can be had at once, in its own size unless
    /// another one is asked for. A build that this takes is shown on standard error; dropping
    /// the future gives it up and leaves nothing.
    pub async fn ready(
        &self,
        recipe: &Recipe,
        cpu: Option<i64>,
        memory_mb: Option<i64>,
    ) -> anyhow::Result<Arc<Bake>> {
        let default = recipe.size();
        let size = Size::new(
            cpu.unwrap_or(default.cpu.into()),
            memory_mb.unwrap_or(default.memory_mb.into()),
        )?;
        Ok(self.catalog.bake(recipe, size, Arc::new(BuildProgress::default())).await?)
    }
}
