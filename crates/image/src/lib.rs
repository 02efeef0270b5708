//! Templates: from a recipe to a machine that can be restored.
//!
//! ```text
//!  recipe ──mmdebstrap──▶ root ──+ agent──▶ image ──engine──▶ bake
//!  (TOML)                 roots/            images/           bakes/
//! ```
//!
//! Each step's result is a read-only directory whose name is a digest of everything that went
//! into it, so a step runs again exactly when its input changed: a new recipe makes everything
//! anew, a new agent only image and bake, another QEMU only the bake.
//!
//! Invariants:
//!
//! * A directory under `roots/`, `images/` or `bakes/` is complete: it was filled elsewhere,
//!   flushed to disk and renamed into place.
//! * Nothing half-made survives. What an interrupted build leaves is removed by the next
//!   [`Catalog::open`], and nothing a build starts outlives it.
//! * Nothing of the host gets into a template: no names, no package sources, no devices.
#![forbid(unsafe_code)]

mod build;
mod catalog;
mod classes;
mod error;
mod gate;
mod image;
mod initramfs;
mod log;
mod progress;
mod prune;
mod recipe;
mod shelf;
mod workdir;

pub use build::{MissingProgram, missing_programs};
pub use catalog::Catalog;
pub use error::ImageError;
pub use progress::{Progress, Quiet, Stage, Step};
pub use prune::Pruned;
pub use recipe::{Recipe, RecipeError};
