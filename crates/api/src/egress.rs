//! Reading what a sandbox may reach. The invariant: **a request that wants to say something about
//! it is understood or refused**, so that nobody believes in a limit that is not there.
//!
//! A policy is read from the text of the body, in which a member that occurs twice still does. And
//! while unknown members of a request are ignored, one that was probably meant to be `egress`, or
//! is what others call it, is not.

use std::fmt;

use pandastack_policy::{Policy, is_similar};
use serde::Deserialize;
use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, Visitor};

use crate::error::ApiError;

const NAME: &str = "egress";

/// Words in the names of members that others have for this.
const WORDS: [&str; 8] =
    ["egress", "network", "internet", "firewall", "outbound", "allowlist", "denylist", "blocklist"];
/// Whole names.
const NAMES: [&str; 8] = [
    "allow",
    "deny",
    "allowout",
    "denyout",
    "allowhosts",
    "allowedhosts",
    "alloweddomains",
    "alloweddestinations",
];

/// The policy that a request asks for in its member `egress`, if it has one. `text` is an object
/// or nothing.
pub(crate) fn asked(text: &[u8]) -> Result<Option<Policy>, ApiError> {
    if text.trim_ascii().is_empty() {
        return Ok(None);
    }
    read::<Asked>(text).map(|asked| asked.0)
}

/// The policy that a whole body is.
pub(crate) fn policy(text: &[u8]) -> Result<Policy, ApiError> {
    if text.trim_ascii().is_empty() {
        let text = "egress: the request body must be \"none\" or an object with a list \"allow\"";
        return Err(ApiError::bad_request(text));
    }
    read(text)
}

fn read<T: for<'de> Deserialize<'de>>(text: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(text).map_err(|error| {
        let text = error.to_string();
        if !error.is_data() {
            return ApiError::bad_request(format!("invalid JSON: {text}"));
        }
        // The policy says where it is in words; lines and columns are of no use besides.
        let place = format!(" at line {} column {}", error.line(), error.column());
        ApiError::bad_request(text.strip_suffix(&place).unwrap_or(&text))
    })
}

/// What the members of an object ask for.
struct Asked(Option<Policy>);

impl<'de> Deserialize<'de> for Asked {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Members)
    }
}

struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Asked;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Asked, A::Error> {
        let mut asked = None;
        while let Some(name) = members.next_key::<String>()? {
            if name == NAME {
                if asked.replace(members.next_value()?).is_some() {
                    return Err(A::Error::custom("egress is given twice"));
                }
            } else if is_meant(&name) {
                // What a stranger wrote is shown, but not all of it.
                let shown: String = name.chars().take(32).collect();
                return Err(A::Error::custom(format!(
                    "unknown field {shown:?}; what a sandbox may reach is said in \"egress\""
                )));
            } else {
                members.next_value::<IgnoredAny>()?;
            }
        }
        Ok(Asked(asked))
    }
}

/// Whether a member that is none of ours was meant to be `egress`.
fn is_meant(name: &str) -> bool {
    let letters = name.chars().filter(|c| c.is_alphanumeric());
    let plain: String = letters.flat_map(char::to_lowercase).collect();
    is_similar(NAME, &plain)
        || WORDS.iter().any(|word| plain.contains(word))
        || NAMES.contains(&plain.as_str())
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use super::*;

    fn refusal(text: &str) -> String {
        let error = asked(text.as_bytes()).unwrap_err();
        assert_eq!(error.status, StatusCode::BAD_REQUEST);
        error.text
    }

    #[test]
    fn a_request_says_it_once_or_not_at_all() {
        for text in ["", " \n", "{}", r#"{"template":"base","metadata":{"egress":"x"},"zzz":[{}]}"#]
        {
            assert_eq!(asked(text.as_bytes()).unwrap(), None, "{text}");
        }
        for none in [r#"{"egress":"none"}"#, r#"{"a":1,"egress":{"allow":[]},"b":2}"#] {
            assert_eq!(asked(none.as_bytes()).unwrap(), Some(Policy::default()), "{none}");
        }
        let open = asked(br#"{"egress":{"allow":[{"host":"pypi.org"}]}}"#).unwrap().unwrap();
        assert_eq!(open.allow().len(), 1);
        let twice = r#"{"egress":"none","egress":{"allow":[{"host":"*"}]}}"#;
        assert_eq!(refusal(twice), "egress is given twice");
        let twice = r#"{"egress":{"allow":[],"allow":[{"host":"*"}]}}"#;
        assert_eq!(refusal(twice), "egress: the field \"allow\" is given twice");
    }

    #[test]
    fn errors_say_where_in_words() {
        for (text, error) in [
            (
                r#"{"egress":null}"#,
                "egress: this must be \"none\" or an object with a list \"allow\"",
            ),
            (
                r#"{"egress":{"allow":[{"host":"pypi.org","ports":[0]}]}}"#,
                "egress/allow/0/ports/0: a port is 1 to 65535, a range is \"8000-8999\", and UDP is \"123/udp\"",
            ),
            (
                r#"{"egress":{"Allow":[]}}"#,
                "egress: unknown field \"Allow\"; did you mean \"allow\"?",
            ),
        ] {
            assert_eq!(refusal(text), error, "{text}");
        }
        assert!(refusal(r#"{"egress":"#).starts_with("invalid JSON: EOF"));
        let wrong = policy(br#"{"egress":"none"}"#).unwrap_err().text;
        assert!(
            wrong.starts_with("egress: unknown field \"egress\"; the fields here are"),
            "{wrong}"
        );
        assert!(policy(b"").unwrap_err().text.contains("the request body must be"));
        assert_eq!(policy(b" \"none\"\n").unwrap(), Policy::default());
        assert!(policy(b"\"none\" x").unwrap_err().text.starts_with("invalid JSON: trailing"));
    }

    #[test]
    fn a_name_that_was_meant_for_it_is_refused() {
        for name in [
            "Egress",
            "EGRESS",
            "egres",
            "egrss",
            "eggress",
            "egress_policy",
            "egressRules",
            "network",
            "networkPolicy",
            "block_network",
            "allow_internet_access",
            "allow",
            "Deny",
            "allowOut",
            "network_allow_list",
            "cidr-allowlist",
            "firewall",
        ] {
            let text = refusal(&format!(r#"{{"template":"base",{name:?}:{{"allow":[]}}}}"#));
            let shown = format!("unknown field {name:?}; what a sandbox may reach is said in");
            assert!(text.starts_with(&shown), "{text}");
        }
        let long = refusal(&format!(r#"{{"{}egress":1}}"#, "x".repeat(100_000)));
        assert!(long.len() < 200, "{long}");
    }

    #[test]
    fn what_libraries_send_is_none_of_those() {
        for name in [
            "template",
            "cpu",
            "vcpus",
            "memory_mb",
            "disk_gb",
            "args",
            "metadata",
            "ttl_seconds",
            "persistent",
            "from_snapshot",
            "volumes",
            "count",
            "mode",
            "workspace",
            "label",
            "env",
            "size",
            "region",
            "address",
            "address_mb",
        ] {
            assert!(!is_meant(name), "{name}");
        }
    }
}
