//! What the server says of itself when it is up.

use std::path::{Path, PathBuf};

use pandastack_types::{Isolation, JailLevel};
use serde::Serialize;

use super::Args;
use crate::api_key::{ApiKey, Origin};
use crate::cli::Context;
use crate::output;
use crate::server::Server;
use crate::workshop::Workshop;

/// The facts of a running server.
#[derive(Clone, Debug, Serialize)]
pub struct Announcement {
    api_url: String,
    engine: &'static str,
    engine_version: String,
    engine_reason: String,
    isolation: Isolation,
    /// How much of the jail machines are in.
    jail: JailLevel,
    /// The same with its parts, for people.
    jail_parts: String,
    pool: usize,
    data_dir: PathBuf,
    /// File with the key, if it is in one.
    key_file: Option<PathBuf>,
    #[serde(skip)]
    key: String,
}

impl Announcement {
    /// Collects the facts.
    pub fn new(
        workshop: &Workshop,
        server: &Server,
        args: &Args,
        data_dir: &Path,
        key: &ApiKey,
    ) -> Self {
        Self {
            api_url: server.url().to_owned(),
            engine: workshop.engine.name(),
            engine_version: workshop.engine.version(),
            engine_reason: workshop.reason.clone(),
            isolation: workshop.engine.isolation(),
            jail: workshop.confinement.grade(),
            jail_parts: workshop.confinement.describe(),
            pool: args.pool,
            data_dir: data_dir.to_owned(),
            key_file: match key.origin() {
                Origin::Own(path) | Origin::Named(path) => Some(path.clone()),
                Origin::Environment | Origin::Ephemeral => None,
            },
            key: key.origin().to_string(),
        }
    }

    /// Prints them: a line each for people, one object for programs, which know from it that
    /// the server answers.
    pub fn print(&self, context: Context) -> anyhow::Result<()> {
        if context.json {
            return output::json(self);
        }
        output::line(&format!(
            "PandaStack {} answers at {}",
            env!("CARGO_PKG_VERSION"),
            self.api_url
        ))?;
        for (name, value) in [
            (
                "engine",
                format!("{} ({}): {}", self.engine, self.engine_version, self.engine_reason),
            ),
            ("isolation", format!("{}: {}", self.isolation.as_str(), meaning(self.isolation))),
            ("jail", self.jail_parts.clone()),
            ("pool", format!("{} machines ready per template", self.pool)),
            ("data", self.data_dir.display().to_string()),
            ("API key", self.key.clone()),
        ] {
            output::line(&format!("  {name:10} {value}"))?;
        }
        Ok(())
    }
}

/// What a label promises, and what it does not.
fn meaning(isolation: Isolation) -> &'static str {
    match isolation {
        Isolation::Hardware => "the processor keeps the guest in",
        Isolation::Emulated => {
            "QEMU runs the guest's instructions, and the jail around that process is the wall; \
             weaker than hardware virtualisation"
        }
    }
}
