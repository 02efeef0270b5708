//! Ids and names, with the one validator of each.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Defines an id: a random UUID with one spelling, lower-case and hyphenated.
macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $invalid:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// A fresh random id (UUID version 4).
            pub fn random() -> Self {
                Self(Uuid::new_v4())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.as_hyphenated().fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(text: &str) -> Result<Self, InvalidName> {
                // Only the hyphenated form: one thing has one spelling.
                if text.len() != 36 {
                    return Err($invalid);
                }
                Uuid::try_parse(text).map(Self).map_err(|_| $invalid)
            }
        }
    };
}

id! {
    /// A sandbox: a lower-case UUID, because clients put it in paths and in DNS labels.
    SandboxId, InvalidName::SandboxId
}

id! {
    /// A snapshot of a sandbox.
    SnapshotId, InvalidName::SnapshotId
}

/// A sandbox that is kept as files of its own is kept under its own id.
impl From<SandboxId> for SnapshotId {
    fn from(id: SandboxId) -> Self {
        Self(id.0)
    }
}

/// The name of a template or of an alias: 1 to 64 of `a-z 0-9 . _ -`, starting with a letter or
/// digit. Safe to join to a path: it can be neither empty, `.`, `..` nor contain a separator.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TemplateName(String);

impl TemplateName {
    /// The longest name, in bytes.
    pub const MAX_LEN: usize = 64;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TemplateName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let bytes = text.as_bytes();
        let head = bytes.first().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let tail = bytes.iter().all(|b| {
            b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-')
        });
        if head && tail && bytes.len() <= Self::MAX_LEN {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidName::Template)
        }
    }
}

impl TryFrom<String> for TemplateName {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<TemplateName> for String {
    fn from(name: TemplateName) -> Self {
        name.0
    }
}

impl fmt::Display for TemplateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a volume, which is also where guests find it: 1 to 64 of `a-z A-Z 0-9 . _ -`,
/// starting with a letter or digit. Safe to join to a path, as [`TemplateName`] is.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeName(String);

impl VolumeName {
    /// The longest name, in bytes.
    pub const MAX_LEN: usize = 64;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for VolumeName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let head = text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        let tail = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if head && tail && text.len() <= Self::MAX_LEN {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidName::Volume)
        }
    }
}

impl TryFrom<String> for VolumeName {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<VolumeName> for String {
    fn from(name: VolumeName) -> Self {
        name.0
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Text that is not a valid id or name. The text itself is not repeated: it may be hostile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// Not a hyphenated UUID.
    #[error("a sandbox id is a UUID such as 1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed")]
    SandboxId,
    /// Not a hyphenated UUID.
    #[error("a snapshot id is a UUID such as 1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed")]
    SnapshotId,
    /// Not a template name.
    #[error(
        "a template name is 1 to 64 of a-z, 0-9, '.', '_', '-' and starts with a letter or digit"
    )]
    Template,
    /// Not a volume name.
    #[error(
        "a volume name is 1 to 64 of a-z, A-Z, 0-9, '.', '_', '-' and starts with a letter or digit"
    )]
    Volume,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn template_names_cannot_leave_their_directory() {
        for bad in
            ["", ".", "..", "../x", "a/b", "a\0b", "-x", ".x", "A", "é", "a b", &"a".repeat(65)]
        {
            assert!(bad.parse::<TemplateName>().is_err(), "{bad:?}");
        }
        for good in ["base", "ubuntu-24.04", "code-interpreter-v1", "0", &"a".repeat(64)] {
            assert!(good.parse::<TemplateName>().is_ok(), "{good:?}");
        }
    }

    #[test]
    fn volume_names_cannot_leave_their_directory() {
        for bad in
            ["", ".", "..", "../x", "a/b", "a\0b", "-x", ".x", "é", "a b", "a\n", &"a".repeat(65)]
        {
            assert!(bad.parse::<VolumeName>().is_err(), "{bad:?}");
        }
        for good in ["data", "Data-2", "a..b", "0", &"a".repeat(64)] {
            assert!(good.parse::<VolumeName>().is_ok(), "{good:?}");
        }
    }

    #[test]
    fn a_sandbox_id_has_one_spelling() {
        let id = SandboxId::random();
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(id.to_string(), id.to_string().to_lowercase());
        for bad in
            ["", "x", "1b9d6bcdbbfd4b2d9b5dab8dfbbd4bed", "{1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed}"]
        {
            assert!(bad.parse::<SandboxId>().is_err(), "{bad:?}");
        }
    }
}
