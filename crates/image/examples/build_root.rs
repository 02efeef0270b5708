//! Builds everything of a template up to its first boot, which needs no engine:
//!
//! ```text
//! cargo run -p pandastack-image --example build_root -- DIR TEMPLATE [AGENT]
//! ```
//!
//! `AGENT` is the program for the guest's `/init`; without it that is an empty file.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use pandastack_engine::{Bake, Engine, EngineError, GuestImage, Machine};
use pandastack_image::{Catalog, Progress, Step, missing_programs};
use pandastack_types::{Isolation, Size};

#[tokio::main]
async fn main() {
    if let Err(error) = run().await {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

async fn run() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(dir), Some(template)) = (arguments.next(), arguments.next()) else {
        return Err("usage: build_root DIR TEMPLATE [AGENT]".into());
    };
    let agent = match arguments.next() {
        Some(path) => Vec::leak(std::fs::read(path)?),
        None => &mut [],
    };
    for missing in missing_programs() {
        eprintln!("missing: {} (package {})", missing.program, missing.package);
    }
    let catalog = Catalog::open(&PathBuf::from(dir), Arc::new(NoEngine), agent)?;
    let recipe = catalog.resolve(&template.parse()?).ok_or("no such template")?;
    let start = Instant::now();
    let image = tokio::select! {
        image = catalog.image(recipe, Arc::new(Printed(start))) => image?,
        _ = tokio::signal::ctrl_c() => return Err("interrupted".into()),
    };
    println!("{image:#?}\n{:.1} s", start.elapsed().as_secs_f32());
    Ok(())
}

/// Shows steps with the time since the start.
struct Printed(Instant);

impl Progress for Printed {
    fn step(&self, step: &Step) {
        let done = step.fraction.map(|f| format!(" {:3.0} %", f * 100.0)).unwrap_or_default();
        let seconds = self.0.elapsed().as_secs_f32();
        println!("{seconds:6.1} s{done} {}: {}", step.stage, step.detail);
    }
}

/// Cannot boot anything, and need not.
struct NoEngine;

#[async_trait]
impl Engine for NoEngine {
    fn name(&self) -> &'static str {
        "none"
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

    fn bake_key(&self, image: &GuestImage, _: Size) -> String {
        image.digest.clone()
    }

    async fn bake(
        &self,
        _: &GuestImage,
        _: Size,
        _: &Path,
        _: &(dyn Fn(&str) + Send + Sync),
    ) -> Result<(), EngineError> {
        Err(EngineError::Monitor("there is none".to_owned()))
    }

    async fn restore(&self, _: &Bake, _: &Path) -> Result<Box<dyn Machine>, EngineError> {
        Err(EngineError::Monitor("there is none".to_owned()))
    }
}
