//! The server's base URL, and how paths and queries are put behind it.

use http::Uri;

use super::ClientError;

/// A base URL, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    text: String,
    host: String,
    port: u16,
    prefix: String,
}

impl Base {
    /// Takes `http://host[:port][/prefix]`.
    pub fn parse(text: &str) -> Result<Self, ClientError> {
        let bad = || ClientError::BadUrl(text.to_owned());
        let uri: Uri = text.trim().parse().map_err(|_| bad())?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(ClientError::Tls(text.to_owned())),
            _ => return Err(bad()),
        }
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(bad)?;
        Ok(Self {
            text: text.trim().trim_end_matches('/').to_owned(),
            host: host.to_owned(),
            port: uri.port_u16().unwrap_or(80),
            prefix: uri.path().trim_end_matches('/').to_owned(),
        })
    }

    /// The URL as it was given, without a slash at its end.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Where to connect to.
    pub fn address(&self) -> (&str, u16) {
        // An IPv6 address has brackets in a URL, and none elsewhere.
        (self.host.trim_matches(['[', ']']), self.port)
    }

    /// Value of the `Host` header.
    pub fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// The target of a request for `path`, which starts with a slash.
    pub fn path(&self, path: &str) -> String {
        format!("{}{path}", self.prefix)
    }
}

/// Puts `pairs` behind `path` as a query.
pub fn query(path: &str, pairs: &[(&str, &str)]) -> String {
    let mut target = path.to_owned();
    for (index, (name, value)) in pairs.iter().enumerate() {
        target.push(if index == 0 { '?' } else { '&' });
        escape(name, &mut target);
        target.push('=');
        escape(value, &mut target);
    }
    target
}

fn escape(text: &str, into: &mut String) {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'/') {
            into.push(char::from(byte));
        } else {
            into.push('%');
            into.push(char::from(HEX[usize::from(byte >> 4)]));
            into.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_urls() {
        let base = Base::parse("http://127.0.0.1:7878/").unwrap();
        assert_eq!(base.address(), ("127.0.0.1", 7878));
        assert_eq!(base.as_str(), "http://127.0.0.1:7878");
        assert_eq!(base.path("/v1/sandboxes"), "/v1/sandboxes");

        let base = Base::parse("http://[::1]/panda/").unwrap();
        assert_eq!(base.address(), ("::1", 80));
        assert_eq!(base.authority(), "[::1]:80");
        assert_eq!(base.path("/healthz"), "/panda/healthz");

        assert!(matches!(Base::parse("https://api.example.com"), Err(ClientError::Tls(_))));
        for bad in ["", "localhost:7878", "ftp://x", "http://", "/v1", "http://a b"] {
            assert!(matches!(Base::parse(bad), Err(ClientError::BadUrl(_))), "{bad:?}");
        }
    }

    #[test]
    fn queries_are_escaped() {
        assert_eq!(query("/fs", &[]), "/fs");
        assert_eq!(
            query("/fs", &[("path", "/a b/é&c=+?#%"), ("n", "1")]),
            "/fs?path=/a%20b/%C3%A9%26c%3D%2B%3F%23%25&n=1"
        );
    }
}
