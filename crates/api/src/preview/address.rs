//! Which port of which sandbox a request is for.
//!
//! The request is read as it came: nothing is decoded, joined or normalised. A part that is spelt in
//! any other way than ours names nothing and is refused.

use axum::http::{HeaderMap, StatusCode, Uri, header};
use pandastack_sandbox::Port;
use pandastack_types::SandboxId;

use super::Site;
use super::token::LINK;
use crate::error::ApiError;

const SANDBOXES: &str = "/v1/sandboxes/";
const PROXY: &str = "proxy";
/// Characters of an id.
const ID: usize = 36;

/// How a request named its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// By its host.
    Site,
    /// By its path, for holders of a key.
    Path,
    /// By a token in its path.
    Link,
}

/// The port that a request is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) way: Way,
    /// Who is meant; a link says it in its token.
    pub(super) target: Option<(SandboxId, Port)>,
    /// The token of a link.
    pub(super) token: String,
    /// What the client called us: the `Host` header.
    pub(super) authority: String,
    /// How its browser reaches that.
    pub(super) scheme: &'static str,
    /// What stands before the guest's own path in the client's address.
    pub(super) prefix: String,
    /// Path and query for the guest.
    pub(super) rest: String,
}

/// Whether a host name is, or looks like, that of a sandbox: such a name is never the API's.
pub(crate) fn names_a_sandbox(host: &str) -> bool {
    let label = host.split(['.', ':']).next().unwrap_or_default();
    let at = label.len().checked_sub(ID);
    at.and_then(|at| label.get(at..)).is_some_and(|id| id.parse::<SandboxId>().is_ok())
}

/// Looks for the port that a request is for; `None` for requests to the API.
pub(super) fn of(uri: &Uri, headers: &HeaderMap, site: &Site) -> Result<Option<Address>, ApiError> {
    let said: Vec<&str> = headers
        .get_all(header::HOST)
        .iter()
        .map(|value| value.to_str().unwrap_or_default())
        .chain(uri.authority().map(|authority| authority.as_str()))
        .collect();
    if said.iter().any(|host| names_a_sandbox(host)) {
        // All of them, in every place, or it is not clear who is meant.
        let first = said[0];
        if headers.get_all(header::HOST).iter().count() != 1
            || said.iter().any(|host| !host.eq_ignore_ascii_case(first))
        {
            return Err(ApiError::bad_request("the request names more than one host"));
        }
        return by_host(first, uri, site).map(Some);
    }
    by_path(uri, said.first().copied().unwrap_or_default())
}

fn by_host(authority: &str, uri: &Uri, site: &Site) -> Result<Address, ApiError> {
    let authority = authority.to_ascii_lowercase();
    let host = authority.split_once(':').map_or(&*authority, |(host, _)| host);
    let refused = || {
        let text = "this server does not answer to that host name";
        ApiError::new(StatusCode::FORBIDDEN, text)
    };
    let (label, suffix) = host.split_once('.').ok_or_else(refused)?;
    if !site.has(suffix) {
        return Err(refused());
    }
    let (port, id) = label.split_once('-').ok_or_else(refused)?;
    let port = port.parse::<Port>().map_err(|error| ApiError::bad_request(error.to_string()))?;
    let id = id.parse().map_err(|_| refused())?;
    Ok(Address {
        way: Way::Site,
        target: Some((id, port)),
        token: String::new(),
        scheme: site.scheme(suffix),
        prefix: String::new(),
        rest: rest(uri.path(), uri)?,
        authority,
    })
}

fn by_path(uri: &Uri, authority: &str) -> Result<Option<Address>, ApiError> {
    let path = uri.path();
    let address = |way, target, token: &str, inside: &str| {
        Ok(Some(Address {
            way,
            target,
            token: token.to_owned(),
            authority: authority.to_ascii_lowercase(),
            scheme: "http",
            prefix: path[..path.len() - inside.len()].to_owned(),
            rest: rest(if inside.is_empty() { "/" } else { inside }, uri)?,
        }))
    };
    if let Some(token) = path.strip_prefix(LINK) {
        let (token, inside) = split_segment(token);
        return address(Way::Link, None, token, inside);
    }
    let Some(named) = path.strip_prefix(SANDBOXES) else { return Ok(None) };
    let (id, named) = split_segment(named);
    let (verb, named) = split_segment(named.strip_prefix('/').unwrap_or_default());
    if verb != PROXY {
        return Ok(None);
    }
    let id: SandboxId = id.parse().map_err(|error| {
        ApiError::new(StatusCode::NOT_FOUND, format!("sandbox not found: {error}"))
    })?;
    let (port, inside) = split_segment(named.strip_prefix('/').unwrap_or_default());
    let port = port.parse::<Port>().map_err(|error| ApiError::bad_request(error.to_string()))?;
    address(Way::Path, Some((id, port)), "", inside)
}

/// The first segment, and the rest with its slash.
fn split_segment(path: &str) -> (&str, &str) {
    path.split_at(path.find('/').unwrap_or(path.len()))
}

/// Path and query for the guest.
fn rest(path: &str, uri: &Uri) -> Result<String, ApiError> {
    if !path.starts_with('/') {
        return Err(ApiError::bad_request("the address has no path"));
    }
    Ok(match uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "1b9d6bcd-bbfd-4b2d-9b5d-ab8dfbbd4bed";

    fn ask(host: &str, target: &str) -> Result<Option<Address>, ApiError> {
        let site = Site::new("127.0.0.1:7878".parse().unwrap(), &["p.test".parse().unwrap()]);
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, host.parse().unwrap());
        of(&target.parse().unwrap(), &headers, &site)
    }

    fn found(host: &str, target: &str) -> (Way, Option<u16>, String) {
        let address = ask(host, target).unwrap().unwrap();
        (address.way, address.target.map(|(_, port)| port.number()), address.rest)
    }

    #[test]
    fn sites() {
        let site = |rest: &str| (Way::Site, Some(80), rest.to_owned());
        for host in [
            format!("80-{ID}.localhost"),
            format!("80-{ID}.LOCALHOST:7878"),
            format!("80-{}.p.test:443", ID.to_uppercase()),
        ] {
            assert_eq!(found(&host, "/"), site("/"), "{host}");
        }
        let host = format!("80-{ID}.localhost");
        // What would be the API's, anywhere else, is the guest's here.
        for target in ["/v1/sandboxes", "//v1/me", "/p/x", "/..%2f..%2fhealthz?a=b", "/healthz"] {
            assert_eq!(found(&host, target), site(target), "{target}");
        }
        let absolute = format!("http://{host}/v1/me");
        assert_eq!(found(&host, &absolute), site("/v1/me"));
    }

    #[test]
    fn a_name_that_looks_like_a_sandbox_is_never_the_api() {
        for host in [
            format!("80-{ID}.evil.test"),
            format!("80-{ID}"),
            format!("0-{ID}.localhost"),
            format!("22-{ID}.localhost"),
            format!("65536-{ID}.localhost"),
            format!("080-{ID}.localhost"),
            format!("http-{ID}.localhost"),
            format!("-{ID}.localhost"),
            format!("{ID}.localhost"),
            format!("80-80-{ID}.localhost"),
            format!("80-{ID}.localhost.:80"),
            format!("80-{ID}.localhost:80:80"),
        ] {
            let asked = ask(&host, "/v1/sandboxes");
            assert!(names_a_sandbox(&host), "{host}");
            let ours = host.ends_with(":80:80");
            assert!(asked.is_err() || ours, "{host}: {asked:?}");
        }
        for host in ["localhost", "127.0.0.1:80", "[::1]", "x-y.localhost", "", "é"] {
            assert!(!names_a_sandbox(host), "{host}");
            assert_eq!(ask(host, "/v1/me").unwrap(), None);
        }
    }

    #[test]
    fn two_names_are_none() {
        let site = Site::new("127.0.0.1:7878".parse().unwrap(), &[]);
        let ours = format!("80-{ID}.localhost");
        let mut headers = HeaderMap::new();
        headers.insert(header::HOST, "localhost".parse().unwrap());
        let absolute: Uri = format!("http://{ours}/v1/me").parse().unwrap();
        assert!(of(&absolute, &headers, &site).is_err());
        headers.append(header::HOST, ours.parse().unwrap());
        assert!(of(&Uri::from_static("/v1/me"), &headers, &site).is_err());
        headers.remove(header::HOST);
        assert!(of(&absolute, &headers, &site).is_err());
        headers.insert(header::HOST, ours.parse().unwrap());
        assert!(of(&Uri::from_static("http://localhost/v1/me"), &headers, &site).is_err());
        assert!(of(&Uri::from_static("*"), &headers, &site).is_err());
    }

    #[test]
    fn paths() {
        let path = |rest: &str| (Way::Path, Some(80), rest.to_owned());
        for (inside, rest) in [
            ("", "/"),
            ("/", "/"),
            ("/a/b?c=d", "/a/b?c=d"),
            ("//a", "//a"),
            ("/../../../me", "/../../../me"),
            ("/%2e%2e/%2e%2e", "/%2e%2e/%2e%2e"),
            ("?x=1", "/?x=1"),
        ] {
            let target = format!("/v1/sandboxes/{ID}/proxy/80{inside}");
            assert_eq!(found("localhost", &target), path(rest), "{inside}");
        }
        let address = ask("localhost", "/p/pv1.x.y/a?b").unwrap().unwrap();
        assert_eq!((address.way, address.token.as_str()), (Way::Link, "pv1.x.y"));
        assert_eq!((address.prefix.as_str(), address.rest.as_str()), ("/p/pv1.x.y", "/a?b"));
    }

    #[test]
    fn what_is_spelt_otherwise_names_no_port() {
        for port in
            ["0", "22", "65536", "%31", "%38%30", "080", "+80", "80%2f..%2f..", "80%00", "http", ""]
        {
            let asked = ask("localhost", &format!("/v1/sandboxes/{ID}/proxy/{port}/x"));
            assert_eq!(asked.unwrap_err().status, StatusCode::BAD_REQUEST, "{port:?}");
        }
        let asked = ask("localhost", &format!("/v1/sandboxes/{ID}/proxy"));
        assert_eq!(asked.unwrap_err().status, StatusCode::BAD_REQUEST);
        assert!(ask("localhost", "/v1/sandboxes/x/proxy/80/").is_err());
        for api in [
            "/v1/sandboxes",
            "/v1/sandboxes/",
            &format!("/v1/sandboxes/{ID}/exec"),
            &format!("/v1//sandboxes/{ID}/proxy/80/"),
            &format!("/v1/sandboxes/{ID}//proxy/80/"),
            &format!("/v1/sandboxes/{ID}/%70roxy/80/"),
            &format!("//v1/sandboxes/{ID}/proxy/80/"),
            "/px/y",
            "/%70/x",
        ] {
            assert_eq!(ask("localhost", api).unwrap(), None, "{api}");
        }
    }
}
