//! What a process costs, from `/proc` (formats: proc(5)).

use std::fs;
use std::time::Duration;

use crate::Usage;

/// Kernel ticks a second in `/proc/PID/stat`: `USER_HZ`, 100 on every x86-64 Linux.
const TICK: Duration = Duration::from_millis(10);

/// Reads the usage of a process, or nothing if it is gone.
pub(crate) fn of(pid: u32) -> Option<Usage> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    parse(&stat, &rollup)
}

fn parse(stat: &str, rollup: &str) -> Option<Usage> {
    // The second field is the program's name in parentheses and may contain anything.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
    let kib = |name: &str| -> Option<u64> {
        let line = rollup.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    Some(Usage {
        cpu: TICK * u32::try_from(field(14)? + field(15)?).unwrap_or(u32::MAX),
        rss_bytes: kib("Rss:").map_or(field(24)? * 4096, |k| k << 10),
        pss_bytes: kib("Pss:").unwrap_or(0) << 10,
        vsz_bytes: field(23)?,
        threads: field(20)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_program_name_does_not_shift_the_fields() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 0 0 0 12 3 0 0 20 0 5 0 99 4096000 250 1";
        let usage = parse(stat, "Rss: 100 kB\nPss:  50 kB\n").unwrap();
        assert_eq!(usage.cpu, Duration::from_millis(150));
        assert_eq!((usage.threads, usage.vsz_bytes), (5, 4_096_000));
        assert_eq!((usage.rss_bytes, usage.pss_bytes), (100 << 10, 50 << 10));
        assert!(parse("", "").is_none());
    }

    #[test]
    fn this_process_has_a_usage() {
        let usage = of(std::process::id()).unwrap();
        assert!(usage.rss_bytes > 0 && usage.pss_bytes > 0 && usage.threads > 0);
    }
}
