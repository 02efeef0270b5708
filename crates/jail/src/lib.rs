//! The wall around a machine's process, and the project's `unsafe` corner towards the host.
//!
//! A jailed process is born inside its namespaces ([`spawn`]) and loses everything else before
//! its program starts: one read-only directory is its file system, the descriptors it was given
//! are its world, and there is no network, no capability and no way to get either back. One kind
//! of process keeps the host's network and nothing else: the gateway ([`Confine::HostNetwork`]).
//! What a host cannot provide is a [`Level`] that callers show to people; it is never skipped silently.
//!
//! The program is process 2 of its namespaces: process 1 is a keeper that outlives it, because a
//! program can fork, and its forks must not end with it.
//!
//! ```text
//!   supervisor                   process 1 (all namespaces new)     process 2
//!   ──────────                   ──────────────────────────────     ─────────
//!   clone3 ────────────────────▶ wait
//!   uid_map, gid_map
//!   "mapped" ──────────────────▶ descriptors, root, rlimits, ids,
//!                                die-with-parent, Landlock,
//!                                seccomp
//!                                clone ───────────────────────────▶ cgroup
//!          ◀── "ready" + pidfd ─ wait                               wait
//!   "go", "go" ────────────────▶ close everything
//!                                execve keeper                      execve program
//!          ◀── end of file, or the step and errno that failed
//! ```
//!
//! Whoever ends process 1 ends everything in there, and the kernel does so when the supervisor
//! dies, unless the family hangs on a lifeline, which can be handed to another supervisor.
//! [`Child::kill`] ends the program alone.

mod cgroup;
mod child;
mod ids;
mod landlock;
mod probe;
mod process;
pub mod root;
pub mod seccomp;
mod spawn;
mod spawner;
mod tsc;

pub use cgroup::{Cgroup, CgroupLimits, Cgroups};
pub use child::Step;
pub use ids::give_ids;
pub use landlock::renounce;
pub use probe::{Grade, Level, Missing, probe};
pub use process::Child;
pub use seccomp::Filter;
pub use spawn::{Confine, Program, Rlimits, SpawnError};
pub use spawner::spawn;
pub use tsc::tsc_khz;
