//! The host's time stamp counter frequency.

use std::time::{Duration, Instant};

/// The frequency of the time stamp counter in kHz, measured against the monotonic clock over
/// `window` (50 ms gives about 10 parts per million). An emulated guest reads this very counter
/// and, on a machine type without timers, cannot calibrate it itself.
pub fn tsc_khz(window: Duration) -> u64 {
    let begin = sample();
    while begin.1.elapsed() < window {
        std::thread::sleep(window.saturating_sub(begin.1.elapsed()));
    }
    let end = sample();
    let ticks = u128::from(end.0.wrapping_sub(begin.0));
    let nanos = end.1.duration_since(begin.1).as_nanos().max(1);
    u64::try_from(ticks * 1_000_000 / nanos).unwrap_or(u64::MAX)
}

/// A pair of readings taken together: the tightest of a few tries, so that being descheduled
/// between the two does not count.
fn sample() -> (u64, Instant) {
    let read = || {
        let before = Instant::now();
        // SAFETY: RDTSC has no preconditions on x86-64; user mode may execute it unless the
        // process asked the kernel for PR_TSC_SIGSEGV, which this program never does.
        let ticks = unsafe { core::arch::x86_64::_rdtsc() };
        (before.elapsed(), ticks, before)
    };
    let (_, ticks, at) = (0..8).map(|_| read()).min_by_key(|r| r.0).unwrap_or_else(read);
    (ticks, at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree() {
        let (a, b) = (tsc_khz(Duration::from_millis(40)), tsc_khz(Duration::from_millis(40)));
        assert!(a > 100_000, "{a} kHz is below any x86-64 processor");
        assert!(a.abs_diff(b) < a / 1000, "{a} and {b} kHz differ by more than 0.1 %");
    }
}
