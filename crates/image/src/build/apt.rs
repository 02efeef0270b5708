//! Package sources: a Debian host's own mirror, for building templates from it.
//!
//! Whoever runs a Debian host has already chosen a mirror that it can reach and trusts. On any
//! other host nothing is chosen here, and mmdebstrap uses its default.

use std::fs;
use std::path::{Path, PathBuf};

/// Releases by which a source of Debian itself is told from other package sources.
const RELEASES: [&str; 11] = [
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "duke",
    "sid",
    "unstable",
    "testing",
    "stable",
    "oldstable",
    "oldoldstable",
];

/// One usable `deb` source.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Source {
    uri: String,
    suite: String,
    signed_by: Option<String>,
}

/// The sources file with which to build `suite` on the host whose `/etc` is given, or `None`
/// for mmdebstrap's default.
pub(super) fn sources_for(suite: &str, etc: &Path) -> Option<String> {
    let os_release = fs::read_to_string(etc.join("os-release")).ok()?;
    if !os_release.lines().any(|line| line.trim() == "ID=debian") {
        return None;
    }
    let apt = etc.join("apt");
    let mut sources = Vec::new();
    for path in source_files(&apt) {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        match path.extension().and_then(|e| e.to_str()) {
            Some("sources") => sources.extend(parse_deb822(&text)),
            _ => sources.extend(parse_one_line(&text)),
        }
    }
    render(suite, &sources)
}

/// `sources.list` and the files of `sources.list.d`, in apt's order.
fn source_files(apt: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(apt.join("sources.list.d")).into_iter().flatten().flatten();
    let mut parts: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|e| e == "list" || e == "sources"))
        .collect();
    parts.sort();
    parts.insert(0, apt.join("sources.list"));
    parts
}

/// Reads the format of sources.list: `deb [option=value …] URI SUITE COMPONENT…`.
fn parse_one_line(text: &str) -> Vec<Source> {
    text.lines().filter_map(parse_entry).collect()
}

fn parse_entry(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let rest = line.strip_prefix("deb")?;
    if !rest.starts_with(char::is_whitespace) {
        return None; // deb-src, or nothing at all
    }
    let rest = rest.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(inner) => inner.split_once(']')?,
        None => ("", rest),
    };
    let signed_by = options
        .split_whitespace()
        .find_map(|option| option.strip_prefix("signed-by="))
        .map(str::to_owned);
    let mut words = rest.split_whitespace();
    let (uri, suite) = (words.next()?, words.next()?);
    words.any(|component| component == "main").then_some(())?;
    Some(Source { uri: usable(uri)?, suite: suite.to_owned(), signed_by })
}

/// Reads the format of `*.sources`: stanzas of fields.
fn parse_deb822(text: &str) -> Vec<Source> {
    let text: String =
        text.lines().filter(|line| !line.starts_with('#')).map(|l| format!("{l}\n")).collect();
    text.split("\n\n").flat_map(parse_stanza).collect()
}

fn parse_stanza(stanza: &str) -> Vec<Source> {
    let has = |field: &str, word: &str| {
        self::field(stanza, field).is_some_and(|v| v.split_whitespace().any(|w| w == word))
    };
    if !has("Types", "deb") || !has("Components", "main") || has("Enabled", "no") {
        return Vec::new();
    }
    // A key may also be given in place, over several lines; only a file can be passed on.
    let signed_by = field(stanza, "Signed-By").filter(|value| value.starts_with('/'));
    let uris = field(stanza, "URIs").unwrap_or_default();
    let suites = field(stanza, "Suites").unwrap_or_default();
    let mut sources = Vec::new();
    for uri in uris.split_whitespace().filter_map(usable) {
        for suite in suites.split_whitespace() {
            let (uri, suite) = (uri.clone(), suite.to_owned());
            sources.push(Source { uri, suite, signed_by: signed_by.clone() });
        }
    }
    sources
}

/// The value of a field, with its continuation lines.
fn field(stanza: &str, name: &str) -> Option<String> {
    let mut lines = stanza.lines();
    let value = lines.by_ref().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then_some(value)
    })?;
    let more = lines.take_while(|line| line.starts_with([' ', '\t']));
    let whole = std::iter::once(value).chain(more).map(str::trim).collect::<Vec<_>>();
    Some(whole.join(" ").trim().to_owned())
}

/// Mirrors that a build can use too; a CD-ROM or a local path of the host is none.
fn usable(uri: &str) -> Option<String> {
    let remote = uri.starts_with("http://") || uri.starts_with("https://");
    remote.then(|| uri.trim_end_matches('/').to_owned())
}

/// Writes the sources of `suite`, taking mirrors from the host's own `sources`.
fn render(suite: &str, sources: &[Source]) -> Option<String> {
    // Third parties name their suites after releases as well. Debian's own mirrors have the
    // conventional path and Debian's key, or no key of their own.
    let score = |source: &&Source| {
        let conventional = source.uri.ends_with("/debian");
        let foreign = source.signed_by.as_deref().is_some_and(|k| !k.contains("debian-archive"));
        i32::from(conventional) - i32::from(foreign)
    };
    let main = sources
        .iter()
        .filter(|source| RELEASES.contains(&source.suite.as_str()))
        .rev() // max_by_key takes the last of equals, apt the first
        .max_by_key(score)?;
    let line = |source: &Source, suite: &str| {
        let options = source.signed_by.as_ref().map(|key| format!("[signed-by={key}] "));
        format!("deb {}{} {suite} main\n", options.unwrap_or_default(), source.uri)
    };
    let mut text = line(main, suite);
    if !["sid", "unstable"].contains(&suite) {
        text += &line(main, &format!("{suite}-updates"));
        let security = sources.iter().find(|source| source.suite.ends_with("-security"));
        text += &security.map(|s| line(s, &format!("{suite}-security"))).unwrap_or_default();
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An `/etc` of a host with the given files.
    fn host(files: &[(&str, &str)]) -> tempfile::TempDir {
        let etc = tempfile::tempdir().unwrap();
        fs::create_dir_all(etc.path().join("apt/sources.list.d")).unwrap();
        for (path, text) in files {
            fs::write(etc.path().join(path), text).unwrap();
        }
        etc
    }

    const DEBIAN: (&str, &str) = ("os-release", "NAME=\"Debian\"\nID=debian\n");

    #[test]
    fn one_line_sources_are_read() {
        let etc = host(&[
            DEBIAN,
            (
                "apt/sources.list",
                "# deb http://old.example/debian bookworm main\n\
                 deb-src http://src.example/debian bookworm main\n\
                 deb cdrom:[Debian]/ bookworm main\n\
                 deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] \
                     http://mirror.example/debian/ bookworm main contrib\n\
                 deb http://sec.example/debian-security bookworm-security main # fixes\n",
            ),
        ]);
        assert_eq!(
            sources_for("trixie", etc.path()).unwrap(),
            "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] \
             http://mirror.example/debian trixie main\n\
             deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] \
             http://mirror.example/debian trixie-updates main\n\
             deb http://sec.example/debian-security trixie-security main\n"
        );
    }

    #[test]
    fn deb822_sources_are_read() {
        let etc = host(&[
            DEBIAN,
            (
                "apt/sources.list.d/debian.sources",
                "Types: deb deb-src\n# a comment\nURIs: http://mirror.example/debian\n\
                 Suites: bookworm\n bookworm-updates\nComponents: main\n\
                 Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n\
                 Types: deb\nURIs: http://off.example/debian\nSuites: trixie\n\
                 Components: main\nEnabled: no\n\n\
                 types: deb\nuris: https://sec.example/debian-security\n\
                 suites: bookworm-security\ncomponents: main\n\
                 Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n",
            ),
        ]);
        let text = sources_for("trixie", etc.path()).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[0].ends_with("keyring.gpg] http://mirror.example/debian trixie main"));
        assert_eq!(lines[2], "deb https://sec.example/debian-security trixie-security main");
    }

    #[test]
    fn third_parties_are_not_taken_for_debian() {
        let etc = host(&[
            DEBIAN,
            (
                "apt/sources.list.d/a.list",
                "deb [signed-by=/etc/apt/keyrings/v.gpg] https://vendor.example bookworm main\n\
                 deb https://other.example/debian bookworm-extra main\n",
            ),
            ("apt/sources.list.d/b.list", "deb http://proxy.example/remote bookworm main\n"),
        ]);
        let text = sources_for("trixie", etc.path()).unwrap();
        assert!(text.starts_with("deb http://proxy.example/remote trixie main\n"), "{text}");
        assert!(!text.contains("vendor") && !text.contains("other"), "{text}");
    }

    #[test]
    fn without_a_debian_mirror_nothing_is_chosen() {
        let ubuntu = host(&[
            ("os-release", "ID=ubuntu\nID_LIKE=debian\n"),
            ("apt/sources.list", "deb http://mirror.example/ubuntu stable main\n"),
        ]);
        assert_eq!(sources_for("trixie", ubuntu.path()), None);
        assert_eq!(sources_for("trixie", host(&[DEBIAN]).path()), None);
        let nothing = tempfile::tempdir().unwrap();
        assert_eq!(sources_for("trixie", nothing.path()), None);
    }
}
