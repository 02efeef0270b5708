//! The host's memory and disk.

use std::io;
use std::path::Path;

/// Memory in MiB that the host can give without swapping. `None` where it cannot be told; then
/// the number of sandboxes is the only limit.
pub(crate) fn available_mb() -> Option<u64> {
    parse(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

/// Space in MiB that the file system of `dir` has left for us.
pub(crate) fn free_disk_mb(dir: &Path) -> io::Result<u64> {
    let numbers = rustix::fs::statvfs(dir)?;
    Ok(numbers.f_bavail.saturating_mul(numbers.f_frsize) >> 20)
}

fn parse(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_understood() {
        let text = "MemTotal:       24000000 kB\nMemFree: 1 kB\nMemAvailable:   2097152 kB\n";
        assert_eq!(parse(text), Some(2048));
        assert_eq!(parse("MemTotal: 1 kB\n"), None);
        assert!(available_mb().is_some());
    }
}
