//! Paths of HTTP requests under rules that name paths.
//!
//! The invariant: **a path that two servers may read in two ways is under no rule.** We do not
//! resolve dot segments or merge slashes: a client that means well has done that, and what is left
//! is there to be read differently behind us.

use std::fmt::{self, Write as _};
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// The path of a request's target in its one spelling, without the query: characters that need
/// no escape have none, and the others have upper-case digits. `None` for what is ambiguous: dot
/// segments, empty segments, hidden separators, escapes of escapes, bytes that are not UTF-8.
pub fn plain(target: &str) -> Option<String> {
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    let (mut out, mut decoded) = (String::with_capacity(path.len()), Vec::new());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        let value = match byte {
            b'%' => hex(bytes.next()?)? << 4 | hex(bytes.next()?)?,
            b'!'..=b'~' if !matches!(byte, b'\\' | b'#') => byte,
            _ => return None,
        };
        decoded.push(value);
        match value {
            _ if byte != b'%' => out.push(char::from(value)),
            b'.' | b'/' | b'\\' | b'%' | b';' | 0..b' ' | 0x7f => return None,
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'~' => {
                out.push(char::from(value));
            }
            _ => write!(out, "%{value:02X}").ok()?,
        }
    }
    str::from_utf8(&decoded).ok()?; // or it is an overlong form of something else
    let mut segments = out.strip_prefix('/')?.split('/').peekable();
    while let Some(segment) = segments.next() {
        // Some servers drop parameters (`..;x`) before they look at the segment.
        let name = segment.split(';').next().unwrap_or_default();
        let last = segment.is_empty() && segments.peek().is_none();
        if matches!(name, "." | "..") || name.is_empty() && !last {
            return None;
        }
    }
    Some(out)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// A path of a rule: it and everything below it. `/simple` is `/simple` and `/simple/…` but not
/// `/simpler`; `/simple/` is only what is below; `/` is every path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PathPrefix(String);

impl PathPrefix {
    /// The longest one, in bytes.
    pub const MAX_LEN: usize = 1024;

    /// Whether a path that [`plain`] has read is under it.
    pub fn covers(&self, path: &str) -> bool {
        path.strip_prefix(&*self.0)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || self.0.ends_with('/'))
    }
}

impl FromStr for PathPrefix {
    type Err = InvalidPath;

    fn from_str(text: &str) -> Result<Self, InvalidPath> {
        match plain(text) {
            Some(path) if path == text && path.len() <= Self::MAX_LEN => Ok(Self(path)),
            _ => Err(InvalidPath),
        }
    }
}

impl fmt::Display for PathPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for PathPrefix {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// Not a path for a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a path starts with '/', has at most {} bytes, no query, no '//', no dot segments, and escapes \
     (upper-case) only where they are needed",
    PathPrefix::MAX_LEN
)]
pub struct InvalidPath;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_spelling() {
        for (target, path) in [
            ("/", "/"),
            ("/simple/", "/simple/"),
            ("/simple/pip?x=/../", "/simple/pip"),
            ("/%73imple/%7e", "/simple/~"),
            ("/a%20b/%c3%a9", "/a%20b/%C3%A9"),
            ("/a;v=1/b.c/...", "/a;v=1/b.c/..."),
        ] {
            assert_eq!(plain(target).as_deref(), Some(path), "{target}");
        }
    }

    #[test]
    fn ambiguous_paths_have_none() {
        let spelt = r"simple * http://a.test/ a.test:443 // /a//b //a /a/./b /a/.. /a/../b /. /a/..;/b
            /a/.;x /a/;x /a/%2e%2e/b /a%2Fb /a%5cb /a\b /a%00 /a%0d%0a /a%252e /a% /a%2 /a%zz /a%+1
            /a#b /é /%c0%af /%ff /a%3bx";
        for target in spelt.split_whitespace().chain(["", "/a b", "/a\u{7f}", "/a\r\n", "/\0"]) {
            assert_eq!(plain(target), None, "{target}");
        }
    }

    #[test]
    fn prefixes_end_at_segments() {
        let covers = |prefix: &str, path| prefix.parse::<PathPrefix>().unwrap().covers(path);
        assert!(covers("/simple", "/simple") && covers("/simple", "/simple/pip"));
        assert!(!covers("/simple", "/simpler") && !covers("/simple", "/"));
        assert!(covers("/simple/", "/simple/pip") && !covers("/simple/", "/simple"));
        assert!(covers("/", "/") && covers("/", "/x"));
        for bad in
            ["", "a", "/a/../b", "/a?b", "/%61", "/%c3%a9", &format!("/{}", "a".repeat(1024))]
        {
            assert_eq!(bad.parse::<PathPrefix>(), Err(InvalidPath), "{bad}");
        }
    }

    /// Everything that a server may do to a path before it looks for it.
    fn as_a_lenient_server_reads(target: &str) -> Vec<String> {
        let path = target.split('?').next().unwrap().replace("%2e", ".").replace("%2f", "/");
        let path = path.replace("%5c", "/").replace('\\', "/").replace("%61", "a");
        let mut stack: Vec<String> = Vec::new();
        for segment in path.split('/') {
            match segment.split(';').next().unwrap() {
                "" | "." => {}
                ".." => drop(stack.pop()),
                name => stack.push(name.to_owned()),
            }
        }
        stack
    }

    proptest! {
        /// A lenient server, too, stays below the prefix that a path is allowed by.
        #[test]
        fn nobody_leaves_a_prefix(
            parts in proptest::collection::vec(
                prop_oneof!["/", "a", "b", "\\.", "\\.\\.", ";", "%2e", "%2f", "%5c", "\\\\", "%61", "\\?"], 0..12),
        ) {
            let target = format!("/a/b/{}", parts.concat());
            if let Some(path) = plain(&target) {
                let prefix: PathPrefix = "/a/b".parse().unwrap();
                prop_assert!(prefix.covers(&path));
                prop_assert_eq!(&as_a_lenient_server_reads(&target)[..2], ["a", "b"]);
                prop_assert_eq!(plain(&path), Some(path));
            }
        }

        #[test]
        fn any_text_is_read_without_a_panic(target in "\\PC{0,40}") {
            let _ = plain(&target);
        }
    }
}
