//! The template object of the contract.

use serde::{Deserialize, Serialize};

use crate::{Size, TemplateName};

/// A template as the API shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateView {
    /// Its name.
    pub name: TemplateName,
    /// Other names that lead to it.
    pub aliases: Vec<TemplateName>,
    /// Content address of its root file system; empty until built.
    pub digest: String,
    /// Whether it is built and can be used at once.
    pub built: bool,
    /// Path in the contract's object; host paths are nobody's business, so always empty.
    pub rootfs_path: String,
    /// Bytes on disk.
    pub size_bytes: u64,
    /// Default vCPUs.
    pub cpu: u32,
    /// Default guest memory in MiB.
    pub memory_mb: u32,
    /// Default writable disk in MiB.
    pub disk_mb: u32,
    /// Size classes that are baked or being baked: what is baked is there at once.
    pub sizes: Vec<SizeView>,
    /// Shared by every user of the server.
    pub is_global: bool,
    /// One line for people.
    pub description: String,
    /// What it brings.
    pub tools: Vec<String>,
}

/// A size class of a template.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SizeView {
    /// vCPUs, memory and disk.
    #[serde(flatten)]
    pub size: Size,
    /// Whether it can be had at once.
    pub state: SizeState,
    /// What happens in its bake.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub step: Option<String>,
    /// How long its bake has been under way, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub elapsed_ms: Option<u64>,
}

impl SizeView {
    /// A class that can be had at once.
    pub fn baked(size: Size) -> Self {
        Self { size, state: SizeState::Baked, step: None, elapsed_ms: None }
    }
}

/// How far a size class is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SizeState {
    /// It can be had at once.
    Baked,
    /// It is being made, or waits for its turn.
    Baking,
}
