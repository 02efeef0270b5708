//! Engine and templates of a data directory: what every command that runs machines starts with.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use pandastack_engine::{Bake, Engine};
use pandastack_image::{Catalog, Recipe};
use pandastack_types::{InvalidSize, Size, SizeLimits, TemplateName};

use crate::confinement::Confinement;
use crate::engines::{self, Chosen, MachineArgs};
use crate::progress::BuildProgress;

/// The guest's `/init`, built together with this program.
static AGENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/panda-agent"));

/// A size as somebody asks for it; what is absent is the template's own.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked {
    /// vCPUs.
    pub cpu: Option<i64>,
    /// Guest memory in MiB.
    pub memory_mb: Option<i64>,
    /// Writable disk in MiB, not less than the template's.
    pub disk_mb: Option<i64>,
}

impl Asked {
    fn of(self, default: Size) -> Result<Size, InvalidSize> {
        let cpu = self.cpu.unwrap_or(default.cpu.into());
        let memory_mb = self.memory_mb.unwrap_or(default.memory_mb.into());
        let disk_mb = self.disk_mb.unwrap_or(default.disk_mb.into());
        Size::within(SizeLimits::POSSIBLE, default.disk_mb, [cpu, memory_mb, disk_mb])
    }
}

/// Engine and templates. Any number of processes may have the same ones open.
#[derive(Clone)]
pub struct Workshop {
    /// Runs the machines.
    pub engine: Arc<dyn Engine>,
    /// Why it is this engine.
    pub reason: String,
    /// How far machines are confined.
    pub confinement: Confinement,
    /// What the machines are copies of.
    pub catalog: Catalog,
    /// What jails of this data directory are made of.
    pub runtime_dir: PathBuf,
}

impl Workshop {
    /// Opens the engine and the templates in `data_dir`. Refuses a host that cannot confine
    /// machines as `args` wants it.
    pub async fn open(data_dir: &Path, args: MachineArgs) -> anyhow::Result<Self> {
        let confinement = Confinement::find();
        confinement.permit(args.allow_reduced_jail)?;
        let runtime_dir = data_dir.join("runtime");
        let chosen = engines::choose(args.engine, &runtime_dir).await;
        let Chosen { engine, reason } = chosen.context(
            "this host cannot run sandboxes yet; `pandastack doctor` says what to do about it",
        )?;
        let catalog = Catalog::open(&data_dir.join("templates"), engine.clone(), AGENT)
            .context("cannot open the templates")?;
        Ok(Self { engine, reason, confinement, catalog, runtime_dir })
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
    pub async fn ready(&self, recipe: &Recipe, asked: Asked) -> anyhow::Result<Arc<Bake>> {
        let size = asked.of(recipe.size())?;
        Ok(self.catalog.bake(recipe, size, Arc::new(BuildProgress::default())).await?)
    }
}
