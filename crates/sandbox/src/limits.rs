//! How long a sandbox may live: pure arithmetic.
//!
//! The deadline is exact and never early: it is the instant of the request plus the time to
//! live. A changed time to live counts from the change.

use std::time::{Duration, Instant};

use pandastack_store::Lifetime;
use pandastack_types::TtlMode;
use time::OffsetDateTime;

/// A change of a sandbox's lifecycle; absent members stay as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LifecycleChange {
    /// New seconds of life from now on, 0 for no limit.
    pub ttl_seconds: Option<i64>,
    /// Whether it outlives a client's `with` block.
    pub persistent: Option<bool>,
    /// What the seconds of life count.
    pub ttl_mode: Option<TtlMode>,
    /// New seconds without use after which it hibernates, 0 for never.
    pub idle_timeout: Option<i64>,
}

/// A change that was found to be possible.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Change {
    pub(crate) ttl_seconds: Option<u64>,
    pub(crate) persistent: Option<bool>,
    pub(crate) ttl_mode: Option<TtlMode>,
    pub(crate) idle_timeout: Option<u64>,
    /// Gives it what a create gives that chooses no time, if that is longer than what it has left.
    pub(crate) as_created: bool,
}

/// The limits in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Seconds of life, 0 for no limit.
    pub(crate) ttl_seconds: u64,
    /// Whether it outlives a client's `with` block.
    pub(crate) persistent: bool,
    /// What they count.
    pub(crate) ttl_mode: TtlMode,
    /// When it ends, if they count time.
    pub(crate) deadline: Option<Instant>,
    /// Seconds without use after which it hibernates, 0 for never.
    pub(crate) idle_timeout: u64,
    /// Whether a client chose the limit; one that nobody chose gives way to `persistent`.
    pub(crate) chosen: bool,
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

    /// The same limits with a time without use after which the sandbox hibernates.
    pub(crate) fn idle(self, idle_timeout: u64) -> Self {
        Self { idle_timeout, ..self }
    }

    /// The same limits, counting something.
    pub(crate) fn counting(self, ttl_mode: TtlMode) -> Self {
        Self { ttl_mode, ..self }
    }

    /// Limits that another server wrote down.
    pub(crate) fn remembered(
        lifetime: &Lifetime,
        default_ttl: u64,
        at: OffsetDateTime,
        now: Instant,
    ) -> Self {
        let left = |end: OffsetDateTime| Duration::try_from(end - at).unwrap_or_default();
        Self {
            ttl_seconds: lifetime.ttl_seconds,
            persistent: lifetime.persistent,
            ttl_mode: lifetime.ttl_mode,
            deadline: lifetime.ends_at.and_then(|end| now.checked_add(left(end))),
            idle_timeout: lifetime.idle_timeout,
            chosen: lifetime.chosen,
            default_ttl,
        }
    }

    /// What is written down of them.
    pub(crate) fn lifetime(&self, at: OffsetDateTime, now: Instant) -> Lifetime {
        let ends_at = self.deadline.map(|deadline| at + deadline.saturating_duration_since(now));
        Lifetime {
            ttl_seconds: self.ttl_seconds,
            persistent: self.persistent,
            chosen: self.chosen,
            ttl_mode: self.ttl_mode,
            idle_timeout: self.idle_timeout,
            ends_at,
        }
    }

    /// The limits of a child that is born `now`: the same settings, unless its time is chosen.
    pub(crate) fn inherited(self, ttl_seconds: Option<u64>, now: Instant) -> Self {
        let chosen = self.chosen || ttl_seconds.is_some();
        let timing = Self::with_ttl(ttl_seconds.unwrap_or(self.ttl_seconds), chosen, now);
        let Self { persistent, default_ttl, idle_timeout, ttl_mode, .. } = self;
        Self { persistent, default_ttl, idle_timeout, ttl_mode, ..timing }
    }

    /// The limits after a change at `now`.
    pub(crate) fn changed(self, change: Change, now: Instant) -> Self {
        let persistent = change.persistent.unwrap_or(self.persistent);
        let flipped = persistent != self.persistent;
        let default = if persistent { 0 } else { self.default_ttl };
        let timing = match change.ttl_seconds {
            Some(ttl) => Self::with_ttl(ttl, true, now),
            None if change.as_created => {
                let created = Self::with_ttl(default, false, now);
                if self.outlasts(&created) { self } else { created }
            }
            None if flipped && !self.chosen => Self::with_ttl(default, false, now),
            // What counted something else so far begins to count now, and is not over at once.
            None if change.ttl_mode.is_some_and(|mode| mode != self.ttl_mode) => {
                Self::with_ttl(self.ttl_seconds, self.chosen, now)
            }
            None => self,
        };
        let idle_timeout = change.idle_timeout.unwrap_or(self.idle_timeout);
        let ttl_mode = change.ttl_mode.unwrap_or(self.ttl_mode);
        Self { persistent, default_ttl: self.default_ttl, idle_timeout, ttl_mode, ..timing }
    }

    /// Whether these are not over before the others.
    fn outlasts(&self, other: &Self) -> bool {
        match (self.deadline, other.deadline) {
            (None, _) => true,
            (Some(own), Some(other)) => own >= other,
            (Some(_), None) => false,
        }
    }

    fn with_ttl(ttl_seconds: u64, chosen: bool, now: Instant) -> Self {
        // A limit beyond what the clock can count is no limit.
        let deadline = match ttl_seconds {
            0 => None,
            ttl => now.checked_add(Duration::from_secs(ttl)),
        };
        Self {
            ttl_seconds,
            persistent: false,
            ttl_mode: TtlMode::Wall,
            deadline,
            idle_timeout: 0,
            chosen,
            default_ttl: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(start: Instant, seconds: u64) -> Option<Instant> {
        Some(start + Duration::from_secs(seconds))
    }

    fn change(ttl_seconds: Option<u64>, persistent: Option<bool>) -> Change {
        Change { ttl_seconds, persistent, ..Change::default() }
    }

    #[test]
    fn what_is_written_down_is_remembered() {
        let (now, at) = (Instant::now(), OffsetDateTime::UNIX_EPOCH);
        let limits = Limits::new(Some(60), true, 3600, now).idle(7);
        let lifetime = limits.lifetime(at, now);
        assert_eq!(lifetime.ends_at, Some(at + Duration::from_secs(60)));
        assert_eq!(Limits::remembered(&lifetime, 3600, at, now), limits);
        let late = Limits::remembered(&lifetime, 3600, at + Duration::from_secs(99), now);
        assert_eq!(late.deadline, Some(now), "it is over");
        let forever = Limits::new(None, true, 3600, now).lifetime(at, now);
        assert_eq!(Limits::remembered(&forever, 3600, at, now).deadline, None);
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
        let limits = Limits::new(Some(60), false, 3600, now).changed(change(Some(60), None), later);
        assert_eq!((limits.ttl_seconds, limits.deadline), (60, after(later, 60)));
        assert_eq!(limits.changed(change(Some(0), None), later).deadline, None);
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
        assert_eq!(
            default.changed(change(None, Some(true)), later).deadline,
            None,
            "nobody chose it"
        );
    }

    #[test]
    fn what_begins_to_count_time_is_not_over_at_once() {
        let now = Instant::now();
        let later = now + Duration::from_secs(500);
        let idle = Limits::new(Some(60), false, 3600, now).counting(TtlMode::Idle);
        let wall = Change { ttl_mode: Some(TtlMode::Wall), ..Change::default() };
        let changed = idle.changed(wall, later);
        assert_eq!((changed.ttl_mode, changed.deadline), (TtlMode::Wall, after(later, 60)));
        assert_eq!(changed.changed(wall, later + Duration::from_secs(9)), changed, "no change");
    }

    #[test]
    fn what_is_promoted_has_as_long_as_a_create_gives_and_no_shorter() {
        let now = Instant::now();
        let forget = Change { as_created: true, ..Change::default() };
        for longer in [0, 3600, 86_400] {
            let chosen = Limits::new(Some(longer), false, 3600, now);
            assert_eq!(chosen.changed(forget, now), chosen);
        }
        for persistent in [false, true] {
            let chosen = Limits::new(Some(9), persistent, 3600, now).changed(forget, now);
            assert_eq!(chosen, Limits::new(None, persistent, 3600, now));
        }
    }

    #[test]
    fn persistent_lifts_only_the_default() {
        let now = Instant::now();
        let default = Limits::new(None, false, 3600, now);
        assert_eq!(default.changed(change(None, Some(true)), now).deadline, None);
        assert_eq!(
            default.changed(change(None, Some(false)), now),
            default,
            "no change, no new deadline"
        );
        let back =
            default.changed(change(None, Some(true)), now).changed(change(None, Some(false)), now);
        assert_eq!(back.deadline, after(now, 3600));
        let chosen = Limits::new(Some(9), false, 3600, now);
        let kept = chosen.changed(change(None, Some(true)), now);
        assert_eq!((kept.deadline, kept.persistent), (after(now, 9), true));
    }
}
