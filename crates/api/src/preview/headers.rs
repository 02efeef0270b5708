//! Headers on their way to a guest and back.
//!
//! A guest gets what the client said to *it*: nothing about the connection to us, nothing that opens
//! a port or the API, and as the client's place what we know ourselves. A client gets what the guest
//! said, without what would reach beyond the guest's own site: other hosts' cookies, the transport of
//! the host, or, where the guest has no site of its own, the origin of the API.

use std::net::IpAddr;

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};

use super::address::{Address, Way};
use super::cookies;
use super::token::{SIGNED, TRAFFIC};
use pandastack_sandbox::Port;

/// The header that brings a token.
pub(super) const TRAFFIC_TOKEN: &str = "x-panda-traffic-token";

/// About one connection, not about the message.
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
/// What a client says of its way here. We say it ourselves.
const PLACE: [&str; 5] = ["forwarded", "via", "x-real-ip", "x-client-ip", "true-client-ip"];
/// Beginnings of headers that are ours, and of those about the way.
const OURS: [&str; 3] = ["x-panda-", "x-pandastack-", "x-forwarded-"];
/// Beginnings of keys and tokens.
const SECRETS: [&str; 3] = ["pds_", TRAFFIC, SIGNED];
/// What a guest may not say of the host it is reached by.
const OF_HOST: [&str; 5] =
    ["strict-transport-security", "alt-svc", "expect-ct", "public-key-pins", "x-request-id"];
/// What a guest may not say of an origin that is the API's, too.
const OF_ORIGIN: [&str; 3] = ["clear-site-data", "service-worker-allowed", "set-cookie"];
/// Gives a page of a guest an origin of its own where it comes from the API's address.
const SANDBOX: &str = "sandbox allow-downloads allow-forms allow-modals allow-popups allow-scripts";

/// Whether a request asks for a WebSocket. Nothing else is upgraded.
pub(super) fn is_upgrade(headers: &HeaderMap) -> bool {
    let websocket = headers.get(header::UPGRADE);
    named(headers).any(|name| name.eq_ignore_ascii_case("upgrade"))
        && websocket.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// What `Connection` names.
fn named(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let texts = headers.get_all(header::CONNECTION).into_iter().filter_map(|v| v.to_str().ok());
    texts.flat_map(|text| text.split(',')).map(str::trim)
}

fn is_about_the_connection(name: &HeaderName, named: &[String]) -> bool {
    HOP_BY_HOP.contains(&name.as_str()) || named.iter().any(|other| other == name.as_str())
}

fn names(headers: &HeaderMap) -> Vec<String> {
    named(headers).map(str::to_ascii_lowercase).collect()
}

/// Headers of a client as a guest gets them.
pub(super) fn to_guest(
    sent: &HeaderMap,
    address: &Address,
    port: Port,
    peer: Option<IpAddr>,
) -> HeaderMap {
    let named = names(sent);
    let mut headers = HeaderMap::with_capacity(sent.len() + 4);
    for (name, value) in sent {
        let text = name.as_str();
        let dropped = is_about_the_connection(name, &named)
            || PLACE.contains(&text)
            || OURS.iter().any(|ours| text.starts_with(ours))
            || is_secret(value)
            || matches!(*name, header::HOST | header::COOKIE | header::EXPECT)
            // Of the body, which says itself how long it is.
            || *name == header::CONTENT_LENGTH
            // A link has its token in it.
            || (*name == header::REFERER && address.way == Way::Link);
        if !dropped {
            headers.append(name.clone(), value.clone());
        }
    }
    if address.way == Way::Site
        && let Some(cookies) = cookies::of_guest(sent)
    {
        headers.insert(header::COOKIE, cookies);
    }
    let upgrade = is_upgrade(sent);
    if upgrade {
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    }
    let connection = if upgrade { "upgrade" } else { "close" };
    headers.insert(header::CONNECTION, HeaderValue::from_static(connection));
    // A site keeps its name, so that what the guest builds of it leads back here.
    let host = match address.way {
        Way::Site => address.authority.clone(),
        Way::Path | Way::Link => format!("localhost:{port}"),
    };
    let place = [
        (header::HOST, host),
        (HeaderName::from_static("x-forwarded-host"), address.authority.clone()),
        (HeaderName::from_static("x-forwarded-proto"), address.scheme.to_owned()),
        (
            HeaderName::from_static("x-forwarded-for"),
            peer.map(|ip| ip.to_canonical().to_string()).unwrap_or_default(),
        ),
    ];
    for (name, value) in place {
        if let Ok(value) = HeaderValue::from_str(&value)
            && !value.is_empty()
        {
            headers.insert(name, value);
        }
    }
    headers
}

/// Whether a value holds something that opens a port or the API, under whatever name.
fn is_secret(value: &HeaderValue) -> bool {
    let bytes = value.as_bytes();
    SECRETS.iter().any(|mark| bytes.windows(mark.len()).any(|part| part == mark.as_bytes()))
}

/// Headers of a guest as a client gets them.
pub(super) fn from_guest(said: &HeaderMap, address: &Address, port: Port) -> HeaderMap {
    let named = names(said);
    let mut headers = HeaderMap::with_capacity(said.len() + 2);
    for (name, value) in said {
        let text = name.as_str();
        let own_origin = address.way == Way::Site;
        let dropped = is_about_the_connection(name, &named)
            || OF_HOST.contains(&text)
            || (!own_origin && OF_ORIGIN.contains(&text))
            || (*name == header::REFERRER_POLICY && address.way == Way::Link);
        if dropped {
            continue;
        }
        let value = match *name {
            header::SET_COOKIE => cookies::tamed(value),
            header::LOCATION if !own_origin => Some(below(value, address, port)),
            _ => Some(value.clone()),
        };
        if let Some(value) = value {
            headers.append(name.clone(), value);
        }
    }
    if address.way != Way::Site {
        // Appended: with a policy of the guest's own, both hold.
        let policy = HeaderValue::from_static(SANDBOX);
        headers.append(header::CONTENT_SECURITY_POLICY, policy);
    }
    if address.way == Way::Link {
        let policy = HeaderValue::from_static("no-referrer");
        headers.insert(header::REFERRER_POLICY, policy);
    }
    headers
}

/// Where a guest sends the client, as an address below its prefix.
fn below(location: &HeaderValue, address: &Address, port: Port) -> HeaderValue {
    let own = format!("http://localhost:{port}");
    let path = location.to_str().ok().and_then(|text| {
        let path = text.strip_prefix(&own).unwrap_or(text);
        let own_path = path.starts_with('/') && !path.starts_with("//");
        (own_path && !path.contains('\\')).then_some(path)
    });
    let whole = path.map(|path| format!("{}{path}", address.prefix));
    whole.and_then(|whole| HeaderValue::from_str(&whole).ok()).unwrap_or_else(|| location.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(way: Way) -> Address {
        Address {
            way,
            target: None,
            token: String::new(),
            authority: "80-x.localhost:1".to_owned(),
            scheme: "http",
            prefix: "/p/t".to_owned(),
            rest: "/".to_owned(),
        }
    }

    fn map(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn sent(way: Way, pairs: &[(&str, &str)]) -> HeaderMap {
        let peer = Some("::ffff:192.0.2.7".parse().unwrap());
        to_guest(&map(pairs), &address(way), "80".parse().unwrap(), peer)
    }

    fn answered(way: Way, pairs: &[(&str, &str)]) -> HeaderMap {
        from_guest(&map(pairs), &address(way), "80".parse().unwrap())
    }

    #[test]
    fn a_guest_gets_nothing_that_opens_anything() {
        let key = format!("Bearer pds_{}", "k".repeat(40));
        let headers = sent(
            Way::Site,
            &[
                ("authorization", &key),
                ("x-api-key", &key[7..]),
                ("x-whatever", &key[7..]),
                ("x-panda-traffic-token", "pdt_x"),
                ("x-pandastack-anything", "x"),
                ("cookie", "panda_preview=pdt_x; own=1"),
                ("referer", "http://80-x.localhost:1/?token=pdt_x"),
                ("accept", "text/html"),
            ],
        );
        for (name, value) in &headers {
            let text = value.to_str().unwrap();
            assert!(!text.contains("pds_") && !text.contains("pdt_"), "{name}: {text}");
        }
        assert_eq!(headers["cookie"], "own=1");
        assert_eq!(headers["accept"], "text/html");
        let names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        assert!(!names.iter().any(|name| name.contains("panda")), "{names:?}");
        // What is the guest's own stays: applications have keys, too.
        let headers = sent(Way::Site, &[("authorization", "Bearer x"), ("x-api-key", "own")]);
        assert_eq!(headers["authorization"], "Bearer x");
        assert_eq!(headers["x-api-key"], "own");
    }

    #[test]
    fn what_is_about_the_connection_ends_here() {
        let headers = sent(
            Way::Site,
            &[
                ("connection", "Keep-Alive, X-Secret"),
                ("connection", "close"),
                ("keep-alive", "5"),
                ("x-secret", "s"),
                ("te", "trailers"),
                ("trailer", "x"),
                ("transfer-encoding", "chunked"),
                ("proxy-authorization", "x"),
                ("upgrade", "h2c"),
                ("expect", "100-continue"),
                ("content-length", "5"),
            ],
        );
        assert_eq!(headers["connection"], "close");
        assert_eq!(headers.len(), 5, "{headers:?}");
        let headers = answered(
            Way::Site,
            &[("connection", "x-a"), ("x-a", "1"), ("keep-alive", "1"), ("etag", "e")],
        );
        assert_eq!(headers, map(&[("etag", "e")]));
    }

    #[test]
    fn the_place_of_a_client_is_what_we_know() {
        let headers = sent(
            Way::Path,
            &[
                ("host", "evil"),
                ("x-forwarded-for", "1.2.3.4"),
                ("x-forwarded-host", "evil"),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-anything", "x"),
                ("forwarded", "for=1.2.3.4"),
                ("x-real-ip", "1.2.3.4"),
            ],
        );
        let expected = map(&[
            ("connection", "close"),
            ("host", "localhost:80"),
            ("x-forwarded-host", "80-x.localhost:1"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-for", "192.0.2.7"),
        ]);
        assert_eq!(headers, expected);
        assert_eq!(sent(Way::Site, &[])["host"], "80-x.localhost:1");
    }

    #[test]
    fn websockets_and_no_other_protocol() {
        let headers = sent(Way::Site, &[("connection", "Upgrade"), ("upgrade", "WebSocket")]);
        assert_eq!(headers["connection"], "upgrade");
        assert_eq!(headers["upgrade"], "websocket");
        for other in ["h2c", "websocket, h2c", "tcp", ""] {
            assert!(!is_upgrade(&map(&[("connection", "upgrade"), ("upgrade", other)])), "{other}");
        }
        assert!(!is_upgrade(&map(&[("upgrade", "websocket")])));
    }

    #[test]
    fn a_guest_says_nothing_about_others() {
        let said = [
            ("set-cookie", "a=1; Domain=localhost"),
            ("set-cookie", "panda_preview=x"),
            ("strict-transport-security", "max-age=1; includeSubDomains"),
            ("alt-svc", "h3=\":1\""),
            ("clear-site-data", "*"),
            ("x-request-id", "x"),
        ];
        let site = answered(Way::Site, &said);
        assert_eq!(site, map(&[("set-cookie", "a=1"), ("clear-site-data", "*")]));
        for way in [Way::Path, Way::Link] {
            let headers = answered(way, &said);
            assert!(headers["content-security-policy"].to_str().unwrap().starts_with("sandbox "));
            let other = |name: &HeaderName| {
                !matches!(*name, header::CONTENT_SECURITY_POLICY | header::REFERRER_POLICY)
            };
            assert!(!headers.keys().any(other), "{headers:?}");
        }
        let link = answered(
            Way::Link,
            &[("content-security-policy", "default-src *"), ("referrer-policy", "unsafe-url")],
        );
        assert_eq!(link.get_all("content-security-policy").iter().count(), 2);
        assert_eq!(link["referrer-policy"], "no-referrer");
    }

    #[test]
    fn redirects_stay_below_the_prefix() {
        for (said, heard) in [
            ("/login?x", "/p/t/login?x"),
            ("http://localhost:80/a", "/p/t/a"),
            ("http://localhost:8080/a", "http://localhost:8080/a"),
            ("//evil.test/", "//evil.test/"),
            ("/\\evil.test", "/\\evil.test"),
            ("next", "next"),
            ("https://example.com/", "https://example.com/"),
        ] {
            assert_eq!(answered(Way::Link, &[("location", said)])["location"], heard, "{said}");
            assert_eq!(answered(Way::Site, &[("location", said)])["location"], said);
        }
    }
}
