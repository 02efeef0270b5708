//! Which engine runs the guests: chosen by the operator, or by proof.
//!
//! ```text
//!   auto ─▶ /dev/kvm, not the pvm module's? ─▶ a small guest in a jailed monitor answers? ─▶ kvm
//!              └─ no ──────────────────────────────┴─ no ──────────▶ qemu, and the log says why
//! ```

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::ValueEnum;
use clap::builder::FalseyValueParser;
use pandastack_engine::Engine;
use pandastack_engine::kvm::{self, KvmEngine};
use pandastack_engine::qemu::{self, QemuEngine};

/// Process 1 of a machine's namespaces, built together with this program.
pub static KEEPER: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/panda-keeper"));

/// What a jailed QEMU runs with, built together with this program.
static QEMU_PARTS: qemu::Parts = qemu::Parts {
    keeper: KEEPER,
    fork_library: include_bytes!(concat!(env!("OUT_DIR"), "/libpanda_qemu_fork.so")),
};

/// The programs of a machine of the kvm engine, built together with this program.
static KVM_PARTS: kvm::Parts =
    kvm::Parts { keeper: KEEPER, monitor: include_bytes!(concat!(env!("OUT_DIR"), "/panda-vmm")) };

/// Options of every command that runs machines.
#[derive(clap::Args, Clone, Copy, Debug)]
pub struct MachineArgs {
    /// What runs the guests
    #[arg(long, value_enum, env = "PANDASTACK_ENGINE", default_value_t = EngineChoice::Auto)]
    pub engine: EngineChoice,
    /// Run machines although this host cannot give them the whole jail
    #[arg(
        long,
        env = "PANDASTACK_ALLOW_REDUCED_JAIL",
        value_parser = FalseyValueParser::new()
    )]
    pub allow_reduced_jail: bool,
}

/// Ways to run guests.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineChoice {
    /// kvm where it is proved to work, else qemu
    Auto,
    /// Emulation: works everywhere
    Qemu,
    /// Hardware virtualisation
    Kvm,
}

/// An engine, and why it is this one.
#[derive(Clone)]
pub struct Chosen {
    /// Runs the machines.
    pub engine: Arc<dyn Engine>,
    /// For people.
    pub reason: String,
}

/// What became of the proof that KVM works here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kvm {
    /// A guest ran.
    Proved(Duration),
    /// There is nothing to try it with, or none ran.
    Refused(String),
}

/// Opens the engine that was asked for. `dir` keeps what engines need on disk.
pub async fn choose(choice: EngineChoice, dir: &Path) -> anyhow::Result<Chosen> {
    let why_not = match choice {
        EngineChoice::Qemu => "asked for".to_owned(),
        EngineChoice::Kvm => {
            let engine = proved(dir).await.context("the kvm engine does not work on this host")?;
            return Ok(Chosen { engine, reason: "asked for, and proved".to_owned() });
        }
        EngineChoice::Auto => match proved(dir).await {
            Ok(engine) => {
                let reason = "a guest ran: hardware virtualisation is there".to_owned();
                return Ok(Chosen { engine, reason });
            }
            Err(error) => format!("not kvm: {error:#}"),
        },
    };
    tracing::info!(reason = why_not, "the engine is qemu");
    let engine = QemuEngine::open(dir, &QEMU_PARTS)?;
    Ok(Chosen { engine: Arc::new(engine), reason: why_not })
}

/// Tries whether guests run under KVM here. `dir` is used as by [`choose`].
pub async fn try_kvm(dir: &Path) -> Kvm {
    let begin = Instant::now();
    match proved(dir).await {
        Ok(_) => Kvm::Proved(begin.elapsed()),
        Err(error) => Kvm::Refused(format!("{error:#}")),
    }
}

async fn proved(dir: &Path) -> anyhow::Result<Arc<KvmEngine>> {
    let found = kvm::probe();
    ensure!(found.is_promising(), "{found}");
    let engine = KvmEngine::open(dir, &KVM_PARTS)?;
    engine.prove().await.with_context(|| format!("{found}, but no guest runs"))?;
    Ok(Arc::new(engine))
}
