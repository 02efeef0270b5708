//! The two sides of a copy, and the names that a guest may give to files of this host.

use std::fmt;

/// One side of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A path of this host.
    Host(String),
    /// A path in a sandbox.
    Guest {
        /// The sandbox's id, or the beginning of it.
        sandbox: String,
        /// Absolute path in the guest.
        path: String,
    },
}

impl Location {
    /// `ID:/path` is in a sandbox; everything else is a path of this host.
    pub fn parse(text: &str) -> Self {
        match text.split_once(':') {
            Some((id, path)) if looks_like_id(id) && path.starts_with('/') => {
                Self::Guest { sandbox: id.to_owned(), path: path.to_owned() }
            }
            _ => Self::Host(text.to_owned()),
        }
    }
}

fn looks_like_id(text: &str) -> bool {
    !text.is_empty() && text.len() <= 36 && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-')
}

/// The last part of a guest path, if it names something: not of `/` or `..`.
pub fn last_name(path: &str) -> Option<SafeName> {
    SafeName::new(path.trim_end_matches('/').rsplit('/').next()?).ok()
}

/// A guest path for `name` in `dir`.
pub fn join(dir: &str, name: &str) -> String {
    format!("{}/{name}", dir.trim_end_matches('/'))
}

/// The name of one directory entry: it cannot lead anywhere but into its directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SafeName(String);

impl SafeName {
    /// The longest name that Linux takes.
    const MAX_LEN: usize = 255;

    /// Checks a name that came from a guest.
    pub fn new(text: &str) -> Result<Self, UnsafeName> {
        let leads_elsewhere = matches!(text, "" | "." | "..") || text.contains(['/', '\0']);
        if leads_elsewhere || text.len() > Self::MAX_LEN {
            return Err(UnsafeName(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SafeName {
    /// Control characters are escaped: they would reach the user's terminal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.escape_debug())
    }
}

/// A name that could lead out of its directory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the sandbox names a file {0:?}, which is no file name")]
pub struct UnsafeName(String);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_id_and_an_absolute_path_are_in_a_sandbox() {
        let guest = |sandbox: &str, path: &str| Location::Guest {
            sandbox: sandbox.to_owned(),
            path: path.to_owned(),
        };
        assert_eq!(Location::parse("1b9d:/root/x:y"), guest("1b9d", "/root/x:y"));
        let id = "1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed";
        assert_eq!(Location::parse(&format!("{id}:/")), guest(id, "/"));
        for host in ["x.txt", "/etc/x", "./1b9d:/x", "1b9d:x", ":/x", "host:/x", "a:"] {
            assert_eq!(Location::parse(host), Location::Host(host.to_owned()));
        }
    }

    #[test]
    fn names_cannot_leave_their_directory() {
        for bad in ["", ".", "..", "/", "a/b", "/etc/passwd", "../x", "a\0", &"x".repeat(256)] {
            assert!(SafeName::new(bad).is_err(), "{bad:?}");
        }
        for good in ["a", "...", "..a", " ", "-rf", "é", "a\\b", &"x".repeat(255)] {
            assert_eq!(SafeName::new(good).unwrap().as_str(), good);
        }
        assert_eq!(SafeName::new("\x1b[2J").unwrap().to_string(), "\\u{1b}[2J");
    }

    #[test]
    fn last_names() {
        assert_eq!(last_name("/root/plot.png").unwrap().as_str(), "plot.png");
        assert_eq!(last_name("/root/").unwrap().as_str(), "root");
        for nothing in ["/", "//", "/root/..", "/.", ""] {
            assert_eq!(last_name(nothing), None, "{nothing:?}");
        }
        assert_eq!(join("/", "a"), "/a");
        assert_eq!(join("/root/", "a"), "/root/a");
    }
}
