//! A create that may be sent again: `Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header).
//!
//! ```text
//!   first with a key ──▶ creates ──success──▶ kept ──▶ answered
//!   again ── waits for the first, if that is under way ──▶ what was kept, and no second sandbox
//! ```
//!
//! A failure is not kept: whoever sends it again tries again. A key belongs to one body; with another it
//! is refused. Keys are kept for a day, at most [`MAX_KEYS`] of them, and not beyond the server's life,
//! as most sandboxes are.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, StatusCode};
use serde_json::Value;

use crate::error::ApiError;

/// The header.
const HEADER: &str = "idempotency-key";
/// Longest key, in bytes.
const MAX_KEY: usize = 255;
/// Most keys that are remembered; the oldest is forgotten first.
const MAX_KEYS: usize = 4096;
/// How long a key is remembered.
const KEPT: Duration = Duration::from_secs(86_400);

/// The keys of late. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Idempotency(Arc<Mutex<Keys>>);

#[derive(Default)]
struct Keys {
    entries: HashMap<String, Entry>,
    /// In the order in which they came.
    order: VecDeque<(Instant, String)>,
}

/// What was asked with a key and what was answered, once that was a success. Locked while its create
/// is under way.
type Entry = Arc<tokio::sync::Mutex<Option<(blake3::Hash, Value)>>>;

/// The key of a request, if it has one.
pub(crate) fn key(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let Some(value) = headers.get(HEADER) else { return Ok(None) };
    let key = value.to_str().ok().filter(|key| (1..=MAX_KEY).contains(&key.len()));
    let refused = || {
        ApiError::bad_request(format!(
            "Idempotency-Key must be 1 to {MAX_KEY} printable characters"
        ))
    };
    key.map(Some).ok_or_else(refused)
}

impl Idempotency {
    /// Does `create` once for this key and body, and says whether the answer is an earlier one.
    pub(crate) async fn once(
        &self,
        key: &str,
        body: &[u8],
        create: impl Future<Output = Result<Value, ApiError>>,
    ) -> Result<(Value, bool), ApiError> {
        let body = blake3::hash(body);
        let entry = self.entry(key, Instant::now());
        let mut done = entry.lock().await;
        match &*done {
            Some((asked, answer)) if *asked == body => return Ok((answer.clone(), true)),
            Some(_) => {
                let text = "this Idempotency-Key was used with another body";
                return Err(ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, text));
            }
            None => {}
        }
        // A requester that goes away here lets the next one in, and its sandbox is undone.
        let made = create.await?;
        *done = Some((body, made.clone()));
        Ok((made, false))
    }

    /// What is known of a key, from now on if it is new.
    fn entry(&self, key: &str, now: Instant) -> Entry {
        let mut keys = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        keys.forget(now);
        if let Some(entry) = keys.entries.get(key) {
            return entry.clone();
        }
        let entry = Entry::default();
        keys.order.push_back((now, key.to_owned()));
        keys.entries.insert(key.to_owned(), entry.clone());
        entry
    }
}

impl Keys {
    /// Forgets what is old, and the oldest if there is no room for another one.
    fn forget(&mut self, now: Instant) {
        while let Some((at, _)) = self.order.front()
            && (self.order.len() >= MAX_KEYS || now.saturating_duration_since(*at) >= KEPT)
        {
            if let Some((_, key)) = self.order.pop_front() {
                self.entries.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn a_key_creates_once_whatever_is_sent_at_the_same_time() {
        let keys = Idempotency::default();
        let made = Arc::new(AtomicUsize::new(0));
        let create = || {
            let made = made.clone();
            async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Ok(json!(made.fetch_add(1, Ordering::SeqCst)))
            }
        };
        let (first, second) =
            tokio::join!(keys.once("k", b"{}", create()), keys.once("k", b"{}", create()));
        assert_eq!((first.unwrap(), second.unwrap()), ((json!(0), false), (json!(0), true)));
        assert_eq!(keys.once("other", b"{}", create()).await.unwrap(), (json!(1), false));
        let refused = keys.once("k", b"{ }", create()).await.unwrap_err();
        assert_eq!(refused.status, StatusCode::UNPROCESSABLE_ENTITY);
        assert_eq!(made.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn a_failure_and_a_requester_that_leaves_are_forgotten() {
        let keys = Idempotency::default();
        let failing = async { Err(ApiError::bad_request("no")) };
        assert!(keys.once("k", b"", failing).await.is_err());
        let leaving = keys.once("k", b"", std::future::pending());
        assert!(tokio::time::timeout(Duration::from_millis(20), leaving).await.is_err());
        let made = keys.once("k", b"", async { Ok(json!(1)) }).await.unwrap();
        assert_eq!(made, (json!(1), false));
    }

    #[test]
    fn what_is_remembered_has_bounds() {
        let keys = Idempotency::default();
        let now = Instant::now();
        for number in 0..MAX_KEYS + 10 {
            keys.entry(&number.to_string(), now);
        }
        let count = || {
            let keys = keys.0.lock().unwrap();
            assert_eq!(keys.entries.len(), keys.order.len());
            keys.order.len()
        };
        assert_eq!(count(), MAX_KEYS);
        keys.entry("late", now + KEPT);
        assert_eq!(count(), 1);
    }

    #[test]
    fn keys_are_short_and_printable() {
        let read = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(HEADER, value.parse().unwrap());
            key(&headers).map(|key| key.map(str::to_owned))
        };
        assert_eq!(key(&HeaderMap::new()).unwrap(), None);
        assert_eq!(read("a-1").unwrap().as_deref(), Some("a-1"));
        for bad in ["", &"x".repeat(256), "é"] {
            assert_eq!(read(bad).unwrap_err().status, StatusCode::BAD_REQUEST, "{bad:?}");
        }
    }
}
