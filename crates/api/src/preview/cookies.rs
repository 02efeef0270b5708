//! Cookies, both ways.
//!
//! Ours is the only one that opens anything, and it never reaches a guest. Those of a guest stay with
//! the one host that set them: a `Domain` would give them to every sandbox, and to the API.

use axum::http::{HeaderMap, HeaderValue, header};

/// Name of the cookie that holds a token.
pub(super) const OURS: &str = "panda_preview";
/// Most tokens that are looked at: a page of another sandbox may have added its own.
const MAX_TOKENS: usize = 8;

/// The tokens that a request brings in its cookies.
pub(super) fn tokens(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    pairs(headers).filter(|(name, _)| *name == OURS).map(|(_, value)| value).take(MAX_TOKENS)
}

/// The cookies that are the guest's, as one header.
pub(super) fn of_guest(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut kept = String::new();
    for (name, value) in pairs(headers).filter(|(name, _)| *name != OURS) {
        if !kept.is_empty() {
            kept.push_str("; ");
        }
        kept.push_str(name);
        if !value.is_empty() || !name.is_empty() {
            kept.push('=');
        }
        kept.push_str(value);
    }
    (!kept.is_empty()).then(|| HeaderValue::from_str(&kept).ok()).flatten()
}

fn pairs(headers: &HeaderMap) -> impl Iterator<Item = (&str, &str)> {
    let texts = headers.get_all(header::COOKIE).into_iter().filter_map(|v| v.to_str().ok());
    texts.flat_map(|text| text.split(';')).filter_map(|pair| {
        let pair = pair.trim();
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (!pair.is_empty()).then(|| (name.trim(), value.trim()))
    })
}

/// What a guest sets, for its own host alone; `None` when it may not be set at all.
pub(super) fn tamed(set: &HeaderValue) -> Option<HeaderValue> {
    // A cookie of bytes that are no text is one that clients read in different ways.
    let set = set.to_str().ok()?;
    let mut parts = set.split(';');
    let pair = parts.next()?;
    let name = pair.split_once('=').map_or(pair, |(name, _)| name).trim();
    if name.eq_ignore_ascii_case(OURS) {
        return None;
    }
    let mut kept = pair.trim().to_owned();
    for part in parts.map(str::trim).filter(|part| !part.is_empty()) {
        let attribute = part.split_once('=').map_or(part, |(name, _)| name).trim();
        if !attribute.eq_ignore_ascii_case("domain") {
            kept.push_str("; ");
            kept.push_str(part);
        }
    }
    HeaderValue::from_str(&kept).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::COOKIE, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn ours_are_taken_out_and_the_others_kept() {
        let headers = sent(&["a=1; panda_preview=t1;b=x=y", "panda_preview=t2", " c ; ; d="]);
        assert_eq!(tokens(&headers).collect::<Vec<_>>(), ["t1", "t2"]);
        assert_eq!(of_guest(&headers).unwrap(), "a=1; b=x=y; c=; d=");
        assert_eq!(of_guest(&sent(&["panda_preview=t"])), None);
        assert_eq!(of_guest(&sent(&[])), None);
        let many = vec!["panda_preview=t"; 100];
        assert_eq!(tokens(&sent(&many)).count(), MAX_TOKENS);
    }

    #[test]
    fn a_guest_sets_cookies_for_itself_only() {
        let tamed = |text: &str| {
            let tamed = super::tamed(&HeaderValue::from_str(text).unwrap());
            tamed.map(|value| value.to_str().unwrap().to_owned())
        };
        for (set, kept) in [
            ("a=1", "a=1"),
            ("a=1; Path=/; HttpOnly", "a=1; Path=/; HttpOnly"),
            ("a=1; Domain=localhost; Path=/", "a=1; Path=/"),
            ("a=1;dOmAiN = .example.com;Secure", "a=1; Secure"),
            ("a=1; Domain; domain=x;domain=y", "a=1"),
            ("a=Domain=x; Max-Age=3", "a=Domain=x; Max-Age=3"),
        ] {
            assert_eq!(tamed(set).as_deref(), Some(kept), "{set}");
        }
        for ours in ["panda_preview=x", " Panda_Preview =x; Path=/", "panda_preview"] {
            assert_eq!(tamed(ours), None, "{ours}");
        }
        assert_eq!(super::tamed(&HeaderValue::from_bytes(b"a=\xff").unwrap()), None);
    }
}
