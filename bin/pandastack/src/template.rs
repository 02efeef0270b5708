//! `pandastack template …`: what sandboxes are copies of.
//!
//! Works on the data directory itself, whether or not a server runs: the catalog's locks keep
//! the two from getting in each other's way.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context as _;
use clap::Subcommand;
use pandastack_image::Recipe;
use pandastack_types::{TemplateName, TemplateView};
use serde::Serialize;

use crate::cli::Context;
use crate::engines::MachineArgs;
use crate::signals::Signals;
use crate::status::Status;
use crate::workshop::{Asked, Workshop};
use crate::{dirs, output, terminal};

/// Build and list templates, what sandboxes are copies of
#[derive(Subcommand, Clone, Debug)]
pub enum Command {
    /// List the templates
    #[command(
        visible_alias = "list",
        after_help = "Examples:\n  pandastack template ls\n  pandastack template ls --json"
    )]
    Ls(Place),
    /// Build templates, so that the first sandbox need not wait
    #[command(after_help = "\
Examples:
  pandastack template build base
  pandastack template build --all
  pandastack template build base --cpu 2 --memory 2048 --disk 8192   # for sandboxes of this size

Builds only what is missing or out of date. Needs the network for packages.")]
    Build(BuildArgs),
    /// Check the files of built templates against the hashes made when they were built
    #[command(after_help = "\
Examples:
  pandastack template verify
  pandastack template verify base

Reads every file, which takes a while. Templates of the qemu engine have no hashes.")]
    Verify(VerifyArgs),
    /// Remove what no template uses any more; no server may be running
    #[command(after_help = "Example:\n  pandastack template prune")]
    Prune(Place),
}

/// Where the templates are.
#[derive(clap::Args, Clone, Debug)]
pub struct Place {
    /// Where templates and records are kept [default: the system's for root, else the user's]
    #[arg(long, value_name = "DIR", env = "PANDASTACK_DATA_DIR")]
    data_dir: Option<PathBuf>,
    #[command(flatten)]
    machines: MachineArgs,
}

/// What to build.
#[derive(clap::Args, Clone, Debug)]
pub struct BuildArgs {
    /// Names or aliases
    #[arg(value_name = "NAME", required_unless_present = "all")]
    names: Vec<TemplateName>,
    /// Every template
    #[arg(long, conflicts_with = "names")]
    all: bool,
    /// vCPUs [default: the template's]
    #[arg(long, value_name = "N")]
    cpu: Option<i64>,
    /// Guest memory in MiB [default: the template's]
    #[arg(long, value_name = "MB", alias = "memory-mb")]
    memory: Option<i64>,
    /// Writable disk in MiB, not less than the template's [default: the template's]
    #[arg(long, value_name = "MB", alias = "disk-mb")]
    disk: Option<i64>,
    #[command(flatten)]
    place: Place,
}

/// What to check.
#[derive(clap::Args, Clone, Debug)]
pub struct VerifyArgs {
    /// Names or aliases [default: every built template]
    #[arg(value_name = "NAME")]
    names: Vec<TemplateName>,
    #[command(flatten)]
    place: Place,
}

impl Place {
    async fn open(self) -> anyhow::Result<Workshop> {
        let data_dir = self.data_dir.map_or_else(dirs::default_data_dir, Ok)?;
        Workshop::open(&data_dir, self.machines).await
    }
}

pub async fn run(command: Command, context: Context) -> anyhow::Result<Status> {
    match command {
        Command::Ls(place) => list(&place.open().await?, context),
        Command::Build(args) => build(args, context).await,
        Command::Verify(args) => verify(args, context).await,
        Command::Prune(place) => prune(&place.open().await?, context),
    }
}

/// The templates that there are and whether they are built.
pub fn built(workshop: &Workshop) -> Vec<(String, bool)> {
    let all = workshop.catalog.list();
    all.into_iter().map(|view| (view.name.to_string(), view.built)).collect()
}

/// The templates of a host where nothing was built yet.
pub fn unbuilt() -> anyhow::Result<Vec<(String, bool)>> {
    let recipes = Recipe::embedded()?;
    Ok(recipes.iter().map(|recipe| (recipe.name().to_string(), false)).collect())
}

fn list(workshop: &Workshop, context: Context) -> anyhow::Result<Status> {
    let all = workshop.catalog.list();
    if context.json {
        output::json(&all)?;
    } else {
        let rows: Vec<_> = all.iter().map(row).collect();
        output::table(["NAME", "BUILT", "CPU", "MEMORY", "DISK", "ALIASES", "DESCRIPTION"], &rows)?;
    }
    Ok(Status::SUCCESS)
}

fn row(view: &TemplateView) -> [String; 7] {
    let aliases: Vec<_> = view.aliases.iter().map(ToString::to_string).collect();
    [
        view.name.to_string(),
        if view.built { "yes" } else { "no" }.to_owned(),
        view.cpu.to_string(),
        format!("{} MiB", view.memory_mb),
        indicatif::BinaryBytes(view.size_bytes).to_string(),
        aliases.join(" "),
        view.description.clone(),
    ]
}

async fn build(args: BuildArgs, context: Context) -> anyhow::Result<Status> {
    let mut signals = Signals::listen()?;
    let workshop = args.place.open().await?;
    let names = if args.all {
        workshop.catalog.list().into_iter().map(|view| view.name).collect()
    } else {
        args.names
    };
    // All names are checked before the first build, which takes minutes.
    let recipes = names.iter().map(|name| workshop.recipe(name)).collect::<Result<Vec<_>, _>>()?;
    for recipe in recipes {
        let start = Instant::now();
        let asked = Asked { cpu: args.cpu, memory_mb: args.memory, disk_mb: args.disk };
        let ready = workshop.ready(recipe, asked);
        signals.unless_interrupted(ready).await?;
        let seconds = start.elapsed().as_secs_f32();
        terminal::line(&format!("template {} is ready ({seconds:.1} s)", recipe.name()));
    }
    if context.json {
        let all = workshop.catalog.list();
        output::json(&all.iter().filter(|view| view.built).collect::<Vec<_>>())?;
    }
    Ok(Status::SUCCESS)
}

/// One template, and what reading its files came to.
#[derive(Serialize)]
struct Verified {
    template: String,
    /// Absent where there are no hashes to compare with.
    sound: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    damage: Option<String>,
}

async fn verify(args: VerifyArgs, context: Context) -> anyhow::Result<Status> {
    let workshop = args.place.open().await?;
    let named = args.names.iter().map(|name| workshop.recipe(name));
    let named = named.collect::<Result<Vec<_>, _>>()?;
    let built = workshop.catalog.list().into_iter().filter(|view| view.built);
    let recipes = if named.is_empty() {
        built.filter_map(|view| workshop.catalog.resolve(&view.name)).collect()
    } else {
        named
    };
    let mut all = Vec::new();
    for recipe in recipes {
        let bake = workshop
            .catalog
            .baked(recipe, recipe.size())
            .with_context(|| format!("template {} is not built", recipe.name()))?;
        let engine = workshop.engine.clone();
        let outcome = tokio::task::spawn_blocking(move || engine.verify(&bake.dir)).await?;
        let (sound, damage) = match outcome {
            Ok(checked) => (checked.then_some(true), None),
            Err(error) => (Some(false), Some(error.to_string())),
        };
        all.push(Verified { template: recipe.name().to_string(), sound, damage });
    }
    let sound = all.iter().all(|one| one.sound != Some(false));
    if context.json {
        output::json(&all)?;
    } else {
        let rows: Vec<_> = all.iter().map(Verified::row).collect();
        output::table(["NAME", "FILES"], &rows)?;
    }
    Ok(if sound { Status::SUCCESS } else { Status::NEGATIVE })
}

impl Verified {
    fn row(&self) -> [String; 2] {
        let found = match (self.sound, &self.damage) {
            (None, _) => "no hashes to compare with".to_owned(),
            (Some(true), _) => "sound".to_owned(),
            (Some(false), damage) => damage.clone().unwrap_or_default(),
        };
        [self.template.clone(), found]
    }
}

fn prune(workshop: &Workshop, context: Context) -> anyhow::Result<Status> {
    let pruned = workshop.catalog.prune()?;
    if context.json {
        output::json(&serde_json::json!({"removed": pruned.removed, "bytes": pruned.bytes}))?;
    } else {
        let bytes = indicatif::BinaryBytes(pruned.bytes);
        output::line(&format!("removed {} ({bytes})", pruned.removed))?;
    }
    Ok(Status::SUCCESS)
}
