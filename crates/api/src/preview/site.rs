//! Names that lead to this server, and addresses that it gives out.

use std::net::SocketAddr;
use std::str::FromStr;

use axum::http::{HeaderMap, header};
use pandastack_sandbox::Port;
use pandastack_types::SandboxId;

/// The one suffix that leads to this host without anybody's doing.
const LOCAL: &str = "localhost";
/// Longest name of ours: with port and id in front of it, it is still a name.
const MAX_NAME: usize = 200;

/// A name below which sandboxes have theirs: `[http://|https://]NAME[:PORT]`. Scheme and port are
/// those that browsers use, where something stands in front of this server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreviewHost {
    scheme: Option<&'static str>,
    name: String,
    port: Option<u16>,
}

/// Not a name for previews.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a preview host looks like preview.example.com or https://preview.example.com:8443, and its \
     wildcard (*.preview.example.com) leads to this server"
)]
pub struct InvalidPreviewHost;

impl FromStr for PreviewHost {
    type Err = InvalidPreviewHost;

    fn from_str(text: &str) -> Result<Self, InvalidPreviewHost> {
        let text = text.trim().to_ascii_lowercase();
        let (scheme, rest) = match text.split_once("://") {
            Some(("http", rest)) => (Some("http"), rest),
            Some(("https", rest)) => (Some("https"), rest),
            Some(_) => return Err(InvalidPreviewHost),
            None => (None, &*text),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (name, port) = match rest.split_once(':') {
            Some((name, port)) => (name, Some(port.parse().map_err(|_| InvalidPreviewHost)?)),
            None => (rest, None),
        };
        let name = name.strip_prefix("*.").unwrap_or(name);
        let legal = |label: &str| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        if name.len() > MAX_NAME || !name.split('.').all(legal) {
            return Err(InvalidPreviewHost);
        }
        Ok(Self { scheme, name: name.to_owned(), port })
    }
}

/// Where the server listens and what it is called.
#[derive(Clone, Debug, Default)]
pub(crate) struct Site {
    listener: Option<SocketAddr>,
    hosts: Vec<PreviewHost>,
}

/// The beginning of addresses that lead to the API, as a client called it.
pub(crate) struct Base(String);

impl Base {
    /// The address of a path.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.0)
    }
}

impl Site {
    pub(crate) fn new(listener: SocketAddr, hosts: &[PreviewHost]) -> Self {
        Self { listener: Some(listener), hosts: hosts.to_vec() }
    }

    fn is_local(&self) -> bool {
        self.listener.is_none_or(|address| address.ip().is_loopback())
    }

    /// Whether sandboxes have names below `suffix`. A server that others can reach is behind names
    /// that it does not know; everything of a sandbox is private there as well.
    pub(crate) fn has(&self, suffix: &str) -> bool {
        suffix == LOCAL || !self.is_local() || self.hosts.iter().any(|host| host.name == suffix)
    }

    /// How browsers reach names below `suffix`.
    pub(crate) fn scheme(&self, suffix: &str) -> &'static str {
        let host = self.hosts.iter().find(|host| host.name == suffix);
        host.and_then(|host| host.scheme).unwrap_or("http")
    }

    /// The address of a port's own site, if it has one.
    pub(crate) fn url(&self, sandbox: SandboxId, port: Port) -> Option<String> {
        let listens = self.listener.map(|address| address.port());
        let (scheme, name, at) = match self.hosts.first() {
            Some(host) => {
                // Whoever says a scheme says what stands in front of us.
                let at = host.port.or(if host.scheme.is_none() { listens } else { None });
                (host.scheme.unwrap_or("http"), &*host.name, at)
            }
            None if self.is_local() => ("http", LOCAL, listens),
            None => return None,
        };
        let at = at.filter(|at| !matches!((scheme, at), ("http", 80) | ("https", 443)));
        let at = at.map(|at| format!(":{at}")).unwrap_or_default();
        Some(format!("{scheme}://{port}-{sandbox}.{name}{at}"))
    }

    /// What the client that sent `headers` calls this server.
    pub(crate) fn base(&self, headers: &HeaderMap) -> Base {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let plain = |host: &&str| {
            let legal = |b: u8| b.is_ascii_alphanumeric() || b"-._:[]".contains(&b);
            !host.is_empty() && host.bytes().all(legal)
        };
        let host = text(header::HOST.as_str()).filter(plain).map(str::to_owned);
        let host = host.or_else(|| self.listener.map(|address| address.to_string()));
        // Only ever said back to whoever said it.
        let tls = text("x-forwarded-proto") == Some("https");
        let scheme = if tls { "https" } else { "http" };
        Base(format!("{scheme}://{}", host.unwrap_or_else(|| LOCAL.to_owned())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed";

    fn url(listener: &str, host: Option<&str>) -> Option<String> {
        let hosts: Vec<_> = host.map(|host| host.parse().unwrap()).into_iter().collect();
        let site = Site::new(listener.parse().unwrap(), &hosts);
        site.url(ID.parse().unwrap(), "80".parse().unwrap())
    }

    #[test]
    fn addresses_are_those_that_a_browser_needs() {
        let local = format!("http://80-{ID}.localhost:7878");
        assert_eq!(url("127.0.0.1:7878", None), Some(local.clone()));
        assert_eq!(url("[::1]:7878", None), Some(local));
        assert_eq!(url("0.0.0.0:7878", None), None);
        for (host, expected) in [
            ("preview.test", format!("http://80-{ID}.preview.test:7878")),
            ("https://preview.test", format!("https://80-{ID}.preview.test")),
            ("https://*.Preview.test:443/", format!("https://80-{ID}.preview.test")),
            ("http://preview.test:8080", format!("http://80-{ID}.preview.test:8080")),
        ] {
            assert_eq!(url("0.0.0.0:7878", Some(host)), Some(expected), "{host}");
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let long = format!("{}.test", "a".repeat(64));
        for bad in ["", "ftp://x", "a..b", "-a", "a b", "a/b", "a:x", "é.test", "user@x", &long] {
            assert!(bad.parse::<PreviewHost>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_client_hears_the_name_that_it_used() {
        let site = Site::new("127.0.0.1:7878".parse().unwrap(), &[]);
        let base = |host: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            site.base(&headers).url("/x")
        };
        assert_eq!(base("localhost:1"), "http://localhost:1/x");
        assert_eq!(base("[::1]:1"), "http://[::1]:1/x");
        assert_eq!(base("a/b"), "http://127.0.0.1:7878/x");
        assert_eq!(base("a\"b"), "http://127.0.0.1:7878/x");
    }
}
