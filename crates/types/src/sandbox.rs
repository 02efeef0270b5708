//! The objects of the sandbox routes, as they go over the wire.

use std::collections::BTreeMap;

use pandastack_policy::Policy;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::{EndReason, SandboxId, Size, SnapshotId, State, TemplateName, TtlMode, VolumeMount};

/// What a client asked for, validated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// The template, with aliases resolved.
    pub template: TemplateName,
    /// vCPUs, memory and disk.
    pub size: Size,
    /// Free labels of the client.
    pub metadata: BTreeMap<String, String>,
    /// Seconds until the reaper ends it; 0 for no limit.
    pub ttl_seconds: u64,
    /// Not ended by a client library's `with` block, and without a default time to live.
    pub persistent: bool,
}

/// How strong the wall around a guest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Isolation {
    /// A hardware virtualisation boundary.
    Hardware,
    /// The guest's instructions are emulated by a confined process. QEMU's authors do not call
    /// this a security boundary, so the jail around the process is the wall.
    Emulated,
}

impl Isolation {
    /// The label shown in every object.
    pub fn as_str(self) -> &'static str {
        match self {
            Isolation::Hardware => "hardware",
            Isolation::Emulated => "emulated",
        }
    }
}

/// How much of the jail that is meant for machines this host gives them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JailLevel {
    /// All of it.
    Full,
    /// Not all of it, which the operator has allowed. `doctor` says what is missing.
    #[default]
    Reduced,
}

impl JailLevel {
    /// The label shown in every object.
    pub fn as_str(self) -> &'static str {
        match self {
            JailLevel::Full => "full",
            JailLevel::Reduced => "reduced",
        }
    }
}

/// A sandbox as the API shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SandboxView {
    /// Its id.
    pub id: SandboxId,
    /// The template as the client named it.
    pub template: TemplateName,
    /// vCPUs.
    pub cpu: u32,
    /// Guest memory in MiB.
    pub memory_mb: u32,
    /// Writable disk in MiB.
    pub disk_mb: u32,
    /// Where it is in its life.
    pub status: State,
    /// Labels of the client.
    pub metadata: BTreeMap<String, String>,
    /// Milliseconds from the request to the agent's acknowledgement.
    pub boot_ms: u64,
    /// How its machine came to be: `pool`, `fork`, `snapshot` or `wake`.
    pub boot_mode: String,
    /// The snapshot that it was made of.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub from_snapshot: Option<SnapshotId>,
    /// When it was asked for.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// Whether it outlives a client's `with` block.
    pub persistent: bool,
    /// Seconds of life, 0 for no limit.
    pub ttl_seconds: u64,
    /// `qemu` or `kvm`.
    pub engine: String,
    /// How strong its wall is.
    pub isolation: Isolation,
    /// How much of the jail its machine's process is in. A server that does not say is not
    /// believed to have all of it.
    #[serde(default)]
    pub jail: JailLevel,
    /// What it may reach.
    pub egress: Policy,
    /// Its volumes.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub volumes: Vec<VolumeMount>,
    /// Why it ended, once it did.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub end_reason: Option<EndReason>,
}

/// The lifecycle object of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lifecycle {
    /// Seconds of life, 0 for no limit.
    pub ttl_seconds: u64,
    /// What they count.
    #[serde(default)]
    pub ttl_mode: TtlMode,
    /// Whether it outlives a client's `with` block.
    pub persistent: bool,
    /// Seconds since the last exec or file operation.
    pub idle_seconds: u64,
    /// Seconds without use after which it hibernates, 0 for never.
    #[serde(default)]
    pub idle_timeout: u64,
}

/// One command to run in a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// A line for the guest's shell; ignored when `argv` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmd: Option<String>,
    /// The exact argument vector, without a shell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub argv: Option<Vec<String>>,
    /// Seconds until its whole process tree is killed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<i64>,
    /// Variables added to the guest's default environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Working directory; the user's home when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// User name in the guest; root when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Text for standard input; closed at once when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
}

/// What a command left behind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecOutput {
    /// Standard output; bytes that are not UTF-8 are replaced.
    pub stdout: String,
    /// Standard error, likewise.
    pub stderr: String,
    /// Exit status, or 128 + the signal's number.
    pub exit_code: i32,
    /// Milliseconds from the request to the exit, seen by the host.
    pub duration_ms: u64,
    /// Set when output beyond the server's limit was dropped.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
}

/// A file or directory of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its name in its directory.
    pub name: String,
    /// Its full path.
    pub path: String,
    /// Whether it is a directory.
    pub is_dir: bool,
    /// Bytes.
    pub size: u64,
    /// Type and permissions as `ls -l` writes them, such as `-rw-r--r--`.
    pub mode: String,
    /// Last change, Unix seconds.
    pub mtime: i64,
}

/// What a sandbox costs the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// The machine's process.
    pub pid: u32,
    /// Seconds since it became ready.
    pub uptime_seconds: f64,
    /// Share of one host CPU over the machine's life, in percent.
    pub host_cpu_percent: f64,
    /// Resident bytes.
    pub host_rss_bytes: u64,
    /// Proportional share of resident bytes: shared pages divided by their users.
    pub host_pss_bytes: u64,
    /// Address space in bytes.
    pub host_vsz_bytes: u64,
    /// Threads of the machine's process.
    pub threads: u64,
}
