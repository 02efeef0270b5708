//! How fast bytes may go: a token bucket.

use std::time::Duration;

/// How much may go at once after a pause, in time at the full rate. Short, so that a limit holds
/// within the second that somebody looks at it; long enough that a busy host, on which we wake
/// late, does not make it lower than it is.
const BURST: Duration = Duration::from_millis(200);
/// Smallest burst in bytes: a packet or two.
const MIN_BURST: u64 = 3_000;

/// Least bytes that go at once: a packet's worth. A byte at a time would be a packet for each.
pub const PACKET: u64 = 1_500;

/// The limit of one direction, or none.
#[derive(Debug)]
pub struct Bucket {
    rate: Option<u64>,
    least: u64,
    tokens: u64,
    filled: Duration,
}

impl Bucket {
    /// A full bucket. `rate` is per second, and what goes at once is `least` or more.
    pub fn new(rate: Option<u64>, least: u64, now: Duration) -> Self {
        Self { rate, least, tokens: rate.map_or(0, burst), filled: now }
    }

    /// Another rate; what has been spent stays spent.
    pub fn set_rate(&mut self, rate: Option<u64>, now: Duration) {
        if self.rate != rate {
            let tokens = self.tokens.min(rate.map_or(0, burst));
            *self = Self { rate, least: self.least, tokens, filled: now };
        }
    }

    /// How many bytes may go now.
    pub fn room(&mut self, now: Duration) -> usize {
        let Some(rate) = self.rate else { return usize::MAX };
        let passed = now.saturating_sub(self.filled).min(Duration::from_secs(1));
        let new = (u128::from(rate) * passed.as_nanos() / 1_000_000_000) as u64;
        // Time that is worth less than a byte is kept: turns may come faster than bytes.
        let worth =
            Duration::from_nanos((u128::from(new) * 1_000_000_000 / u128::from(rate)) as u64);
        self.tokens = self.tokens.saturating_add(new).min(burst(rate));
        self.filled = now.saturating_sub(passed - worth.min(passed));
        if self.tokens < self.least {
            return 0;
        }
        usize::try_from(self.tokens).unwrap_or(usize::MAX)
    }

    /// Counts bytes that went.
    pub fn spend(&mut self, bytes: usize) {
        self.tokens = self.tokens.saturating_sub(bytes as u64);
    }

    /// When an empty bucket is worth another look.
    pub fn next(&self, now: Duration) -> Duration {
        let rate = self.rate.unwrap_or(u64::MAX).max(1);
        now + Duration::from_nanos(
            MIN_BURST.saturating_mul(1_000_000_000 / rate.min(1_000_000_000)),
        )
        .clamp(Duration::from_millis(1), Duration::from_secs(1))
    }
}

fn burst(rate: u64) -> u64 {
    (rate / (1000 / BURST.as_millis() as u64)).max(MIN_BURST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_holds_over_a_second_and_over_many() {
        for (rate, step) in [
            (1_000, Duration::from_millis(1)),
            (65_536, Duration::from_millis(1)),
            // Turns that come faster than bytes.
            (200_000, Duration::from_nanos(7_100)),
            (10_000_000, Duration::from_millis(1)),
            (1_000_000_000_000, Duration::from_millis(1)),
        ] {
            let mut bucket = Bucket::new(Some(rate), PACKET, Duration::ZERO);
            let (mut now, mut went) = (Duration::ZERO, 0_u64);
            while now < Duration::from_secs(10) {
                let room = bucket.room(now);
                assert!(room == 0 || room as u64 >= PACKET, "{room} bytes at once");
                bucket.spend(room);
                went += room as u64;
                now += step;
            }
            let (least, most) = (rate * 9, rate * 10 + burst(rate));
            assert!((least..=most).contains(&went), "{rate}/s: {went} in 10 s");
        }
        assert_eq!(Bucket::new(None, PACKET, Duration::ZERO).room(Duration::ZERO), usize::MAX);
    }
}
