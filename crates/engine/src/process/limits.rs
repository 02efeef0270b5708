//! What one machine may take from the host.

use pandastack_jail::{CgroupLimits, Rlimits};

/// Share of the processors of a machine that somebody waits for: everybody's default.
pub(super) const CPU_WEIGHT: u32 = 100;
/// Share of a machine that nobody waits for.
pub(super) const BACKGROUND_WEIGHT: u32 = 5;

/// Processes and threads of one machine.
const MACHINE_TASKS: u32 = 128;

/// Processes and threads of a machine and all of its forks: the kernel counts them together, in
/// the user namespace that they descend from. Where a host has control groups, [`MACHINE_TASKS`]
/// bounds each.
const FAMILY_TASKS: u64 = 16 << 10;

/// Limits of a machine's process that need no control group.
pub(crate) fn rlimits() -> Rlimits {
    Rlimits { file_size: 64 << 30, descriptors: 1024, processes: FAMILY_TASKS }
}

/// Limits of a machine's control group, with so much memory.
pub(crate) fn of_group(memory_bytes: u64) -> CgroupLimits {
    CgroupLimits { memory_bytes, pids: MACHINE_TASKS, cpu_weight: CPU_WEIGHT }
}
