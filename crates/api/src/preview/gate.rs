//! Who may reach a port.
//!
//! ```text
//!   public port ─────────────────────────────────────────────▶ in
//!   API key, traffic token   Authorization, X-Panda-Traffic-Token ─▶ in
//!   signed token             the same, and links, within its paths ─▶ in
//!   any token                ?token= of a site ─▶ cookie, and the address without it
//!                            cookie of a site, from its own pages ─▶ in
//! ```
//!
//! The cookie is the one permission that a browser sends by itself, so it counts only for requests
//! that the site's own pages make or that are a visit: another sandbox's page may not use it.

use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use pandastack_sandbox::{NotFound, Port, Sandbox};
use pandastack_types::SandboxId;
use std::sync::Arc;
use time::OffsetDateTime;

use super::address::{Address, Way};
use super::cookies;
use super::headers::{TRAFFIC_TOKEN, is_upgrade};
use super::token::{Claims, SIGNED, TRAFFIC};
use crate::error::ApiError;
use crate::{Api, auth};

/// A request that may go to a guest.
pub(super) struct In {
    pub(super) sandbox: Arc<Sandbox>,
    pub(super) port: Port,
    /// Path and query for the guest, without a token of ours.
    pub(super) rest: String,
}

/// What becomes of a request.
pub(super) enum Passed {
    In(In),
    /// The token is in a cookie now.
    Redirect(Response),
}

/// Why a token opens nothing.
enum Refusal {
    Bad,
    Path,
}

/// Decides about a request.
pub(super) fn pass(api: &Api, address: &Address, request: &Request) -> Result<Passed, ApiError> {
    let now = OffsetDateTime::now_utc();
    let Some((id, port)) = address.target else { return follow(api, address, now) };
    let sandbox = match api.manager.get(id) {
        Ok(sandbox) => sandbox,
        // Under the API, only holders of a key hear what there is.
        Err(missing) if address.way == Way::Site => return Err(missing.into()),
        Err(missing) => return Err(unknown(api, request.headers(), missing)?),
    };
    let gate = Gate { api, sandbox: &sandbox, port, now };
    let (rest, token) = match address.way {
        Way::Site => take_token(&address.rest),
        _ => (address.rest.clone(), None),
    };
    let passed = In { sandbox: sandbox.clone(), port, rest };
    if let Some(token) = &token {
        let life = gate.opens(token, &passed.rest).map_err(|refusal| refused(&refusal, port))?;
        let visit = matches!(*request.method(), Method::GET | Method::HEAD);
        if visit && !is_upgrade(request.headers()) {
            return Ok(Passed::Redirect(redirect(address, &passed.rest, token, life)));
        }
        return Ok(Passed::In(passed));
    }
    if sandbox.ingress().is_public(port) {
        return Ok(Passed::In(passed));
    }
    match gate.shown(address, request.headers(), &passed.rest)? {
        true => Ok(Passed::In(passed)),
        false => Err(closed(id, port)),
    }
}

struct Gate<'a> {
    api: &'a Api,
    sandbox: &'a Arc<Sandbox>,
    port: Port,
    now: OffsetDateTime,
}

impl Gate<'_> {
    /// Whether the request shows something that opens the port.
    fn shown(
        &self,
        address: &Address,
        headers: &HeaderMap,
        target: &str,
    ) -> Result<bool, ApiError> {
        let mut refusal = None;
        let sent = headers.get(TRAFFIC_TOKEN).and_then(|value| value.to_str().ok());
        for token in auth::bearer(headers).into_iter().chain(sent) {
            if self.api.keys.verify(token).map_err(auth::unreadable)? {
                return Ok(true);
            }
            match self.opens(token, target) {
                Ok(_) => return Ok(true),
                Err(why) => refusal = Some(why),
            }
        }
        let cookies = cookies::tokens(headers).filter(|_| address.way == Way::Site);
        for token in cookies {
            match self.opens(token, target) {
                Ok(_) if is_foreign(headers, address) => {
                    let text = "pages of other sites may not use this site's permission";
                    return Err(ApiError::new(StatusCode::FORBIDDEN, text));
                }
                Ok(_) => return Ok(true),
                Err(why) => refusal = refusal.or(Some(why)),
            }
        }
        match refusal {
            Some(refusal) => Err(refused(&refusal, self.port)),
            None => Ok(false),
        }
    }

    /// For how many seconds a token opens the port; `None` for as long as there is the sandbox.
    fn opens(&self, token: &str, target: &str) -> Result<Option<i64>, Refusal> {
        let ours = (self.sandbox.id(), self.sandbox.ingress().generation());
        if token.starts_with(TRAFFIC) {
            let right = self.api.signer.is_traffic(token, ours);
            return if right { Ok(None) } else { Err(Refusal::Bad) };
        }
        let claims = self.api.signer.verify(token, self.now).ok_or(Refusal::Bad)?;
        let of_port = claims.port() == Ok(self.port);
        if (claims.sandbox, claims.generation) != ours || !of_port {
            return Err(Refusal::Bad);
        }
        if !claims.covers(target) {
            return Err(Refusal::Path);
        }
        Ok(Some(claims.left(self.now).whole_seconds()))
    }
}

/// A link: its token says where it leads.
fn follow(api: &Api, address: &Address, now: OffsetDateTime) -> Result<Passed, ApiError> {
    let bad = || {
        let text = "this link is not valid, or its time is up; ask for a new one";
        ApiError::new(StatusCode::UNAUTHORIZED, text)
    };
    let claims: Claims = api.signer.verify(&address.token, now).ok_or_else(bad)?;
    let port = claims.port().map_err(|_| bad())?;
    let sandbox = api.manager.get(claims.sandbox)?;
    if sandbox.ingress().generation() != claims.generation {
        return Err(bad());
    }
    if !claims.covers(&address.rest) {
        return Err(refused(&Refusal::Path, port));
    }
    Ok(Passed::In(In { sandbox, port, rest: address.rest.clone() }))
}

/// Takes a token of ours out of a query. One of another form is the guest's own business.
fn take_token(target: &str) -> (String, Option<String>) {
    let Some((path, query)) = target.split_once('?') else { return (target.to_owned(), None) };
    let ours = |pair: &&str| {
        let value = pair.strip_prefix("token=");
        value.is_some_and(|value| value.starts_with(TRAFFIC) || value.starts_with(SIGNED))
    };
    let token = query.split('&').find(ours);
    let token = token.and_then(|pair| pair.strip_prefix("token=")).map(str::to_owned);
    if token.is_none() {
        return (target.to_owned(), None);
    }
    let kept: Vec<&str> = query.split('&').filter(|pair| !ours(pair)).collect();
    let target =
        if kept.is_empty() { path.to_owned() } else { format!("{path}?{}", kept.join("&")) };
    (target, token)
}

/// Puts the token in a cookie of this host and takes it out of the address.
fn redirect(address: &Address, rest: &str, token: &str, life: Option<i64>) -> Response {
    let mut cookie = format!("{}={token}; Path=/; HttpOnly; SameSite=Lax", cookies::OURS);
    if let Some(seconds) = life {
        cookie.push_str(&format!("; Max-Age={seconds}"));
    }
    if address.scheme == "https" {
        cookie.push_str("; Secure");
    }
    // Whole, because a path may begin with two slashes.
    let location = format!("{}://{}{rest}", address.scheme, address.authority);
    let mut response = StatusCode::SEE_OTHER.into_response();
    let headers = response.headers_mut();
    for (name, value) in [
        (header::SET_COOKIE, cookie.as_str()),
        (header::LOCATION, location.as_str()),
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
    ] {
        // A token of ours and an address that was one: both are plain.
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    }
    response
}

/// Whether a browser says that a page of another site makes this request.
fn is_foreign(headers: &HeaderMap, address: &Address) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let own = |origin: &str| {
        let site = origin.split_once("://").map(|(_, site)| site.to_ascii_lowercase());
        site.as_deref() == Some(address.authority.as_str())
    };
    if text("origin").is_some_and(|origin| !own(origin)) {
        return true;
    }
    let elsewhere = matches!(text("sec-fetch-site"), Some("cross-site" | "same-site"));
    elsewhere && text("sec-fetch-mode") != Some("navigate")
}

fn closed(id: SandboxId, port: Port) -> ApiError {
    let text = format!(
        "port {port} of this sandbox is private: send the API key (Authorization: Bearer) or the \
         sandbox's traffic token (X-Panda-Traffic-Token), or open an address made by POST \
         /v1/sandboxes/{id}/preview-token"
    );
    ApiError::new(StatusCode::UNAUTHORIZED, text)
}

fn refused(refusal: &Refusal, port: Port) -> ApiError {
    match refusal {
        Refusal::Bad => {
            let text = format!(
                "this token does not open port {port}, or its time is up; ask for a new one"
            );
            ApiError::new(StatusCode::UNAUTHORIZED, text)
        }
        Refusal::Path => {
            let text = "this token does not open that path; ask for one whose paths include it";
            ApiError::new(StatusCode::FORBIDDEN, text)
        }
    }
}

/// What is said of a sandbox that is not there.
fn unknown(api: &Api, headers: &HeaderMap, missing: NotFound) -> Result<ApiError, ApiError> {
    let key = auth::bearer(headers).unwrap_or_default();
    let known = api.keys.verify(key).map_err(auth::unreadable)?;
    Ok(if known { missing.into() } else { auth::no_key() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_of_ours_leave_the_address_and_others_stay() {
        for (target, rest, token) in [
            ("/a", "/a", None),
            ("/a?token=secret&b=1", "/a?token=secret&b=1", None),
            ("/a?token=pdt_x", "/a", Some("pdt_x")),
            ("/a?b=1&token=pv1.x.y&c", "/a?b=1&c", Some("pv1.x.y")),
            ("/a?token=pdt_x&token=pdt_y", "/a", Some("pdt_x")),
            ("//a?token=pdt_x&", "//a?", Some("pdt_x")),
        ] {
            assert_eq!(take_token(target), (rest.to_owned(), token.map(str::to_owned)), "{target}");
        }
    }

    #[test]
    fn pages_of_other_sites_are_told_from_visits() {
        let address = Address {
            way: Way::Site,
            target: None,
            token: String::new(),
            authority: "80-x.localhost:1".to_owned(),
            scheme: "http",
            prefix: String::new(),
            rest: "/".to_owned(),
        };
        let foreign = |pairs: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.insert(*name, HeaderValue::from_static(value));
            }
            is_foreign(&headers, &address)
        };
        assert!(!foreign(&[]));
        assert!(!foreign(&[("origin", "http://80-x.localhost:1")]));
        assert!(!foreign(&[("sec-fetch-site", "same-origin")]));
        assert!(!foreign(&[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")]));
        for origin in ["null", "http://80-y.localhost:1", "http://80-x.localhost", "x"] {
            assert!(foreign(&[("origin", origin)]), "{origin}");
        }
        assert!(foreign(&[("sec-fetch-site", "same-site"), ("sec-fetch-mode", "websocket")]));
        assert!(foreign(&[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")]));
    }
}
