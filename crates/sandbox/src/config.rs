//! What an operator may set, and what of the host is known beforehand.

use std::path::PathBuf;
use std::time::Duration;

use pandastack_types::JailLevel;

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
    /// Time for a machine to run and its agent to acknowledge its identity.
    pub ready_deadline: Duration,
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
            boots_at_once: cpus.max(2),
            forking: true,
            pool_size: 2,
            pool_idle: Duration::from_secs(600),
            default_ttl_seconds: 3600,
            ready_deadline: Duration::from_secs(10),
            exec_timeout: Duration::from_secs(300),
            max_output_bytes: 16 << 20,
            log_bytes: 256 << 10,
            ended_kept: Duration::from_secs(600),
            ended_max: 1000,
        }
    }
}
