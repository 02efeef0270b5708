//! The server's API key: given by the operator, or minted at the first start. What a key must
//! look like is the API's business, which refuses a weak one.

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::private_file;

/// Random bytes of a minted key.
const RANDOM_LEN: usize = 32;

/// A key and where it comes from. Its text is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey {
    text: String,
    origin: Origin,
}

/// Where a key comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The server's own, in this file.
    Own(PathBuf),
    /// A file that the operator named.
    Named(PathBuf),
    /// The environment.
    Environment,
    /// Made up for this process.
    Ephemeral,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Own(path) | Origin::Named(path) => write!(f, "in {}", path.display()),
            Origin::Environment => f.write_str("in PANDASTACK_API_KEY"),
            Origin::Ephemeral => f.write_str("in memory"),
        }
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKey").field("origin", &self.origin).finish_non_exhaustive()
    }
}

impl ApiKey {
    /// The key that the operator chose: in `file`, or else in the environment's `variable`.
    pub fn explicit(file: Option<&Path>, variable: Option<String>) -> anyhow::Result<Option<Self>> {
        let (text, origin) = match (file, variable.filter(|text| !text.trim().is_empty())) {
            (Some(path), _) => (read(path)?, Origin::Named(path.to_owned())),
            (None, Some(text)) => (text, Origin::Environment),
            (None, None) => return Ok(None),
        };
        Ok(Some(Self::new(&text, origin)))
    }

    /// The server's own key, minted into `path` when there is none.
    pub fn own(path: &Path) -> anyhow::Result<Self> {
        let origin = Origin::Own(path.to_owned());
        if path.exists() {
            return Ok(Self::new(&read(path)?, origin));
        }
        let text = mint()?;
        private_file::write(path, format!("{text}\n").as_bytes())?;
        Ok(Self { text, origin })
    }

    /// A key that only this process knows.
    pub fn ephemeral() -> anyhow::Result<Self> {
        Ok(Self { text: mint()?, origin: Origin::Ephemeral })
    }

    fn new(text: &str, origin: Origin) -> Self {
        Self { text: text.trim().to_owned(), origin }
    }

    /// The key itself.
    pub fn secret(&self) -> &str {
        &self.text
    }

    /// Where it comes from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }
}

fn read(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path)
        .with_context(|| format!("cannot read the API key in {}", path.display()))
}

fn mint() -> anyhow::Result<String> {
    let mut random = [0; RANDOM_LEN];
    getrandom::fill(&mut random).context("the system has no random numbers")?;
    Ok(format!("pds_{}", URL_SAFE_NO_PAD.encode(random)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_minted_once_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api-key");
        let key = ApiKey::own(&path).unwrap();
        assert!(key.secret().starts_with("pds_") && key.secret().len() > 40);
        assert_eq!(ApiKey::own(&path).unwrap(), key);
        assert_ne!(ApiKey::ephemeral().unwrap().secret(), key.secret());
        assert!(!format!("{key:?} {}", key.origin()).contains(key.secret()));
    }

    #[test]
    fn a_file_beats_the_environment_and_a_blank_variable_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        std::fs::write(&path, format!("{}\n", "f".repeat(24))).unwrap();
        let variable = || Some("e".repeat(24));
        let key = ApiKey::explicit(Some(&path), variable()).unwrap().unwrap();
        assert_eq!(key.secret(), "f".repeat(24));
        let key = ApiKey::explicit(None, variable()).unwrap().unwrap();
        assert_eq!(*key.origin(), Origin::Environment);
        assert_eq!(ApiKey::explicit(None, Some(" ".to_owned())).unwrap(), None);
        assert_eq!(ApiKey::explicit(None, None).unwrap(), None);
        assert!(ApiKey::explicit(Some(&dir.path().join("none")), variable()).is_err());
    }
}
