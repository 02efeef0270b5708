//! Who may use the API.
//!
//! A key is `pds_` and 32 random bytes. Only its hash is kept; since a key is random, a plain
//! hash is as good as a slow one. Every check reads the records, so that a key that anybody
//! revoked is refused by the next request.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use pandastack_store::{ApiKeyRecord, Store, StoreError};
use subtle::ConstantTimeEq;
use time::OffsetDateTime;

/// What every key starts with.
const SCHEME: &str = "pds_";
/// Characters that name a key in listings: the scheme and eight more.
const PREFIX: usize = 12;
/// Fewest characters after the scheme: as many as 24 random bytes have.
const MIN_SECRET: usize = 32;
/// Most characters of a key, so that hashing one is never work.
const MAX_KEY: usize = 256;

/// Tells keys apart without being one: the hash of a key.
pub(crate) type KeyId = [u8; 32];

/// Why a key was not added or checked.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Not the form of a key, or too short to be a secret.
    #[error(
        "an API key is \"pds_\" and 32 to 252 characters of A-Z, a-z, 0-9, '-' and '_'; \
         `pandastack serve` mints one at its first start"
    )]
    Weak,
    /// The host gave no random bytes.
    #[error("the host has no random bytes to give")]
    Entropy,
    /// The records failed.
    #[error("cannot read or write the keys")]
    Store(#[from] StoreError),
}

/// The keys of a server.
#[derive(Clone)]
pub struct KeyRing {
    store: Store,
}

impl KeyRing {
    /// The keys kept in `store`.
    pub fn new(store: Store) -> Self {
        Self { store }
    }

    /// Makes a new key and returns it. It cannot be shown again.
    pub fn mint(&self, label: &str) -> Result<String, KeyError> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(|_| KeyError::Entropy)?;
        let key = format!("{SCHEME}{}", URL_SAFE_NO_PAD.encode(secret));
        self.add(&key, label)?;
        Ok(key)
    }

    /// Adds a key that was made elsewhere. Adding it again changes nothing.
    pub fn add(&self, key: &str, label: &str) -> Result<(), KeyError> {
        let record = ApiKeyRecord {
            hash: hash(key),
            prefix: prefix(key).ok_or(KeyError::Weak)?.to_owned(),
            label: label.to_owned(),
            created_at: OffsetDateTime::now_utc(),
        };
        Ok(self.store.add_key(&record)?)
    }

    /// Whether somebody was given this key.
    pub fn verify(&self, key: &str) -> Result<bool, KeyError> {
        Ok(self.identify(key)?.is_some())
    }

    /// Which key this is, if somebody was given it.
    pub(crate) fn identify(&self, key: &str) -> Result<Option<KeyId>, KeyError> {
        let Some(prefix) = prefix(key) else { return Ok(None) };
        let hash = hash(key);
        let known = self.store.keys_with_prefix(prefix)?;
        // The prefix is no secret; what is compared after it must not tell how much was right.
        let known = known.iter().any(|record| bool::from(record.hash.ct_eq(&hash)));
        Ok(known.then_some(hash))
    }

    /// Every key, without the keys themselves.
    pub fn list(&self) -> Result<Vec<ApiKeyRecord>, KeyError> {
        Ok(self.store.keys()?)
    }

    /// Refuses the keys with this prefix from now on; says whether there were any.
    pub fn revoke(&self, prefix: &str) -> Result<bool, KeyError> {
        Ok(self.store.remove_keys(prefix)? > 0)
    }
}

fn hash(key: &str) -> KeyId {
    blake3::derive_key("pandastack api key v1", key.as_bytes())
}

/// The public part of a key, if it has the form of one.
fn prefix(key: &str) -> Option<&str> {
    let secret = key.strip_prefix(SCHEME)?;
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    let good = secret.len() >= MIN_SECRET && key.len() <= MAX_KEY && secret.bytes().all(legal);
    good.then(|| &key[..PREFIX])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring() -> (tempfile::TempDir, KeyRing) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("records.sqlite")).unwrap();
        (dir, KeyRing::new(store))
    }

    #[test]
    fn a_minted_key_works_until_it_is_revoked() {
        let (_dir, ring) = ring();
        let key = ring.mint("laptop").unwrap();
        let other = ring.mint("ci").unwrap();
        assert_ne!(key, other);
        assert!(ring.verify(&key).unwrap());
        let listed = ring.list().unwrap();
        assert_eq!(listed[0].label, "laptop");
        assert!(key.starts_with(&listed[0].prefix) && listed[0].prefix.len() == PREFIX);
        assert!(ring.revoke(&listed[0].prefix).unwrap());
        assert!(!ring.verify(&key).unwrap());
        assert!(ring.verify(&other).unwrap());
        assert!(!ring.revoke(&listed[0].prefix).unwrap());
    }

    #[test]
    fn nearly_right_is_wrong() {
        let (_dir, ring) = ring();
        let key = ring.mint("x").unwrap();
        let mut flipped = key.clone().into_bytes();
        let last = flipped.last_mut().unwrap();
        *last = if *last == b'A' { b'B' } else { b'A' };
        for wrong in [
            String::from_utf8(flipped).unwrap(),
            key[..PREFIX].to_owned(),
            key[4..].to_owned(),
            format!("{key}A"),
            format!("{key} "),
            String::new(),
        ] {
            assert!(!ring.verify(&wrong).unwrap(), "{wrong:?}");
        }
    }

    #[test]
    fn weak_keys_are_refused_and_the_secret_is_not_in_the_records() {
        let (dir, ring) = ring();
        for weak in ["", "pds_", "pds_changeme", "admin", "pds_short-but-longer-than-default"] {
            assert!(matches!(ring.add(weak, "x"), Err(KeyError::Weak)), "{weak:?}");
        }
        let key = format!("pds_{}", "s3cr3t-".repeat(6));
        ring.add(&key, "x").unwrap();
        ring.add(&key, "x").unwrap();
        assert_eq!(ring.list().unwrap().len(), 1);
        for file in std::fs::read_dir(dir.path()).unwrap() {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            assert!(!bytes.windows(key.len()).any(|part| part == key.as_bytes()));
        }
    }
}
