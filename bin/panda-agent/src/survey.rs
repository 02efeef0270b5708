//! What the guest says about itself: ports and measurements.

use pandastack_proto::{Failure, Stats};
use rustix::io::Errno;

use crate::failure::because;
use crate::files;

/// Most ports in an answer: at three bytes each they fit in a frame.
const MAX_PORTS: usize = 16 * 1024;
/// Most bytes read of one table of the kernel.
const MAX_TABLE: u64 = 4 << 20;

/// TCP ports in state LISTEN, of IPv4 and IPv6, sorted.
pub fn ports() -> Result<Vec<u16>, Failure> {
    let mut ports: Vec<u16> = listening(&read("/proc/net/tcp")?).collect();
    // A kernel without IPv6 has no such table.
    ports.extend(listening(&read("/proc/net/tcp6").unwrap_or_default()));
    ports.sort_unstable();
    ports.dedup();
    ports.truncate(MAX_PORTS);
    Ok(ports)
}

fn listening(table: &str) -> impl Iterator<Item = u16> {
    table.lines().skip(1).filter_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let local = fields.nth(1)?;
        let state = fields.nth(1)?;
        let (_, port) = local.rsplit_once(':')?;
        (state == "0A").then(|| u16::from_str_radix(port, 16).ok()).flatten()
    })
}

/// Measurements of this moment.
pub fn stats() -> Result<Stats, Failure> {
    let uptime = read("/proc/uptime")?;
    let load = read("/proc/loadavg")?;
    let memory = read("/proc/meminfo")?;
    let tasks = load.split(['/', ' ']).nth(4).and_then(|n| n.parse().ok());
    Ok(Stats {
        uptime_ms: hundredths(&uptime) * 10,
        mem_total: kilobytes(&memory, "MemTotal:"),
        mem_available: kilobytes(&memory, "MemAvailable:"),
        load_percent: u32::try_from(hundredths(&load)).unwrap_or(u32::MAX),
        tasks: tasks.unwrap_or(0),
    })
}

/// The first number of a line such as `12.34 …`, times 100.
fn hundredths(text: &str) -> u64 {
    let number = text.split_ascii_whitespace().next().unwrap_or_default();
    let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
    let parse = |digits: &str| digits.parse::<u64>().unwrap_or(0);
    parse(whole).saturating_mul(100).saturating_add(parse(part))
}

/// Total bytes of memory, by the same table.
pub fn memory_total() -> Option<u64> {
    Some(kilobytes(&read("/proc/meminfo").ok()?, "MemTotal:")).filter(|&total| total > 0)
}

fn kilobytes(table: &str, key: &str) -> u64 {
    let line = table.lines().find_map(|line| line.strip_prefix(key));
    let number = line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse::<u64>().ok());
    number.unwrap_or(0).saturating_mul(1024)
}

fn read(path: &str) -> Result<String, Failure> {
    let bytes = files::read_start(path, MAX_TABLE)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
        .map_err(because(|| path.to_owned()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listening_sockets_count() {
        let table = "  sl  local_address rem_address   st\n   \
            0: 0100007F:1F90 00000000:0000 0A 00000000:00000000\n   \
            1: 0100007F:1F91 0100007F:1F90 01 00000000:00000000\n   \
            2: 00000000000000000000000000000000:0050 0000:0000 0A 0\nbad\n";
        assert_eq!(listening(table).collect::<Vec<_>>(), [8080, 80]);
    }

    #[test]
    fn numbers_of_the_kernel_are_read() {
        assert_eq!(hundredths("12.34 5.00"), 1234);
        assert_eq!(hundredths(""), 0);
        assert_eq!(kilobytes("MemTotal:  2 kB\nX: 1", "MemTotal:"), 2048);
        assert!(stats().is_ok_and(|s| s.tasks > 0 && s.mem_total >= s.mem_available));
    }
}
