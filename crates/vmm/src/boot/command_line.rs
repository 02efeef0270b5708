//! The guest kernel's command line.

/// Words that every guest gets, each for a reason.
const WORDS: &[&str] = &[
    // Each byte that is printed is an exit, on the one way that every bake waits for.
    "quiet",
    // A panic ends the machine: at once, and by the keyboard controller, which is where a reset is
    // listened for. A kernel that finds no controller would go through three other ways first.
    "panic=-1",
    "reboot=k",
    // Which clock a guest trusts must survive what happens to it: forks, pauses of any length, a
    // snapshot that wakes up on a host whose TSC runs a few ppm faster, hosts whose TSCs are not in
    // step. KVM's clock does: its value is saved and set, its rate comes from the host that runs
    // it now, and it is monotonic across vCPUs by construction. Linux would prefer the TSC where
    // that is invariant, so it is told. Where the host itself goes by its TSC, reading the clock
    // needs no system call either.
    "clocksource=kvm-clock",
    // And nobody need compare the TSC with anything: no watchdog that wakes an idle guest twice a
    // second and finds two clocks apart after a fork, no check of synchronisation at start.
    "tsc=reliable",
    // Neither detector of lockups: each is a timer per vCPU that wakes an idle guest every few
    // seconds, and what they would find in a machine that was paused, or whose host is busy, is
    // not the guest's fault.
    "nowatchdog",
    // There is no bus to probe.
    "pci=off",
    // A process that allocates 2 MiB would write 512 pages of 4 KiB to zero them, each of which is
    // copied for a fork and faulted in by the host. Who knows what it does can still ask.
    "transparent_hugepage=madvise",
    // The processor's random numbers count at boot, when nothing else is there: otherwise the first
    // getrandom waits for jitter. After a fork the agent and the generation id see to it.
    "random.trust_cpu=on",
    // Faster boot, and no wall of ours: one tenant owns all of a guest, and all copies of a
    // template would share one address layout anyway.
    "nokaslr",
    "mitigations=off",
    "cryptomgr.notests",
];

/// With the console: one serial port, without: not even a look for one. With it, what a guest
/// says before its agent is up, and its last words, are there to be read ([`crate::legacy`]).
///
/// What is not here: `no_timer_check`, `lpj` and `tsc_early_khz`, which a guest of KVM knows by
/// itself; `i8042.*`, because the ACPI tables say that there is no keyboard controller; `swiotlb`,
/// which no machine of less than 4 GiB has.
pub fn command_line(console: bool) -> String {
    let console = if console {
        ["8250.nr_uarts=1", "console=ttyS0"].as_slice()
    } else {
        &["8250.nr_uarts=0"]
    };
    [WORDS, console].concat().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_console_is_there_on_demand() {
        assert!(command_line(true).ends_with(" 8250.nr_uarts=1 console=ttyS0"));
        assert!(command_line(false).ends_with(" 8250.nr_uarts=0"));
        assert!(!command_line(false).contains("console"));
    }

    #[test]
    fn no_word_is_there_twice() {
        let line = command_line(true);
        let mut words: Vec<&str> = line.split(' ').collect();
        words.sort_unstable();
        let count = words.len();
        words.dedup();
        assert_eq!(words.len(), count);
    }
}
