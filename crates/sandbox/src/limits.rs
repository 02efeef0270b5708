//! How long a sandbox may live: pure arithmetic.
//!
//! The deadline is exact and never early: it is the instant of the request plus the time to
//! live. A changed time to live counts from the change.

use std::time::{Duration, Instant};

/// A change of a sandbox's lifecycle; absent members stay as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LifecycleChange {
    /// New seconds of life from now on, 0 for no limit.
    pub ttl_seconds: Option<i64>,
    /// Whether it outlives a client's `with` block.
    pub persistent: Option<bool>,
}

/// The limits in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Seconds of life, 0 for no limit.
    pub(crate) ttl_seconds: u64,
    /// Whether it outlives a client's `with` block.
    pub(crate) persistent: bool,
    /// When it ends.
    pub(crate) deadline: Option<Instant>,
    /// Whether a client chose the limit; one that nobody chose gives way to `persistent`.
    chosen: bool,
    default_ttl: u64,
}

impl Limits {
    /// The limits of a new sandbox.
    pub(crate) fn new(
        ttl_seconds: Option<u64>,
        persistent: bool,
        default_ttl: u64,
        now: Instant,
    ) -> Self {
        let ttl = ttl_seconds.unwrap_or(if persistent { 0 } else { default_ttl });
        Self { persistent, default_ttl, ..Self::with_ttl(ttl, ttl_seconds.is_some(), now) }
    }

    /// The limits of a child that is born `now`: the same settings, unless its time is chosen.
    pub(crate) fn inherited(self, ttl_seconds: Option<u64>, now: Instant) -> Self {
        let chosen = self.chosen || ttl_seconds.is_some();
        let timing = Self::with_ttl(ttl_seconds.unwrap_or(self.ttl_seconds), chosen, now);
        Self { persistent: self.persistent, default_ttl: self.default_ttl, ..timing }
    }

    /// The limits after a change at `now`.
    pub(crate) fn changed(
        self,
        ttl_seconds: Option<u64>,
        persistent: Option<bool>,
        now: Instant,
    ) -> Self {
        let persistent = persistent.unwrap_or(self.persistent);
        let flipped = persistent != self.persistent;
        let default = if persistent { 0 } else { self.default_ttl };
        let timing = match ttl_seconds {
            Some(ttl) => Self::with_ttl(ttl, true, now),
            None if flipped && !self.chosen => Self::with_ttl(default, false, now),
            None => self,
        };
        Self { persistent, default_ttl: self.default_ttl, ..timing }
    }

    fn with_ttl(ttl_seconds: u64, chosen: bool, now: Instant) -> Self {
        // A limit beyond what the clock can count is no limit.
        let deadline = match ttl_seconds {
            0 => None,
            ttl => now.checked_add(Duration::from_secs(ttl)),
        };
        Self { ttl_seconds, persistent: false, deadline, chosen, default_ttl: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(start: Instant, seconds: u64) -> Option<Instant> {
        Some(start + Duration::from_secs(seconds))
    }

    #[test]
    fn a_new_sandbox_gets_the_default_unless_it_chose_or_is_persistent() {
        let now = Instant::now();
        assert_eq!(Limits::new(None, false, 3600, now).deadline, after(now, 3600));
        assert_eq!(Limits::new(None, true, 3600, now).deadline, None);
        assert_eq!(Limits::new(Some(5), true, 3600, now).deadline, after(now, 5));
        assert_eq!(Limits::new(Some(0), false, 3600, now).deadline, None);
        assert_eq!(Limits::new(Some(u64::MAX), false, 3600, now).deadline, None);
    }

    #[test]
    fn a_new_limit_counts_from_the_change() {
        let now = Instant::now();
        let later = now + Duration::from_secs(50);
        let limits = Limits::new(Some(60), false, 3600, now).changed(Some(60), None, later);
        assert_eq!((limits.ttl_seconds, limits.deadline), (60, after(later, 60)));
        assert_eq!(limits.changed(Some(0), None, later).deadline, None);
    }

    #[test]
    fn a_child_has_its_parents_time_from_its_own_birth() {
        let now = Instant::now();
        let later = now + Duration::from_secs(50);
        let parent = Limits::new(Some(60), true, 3600, now);
        let child = parent.inherited(None, later);
        assert_eq!((child.deadline, child.persistent), (after(later, 60), true));
        assert_eq!(parent.inherited(Some(5), later).deadline, after(later, 5));
        let default = Limits::new(None, false, 3600, now).inherited(None, later);
        assert_eq!(default.changed(None, Some(true), later).deadline, None, "nobody chose it");
    }

    #[test]
    fn persistent_lifts_only_the_default() {
        let now = Instant::now();
        let default = Limits::new(None, false, 3600, now);
        assert_eq!(default.changed(None, Some(true), now).deadline, None);
        assert_eq!(default.changed(None, Some(false), now), default, "no change, no new deadline");
        let back = default.changed(None, Some(true), now).changed(None, Some(false), now);
        assert_eq!(back.deadline, after(now, 3600));
        let chosen = Limits::new(Some(9), false, 3600, now);
        let kept = chosen.changed(None, Some(true), now);
        assert_eq!((kept.deadline, kept.persistent), (after(now, 9), true));
    }
}
