//! Keeping web pages away from a server on loopback.
//!
//! A page that a user looks at can make the browser send requests to the user's own machine,
//! and with a DNS name that suddenly means 127.0.0.1 it can even read the answers. Both show in
//! the request: the browser sends the name in `Host` and the page's site in `Origin`. On a
//! loopback listener both must be names of loopback. The names of sandboxes are no names of the API,
//! wherever it listens: what is shown there is a guest's, and a page of it is another site's page.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::Response;

use crate::error::ApiError;
use crate::preview::names_a_sandbox;

/// Which names clients may call this server by.
#[derive(Clone, Debug)]
pub(crate) enum Guard {
    /// Any: the listener can be reached by other machines, which have to know a key.
    Off,
    /// Loopback, and these names.
    Loopback(Arc<[String]>),
}

impl Guard {
    pub(crate) fn new(listener: SocketAddr, extra: &[String]) -> Self {
        if listener.ip().is_loopback() {
            Self::Loopback(extra.iter().map(|name| name.to_ascii_lowercase()).collect())
        } else {
            Self::Off
        }
    }

    fn check(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
        self.check_name(uri, headers)?;
        let own = |origin: &str| {
            origin.split_once("://").is_some_and(|(_, site)| match self {
                Self::Loopback(extra) => is_allowed(host_of(site), extra),
                Self::Off => !names_a_sandbox(site),
            })
        };
        let mut origins = headers.get_all(header::ORIGIN).iter();
        // Beyond loopback, a page that says nothing of a sandbox is as good as any client.
        let foreign = |text: &str| match self {
            Self::Loopback(_) => !own(text),
            Self::Off => text.contains("://") && !own(text),
        };
        if origins.any(|value| foreign(value.to_str().unwrap_or("null"))) {
            let text = "requests from web pages of other sites are not allowed";
            return Err(ApiError::new(StatusCode::FORBIDDEN, text));
        }
        Ok(())
    }

    /// Whether the client calls this server by a name that it has.
    pub(crate) fn check_name(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
        let Self::Loopback(extra) = self else { return Ok(()) };
        let refused = |text| Err(ApiError::new(StatusCode::FORBIDDEN, text));
        let allowed = |authority: &str| is_allowed(host_of(authority), extra);
        let hosts = headers.get_all(header::HOST);
        let mut names = hosts.iter().map(|value| value.to_str().unwrap_or_default());
        // Exactly one: two would leave open which of them counts.
        match (names.next(), names.next()) {
            (Some(name), None) if allowed(name) => {}
            _ => return refused("this server does not answer to that host name"),
        }
        if uri.authority().is_some_and(|authority| !allowed(authority.as_str())) {
            return refused("this server does not answer to that host name");
        }
        Ok(())
    }
}

/// The middleware.
pub(crate) async fn check(
    State(guard): State<Guard>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    guard.check(request.uri(), request.headers())?;
    Ok(next.run(request).await)
}

/// The host of `host[:port]`.
fn host_of(authority: &str) -> &str {
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split_once(']').map_or("", |(address, _)| address);
    }
    authority.split_once(':').map_or(authority, |(host, _)| host)
}

fn is_allowed(host: &str, extra: &[String]) -> bool {
    let host = host.to_ascii_lowercase();
    if names_a_sandbox(&host) {
        return false;
    }
    host == "localhost"
        || host.ends_with(".localhost")
        || host.parse::<Ipv4Addr>().is_ok_and(|address| address.is_loopback())
        || host.parse::<Ipv6Addr>().is_ok_and(|address| address.is_loopback())
        || extra.contains(&host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(host: &[&str], origin: Option<&str>) -> bool {
        let guard = Guard::new("127.0.0.1:1".parse().unwrap(), &["Panda.internal".to_owned()]);
        let mut headers = HeaderMap::new();
        for name in host {
            headers.append(header::HOST, name.parse().unwrap());
        }
        if let Some(origin) = origin {
            headers.insert(header::ORIGIN, origin.parse().unwrap());
        }
        guard.check(&Uri::from_static("/v1/sandboxes"), &headers).is_ok()
    }

    #[test]
    fn loopback_names_are_ours() {
        for host in [
            "localhost",
            "LOCALHOST:8080",
            "127.0.0.1:7",
            "127.9.9.9",
            "[::1]:8080",
            "8000-x.localhost:1",
            "panda.internal:80",
        ] {
            assert!(asked(&[host], None), "{host}");
        }
        assert!(asked(&["localhost"], Some("http://localhost:3000")));
        assert!(asked(&["localhost"], Some("http://[::1]:3000")));
    }

    #[test]
    fn all_others_are_not() {
        for host in [
            "evil.example",
            "localhost.evil.example",
            "evillocalhost",
            "127.0.0.1.evil.example",
            "128.0.0.1",
            "0.0.0.0",
            "[::]",
            "[::1",
            "2130706433",
            "",
        ] {
            assert!(!asked(&[host], None), "{host}");
        }
        assert!(!asked(&[], None));
        assert!(!asked(&["localhost", "evil.example"], None));
        let sandbox = "8000-1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed.localhost:1";
        assert!(!asked(&[sandbox], None));
        assert!(!asked(&["localhost"], Some(&format!("http://{sandbox}"))));
        for origin in ["null", "https://evil.example", "http://localhost.evil.example", "localhost"]
        {
            assert!(!asked(&["localhost"], Some(origin)), "{origin}");
        }
    }

    #[test]
    fn an_absolute_request_line_counts_too() {
        let guard = Guard::new("[::1]:1".parse().unwrap(), &[]);
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, "localhost".parse().unwrap());
        assert!(guard.check(&Uri::from_static("http://evil.example/v1"), &headers).is_err());
        let open = Guard::new("10.0.0.1:1".parse().unwrap(), &[]);
        assert!(open.check(&Uri::from_static("/"), &HeaderMap::new()).is_ok());
        let mut page = HeaderMap::new();
        page.insert(header::ORIGIN, "https://app.example".parse().unwrap());
        assert!(open.check(&Uri::from_static("/"), &page).is_ok());
        let sandbox = "https://80-1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed.p.example";
        page.insert(header::ORIGIN, sandbox.parse().unwrap());
        assert!(open.check(&Uri::from_static("/"), &page).is_err());
    }
}
