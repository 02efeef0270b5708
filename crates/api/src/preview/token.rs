//! Tokens that open ports.
//!
//! ```text
//!   signed    pv1.{claims}.{mac}   one port of one sandbox, some paths, until a time
//!   traffic   pdt_{mac}            all ports of one sandbox, until it ends or they are revoked
//! ```
//!
//! Neither is kept anywhere: each is a keyed hash of what it opens, by a secret of the server. The
//! sandbox's generation is part of both, so that all of them can be revoked at once, and its id, so
//! that none outlives it. Comparisons take the same time wherever the first difference is.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use pandastack_policy::PathPrefix;
use pandastack_sandbox::{Port, PortError};
use pandastack_types::SandboxId;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use time::{Duration, OffsetDateTime};

use crate::KeyError;
use crate::error::ApiError;

/// Before the token of a link.
pub(crate) const LINK: &str = "/p/";
/// What signed tokens start with.
pub(super) const SIGNED: &str = "pv1.";
/// What traffic tokens start with.
pub(super) const TRAFFIC: &str = "pdt_";
/// Longest signed token, in bytes: it has to fit in an address and in a cookie.
const MAX_SIGNED: usize = 3072;
/// Most paths of a signed token.
const MAX_PATHS: usize = 16;
/// Longest life of a signed token, in seconds.
const MAX_TTL: i64 = 604_800;
/// Life of one whose maker names none, in seconds.
const DEFAULT_TTL: i64 = 3600;

/// What makes tokens of this server. Whoever has it opens every port.
#[derive(Clone, PartialEq, Eq)]
pub struct PreviewSecret([u8; 32]);

impl PreviewSecret {
    /// A new one.
    pub fn random() -> Result<Self, KeyError> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(|_| KeyError::Entropy)?;
        Ok(Self(secret))
    }

    /// As a line of a file.
    pub fn to_text(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }

    /// Reads what [`PreviewSecret::to_text`] wrote.
    pub fn from_text(text: &str) -> Option<Self> {
        URL_SAFE_NO_PAD.decode(text.trim()).ok()?.try_into().ok().map(Self)
    }
}

impl fmt::Debug for PreviewSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PreviewSecret")
    }
}

/// What a signed token says. Only what this server has signed is ever one of these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claims {
    #[serde(rename = "s")]
    pub(crate) sandbox: SandboxId,
    #[serde(rename = "p")]
    port: u16,
    #[serde(rename = "g")]
    pub(crate) generation: u32,
    /// Unix seconds.
    #[serde(rename = "e")]
    expires: i64,
    /// Every path when there is none.
    #[serde(rename = "f", default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) paths: Vec<String>,
}

impl Claims {
    /// What somebody asks for, if it may be signed.
    pub(crate) fn asked(
        (sandbox, generation): (SandboxId, u32),
        port: Port,
        ttl_seconds: Option<i64>,
        paths: Vec<String>,
    ) -> Result<Self, ApiError> {
        let ttl = ttl_seconds.unwrap_or(DEFAULT_TTL);
        if !(1..=MAX_TTL).contains(&ttl) {
            let text = format!("ttl_seconds must be from 1 to {MAX_TTL}");
            return Err(ApiError::bad_request(text));
        }
        if paths.len() > MAX_PATHS {
            return Err(ApiError::bad_request(format!("paths has at most {MAX_PATHS} members")));
        }
        for path in &paths {
            path.parse::<PathPrefix>().map_err(|e| ApiError::bad_request(format!("paths: {e}")))?;
        }
        let expires = OffsetDateTime::now_utc().unix_timestamp() + ttl;
        Ok(Self { sandbox, port: port.number(), generation, expires, paths })
    }

    pub(crate) fn port(&self) -> Result<Port, PortError> {
        Port::try_from(i64::from(self.port))
    }

    /// When it ends.
    pub(crate) fn expires_at(&self) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(self.expires).unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }

    /// How long it still works.
    pub(super) fn left(&self, now: OffsetDateTime) -> Duration {
        self.expires_at() - now
    }

    /// Whether it opens a path. A path that two servers may read in two ways is under no prefix.
    pub(super) fn covers(&self, target: &str) -> bool {
        if self.paths.is_empty() {
            return true;
        }
        let prefixes = self.paths.iter().filter_map(|path| path.parse::<PathPrefix>().ok());
        let Some(path) = pandastack_policy::plain_path(target) else { return false };
        prefixes.into_iter().any(|prefix| prefix.covers(&path))
    }
}

/// Makes and checks tokens.
#[derive(Clone)]
pub(crate) struct Signer {
    signed: [u8; 32],
    traffic: [u8; 32],
}

impl Signer {
    pub(crate) fn new(secret: &PreviewSecret) -> Self {
        Self {
            signed: blake3::derive_key("pandastack signed preview token v1", &secret.0),
            traffic: blake3::derive_key("pandastack traffic token v1", &secret.0),
        }
    }

    /// Signs claims. Fails when they are too long.
    pub(crate) fn sign(&self, claims: &Claims) -> Result<String, ApiError> {
        // Plain data of known types.
        let claims = serde_json::to_vec(claims).unwrap_or_default();
        let mut token = format!("{SIGNED}{}", URL_SAFE_NO_PAD.encode(claims));
        let mac = blake3::keyed_hash(&self.signed, token.as_bytes());
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(mac.as_bytes(), &mut token);
        if token.len() > MAX_SIGNED {
            return Err(ApiError::bad_request("paths are too long together"));
        }
        Ok(token)
    }

    /// What a token says, if this server has signed it and its time is not up.
    pub(super) fn verify(&self, token: &str, now: OffsetDateTime) -> Option<Claims> {
        if token.len() > MAX_SIGNED || !token.starts_with(SIGNED) {
            return None;
        }
        let (said, mac) = token.rsplit_once('.')?;
        let mac = URL_SAFE_NO_PAD.decode(mac).ok()?;
        let right = blake3::keyed_hash(&self.signed, said.as_bytes());
        if !bool::from(mac.ct_eq(right.as_bytes())) {
            return None;
        }
        let claims = URL_SAFE_NO_PAD.decode(said.strip_prefix(SIGNED)?).ok()?;
        let claims: Claims = serde_json::from_slice(&claims).ok()?;
        claims.left(now).is_positive().then_some(claims)
    }

    /// The token of all ports of a sandbox.
    pub(crate) fn traffic(&self, (sandbox, generation): (SandboxId, u32)) -> String {
        let said = format!("{sandbox} {generation}");
        let mac = blake3::keyed_hash(&self.traffic, said.as_bytes());
        format!("{TRAFFIC}{}", URL_SAFE_NO_PAD.encode(mac.as_bytes()))
    }

    pub(super) fn is_traffic(&self, token: &str, sandbox: (SandboxId, u32)) -> bool {
        token.as_bytes().ct_eq(self.traffic(sandbox).as_bytes()).into()
    }
}

/// A path for the log: without the token of a link.
pub(crate) fn scrubbed(path: &str) -> &str {
    if path.starts_with(LINK) { "/p/…" } else { path }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signer(byte: u8) -> Signer {
        Signer::new(&PreviewSecret([byte; 32]))
    }

    fn claims(ttl: i64, paths: &[&str]) -> Claims {
        let paths = paths.iter().map(|path| (*path).to_owned()).collect();
        let port = "8000".parse().unwrap();
        Claims::asked((SandboxId::random(), 0), port, Some(ttl), paths).unwrap()
    }

    #[test]
    fn a_token_says_what_was_signed_until_its_time_is_up() {
        let (signer, claims) = (signer(1), claims(60, &["/a"]));
        let token = signer.sign(&claims).unwrap();
        let now = OffsetDateTime::now_utc();
        assert_eq!(signer.verify(&token, now), Some(claims));
        assert_eq!(signer.verify(&token, now + Duration::seconds(61)), None);
        assert_eq!(self::signer(2).verify(&token, now), None, "of another server");
    }

    #[test]
    fn no_changed_token_is_one() {
        let signer = signer(1);
        let token = signer.sign(&claims(60, &[])).unwrap();
        let now = OffsetDateTime::now_utc();
        for at in 0..token.len() {
            for byte in [b'A', b'B', b'.', b'%'] {
                let mut bytes = token.clone().into_bytes();
                if std::mem::replace(&mut bytes[at], byte) != byte {
                    let changed = String::from_utf8(bytes).unwrap();
                    // The last digit has bits that belong to no byte: they must be zero.
                    assert_eq!(signer.verify(&changed, now), None, "{at} {byte}");
                }
            }
            assert_eq!(signer.verify(&token[..at], now), None);
        }
        let long = format!("{token}{}", "A".repeat(MAX_SIGNED));
        for bad in ["", "pv1.", "pv1..", "pv1.x.y", "é", &format!("{token}A"), &long] {
            assert_eq!(signer.verify(bad, now), None, "{bad}");
        }
    }

    #[test]
    fn what_may_be_asked_is_bounded() {
        let asked = |ttl, paths: Vec<&str>| {
            let paths = paths.into_iter().map(str::to_owned).collect();
            Claims::asked((SandboxId::random(), 0), "80".parse().unwrap(), ttl, paths)
        };
        for ttl in [0, -1, MAX_TTL + 1, i64::MAX, i64::MIN] {
            assert!(asked(Some(ttl), vec![]).is_err(), "{ttl}");
        }
        assert!(asked(None, vec!["/"; MAX_PATHS]).is_ok());
        assert!(asked(None, vec!["/"; MAX_PATHS + 1]).is_err());
        for path in ["", "x", "/../x", "/a//b", "/a%2fb", "/a?b", "/é"] {
            assert!(asked(None, vec![path]).is_err(), "{path}");
        }
        let long = format!("/{}", "a".repeat(1000));
        let claims = asked(None, vec![&long; 4]).unwrap();
        assert!(signer(1).sign(&claims).is_err());
    }

    #[test]
    fn paths_are_read_one_way_or_not_at_all() {
        let limited = claims(60, &["/static", "/api/v1/"]);
        for inside in ["/static", "/static/x.css?v=1", "/api/v1/x", "/%73tatic/x"] {
            assert!(limited.covers(inside), "{inside}");
        }
        for outside in [
            "/",
            "/staticx",
            "/api",
            "/static/../admin",
            "/static/%2e%2e/admin",
            "/static/%252e%252e/admin",
            "/static//../admin",
            "/static/..;/admin",
            "/static\\..\\admin",
            "/static/%5c..%5cadmin",
            "//static/x",
            "/static/%00",
        ] {
            assert!(!limited.covers(outside), "{outside}");
        }
        assert!(claims(60, &[]).covers("/any//thing/.."));
    }

    #[test]
    fn traffic_tokens_are_of_one_sandbox_and_generation() {
        let (signer, id) = (signer(1), SandboxId::random());
        let token = signer.traffic((id, 0));
        assert!(signer.is_traffic(&token, (id, 0)));
        assert!(!signer.is_traffic(&token, (id, 1)));
        assert!(!signer.is_traffic(&token, (SandboxId::random(), 0)));
        assert!(!self::signer(2).is_traffic(&token, (id, 0)));
        assert!(!signer.is_traffic("", (id, 0)) && !signer.is_traffic(&token[..20], (id, 0)));
    }

    #[test]
    fn secrets_are_not_shown_and_no_log_has_a_token() {
        let secret = PreviewSecret::random().unwrap();
        assert_eq!(PreviewSecret::from_text(&format!("{}\n", secret.to_text())), Some(secret));
        assert_eq!(format!("{:?}", PreviewSecret([7; 32])), "PreviewSecret");
        for bad in ["", "x", &"A".repeat(44)] {
            assert_eq!(PreviewSecret::from_text(bad), None);
        }
        assert_eq!(scrubbed("/p/pv1.x.y/a"), "/p/…");
        assert_eq!(scrubbed("/v1/me"), "/v1/me");
    }
}
