//! The template object of the contract.

use serde::{Deserialize, Serialize};

use crate::TemplateName;

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
    /// Shared by every user of the server.
    pub is_global: bool,
    /// One line for people.
    pub description: String,
    /// What it brings.
    pub tools: Vec<String>,
}
