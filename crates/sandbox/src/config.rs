//! What an operator may set, and what of the host is known beforehand.

use std::path::PathBuf;
use std::time::Duration;

use pandastack_types::{JailLevel, SizeLimits};

use crate::classes;
use crate::custody::Outliving;

/// Limits and places of one server.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory of this server's running state; two servers cannot share one.
    pub instance_dir: PathBuf,
    /// How much of the jail this host gives machines.
    pub jail: JailLevel,
    /// Most sandboxes at a time.
    pub max_sandboxes: usize,
    /// Host memory in MiB that creating a sandbox must leave available.
    pub memory_reserve_mb: u64,
    /// Share of a guest's memory that it is expected to touch, in percent. Guests share the
    /// pages of their template, so most never need what they may use at most.
    pub memory_estimate_percent: u64,
    /// Host disk in MiB that creating a sandbox must leave free.
    pub disk_reserve_mb: u64,
    /// Share of a sandbox's disk that it is expected to fill, in percent: disks hold only what was
    /// written to them.
    pub disk_estimate_percent: u64,
    /// The largest sandbox that anybody may have.
    pub size_limits: SizeLimits,
    /// Size classes besides the templates' own that stay baked although nobody uses them.
    pub size_classes: usize,
    /// Most volumes.
    pub max_volumes: usize,
    /// How long a create waits for its size class to be baked.
    pub bake_patience: Duration,
    /// Machines that start at the same time; more wait their turn, so that a burst of creates
    /// does not make every one of them miss its deadline.
    pub boots_at_once: usize,
    /// Whether machines are forked where the engine proves that it can; else they are restored.
    pub forking: bool,
    /// Parked machines per template and size class; 0 turns the pool off.
    pub pool_size: usize,
    /// How long a size class that is not a template's default keeps its machines unused.
    pub pool_idle: Duration,
    /// Seconds of life of a sandbox whose creator named no limit and that is not persistent.
    pub default_ttl_seconds: u64,
    /// Seconds without use after which a persistent sandbox hibernates whose creator said nothing
    /// of it; 0 for never.
    pub idle_timeout_seconds: u64,
    /// Time for a machine to run and its agent to acknowledge its identity.
    pub ready_deadline: Duration,
    /// Time for the network to take a machine or a policy. It has a deadline of its own that is
    /// shorter; this one is for a network that has lost count of time.
    pub network_deadline: Duration,
    /// Time limit of a collected command that names none.
    pub exec_timeout: Duration,
    /// Bytes kept per output stream of a collected command.
    pub max_output_bytes: usize,
    /// Bytes of output lines kept per sandbox.
    pub log_bytes: usize,
    /// How long a sandbox whose machine ended by itself keeps answering why.
    pub ended_kept: Duration,
    /// Most such sandboxes; the oldest is forgotten first.
    pub ended_max: usize,
    /// How sandboxes outlive this server if it is killed; they end with it if this is absent.
    pub outliving: Option<Outliving>,
}

impl Config {
    /// The defaults, for a server whose running state is in `instance_dir`.
    pub fn new(instance_dir: PathBuf) -> Self {
        let cpus = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            instance_dir,
            jail: JailLevel::default(),
            max_sandboxes: 64,
            memory_reserve_mb: 512,
            memory_estimate_percent: 25,
            disk_reserve_mb: 512,
            disk_estimate_percent: 10,
            size_limits: SizeLimits::default(),
            size_classes: 16,
            max_volumes: 256,
            bake_patience: classes::PATIENCE,
            boots_at_once: cpus.max(2),
            forking: true,
            pool_size: 2,
            pool_idle: Duration::from_secs(600),
            default_ttl_seconds: 3600,
            idle_timeout_seconds: 0,
            ready_deadline: Duration::from_secs(10),
            network_deadline: Duration::from_secs(15),
            exec_timeout: Duration::from_secs(300),
            max_output_bytes: 16 << 20,
            log_bytes: 256 << 10,
            ended_kept: Duration::from_secs(600),
            ended_max: 1000,
            outliving: None,
        }
    }
}
