//! What a monitor keeps of the host's memory, from `/proc/PID/smaps` (proc(5)).

use std::fs;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// Bytes in KiB, as the kernel counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Share {
    /// Its proportional share: pages of its own, and its part of those that it shares.
    pss: u64,
    /// Pages that nobody else has.
    private: u64,
}

/// Guest memory apart from everything else.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Footprint {
    guest: Share,
    monitor: Share,
}

impl Footprint {
    /// That of a process whose guest memory is the mapping of a file called `memory`.
    pub fn of(pid: u32) -> Result<Self> {
        let path = format!("/proc/{pid}/smaps");
        let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        Ok(Self::parse(&text))
    }

    fn parse(smaps: &str) -> Self {
        let mut sum = Self::default();
        let mut is_guest = false;
        for line in smaps.lines() {
            let mut words = line.split_whitespace();
            let Some(first) = words.next() else { continue };
            let Some(field) = first.strip_suffix(':') else {
                // The head of a mapping: its last word is the file.
                let file = line.trim_end_matches(" (deleted)");
                is_guest = file.ends_with("/memory");
                continue;
            };
            let mut kib = || words.next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
            let share = if is_guest { &mut sum.guest } else { &mut sum.monitor };
            match field {
                "Pss" => share.pss += kib(),
                "Private_Clean" | "Private_Dirty" => share.private += kib(),
                _ => {}
            }
        }
        sum
    }
}

/// The mean of several, in KiB.
pub fn mean(of: &[Footprint]) -> Value {
    let mean = |pick: fn(&Footprint) -> u64| {
        of.iter().map(pick).sum::<u64>() as f64 / of.len().max(1) as f64
    };
    json!({
        "guest_pss": mean(|it| it.guest.pss), "guest_private": mean(|it| it.guest.private),
        "monitor_pss": mean(|it| it.monitor.pss), "monitor_private": mean(|it| it.monitor.private),
    })
}

/// The parent of a process.
pub fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses and may contain anything.
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// What is charged to a process's control group, in KiB: also page tables and what KVM keeps.
pub fn charged(pid: u32) -> Option<f64> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    let bytes = fs::read_to_string(format!("/sys/fs/cgroup{group}/memory.current")).ok()?;
    bytes.trim().parse::<f64>().ok().map(|bytes| bytes / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_is_told_from_the_rest() {
        let smaps = "\
7f00-7f10 rw-p 00000000 00:01 5   /data/bake/memory (deleted)
Pss:                  40 kB
Private_Clean:         4 kB
Private_Dirty:        20 kB
7f10-7f20 rw-p 00000000 00:00 0
Pss:                   7 kB
Private_Dirty:         6 kB
VmFlags: rd wr
";
        let guest = Share { pss: 40, private: 24 };
        let monitor = Share { pss: 7, private: 6 };
        assert_eq!(Footprint::parse(smaps), Footprint { guest, monitor });
    }
}
