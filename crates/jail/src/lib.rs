//! The wall around a machine's process, and the project's `unsafe` corner towards the host.
//!
//! A jailed process is born inside its namespaces ([`spawn`]) and loses everything else before
//! its program starts: one read-only directory is its file system, the descriptors it was given
//! are its world, and there is no network, no capability and no way to get either back. What a
//! host cannot provide is a [`Level`] that callers show to people; it is never skipped silently.
//!
//! ```text
//!   supervisor                         child (all namespaces new)
//!   ──────────                         ──────────────────────────
//!   clone3 ───────────────────────────▶ wait
//!   uid_map, gid_map, cgroup
//!   "mapped" ─────────────────────────▶ descriptors, root, rlimits, ids, seccomp,
//!                                       die-with-parent
//!          ◀───────────────────────── "ready"
//!   "go" ─────────────────────────────▶ execve
//!          ◀── end of file, or the step and errno that failed
//! ```

mod cgroup;
mod child;
mod probe;
mod seccomp;
mod spawn;
mod tsc;

pub use cgroup::{Cgroup, CgroupLimits, Cgroups};
pub use child::Step;
pub use probe::{Level, probe};
pub use seccomp::Filter;
pub use spawn::{Child, Program, Rlimits, SpawnError, spawn};
pub use tsc::tsc_khz;
