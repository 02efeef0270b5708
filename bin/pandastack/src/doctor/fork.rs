//! Whether machines of this host can be forked: tried on a template that is there, because
//! nothing else proves it.

use std::path::Path;
use std::time::{Duration, Instant};

use pandastack_engine::EngineError;

use crate::run::Instance;
use crate::workshop::Workshop;

/// What came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fork {
    /// A copy answered, with memory and disk of its own.
    Proved(Duration),
    /// It does not work, and why.
    Refused(String),
    /// There is nothing to try it on, and why.
    Untried(String),
}

impl Fork {
    /// Where no template is built.
    pub fn nothing_built() -> Self {
        Self::Untried("no template is built yet".into())
    }

    /// Tries it on the smallest machine that needs no bake first.
    pub async fn find_out(workshop: &Workshop, data_dir: &Path) -> Self {
        match Self::try_on(workshop, data_dir).await {
            Ok(fork) => fork,
            Err(error) => Self::Untried(format!("{error:#}")),
        }
    }

    async fn try_on(workshop: &Workshop, data_dir: &Path) -> anyhow::Result<Self> {
        let catalog = &workshop.catalog;
        let baked = catalog.list().into_iter().filter_map(|view| {
            let recipe = catalog.resolve(&view.name)?;
            catalog.baked(recipe, recipe.size())
        });
        let Some(bake) = baked.min_by_key(|bake| bake.size.memory_mb) else {
            return Ok(Self::nothing_built());
        };
        let scratch = Instance::create(data_dir)?;
        let begin = Instant::now();
        Ok(match workshop.engine.prove_fork(&bake, scratch.path()).await {
            Ok(()) => Self::Proved(begin.elapsed()),
            Err(EngineError::NoFork(why)) => Self::Refused(why),
            Err(error) => Self::Refused(error.to_string()),
        })
    }
}
