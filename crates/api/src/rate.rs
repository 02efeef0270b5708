//! How often a client may ask.
//!
//! ```text
//!   request ─▶ a valid key ──▶ bucket of the key ─────┬─ a token ──▶ goes on
//!          └▶ none, or wrong ▶ bucket of the address ─┴─ none ─────▶ 429 + Retry-After
//! ```
//!
//! A key pays for itself alone: what strangers do from the same address, or with other keys, takes
//! nothing from it. A request counts once, however long its answer is.
//!
//! A bucket is kept as one instant, the one at which it is full again (the generic cell rate
//! algorithm). Buckets that are full are as good as none, so only those in use take memory. That is
//! bounded as well: whoever finds no place shares one bucket with all others like that.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::StatusCode;

use crate::error::ApiError;
use crate::keyring::KeyId;

/// Seconds of requests that may come at once after a rest.
const BURST_SECONDS: u32 = 5;
/// Most buckets of each kind.
const MAX_BUCKETS: usize = 4096;
/// How often full buckets are looked for at most, since that looks at all of them.
const SWEEP: Duration = Duration::from_millis(100);

/// Most requests a second; 0 for no limit. Five seconds' worth may come at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimits {
    /// With one key.
    pub key: u32,
    /// Without a valid key, from one address.
    pub keyless: u32,
}

impl Default for RateLimits {
    /// More than a client that waits for its answers can send, and too few to guess anything.
    fn default() -> Self {
        Self { key: 1000, keyless: 20 }
    }
}

/// The buckets of a server. Clones share them.
#[derive(Clone)]
pub(crate) struct Rates {
    limits: RateLimits,
    keys: Arc<Mutex<Buckets<KeyId>>>,
    addresses: Arc<Mutex<Buckets<IpAddr>>>,
}

impl Rates {
    pub(crate) fn new(limits: RateLimits) -> Self {
        let now = Instant::now();
        Self {
            limits,
            keys: Arc::new(Mutex::new(Buckets::new(limits.key, now))),
            addresses: Arc::new(Mutex::new(Buckets::new(limits.keyless, now))),
        }
    }

    /// Takes a token from the bucket of a key.
    pub(crate) fn key(&self, key: KeyId) -> Result<(), ApiError> {
        let most = self.limits.key;
        take(&self.keys, key).map_err(|wait| refusal(wait, most, "with this key"))
    }

    /// Takes a token from the bucket of an address that shows no valid key.
    pub(crate) fn keyless(&self, address: IpAddr) -> Result<(), ApiError> {
        let most = self.limits.keyless;
        take(&self.addresses, network(address))
            .map_err(|wait| refusal(wait, most, "without a valid key from this address"))
    }
}

fn take<K: Eq + Hash>(buckets: &Mutex<Buckets<K>>, owner: K) -> Result<(), Duration> {
    // A panic while it was held leaves at worst a token too many.
    buckets.lock().unwrap_or_else(PoisonError::into_inner).take(owner, Instant::now())
}

/// What one party can have many addresses in counts as one: the /64 of an IPv6 address.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)))
        }
        address => address,
    }
}

fn refusal(wait: Duration, most: u32, whose: &str) -> ApiError {
    // Whole seconds, and none too few: a client that obeys is let in.
    let whole = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    let seconds = u32::try_from(whole).unwrap_or(u32::MAX).max(1);
    let text =
        format!("too many requests {whose}: at most {most} a second; try again in {seconds} s");
    ApiError { retry_after: Some(seconds), ..ApiError::new(StatusCode::TOO_MANY_REQUESTS, text) }
}

/// Buckets of one size.
#[derive(Debug)]
struct Buckets<K> {
    /// Between two tokens; none without a limit.
    gap: Option<Duration>,
    /// When each bucket that is not full will be.
    full_at: HashMap<K, Instant>,
    /// The bucket of those that found no place.
    rest: Instant,
    /// When full buckets were last thrown away.
    swept: Instant,
}

impl<K: Eq + Hash> Buckets<K> {
    fn new(per_second: u32, now: Instant) -> Self {
        let gap = (per_second > 0).then(|| Duration::from_secs(1) / per_second);
        Self { gap, full_at: HashMap::new(), rest: now, swept: now }
    }

    /// Takes a token, or says how long it takes until there is one.
    fn take(&mut self, owner: K, now: Instant) -> Result<(), Duration> {
        let Some(gap) = self.gap else { return Ok(()) };
        if self.full_at.len() >= MAX_BUCKETS && !self.full_at.contains_key(&owner) {
            self.sweep(now);
        }
        let full_at = if self.full_at.len() < MAX_BUCKETS {
            self.full_at.entry(owner).or_insert(now)
        } else {
            self.full_at.get_mut(&owner).unwrap_or(&mut self.rest)
        };
        let then = (*full_at).max(now) + gap;
        let wait = then.saturating_duration_since(now + Duration::from_secs(BURST_SECONDS.into()));
        if wait.is_zero() {
            *full_at = then;
            return Ok(());
        }
        Err(wait)
    }

    fn sweep(&mut self, now: Instant) {
        if now.saturating_duration_since(self.swept) >= SWEEP {
            self.full_at.retain(|_, full_at| *full_at > now);
            self.swept = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of `tries` are let in.
    fn admitted(buckets: &mut Buckets<u32>, owner: u32, tries: u32, now: Instant) -> u32 {
        (0..tries).map(|_| u32::from(buckets.take(owner, now).is_ok())).sum()
    }

    #[test]
    fn a_burst_and_then_the_rate() {
        let start = Instant::now();
        let mut buckets = Buckets::new(10, start);
        assert_eq!(admitted(&mut buckets, 1, 1000, start), 50);
        let mut now = start;
        for _ in 0..20 {
            now += Duration::from_millis(500);
            assert_eq!(admitted(&mut buckets, 1, 1000, now), 5);
        }
        now += Duration::from_secs(3600);
        assert_eq!(admitted(&mut buckets, 1, 1000, now), 50, "no more than a bucket holds");
    }

    #[test]
    fn the_wait_is_true() {
        let start = Instant::now();
        for per_second in [1, 3, 7, 1000] {
            let mut buckets = Buckets::new(per_second, start);
            admitted(&mut buckets, 1, per_second * BURST_SECONDS, start);
            let wait = buckets.take(1, start).unwrap_err();
            let early = start + wait - Duration::from_nanos(1);
            assert!(buckets.take(1, early).is_err(), "{per_second}");
            assert!(buckets.take(1, start + wait).is_ok(), "{per_second}");
        }
        let error = refusal(Duration::from_millis(1001), 3, "with this key");
        assert_eq!((error.status.as_u16(), error.retry_after), (429, Some(2)));
        let text = "too many requests with this key: at most 3 a second; try again in 2 s";
        assert_eq!(error.text, text);
        assert_eq!(refusal(Duration::from_nanos(1), 3, "").retry_after, Some(1));
    }

    #[test]
    fn one_takes_nothing_from_another() {
        let now = Instant::now();
        let mut buckets = Buckets::new(2, now);
        assert_eq!(admitted(&mut buckets, 1, 100, now), 10);
        assert_eq!(admitted(&mut buckets, 2, 100, now), 10);
    }

    #[test]
    fn no_limit_remembers_nobody() {
        let now = Instant::now();
        let mut buckets = Buckets::new(0, now);
        assert_eq!(admitted(&mut buckets, 1, 100_000, now), 100_000);
        assert!(buckets.full_at.is_empty());
    }

    #[test]
    fn memory_is_bounded_and_the_rest_shares_a_bucket() {
        let start = Instant::now();
        let mut buckets = Buckets::new(1, start);
        for owner in 0..MAX_BUCKETS as u32 {
            assert!(buckets.take(owner, start).is_ok());
        }
        let strangers = (0..1000).map(|i| buckets.take(1_000_000 + i, start).is_ok());
        assert_eq!(strangers.filter(|admitted| *admitted).count(), 5);
        assert_eq!(buckets.full_at.len(), MAX_BUCKETS);
        assert_eq!(admitted(&mut buckets, 7, 100, start), 4, "its own bucket is its own");
        let later = start + Duration::from_secs(1);
        assert!(buckets.take(1_000_000, later).is_ok());
        assert_eq!(buckets.full_at.len(), 2, "one that was used since, and the new one");
    }

    #[test]
    fn addresses_of_one_party_are_one() {
        let network = |text: &str| network(text.parse().unwrap());
        assert_eq!(network("2001:db8:0:1::1"), network("2001:db8:0:1:ffff:ffff:ffff:ffff"));
        assert_ne!(network("2001:db8:0:1::1"), network("2001:db8:0:2::1"));
        assert_eq!(network("::ffff:192.0.2.1"), network("192.0.2.1"));
        assert_ne!(network("192.0.2.1"), network("192.0.2.2"));
    }
}
