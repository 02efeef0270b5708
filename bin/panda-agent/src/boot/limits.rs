//! What keeps the agent alive next to its tenants.
//!
//! Commands run in `/sys/fs/cgroup/user`, which has a little less than all memory and a number of
//! processes that goes with it. So a memory or fork bomb is stopped there, while the agent, in the
//! root cgroup and exempt from the memory killer, has what it needs.
//!
//! The memory killer takes the largest process and not the whole group: the shell and the other
//! commands around a program that asked for too much live on, as on any machine.

use std::fs;

use anyhow::Context;
use rustix::fs::{CWD, Mode, OFlags, openat};

use super::log;
use crate::exec::tree::Cgroups;
use crate::survey::memory_total;

const TOP: &str = "/sys/fs/cgroup";
const USER: &str = "/sys/fs/cgroup/user";
/// Kept for the kernel and the agent.
const RESERVE: u64 = 48 << 20;

/// Exempts the agent from the memory killer.
pub fn protect_self() -> std::io::Result<()> {
    fs::write("/proc/self/oom_score_adj", "-1000")
}

/// Makes the cgroup of all commands.
pub fn cgroups() -> anyhow::Result<Cgroups> {
    let total = memory_total().context("find out how much memory there is")?;
    for controller in ["+memory", "+pids"] {
        if let Err(error) = fs::write(format!("{TOP}/cgroup.subtree_control"), controller) {
            log(&format!("no limit with {controller}: {error}"));
        }
    }
    fs::create_dir_all(USER)?;
    set("memory.max", memory_limit(total));
    set("pids.max", process_limit(total));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(Cgroups::new(openat(CWD, USER, flags, Mode::empty())?))
}

fn set(file: &str, value: u64) {
    if let Err(error) = fs::write(format!("{USER}/{file}"), value.to_string()) {
        log(&format!("{file} stays unlimited: {error}"));
    }
}

/// All but the reserve; of a very small machine three quarters.
fn memory_limit(total: u64) -> u64 {
    total.saturating_sub(RESERVE).max(total / 4 * 3)
}

/// Four processes per MiB: the kernel's part of each is then at most a tenth of the memory.
fn process_limit(total: u64) -> u64 {
    ((total >> 20) * 4).clamp(1024, 4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_leave_something_for_the_agent() {
        assert_eq!(memory_limit(512 << 20), 464 << 20);
        assert_eq!(memory_limit(128 << 20), 96 << 20);
        assert_eq!([process_limit(128 << 20), process_limit(512 << 20)], [1024, 2048]);
        assert_eq!(process_limit(8 << 30), 4096);
    }
}
